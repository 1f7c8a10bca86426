//! Stores of other programs, and damaged, newer or missing stores: the error has their path and the remedy, and they
//! stay unchanged.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use scsi_pr_store::{Fault, Store, StoreError, open};
use tempfile::TempDir;

mod support;
use support::{change, changes, unit};

/// A directory for stores.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a place for a store"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn open(&self, kind: &str) -> Result<Arc<dyn Store>, StoreError> {
        self.open_as(kind, "store")
    }

    fn open_as(&self, kind: &str, name: &str) -> Result<Arc<dyn Store>, StoreError> {
        open(&format!("{kind}:{}", self.path(name).display()))
    }

    /// A store with one change of unit "a", which no process has open.
    fn with_store(kind: &str) -> Self {
        let place = Self::new();
        change(&*place.open(kind).expect("a store"), &unit("a")).expect("kept");
        place
    }

    /// Everything there is, by its path.
    fn everything(&self) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
        let (mut found, mut to_visit) = (BTreeMap::new(), vec![self.0.path().to_owned()]);
        while let Some(directory) = to_visit.pop() {
            for entry in fs::read_dir(directory).expect("a directory") {
                let path = entry.expect("an entry").path();
                let kind = path.symlink_metadata().expect("what is there").file_type();
                if kind.is_dir() {
                    to_visit.push(path.clone());
                }
                let content = kind.is_file().then(|| fs::read(&path).expect("its content"));
                found.insert(path, content);
            }
        }
        found
    }

    /// Opening the store is refused, with its path and this text, and leaves everything as it was.
    #[track_caller]
    fn refuses(&self, kind: &str, text: &str) {
        let before = self.everything();
        let error = self.open(kind).err().expect("a refusal");
        refused(&error, &self.path("store"), text);
        assert_eq!(self.everything(), before, "something was changed");
    }
}

/// It is a refusal, with this path and text, and says what to do.
#[track_caller]
fn refused(error: &StoreError, path: &Path, text: &str) {
    let said = error.to_string();
    assert_eq!(error.fault(), Fault::Refused, "{said}");
    assert!(said.contains(text) && said.contains(path.to_str().expect("plain text")), "{said}");
    assert!(said.contains("; "), "nothing to do about it: {said}");
}

#[track_caller]
fn unavailable(error: &StoreError, text: &str) {
    let said = error.to_string();
    assert_eq!(error.fault(), Fault::Unavailable, "{said}");
    assert!(said.contains(text) && said.contains("; "), "{said}");
}

fn overwrite(path: &Path, offset: u64, bytes: &[u8]) {
    fs::OpenOptions::new().write(true).open(path).expect("the file").write_all_at(bytes, offset).expect("written");
}

fn cut(path: &Path, length: u64) {
    fs::OpenOptions::new().write(true).open(path).expect("the file").set_len(length).expect("cut");
}

#[test]
fn what_is_no_database_of_ours_is_refused() {
    let place = Place::new();
    fs::write(place.path("store"), [b'x'; 5000]).expect("written");
    place.refuses("sqlite", "it is not an SQLite database");

    let place = Place::new();
    let other = rusqlite::Connection::open(place.path("store")).expect("a database");
    other.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t (a); INSERT INTO t VALUES (1);").expect("a table");
    // Its log is not to be touched either.
    place.refuses("sqlite", "it is the database of another program");
    drop(other);

    let place = Place::new();
    fs::create_dir(place.path("store")).expect("a directory");
    place.refuses("sqlite", "it is not a regular file");
}

#[test]
fn a_truncated_database_is_refused() {
    for length in [0, 1, 99] {
        let place = Place::with_store("sqlite");
        cut(&place.path("store"), length);
        place.refuses("sqlite", "the file is cut short");
    }
    for length in [100, 4096, 3 * 4096, 4 * 4096 - 1] {
        let place = Place::with_store("sqlite");
        cut(&place.path("store"), length);
        let Err(error) = place.open("sqlite") else { panic!("not refused with {length} bytes") };
        refused(&error, &place.path("store"), "");
        assert_eq!(fs::metadata(place.path("store")).expect("still there").len(), length);
    }
}

#[test]
fn a_damaged_database_is_refused_or_unharmed() {
    let whole = Place::with_store("sqlite");
    let store = whole.open("sqlite").expect("a store");
    let kept = store.load(&unit("a")).expect("kept").reservations;
    drop(store);
    let bytes = fs::read(whole.path("store")).expect("its content");
    let mut refusals = 0;
    // A prime, so that all parts of a page have their turn.
    for at in (0..bytes.len()).step_by(37) {
        let place = Place::new();
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x55;
        fs::write(place.path("store"), &damaged).expect("written");
        let found = place.open("sqlite").and_then(|store| store.load(&unit("a")));
        match found {
            Ok(loaded) => assert_eq!(loaded.reservations, kept, "byte {at}"),
            Err(error) => {
                refusals += 1;
                refused(&error, &place.path("store"), "");
            }
        }
    }
    assert!(refusals > 0);
}

#[test]
fn a_newer_database_is_refused() {
    let place = Place::with_store("sqlite");
    overwrite(&place.path("store"), 60, &2_u32.to_be_bytes());
    place.refuses("sqlite", "it has format 2, and this program knows only format 1");
}

#[test]
fn a_database_in_another_mode_is_refused() {
    let place = Place::with_store("sqlite");
    let other = rusqlite::Connection::open(place.path("store")).expect("a database");
    other.pragma_update(None, "journal_mode", "DELETE").expect("another mode");
    other.close().expect("closed");
    place.refuses("sqlite", "another journal mode than WAL");
}

#[test]
fn a_database_with_other_tables_is_refused() {
    let place = Place::with_store("sqlite");
    let other = rusqlite::Connection::open(place.path("store")).expect("a database");
    other.execute_batch("CREATE TRIGGER t AFTER UPDATE ON unit BEGIN DELETE FROM unit; END").expect("a trigger");
    other.close().expect("closed");
    place.refuses("sqlite", "its tables are not those that it was made with");
}

#[test]
fn a_damaged_record_in_a_database_is_refused_by_its_unit() {
    let place = Place::with_store("sqlite");
    let other = rusqlite::Connection::open(place.path("store")).expect("a database");
    for (number, damage) in ["zeroblob(length(record))", "substr(record, 1, 20)", "x''"].into_iter().enumerate() {
        let name = format!("name.{number}");
        let insert =
            format!("INSERT INTO unit (name, version, record) SELECT ?1, 1, {damage} FROM unit WHERE name = 'name.a'");
        other.execute(&insert, [&name]).expect("a row");
    }
    other.close().expect("closed");
    let store = place.open("sqlite").expect("a store");
    for number in 0..3 {
        let unit = unit(&number.to_string());
        refused(&store.load(&unit).expect_err("damaged"), &place.path("store"), unit.as_str());
        refused(&change(&*store, &unit).expect_err("damaged"), &place.path("store"), unit.as_str());
    }
    assert_eq!(changes(&*store, &unit("a")), 1, "the others are served");
}

#[test]
fn a_log_without_its_database_is_refused() {
    let place = Place::new();
    fs::write(place.path("store-wal"), b"").expect("written");
    place.refuses("sqlite", "store-wal is there without its database");
}

#[test]
fn a_database_with_two_names_is_refused() {
    let place = Place::with_store("sqlite");
    fs::hard_link(place.path("store"), place.path("other")).expect("a link");
    place.refuses("sqlite", "the file has another name");
}

#[test]
fn a_database_is_found_through_a_link() {
    let place = Place::with_store("sqlite");
    fs::create_dir(place.path("links")).expect("a directory");
    symlink("../store", place.path("links/link")).expect("a link");
    let store = place.open_as("sqlite", "links/link").expect("a store");
    change(&*store, &unit("a")).expect("kept");
    assert_eq!(changes(&*place.open("sqlite").expect("a store"), &unit("a")), 2);
    assert_eq!(fs::read_dir(place.path("links")).expect("a directory").count(), 1, "the log is beside the database");
}

#[test]
fn what_is_not_there_is_not_made_against_the_administrators_will() {
    let place = Place::new();
    for kind in ["sqlite+existing", "dir+existing"] {
        unavailable(&place.open(kind).err().expect("nothing is there"), "store");
        assert_eq!(place.everything(), BTreeMap::new());
    }
    // An empty mount point.
    fs::create_dir(place.path("store")).expect("a directory");
    unavailable(
        &place.open("dir+existing").err().expect("nothing is there"),
        "no store is there; mount its file system",
    );
    for kind in ["sqlite", "dir"] {
        unavailable(&place.open_as(kind, "none/store").err().expect("no place for it"), "none/store");
        let place = Place::with_store(kind);
        assert_eq!(changes(&*place.open(&format!("{kind}+existing")).expect("a store"), &unit("a")), 1);
    }
}

#[test]
fn what_other_hosts_reach_is_refused_for_a_database() {
    // sysfs is of no known kind.
    let error = open("sqlite:/sys/kernel/store").err().expect("a refusal");
    refused(&error, Path::new("/sys/kernel/store"), "other hosts may reach /sys/kernel, which is on file system type");
    assert!(error.to_string().contains("use dir:PATH for several hosts"), "{error}");
}

#[test]
fn a_directory_is_shared_when_the_administrator_says_so() {
    let place = Place::new();
    for (kind, shared) in [("dir", false), ("dir+shared", true), ("dir+local", false)] {
        assert_eq!(place.open(kind).expect("a store").is_shared_between_hosts(), shared, "{kind}");
    }
}

#[test]
fn a_store_that_is_moved_away_is_missed_and_found_again() {
    for kind in ["sqlite", "dir"] {
        let place = Place::with_store(kind);
        let store = place.open(kind).expect("a store");
        change(&*store, &unit("a")).expect("kept");
        let (here, there) = (place.path("store"), place.path("elsewhere"));
        fs::rename(&here, &there).expect("moved");
        for _ in 0..2 {
            unavailable(&store.load(&unit("a")).expect_err("it is gone"), "store");
            unavailable(&change(&*store, &unit("a")).expect_err("it is gone"), "store");
        }
        assert!(!here.exists(), "a new {kind} was made");
        fs::rename(&there, &here).expect("moved");
        assert_eq!(changes(&*store, &unit("a")), 2, "{kind}");
        change(&*store, &unit("a")).expect("kept");
        assert_eq!(changes(&*store, &unit("a")), 3, "{kind}");
    }
}

#[test]
fn another_store_in_its_place_is_refused_until_it_is_gone() {
    for kind in ["sqlite", "dir"] {
        let place = Place::with_store(kind);
        let store = place.open(kind).expect("a store");
        change(&*store, &unit("a")).expect("kept");
        let mut files = vec!["store".to_owned()];
        if kind == "sqlite" {
            files.extend(["store-wal", "store-shm"].map(str::to_owned));
        }
        let away = |name: &str| place.path(&format!("old-{name}"));
        files.iter().for_each(|name| fs::rename(place.path(name), away(name)).expect("moved"));
        let other = place.open(kind).expect("another store");
        change(&*other, &unit("a")).expect("kept");
        for _ in 0..2 {
            refused(&store.load(&unit("a")).expect_err("another one"), &place.path("store"), "came to its place");
            refused(&change(&*store, &unit("a")).expect_err("another one"), &place.path("store"), "came to its place");
        }
        assert_eq!(changes(&*other, &unit("a")), 1, "{kind}: the other one is as it was");
        drop(other);
        if kind == "dir" {
            fs::remove_dir_all(place.path("store")).expect("removed");
        }
        files.iter().for_each(|name| fs::rename(away(name), place.path(name)).expect("moved"));
        assert_eq!(changes(&*store, &unit("a")), 2, "{kind}");
        change(&*store, &unit("a")).expect("kept");
    }
}

#[test]
fn a_log_that_is_removed_is_noticed_and_nothing_is_lost() {
    for file in ["store-wal", "store-shm"] {
        let place = Place::with_store("sqlite");
        let store = place.open("sqlite").expect("a store");
        change(&*store, &unit("a")).expect("kept");
        fs::remove_file(place.path(file)).expect("removed");
        // No other process has the database open, so closing it saves the content of the log.
        assert_eq!(changes(&*store, &unit("a")), 2, "{file}");
        change(&*store, &unit("a")).expect("kept");
        assert_eq!(changes(&*place.open("sqlite").expect("a store"), &unit("a")), 3, "{file}");
    }
}

#[test]
fn an_older_copy_is_not_taken_for_the_store() {
    for kind in ["sqlite", "dir"] {
        let place = Place::with_store(kind);
        let copy = |from: &str, to: &str| {
            let status = Command::new("cp").arg("-a").args([place.path(from), place.path(to)]).status();
            assert!(status.expect("cp").success());
        };
        copy("store", "copy");
        let store = place.open(kind).expect("a store");
        change(&*store, &unit("a")).expect("kept");
        assert_eq!(changes(&*store, &unit("a")), 2);
        if kind == "dir" {
            fs::rename(place.path("store"), place.path("newer")).expect("moved");
        } else {
            for file in ["store", "store-wal", "store-shm"] {
                fs::rename(place.path(file), place.path(&format!("old-{file}"))).expect("moved");
            }
        }
        copy("copy", "store");
        let text = "version 2 of them was there, and now it is version 1";
        refused(&store.load(&unit("a")).expect_err("older"), &place.path("store"), text);
        refused(&change(&*store, &unit("a")).expect_err("older"), &place.path("store"), text);
        // With the next start it is what the administrator wants.
        assert_eq!(changes(&*place.open(kind).expect("a store"), &unit("a")), 1, "{kind}");
    }
}

#[test]
fn what_is_no_directory_of_ours_is_refused() {
    let place = Place::new();
    fs::create_dir(place.path("store")).expect("a directory");
    fs::write(place.path("store/something"), b"").expect("written");
    place.refuses("dir", "something is there, and no scsi-pr-store");

    let place = Place::with_store("dir");
    fs::remove_file(place.path("store/scsi-pr-store")).expect("removed");
    place.refuses("dir", "something is there, and no scsi-pr-store");

    for (text, because) in [
        ("", "is not what a store has there"),
        ("something else\n", "is not what a store has there"),
        ("scsi-pr reservations, directory format 1\nid 01", "is damaged or cut short"),
        ("scsi-pr reservations, directory format 2\n", "it has format 2, and this program knows only format 1"),
    ] {
        let place = Place::with_store("dir");
        fs::write(place.path("store/scsi-pr-store"), text).expect("written");
        place.refuses("dir", because);
    }

    let place = Place::new();
    fs::write(place.path("store"), b"").expect("written");
    unavailable(&place.open("dir").err().expect("no directory"), "store");
}

#[test]
fn a_directory_that_was_half_made_is_completed() {
    let place = Place::with_store("dir");
    fs::remove_file(place.path("store/scsi-pr-store")).expect("removed");
    for part in ["units", "locks"] {
        fs::remove_dir_all(place.path(&format!("store/{part}"))).expect("removed");
    }
    fs::create_dir(place.path("store/units")).expect("a directory");
    fs::write(place.path("store/new/0123"), b"scsi-pr reserv").expect("written");
    change(&*place.open("dir").expect("a store"), &unit("a")).expect("kept");
}

#[test]
fn a_damaged_record_in_a_directory_is_refused_by_its_path() {
    type Damage = fn(&mut Vec<u8>);
    let damages: [Damage; 4] = [
        |record| record.clear(),
        |record| record.truncate(record.len() / 2),
        |record| {
            let middle = record.len() / 2;
            record[middle] ^= 1;
        },
        |record| record.fill(b'x'),
    ];
    for damage in damages {
        let place = Place::with_store("dir");
        let path = place.path("store/units/name.a/00000000000000000001");
        let mut record = fs::read(&path).expect("a record");
        damage(&mut record);
        fs::write(&path, &record).expect("written");
        let before = place.everything();
        let store = place.open("dir").expect("a store");
        refused(&store.load(&unit("a")).expect_err("damaged"), &path, "name.a");
        refused(&change(&*store, &unit("a")).expect_err("damaged"), &path, "name.a");
        drop(store);
        // The queue of writers comes first.
        let mut after = place.everything();
        after.retain(|path, _| before.contains_key(path));
        assert_eq!(after, before);
    }
}

#[test]
fn a_file_that_is_no_version_is_refused_by_its_name() {
    let place = Place::with_store("dir");
    let store = place.open("dir").expect("a store");
    // A file that an NFS client leaves behind is ignored.
    fs::write(place.path("store/units/name.a/.nfs0001"), b"").expect("written");
    change(&*store, &unit("a")).expect("kept");
    fs::write(place.path("store/units/name.a/2.bak"), b"").expect("written");
    let error = store.load(&unit("a")).expect_err("foreign");
    refused(&error, &place.path("store"), "\"2.bak\" is not the name of a version; move what does not belong there");
    refused(&change(&*store, &unit("a")).expect_err("foreign"), &place.path("store"), "2.bak");
    fs::remove_file(place.path("store/units/name.a/2.bak")).expect("removed");
    change(&*store, &unit("a")).expect("kept");
}

#[test]
fn a_directory_keeps_some_versions_and_nothing_else() {
    let place = Place::with_store("dir");
    let store = place.open("dir").expect("a store");
    (0..100).for_each(|_| change(&*store, &unit("a")).expect("kept"));
    let mut versions = BTreeMap::new();
    for entry in fs::read_dir(place.path("store/units/name.a")).expect("a directory") {
        let name = entry.expect("an entry").file_name().into_string().expect("a version");
        versions.insert(name.parse::<u64>().expect("a number"), name);
    }
    assert_eq!(versions.keys().copied().collect::<Vec<_>>(), (101 - 31..=101).collect::<Vec<_>>());
    assert_eq!(fs::read_dir(place.path("store/new")).expect("a directory").count(), 0);
}

#[test]
fn what_was_abandoned_is_removed_when_it_is_old() {
    let place = Place::with_store("dir");
    for (name, age) in [("old", 25 * 60 * 60), ("young", 60)] {
        let path = place.path(&format!("store/new/{name}"));
        let mut file = fs::File::create(&path).expect("a file");
        file.write_all(b"half a rec").expect("written");
        let written = std::time::SystemTime::now() - std::time::Duration::from_secs(age);
        file.set_modified(written).expect("its time");
    }
    drop(place.open("dir").expect("a store"));
    assert!(!place.path("store/new/old").exists() && place.path("store/new/young").exists());
}
