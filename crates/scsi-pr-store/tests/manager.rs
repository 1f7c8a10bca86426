//! Managers over a store: what they answer when all is well, and when the store is not.

mod common;

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::*;
use scsi_pr::{Command, Completion, Key, PrManager, Reservations, SenseCode, Status};
use scsi_pr_daemon::FifoMutex;
use scsi_pr_store::{
    Change, Claim, DiskRecord, Fault, Host, MediumReach, MemoryStore, Owner, Ownership, SharedReservations, Snapshot,
    Store, StoreError, Swap, UnitId, Units, Version, open,
};

/// A store that fails on request, and counts writes.
#[derive(Default)]
struct FailingStore {
    inner: MemoryStore,
    /// Of loads, of replacements before they are made, and after.
    fails: Mutex<[Option<Fault>; 3]>,
    written: AtomicUsize,
    shared: bool,
}

impl FailingStore {
    fn fail(&self, at: usize, fault: Option<Fault>) {
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

impl Store for FailingStore {
    fn load(&self, unit: &UnitId) -> Result<Snapshot, StoreError> {
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

    fn replace_owned(
        &self,
        unit: &UnitId,
        expected: Version,
        new: &Reservations,
        disk: &DiskRecord,
    ) -> Result<Swap, StoreError> {
        self.inner.replace_owned(unit, expected, new, disk)
    }

    fn units(&self) -> Result<Vec<UnitId>, StoreError> {
        self.inner.units()
    }

    fn is_shared_between_hosts(&self) -> bool {
        self.shared
    }
}

/// Two virtual machines share a disk, and one of them fails.
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
    assert_eq!(disk.registered(&one), [Key(2)]);
    assert_eq!(disk.run(&one, &reserve(1)), CONFLICT);
}

/// Two processes share the store's path and the initiator's name, and nothing else.
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
        assert_eq!(disk.run(&other, &register(8)), GOOD);
        // A registration is of one disk.
        assert_eq!(Disk::new().registered(&there), []);
    }
}

#[test]
fn read_writes_nothing() {
    let disk = Disk::new();
    let store = Arc::new(FailingStore::default());
    let dyn_store: Arc<dyn Store> = Arc::clone(&store) as _;
    let (one, two) = (disk.manager(&dyn_store, "one"), disk.manager(&dyn_store, "two"));
    for (manager, key) in [(&one, 1), (&two, 2)] {
        assert_eq!(disk.run(manager, &register(key)), GOOD);
    }
    let written = || store.written.swap(0, Ordering::SeqCst);
    assert_eq!(written(), 2);
    // A refused change writes nothing, either.
    assert_eq!(disk.run(&one, &reserve_out(RESERVE, 5, keys(9, 0))), CONFLICT);
    assert_eq!(written(), 0);
    assert_eq!(disk.run(&two, &reserve_out(CLEAR, 0, keys(2, 0))), GOOD);
    assert_eq!(written(), 1);
    for service_action in 0..8 {
        for allocation_length in [0, 8, 8192] {
            let _ = disk.run(&one, &reserve_in(service_action, allocation_length));
        }
    }
    assert_eq!(written(), 0);
}

/// The unit attentions that the rules make are neither reported nor kept, whatever the change.
#[test]
fn changes_of_others_leave_no_unit_attention() {
    let disk = Disk::new();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let (one, two) = (disk.manager(&store, "one"), disk.manager(&store, "two"));
    let unit = disk.units.identify(disk.image.as_file().as_fd()).unwrap();
    let pending = || {
        let reservations = store.load(&unit).unwrap().reservations;
        [&one, &two].iter().any(|manager| reservations.has_unit_attention(manager.nexus()))
    };
    for (service_action, victim) in [(RELEASE, 0), (PREEMPT, 1), (PREEMPT_AND_ABORT, 1), (CLEAR, 0)] {
        assert_eq!(disk.run(&one, &register(1)), GOOD);
        assert_eq!(disk.run(&two, &register(2)), GOOD);
        let command = |service_action, key, victim| {
            reserve_out(service_action, WRITE_EXCLUSIVE_REGISTRANTS_ONLY, keys(key, victim))
        };
        let holder = if service_action == RELEASE { (&two, 2) } else { (&one, 1) };
        assert_eq!(disk.run(holder.0, &command(RESERVE, holder.1, 0)), GOOD);
        assert_eq!(disk.run(&two, &command(service_action, 2, victim)), GOOD);
        assert!(!pending(), "after service action {service_action}");
        let answer = disk.run(&one, &reserve_in(READ_KEYS, 8192));
        assert!(matches!(answer, Completion::Good(_)), "{answer}");
        assert_eq!(disk.run(&two, &reserve_out(CLEAR, 0, keys(2, 0))) == GOOD, service_action != CLEAR);
    }
}

/// A record of an earlier version may have some.
#[test]
fn unit_attentions_in_a_record_are_not_reported() {
    let disk = Disk::new();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let manager = disk.manager(&store, "vm");
    let unit = disk.units.identify(disk.image.as_file().as_fd()).unwrap();
    assert_eq!(disk.run(&manager, &register(1)), GOOD);
    let lose_nexus = |reservations: &mut Reservations| {
        reservations.lose_nexus(manager.nexus());
        true
    };
    store.update(&unit, &mut |reservations, _| lose_nexus(reservations)).unwrap();
    assert_eq!(disk.registered(&manager), [Key(1)]);
    assert!(store.load(&unit).unwrap().reservations.has_unit_attention(manager.nexus()));
    assert_eq!(disk.run(&manager, &register(2)), GOOD);
    assert!(!store.load(&unit).unwrap().reservations.has_unit_attention(manager.nexus()));
}

/// The disk reports them when it serves the unit again.
#[test]
fn unit_attentions_of_a_disk_stay_in_the_record() {
    let disk = Disk::new();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let (one, two) = (disk.manager(&store, "one"), disk.manager(&store, "two"));
    let unit = disk.units.identify(disk.image.as_file().as_fd()).unwrap();
    assert_eq!(disk.run(&one, &register(1)), GOOD);
    let claim = Claim {
        host: Host { id: "a".into(), name: "node".into(), boot: "1".into() },
        owner: Owner { process: 7, control: "/run/control".into(), medium: "1:2".into() },
        reach: MediumReach::Host,
        takeover: None,
        uuid: None,
    };
    let ownership = Ownership::claim(Arc::clone(&store), unit.clone(), &claim).unwrap();
    let (version, reservations) = ownership.load().unwrap();
    let mut reservations = (*reservations).clone();
    reservations.lose_nexus(one.nexus());
    assert!(matches!(ownership.replace(version, &reservations).unwrap(), Swap::Done(_)));
    ownership.release().unwrap();
    assert_eq!(disk.run(&two, &register(2)), GOOD);
    assert!(store.load(&unit).unwrap().reservations.has_unit_attention(one.nexus()));
    // The managers themselves report none.
    assert_eq!(disk.registered(&one), [Key(1), Key(2)]);
}

#[test]
fn what_is_not_kept_is_not_acknowledged() {
    let disk = Disk::new();
    let failing = Arc::new(FailingStore::default());
    let store: Arc<dyn Store> = Arc::clone(&failing) as _;
    let manager = disk.manager(&store, "vm");
    for (fault, answer) in [
        (Fault::Unavailable, Completion::check(SenseCode::NOT_READY)),
        (Fault::Refused, Completion::check(SenseCode::MANUAL_INTERVENTION_REQUIRED)),
        (Fault::Contended, Completion::Status(Status::BUSY)),
    ] {
        for at in [0, 1] {
            failing.fail(at, Some(fault));
            assert_eq!(disk.run(&manager, &register(1)), answer);
            failing.fail(at, None);
            assert_eq!(disk.registered(&manager), []);
        }
        failing.fail(0, Some(fault));
        assert_eq!(disk.run(&manager, &reserve_in(READ_KEYS, 8192)), answer);
        failing.fail(0, None);
    }
    assert_eq!(disk.run(&manager, &register(1)), GOOD);
}

#[test]
fn an_unknown_outcome_is_said_to_be_unknown_and_found_out_by_the_next_command() {
    let disk = Disk::new();
    let failing = Arc::new(FailingStore::default());
    let store: Arc<dyn Store> = Arc::clone(&failing) as _;
    let one = disk.manager(&store, "one");
    // Before the change was made, and after.
    for (at, found) in [(1, vec![]), (2, vec![Key(1)])] {
        failing.fail(at, Some(Fault::OutcomeUnknown));
        let error = one.execute(disk.image.as_file().as_fd(), register(1).command()).unwrap_err();
        assert!(error.may_have_run(), "{error}");
        failing.fail(at, None);
        assert_eq!(disk.registered(&one), found);
    }
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
    let store: Arc<dyn Store> = Arc::new(FailingStore { shared: true, ..FailingStore::default() });
    let unit = disk.units.identify(disk.image.as_file().as_fd()).unwrap();
    let answer = disk.run(&disk.manager(&store, "vm"), &register(1));
    assert_eq!(answer, if unit.is_global() { GOOD } else { Completion::check(SenseCode::INVALID_OPCODE) });
    let name = format!("disk={}", disk.image.path().display()).parse().unwrap();
    disk.units = Units::new([name]);
    let manager = disk.manager(&store, "vm");
    assert_eq!(disk.run(&manager, &register(1)), GOOD);
    assert_eq!(store.load(&UnitId::named("disk").unwrap()).unwrap().reservations.registrations().len(), 1);
}

#[test]
fn sixty_four_contenders_all_get_on() {
    for store in [Arc::new(MemoryStore::new()) as Arc<dyn Store>, Arc::new(FailingStore::default())] {
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

/// A client may make any number of files, but not any number of records.
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
        // A refused command brings no unit into the store.
        assert_eq!(run(&vm, file.as_file(), &reserve_out(RESERVE, 5, keys(1, 0))), CONFLICT);
        assert_eq!(run(&vm, file.as_file(), &register(1)), GOOD);
        assert_eq!(run(&vm, file.as_file(), &register(2)), GOOD);
    }
    let full = Completion::check(SenseCode::INSUFFICIENT_REGISTRATION_RESOURCES);
    let last = files[256].as_file();
    assert_eq!(run(&vm, last, &register(1)), full);
    assert_eq!(run(&vm, last, &reserve_out(RESERVE, 5, keys(1, 0))), CONFLICT);
    // The bound concerns neither units in the store nor other initiators.
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

/// A store whose changes wait until the test opens the gate, and then run in their order of arrival.
#[derive(Default)]
struct GatedStore {
    inner: MemoryStore,
    gate: Mutex<()>,
    turn: FifoMutex<()>,
    waiting: AtomicUsize,
    most: AtomicUsize,
    /// The number of registrants after each change.
    registrants: Mutex<Vec<usize>>,
}

impl GatedStore {
    fn wait_for_commands(&self, count: usize) {
        while self.waiting.load(Ordering::SeqCst) < count {
            std::thread::yield_now();
        }
    }
}

impl Store for GatedStore {
    fn load(&self, unit: &UnitId) -> Result<Snapshot, StoreError> {
        self.inner.load(unit)
    }

    fn replace(&self, unit: &UnitId, expected: Version, new: &Reservations) -> Result<Swap, StoreError> {
        self.inner.replace(unit, expected, new)
    }

    fn replace_owned(
        &self,
        unit: &UnitId,
        expected: Version,
        new: &Reservations,
        disk: &DiskRecord,
    ) -> Result<Swap, StoreError> {
        self.inner.replace_owned(unit, expected, new, disk)
    }

    fn update(&self, unit: &UnitId, change: &mut Change<'_>) -> Result<(), StoreError> {
        let waiting = self.waiting.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(waiting, Ordering::SeqCst);
        let turn = self.turn.lock_timeout(Duration::from_secs(60)).unwrap();
        drop(self.gate.lock().unwrap());
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        let updated = self.inner.update(unit, change);
        let registrants = self.inner.load(unit)?.reservations.registrations().len();
        self.registrants.lock().unwrap().push(registrants);
        drop(turn);
        updated
    }

    fn units(&self) -> Result<Vec<UnitId>, StoreError> {
        self.inner.units()
    }

    fn is_shared_between_hosts(&self) -> bool {
        false
    }
}

#[test]
fn one_initiator_has_a_few_changes_in_the_store_at_a_time() {
    let disks: Vec<_> = (0..32).map(|_| Disk::new()).collect();
    let gated = Arc::new(GatedStore::default());
    let store: Arc<dyn Store> = Arc::clone(&gated) as _;
    let many = disks[0].manager(&store, "many");
    let other = many.for_initiator(&"other".parse().unwrap());
    // A second socket of the same initiator.
    let again = many.for_initiator(&"many".parse().unwrap());
    std::thread::scope(|scope| {
        let closed = gated.gate.lock().unwrap();
        for (number, disk) in disks.iter().enumerate() {
            let many = if number % 2 == 0 { &many } else { &again };
            scope.spawn(move || assert_eq!(disk.run(many, &register(1)), GOOD));
        }
        gated.wait_for_commands(1);
        scope.spawn(|| assert_eq!(disks[0].run(&other, &register(2)), GOOD));
        drop(closed);
    });
    assert!(gated.most.load(Ordering::SeqCst) <= 4 + 1, "{}", gated.most.load(Ordering::SeqCst));
    for disk in &disks {
        assert!(disk.registered(&many).contains(&Key(1)));
    }
    assert_eq!(disks[0].registered(&other).len(), 2);
}

/// Of a hundred queued commands of another initiator, one comes before the command of this one.
#[test]
fn initiators_take_turns_whatever_the_number_of_their_commands() {
    const COMMANDS: usize = 100;
    let disk = Disk::new();
    let gated = Arc::new(GatedStore::default());
    let store: Arc<dyn Store> = Arc::clone(&gated) as _;
    let many = disk.manager(&store, "many");
    let other = many.for_initiator(&"other".parse().unwrap());
    std::thread::scope(|scope| {
        let closed = gated.gate.lock().unwrap();
        for _ in 0..COMMANDS {
            scope.spawn(|| assert_eq!(disk.run(&many, &register(1)), GOOD));
        }
        gated.wait_for_commands(1);
        scope.spawn(|| assert_eq!(disk.run(&other, &register(2)), GOOD));
        gated.wait_for_commands(2);
        drop(closed);
    });
    let registrants = gated.registrants.lock().unwrap();
    assert_eq!(registrants.len(), COMMANDS + 1);
    assert_eq!(registrants[..3], [1, 2, 2]);
}
