//! Managers over a store: what they answer when all is well, and when the store is not.

mod common;

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::*;
use scsi_pr::{Command, Completion, Key, PrManager, Reservations, SenseCode, Status};
use scsi_pr_store::{
    Fault, Loaded, MemoryStore, SharedReservations, Store, StoreError, Swap, UnitId, Units, Version, open,
};

/// A store that fails when it is told to, and counts what is written to it.
#[derive(Default)]
struct Troubled {
    inner: MemoryStore,
    /// Of loads, of replacements before they are made, and after.
    fails: Mutex<[Option<Fault>; 3]>,
    written: AtomicUsize,
    shared: bool,
}

impl Troubled {
    fn trouble(&self, at: usize, fault: Option<Fault>) {
        self.fails.lock().unwrap()[at] = fault;
    }

    fn check(&self, at: usize) -> Result<(), StoreError> {
        let attempted = "use the store of this test";
        match self.fails.lock().unwrap()[at] {
            None => Ok(()),
            Some(Fault::Unavailable) => Err(StoreError::unavailable(attempted)),
            Some(Fault::Contended) => Err(StoreError::contended(attempted)),
            Some(Fault::Refused) => Err(StoreError::refused(attempted)),
            Some(Fault::OutcomeUnknown) => Err(StoreError::outcome_unknown(attempted)),
        }
    }
}

impl Store for Troubled {
    fn load(&self, unit: &UnitId) -> Result<Loaded, StoreError> {
        self.check(0)?;
        self.inner.load(unit)
    }

    fn replace(&self, unit: &UnitId, expected: Version, new: &Reservations) -> Result<Swap, StoreError> {
        self.check(1)?;
        self.written.fetch_add(1, Ordering::SeqCst);
        let swap = self.inner.replace(unit, expected, new)?;
        self.check(2)?;
        Ok(swap)
    }

    fn wait(&self, unit: &UnitId, seen: Version, timeout: Duration) -> Result<Version, StoreError> {
        self.inner.wait(unit, seen, timeout)
    }

    fn is_shared_between_hosts(&self) -> bool {
        self.shared
    }
}

/// The cluster story: two virtual machines, one disk, one of them fails.
#[test]
fn two_initiators_share_a_disk() {
    let disk = Disk::new();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let (one, two) = (disk.manager(&store, "one"), disk.manager(&store, "two"));
    let reserve = |key| reserve_out(RESERVE, WRITE_EXCLUSIVE_REGISTRANTS_ONLY, keys(key, 0));
    assert_eq!(disk.run(&one, &register(1)), GOOD);
    assert_eq!(disk.run(&one, &reserve(1)), GOOD);
    assert_eq!(disk.run(&two, &reserve(2)), CONFLICT);
    assert_eq!(disk.run(&two, &register(2)), GOOD);
    assert_eq!(disk.run(&two, &reserve(2)), CONFLICT);
    assert_eq!(disk.registered(&two), [Key(1), Key(2)]);
    let preempt = reserve_out(PREEMPT, WRITE_EXCLUSIVE_REGISTRANTS_ONLY, keys(2, 1));
    assert_eq!(disk.run(&two, &preempt), GOOD);
    // Told once, and only then is there an answer to what was asked.
    let told = Completion::check(SenseCode::REGISTRATIONS_PREEMPTED);
    assert_eq!(disk.run(&one, &reserve_in(READ_KEYS, 8192)), told);
    assert_eq!(disk.registered(&one), [Key(2)]);
}

/// Another process, or one on another host, has its own everything but the store's place and the name.
#[test]
fn an_initiator_that_moves_stays_itself() {
    for kind in ["sqlite", "dir"] {
        let (disk, place) = (Disk::new(), tempfile::tempdir().unwrap());
        let open = || open(&format!("{kind}:{}", place.path().join("store").display())).unwrap();
        let (source, destination) = (open(), open());
        let (here, other) = (disk.manager(&source, "vm"), disk.manager(&destination, "other"));
        assert_eq!(disk.run(&here, &register(7)), GOOD);
        assert_eq!(disk.run(&here, &reserve_out(RESERVE, WRITE_EXCLUSIVE_REGISTRANTS_ONLY, keys(7, 0))), GOOD);
        let there = SharedReservations::new(destination, Units::default(), "vm".parse().unwrap());
        assert_eq!(there.nexus(), here.nexus());
        assert_eq!(disk.run(&other, &register(8)), GOOD);
        // The host that it left forgets it; that is not to take its registration away.
        assert_eq!(here.execute(disk.image.as_file().as_fd(), Command::cleanup()).unwrap(), GOOD);
        let release = reserve_out(RELEASE, WRITE_EXCLUSIVE_REGISTRANTS_ONLY, keys(7, 0));
        assert_eq!(disk.run(&there, &release), GOOD);
        let told = Completion::check(SenseCode::RESERVATIONS_RELEASED);
        assert_eq!(disk.run(&other, &register(8)), told);
        // What it has registered with one disk, it has not with another.
        assert_eq!(Disk::new().registered(&there), []);
    }
}

#[test]
fn reading_writes_nothing_but_that_a_unit_attention_was_told() {
    let disk = Disk::new();
    let troubled = Arc::new(Troubled::default());
    let store: Arc<dyn Store> = Arc::clone(&troubled) as _;
    let (one, two) = (disk.manager(&store, "one"), disk.manager(&store, "two"));
    for (manager, key) in [(&one, 1), (&two, 2)] {
        assert_eq!(disk.run(manager, &register(key)), GOOD);
    }
    let written = || troubled.written.swap(0, Ordering::SeqCst);
    assert_eq!(written(), 2);
    for service_action in 0..8 {
        for allocation_length in [0, 8, 8192] {
            let _ = disk.run(&one, &reserve_in(service_action, allocation_length));
        }
    }
    // A refused change is none, either.
    assert_eq!(disk.run(&one, &reserve_out(RESERVE, 5, keys(9, 0))), CONFLICT);
    assert_eq!(written(), 0);
    assert_eq!(disk.run(&two, &reserve_out(CLEAR, 0, keys(2, 0))), GOOD);
    assert_eq!(written(), 1);
    let told = Completion::check(SenseCode::RESERVATIONS_PREEMPTED);
    assert_eq!(disk.run(&one, &reserve_in(READ_RESERVATION, 8192)), told);
    assert_eq!(written(), 1);
    assert_eq!(disk.registered(&one), []);
    assert_eq!(written(), 0);
}

#[test]
fn what_is_not_kept_is_not_acknowledged() {
    let disk = Disk::new();
    let troubled = Arc::new(Troubled::default());
    let store: Arc<dyn Store> = Arc::clone(&troubled) as _;
    let manager = disk.manager(&store, "vm");
    for (fault, answer) in [
        (Fault::Unavailable, Completion::check(SenseCode::NOT_READY)),
        (Fault::Refused, Completion::check(SenseCode::MANUAL_INTERVENTION_REQUIRED)),
        (Fault::Contended, Completion::Status(Status::BUSY)),
    ] {
        for at in [0, 1] {
            troubled.trouble(at, Some(fault));
            assert_eq!(disk.run(&manager, &register(1)), answer);
            troubled.trouble(at, None);
            assert_eq!(disk.registered(&manager), []);
        }
        troubled.trouble(0, Some(fault));
        assert_eq!(disk.run(&manager, &reserve_in(READ_KEYS, 8192)), answer);
        troubled.trouble(0, None);
    }
    assert_eq!(disk.run(&manager, &register(1)), GOOD);
}

#[test]
fn an_unknown_outcome_is_said_to_be_unknown_and_found_out_by_the_next_command() {
    let disk = Disk::new();
    let troubled = Arc::new(Troubled::default());
    let store: Arc<dyn Store> = Arc::clone(&troubled) as _;
    let (one, two) = (disk.manager(&store, "one"), disk.manager(&store, "two"));
    // Before the change was made, and after.
    for (at, found) in [(1, vec![]), (2, vec![Key(1)])] {
        troubled.trouble(at, Some(Fault::OutcomeUnknown));
        let error = one.execute(disk.image.as_file().as_fd(), register(1).command()).unwrap_err();
        assert!(error.may_have_run(), "{error}");
        troubled.trouble(at, None);
        assert_eq!(disk.registered(&one), found);
    }
    // A unit attention is true all the same.
    assert_eq!(disk.run(&two, &register(2)), GOOD);
    assert_eq!(disk.run(&two, &reserve_out(CLEAR, 0, keys(2, 0))), GOOD);
    let told = Completion::check(SenseCode::RESERVATIONS_PREEMPTED);
    troubled.trouble(1, Some(Fault::OutcomeUnknown));
    assert_eq!(disk.run(&one, &reserve_in(READ_KEYS, 8192)), told);
    troubled.trouble(1, None);
    assert_eq!(disk.run(&one, &reserve_in(READ_KEYS, 8192)), told);
    assert_eq!(disk.registered(&one), []);
}

#[test]
fn what_cannot_be_identified_answers_as_a_unit_without_reservations() {
    let manager = Disk::new().manager(&(Arc::new(MemoryStore::new()) as Arc<dyn Store>), "vm");
    let (reader, _writer) = std::io::pipe().unwrap();
    for command in [reserve_in(READ_KEYS, 8192), register(1)] {
        let answer = manager.execute(reader.as_fd(), command.command()).unwrap();
        assert_eq!(answer, Completion::check(SenseCode::INVALID_OPCODE));
    }
}

#[test]
fn hosts_that_share_a_store_refuse_what_one_of_them_alone_knows() {
    let mut disk = Disk::new();
    let store: Arc<dyn Store> = Arc::new(Troubled { shared: true, ..Troubled::default() });
    let unit = disk.units.identify(disk.image.as_file().as_fd()).unwrap();
    let answer = disk.run(&disk.manager(&store, "vm"), &register(1));
    assert_eq!(answer, if unit.is_global() { GOOD } else { Completion::check(SenseCode::INVALID_OPCODE) });
    let name = format!("disk={}", disk.image.path().display()).parse().unwrap();
    disk.units = Units::new([name]);
    let manager = disk.manager(&store, "vm");
    assert_eq!(disk.run(&manager, &register(1)), GOOD);
    assert_eq!(store.load(&UnitId::named("disk").unwrap()).unwrap().reservations.registrations().len(), 1);
}

/// None is refused, none fails, none is forgotten.
#[test]
fn sixty_four_contenders_all_get_on() {
    for store in [Arc::new(MemoryStore::new()) as Arc<dyn Store>, Arc::new(Troubled::default())] {
        let disk = Disk::new();
        let first = disk.manager(&store, "first");
        std::thread::scope(|scope| {
            for number in 1..=64 {
                let manager = first.for_initiator(&format!("vm{number}").parse().unwrap());
                let disk = &disk;
                scope.spawn(move || {
                    for round in 0..5 {
                        assert_eq!(disk.run(&manager, &register(number << 8 | round)), GOOD);
                    }
                });
            }
        });
        let mut registered = disk.registered(&first);
        registered.sort();
        let expected: Vec<_> = (1..=64).map(|number| Key(number << 8 | 4)).collect();
        assert_eq!(registered, expected);
    }
}

/// A client may make files without end; what it can make of a store has one.
#[test]
fn one_initiator_brings_so_many_units_into_a_store_and_no_more() {
    let directory = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let files: Vec<_> = (0..258).map(|_| tempfile::NamedTempFile::new_in(directory.path()).unwrap()).collect();
    let vm = SharedReservations::new(store, Units::default(), "vm".parse().unwrap());
    let run = |manager: &SharedReservations, file: &std::fs::File, command: &scsi_pr::CommandBuf| {
        manager.execute(file.as_fd(), command.command()).unwrap()
    };
    for file in &files[..256] {
        // What changes nothing brings nothing in.
        assert_eq!(run(&vm, file.as_file(), &reserve_out(RESERVE, 5, keys(1, 0))), CONFLICT);
        assert_eq!(run(&vm, file.as_file(), &register(1)), GOOD);
        assert_eq!(run(&vm, file.as_file(), &register(2)), GOOD);
    }
    let full = Completion::check(SenseCode::INSUFFICIENT_REGISTRATION_RESOURCES);
    let last = files[256].as_file();
    assert_eq!(run(&vm, last, &register(1)), full);
    assert_eq!(run(&vm, last, &reserve_out(RESERVE, 5, keys(1, 0))), CONFLICT);
    // What is in the store is served, whoever brought it in; and others are not concerned.
    assert_eq!(run(&vm, files[0].as_file(), &register(3)), GOOD);
    let other = vm.for_initiator(&"other".parse().unwrap());
    assert_eq!(run(&other, last, &register(1)), GOOD);
    assert_eq!(run(&vm, last, &register(1)), GOOD);
    assert_eq!(run(&vm, files[257].as_file(), &register(1)), full);
}

#[test]
fn a_server_has_the_room_that_it_is_given() {
    let disk = Disk::new();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let small = disk.manager(&store, "one").with_room_for(2);
    assert_eq!(disk.run(&small, &register(1)), GOOD);
    assert_eq!(disk.run(&small.for_initiator(&"two".parse().unwrap()), &register(2)), GOOD);
    let three = small.for_initiator(&"three".parse().unwrap());
    let full = Completion::check(SenseCode::INSUFFICIENT_REGISTRATION_RESOURCES);
    assert_eq!(disk.run(&three, &register(3)), full);
    assert_eq!(disk.run(&three.with_room_for(3), &register(3)), GOOD);
}

/// A store whose changes wait until they are let go, and are counted.
#[derive(Default)]
struct Held {
    inner: MemoryStore,
    gate: Mutex<()>,
    waiting: AtomicUsize,
    most: AtomicUsize,
}

impl Store for Held {
    fn load(&self, unit: &UnitId) -> Result<Loaded, StoreError> {
        self.inner.load(unit)
    }

    fn replace(&self, unit: &UnitId, expected: Version, new: &Reservations) -> Result<Swap, StoreError> {
        let waiting = self.waiting.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(waiting, Ordering::SeqCst);
        drop(self.gate.lock().unwrap());
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        self.inner.replace(unit, expected, new)
    }

    fn wait(&self, unit: &UnitId, seen: Version, timeout: Duration) -> Result<Version, StoreError> {
        self.inner.wait(unit, seen, timeout)
    }

    fn is_shared_between_hosts(&self) -> bool {
        false
    }
}

/// Whoever sends hundreds of commands at a time has a few in the store; somebody else's is not behind all of them.
#[test]
fn one_initiator_has_a_few_changes_in_the_store_at_a_time() {
    let disks: Vec<_> = (0..32).map(|_| Disk::new()).collect();
    let held = Arc::new(Held::default());
    let store: Arc<dyn Store> = Arc::clone(&held) as _;
    let (many, other) = (disks[0].manager(&store, "many"), disks[0].manager(&store, "other"));
    std::thread::scope(|scope| {
        let closed = held.gate.lock().unwrap();
        for disk in &disks {
            let many = &many;
            scope.spawn(move || assert_eq!(disk.run(many, &register(1)), GOOD));
        }
        while held.waiting.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        scope.spawn(|| assert_eq!(disks[0].run(&other, &register(2)), GOOD));
        drop(closed);
    });
    assert!(held.most.load(Ordering::SeqCst) <= 4 + 1, "{}", held.most.load(Ordering::SeqCst));
    for disk in &disks {
        assert!(disk.registered(&many).contains(&Key(1)));
    }
    assert_eq!(disks[0].registered(&other).len(), 2);
}
