//! The files of a database: creating it atomically, recognizing it without SQLite, and checking that the files are
//! still the same.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rusqlite::Connection;
use rustix::fs::{CWD, OFlags, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::connection::{self, SCHEMA};
use crate::StoreError;
use crate::lock::lock;
use crate::unique::unique;

/// `PRAGMA application_id` of our databases: "scPR".
const APPLICATION: u32 = u32::from_be_bytes(*b"scPR");

/// `PRAGMA user_version`: the format of our databases.
const FORMAT: u32 = 1;

/// A file, under any name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Inode {
    device: u64,
    number: u64,
}

impl Inode {
    fn of(metadata: &fs::Metadata) -> Self {
        Self { device: metadata.dev(), number: metadata.ino() }
    }
}

/// The files of an open database. None may be replaced while it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Files {
    pub(super) main: Inode,
    log: Inode,
    index: Inode,
}

impl Files {
    pub(super) fn at(paths: &Paths) -> io::Result<Self> {
        let inode = |path| fs::symlink_metadata(path).map(|metadata| Inode::of(&metadata));
        Ok(Self { main: inode(&paths.main)?, log: inode(&paths.log)?, index: inode(&paths.index)? })
    }
}

/// The paths of the files of a database.
#[derive(Clone, Debug)]
pub(super) struct Paths {
    pub(super) main: PathBuf,
    log: PathBuf,
    index: PathBuf,
}

impl Paths {
    pub(super) fn of(path: &Path) -> Self {
        Self { main: path.to_owned(), log: beside(path, "-wal"), index: beside(path, "-shm") }
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The target of `path`: SQLite puts its other files beside the database itself, not beside a link to it.
pub(super) fn resolve(path: &Path) -> Result<PathBuf, StoreError> {
    let resolved = match path.canonicalize() {
        Err(error) if error.kind() == ErrorKind::NotFound && !path.is_symlink() => {
            let name = path.file_name().ok_or(error);
            name.and_then(|name| directory(path).canonicalize().map(|directory| directory.join(name)))
        }
        resolved => resolved,
    };
    resolved.map_err(|error| {
        let remedy = remedy(&error, "name a file in a directory that is there");
        StoreError::unavailable(format!("find the SQLite store {}", path.display())).because(error).remedy(remedy)
    })
}

/// The remedy for an error: `other`, unless the kernel denies the access.
fn remedy(error: &io::Error, other: &'static str) -> &'static str {
    match error.kind() {
        ErrorKind::PermissionDenied => "let the user of this process write the database and its directory",
        _ => other,
    }
}

/// The directory of a file.
pub(super) fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Makes the entries of a directory durable.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(directory(path))?.sync_all()
}

/// Opens the file by whose locks processes take turns. All users that may write the database may lock it.
pub(super) fn open_queue(path: &Path) -> io::Result<File> {
    let mode = fs::metadata(path)?.permissions().mode() & 0o777;
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(mode).custom_flags(flags);
    options.open(beside(path, "-queue"))
}

/// Creates a database at `path` if nothing is there.
///
/// It is created under another name and then renamed. So an empty or incomplete file at `path` is damage.
pub(super) fn create_unless_there(path: &Path) -> Result<(), StoreError> {
    let attempted = || format!("make the SQLite store {}", path.display());
    let unavailable = |error: io::Error| StoreError::unavailable(attempted()).because(error);
    if path.symlink_metadata().is_ok() {
        return Ok(());
    }
    for suffix in ["-wal", "-journal"] {
        let left = beside(path, suffix);
        if left.symlink_metadata().is_ok() && path.symlink_metadata().is_err() {
            return Err(StoreError::refused(attempted())
                .because(format!("{} is there without its database", left.display()))
                .remedy("put the database back, or remove that file too to begin anew"));
        }
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let new = directory(path).join(format!(".{name}.{}.new", unique().map_err(unavailable)?));
    let made = make(&new, path).map_err(|error| {
        StoreError::unavailable(attempted())
            .because(error)
            .remedy("see whether there is room, and let this process write the directory that it is in")
    });
    // After the rename, there is nothing to remove.
    let _ = fs::remove_file(&new);
    made
}

fn make(new: &Path, path: &Path) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    // SQLite gives the log and its index the mode of the database.
    drop(OpenOptions::new().write(true).create_new(true).mode(0o600).open(new)?);
    let connection = connection::open(new)?;
    connection.pragma_update(None, "page_size", 4096)?;
    connection.pragma_update(None, "application_id", APPLICATION)?;
    connection.pragma_update(None, "user_version", FORMAT)?;
    for statement in SCHEMA {
        connection.execute(statement, ())?;
    }
    connection.execute("INSERT INTO store (id) VALUES (?1)", [unique()?])?;
    set_log(&connection)?;
    connection.close().map_err(|(_, error)| error)?;
    let file = File::open(new)?;
    file.sync_all()?;
    check_header(&file, || format!("make the SQLite store {}", new.display()))?;
    match renameat_with(CWD, new, CWD, path, RenameFlags::NOREPLACE) {
        // Another process was first.
        Err(Errno::EXIST) => {}
        // The file system has no such rename.
        Err(Errno::INVAL | Errno::NOSYS) => match fs::hard_link(new, path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error.into()),
            _ => {}
        },
        Err(error) => return Err(error.into()),
        Ok(()) => {}
    }
    Ok(())
}

/// Makes all users of the database append changes to a log. The header says whether that took effect.
fn set_log(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| {
        let mode: String = row.get(0)?;
        if mode == "wal" { Ok(()) } else { Err(rusqlite::Error::InvalidQuery) }
    })
}

/// Every database that this process has opened.
///
/// SQLite's locks are POSIX locks, and the kernel drops those of a process on a file when the process closes *any*
/// descriptor of that file (fcntl(2)). So this process keeps such a file open. That also keeps the inode number from
/// being reused.
static OPENED: Mutex<Option<HashMap<Inode, Vec<File>>>> = Mutex::new(None);

/// Examines the file at `path` before SQLite does. SQLite would complete or undo an interrupted change of another
/// program.
pub(super) fn examine(path: &Path) -> Result<Inode, StoreError> {
    let attempted = || format!("open the SQLite store {}", path.display());
    let unavailable = |error: io::Error| {
        let remedy = remedy(&error, "see whether the database is there and its file system is mounted");
        StoreError::unavailable(attempted()).because(error).remedy(remedy)
    };
    let metadata = fs::symlink_metadata(path).map_err(unavailable)?;
    if !metadata.is_file() {
        return Err(foreign(attempted(), "it is not a regular file"));
    }
    if metadata.nlink() > 1 {
        // Each name has a log of its own.
        return Err(StoreError::refused(attempted())
            .because("the file has another name (a hard link)")
            .remedy("remove all names but one: users of another name do not see the same changes"));
    }
    let inode = Inode::of(&metadata);
    let mut opened = lock(&OPENED);
    let opened = opened.get_or_insert_default();
    if !opened.contains_key(&inode) {
        let flags = (OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::NONBLOCK).bits();
        let file = OpenOptions::new().read(true).custom_flags(flags.cast_signed()).open(path).map_err(unavailable)?;
        let inode = Inode::of(&file.metadata().map_err(unavailable)?);
        opened.entry(inode).or_default().push(file);
    }
    let file = &opened.get(&inode).and_then(|files| files.first()).ok_or_else(|| {
        StoreError::unavailable(attempted()).because("another file came to its place meanwhile").remedy("try again")
    })?;
    check_header(file, attempted)?;
    Ok(inode)
}

/// The database file format, <https://www.sqlite.org/fileformat2.html>, 1.3. None of this changes after a database was
/// created, so it is right whatever the log has.
fn check_header(file: &File, attempted: impl Fn() -> String) -> Result<(), StoreError> {
    let mut header = [0; 100];
    match file.read_exact_at(&mut header, 0) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
            return Err(StoreError::refused(attempted())
                .because("the file is cut short, or never was a database")
                .remedy("put back a copy of it from before; to begin anew, remove it with its -wal and -shm files"));
        }
        Err(error) => return Err(StoreError::unavailable(attempted()).because(error)),
    }
    let number = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    if !header.starts_with(b"SQLite format 3\0") {
        return Err(foreign(attempted(), "it is not an SQLite database"));
    }
    if number(68) != APPLICATION {
        return Err(foreign(attempted(), "it is the database of another program"));
    }
    match number(60) {
        FORMAT => {}
        format => {
            return Err(StoreError::refused(attempted())
                .because(format!("it has format {format}, and this program knows only format {FORMAT}"))
                .remedy("use the version of this program that made it, or a later one"));
        }
    }
    // The versions to write and to read it.
    if header[18..20] != [2, 2] {
        return Err(StoreError::refused(attempted())
            .because("it has another journal mode than WAL")
            .remedy("set it back: sqlite3 DATABASE 'PRAGMA journal_mode = WAL'"));
    }
    Ok(())
}

fn foreign(attempted: String, reason: &'static str) -> StoreError {
    StoreError::refused(attempted).because(reason).remedy("name another file: this one stays as it is")
}
