//! Many managers at work on one unit at the same time give a history that one `Reservations` gives by itself, command
//! after
//! command, in an order in which nothing comes before what was answered before it was asked.

mod common;

use std::cell::Cell;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use common::*;
use proptest::prelude::*;
use scsi_pr::{CommandBuf, Completion, Nexus, PrManager, Reservations};
use scsi_pr_store::{
    Change, DiskRecord, InitiatorName, MemoryStore, Snapshot, Store, StoreError, Swap, UnitId, Version, open,
};

thread_local! {
    /// The version by which this thread's last command was judged, and whether it made the next one.
    static JUDGED: Cell<(u64, bool)> = const { Cell::new((0, false)) };
}

/// Notes by which version each command was judged. Its changes go through the loop of compare-and-swap.
struct Noted(Arc<dyn Store>);

impl Store for Noted {
    fn load(&self, unit: &UnitId) -> Result<Snapshot, StoreError> {
        let loaded = self.0.load(unit)?;
        JUDGED.set((loaded.version.0, false));
        // So that others are in between more often.
        thread::yield_now();
        Ok(loaded)
    }

    fn replace(&self, unit: &UnitId, expected: Version, new: &Reservations) -> Result<Swap, StoreError> {
        let swap = self.0.replace(unit, expected, new)?;
        if swap == Swap::Done(expected.next()) {
            JUDGED.set((expected.0, true));
        }
        Ok(swap)
    }

    fn replace_owned(
        &self,
        unit: &UnitId,
        expected: Version,
        new: &Reservations,
        disk: &DiskRecord,
    ) -> Result<Swap, StoreError> {
        self.0.replace_owned(unit, expected, new, disk)
    }

    fn units(&self) -> Result<Vec<UnitId>, StoreError> {
        self.0.units()
    }

    fn is_shared_between_hosts(&self) -> bool {
        self.0.is_shared_between_hosts()
    }
}

/// The same of a store that makes changes its own way.
struct NotedInPlace {
    noted: Noted,
    version: AtomicU64,
}

impl Store for NotedInPlace {
    fn load(&self, unit: &UnitId) -> Result<Snapshot, StoreError> {
        self.noted.load(unit)
    }

    fn replace(&self, unit: &UnitId, expected: Version, new: &Reservations) -> Result<Swap, StoreError> {
        self.noted.replace(unit, expected, new)
    }

    fn update(&self, unit: &UnitId, change: &mut Change<'_>) -> Result<(), StoreError> {
        self.noted.0.update(unit, &mut |reservations, disk| {
            let changed = change(reservations, disk);
            // One at a time, says the store of changes in place.
            JUDGED.set((self.version.fetch_add(u64::from(changed), Ordering::SeqCst), changed));
            changed
        })
    }

    fn replace_owned(
        &self,
        unit: &UnitId,
        expected: Version,
        new: &Reservations,
        disk: &DiskRecord,
    ) -> Result<Swap, StoreError> {
        self.noted.replace_owned(unit, expected, new, disk)
    }

    fn units(&self) -> Result<Vec<UnitId>, StoreError> {
        self.noted.units()
    }

    fn is_shared_between_hosts(&self) -> bool {
        self.noted.is_shared_between_hosts()
    }
}

/// One command that was answered.
#[derive(Debug)]
struct Answered {
    initiator: usize,
    command: CommandBuf,
    completion: Completion,
    /// The newest version in any answer when the command began.
    after: u64,
    judged_by: u64,
    changed: bool,
}

/// The first is on two hosts.
const INITIATORS: [&str; 4] = ["a", "b", "c", "a"];

fn nexus(initiator: usize) -> Nexus {
    Nexus::new(INITIATORS[initiator].parse::<InitiatorName>().unwrap().transport_id().clone(), 1)
}

/// Runs the commands of each initiator in a thread.
fn run(store: &Arc<dyn Store>, commands: &[Vec<CommandBuf>]) -> Vec<Answered> {
    let disk = Disk::new();
    let newest_answered = AtomicU64::new(0);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..)
            .zip(commands)
            .map(|(initiator, commands)| {
                let (disk, newest_answered) = (&disk, &newest_answered);
                scope.spawn(move || {
                    let manager = disk.manager(store, INITIATORS[initiator]);
                    let run = |command: &CommandBuf| {
                        let after = newest_answered.load(Ordering::SeqCst);
                        let device = disk.image.as_file().as_fd();
                        let completion = manager.execute(device, command.command()).unwrap();
                        let (judged_by, changed) = JUDGED.get();
                        newest_answered.fetch_max(judged_by + u64::from(changed), Ordering::SeqCst);
                        Answered { initiator, command: command.clone(), completion, after, judged_by, changed }
                    };
                    commands.iter().map(run).collect::<Vec<_>>()
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    })
}

fn check(history: &[Answered]) -> Result<(), TestCaseError> {
    let changes = u64::try_from(history.iter().filter(|answered| answered.changed).count()).unwrap();
    prop_assert!(history.iter().all(|answered| answered.judged_by <= changes), "{:?}", history);
    let mut reservations = Reservations::new();
    for version in 0..=changes {
        let judged = history.iter().filter(|answered| answered.judged_by == version);
        let (changing, reading): (Vec<_>, Vec<_>) = judged.partition(|answered| answered.changed);
        for answered in &reading {
            let mut same = reservations.clone();
            let outcome = same.process(&nexus(answered.initiator), answered.command.command());
            prop_assert_eq!((&outcome.completion, outcome.changed), (&answered.completion, false), "{:?}", answered);
            prop_assert_eq!(&same, &reservations);
        }
        for answered in reading.iter().chain(&changing) {
            prop_assert!(answered.after <= version, "what was answered before is not seen: {:?}", answered);
        }
        prop_assert_eq!(changing.len(), usize::from(version < changes), "version {}: {:?}", version + 1, changing);
        for answered in changing {
            let outcome = reservations.process(&nexus(answered.initiator), answered.command.command());
            prop_assert_eq!((&outcome.completion, outcome.changed), (&answered.completion, true), "{:?}", answered);
            reservations.clear_unit_attentions();
        }
    }
    Ok(())
}

/// Commands of any kind, most of them well-formed and with keys that others have.
fn commands() -> impl Strategy<Value = CommandBuf> {
    let read = (0u8..6, prop::sample::select(vec![0u16, 4, 8, 24, 100, 8192]));
    let read = read.prop_map(|(service_action, length)| reserve_in(service_action, length));
    let key = || 0u64..4;
    let flags = prop_oneof![6 => Just(0u8), 1 => Just(1), 1 => Just(4), 1 => Just(8), 1 => any::<u8>()];
    let kind = prop_oneof![8 => prop::sample::select(vec![1u8, 3, 5, 6, 7, 8]), 1 => any::<u8>()];
    let listed = prop_oneof![3 => Just(None), 1 => (0usize..3).prop_map(Some)];
    let length = prop_oneof![8 => Just(None), 1 => (0usize..40).prop_map(Some)];
    let change = (0u8..10, kind, key(), key(), (flags, listed, length)).prop_map(
        |(service_action, kind, key, service_action_key, (flags, listed, length))| {
            let mut list = keys(key, service_action_key);
            if service_action == 7 {
                // REGISTER AND MOVE, to one of the initiators.
                let id = nexus(listed.unwrap_or(1)).initiator().bytes().to_vec();
                list[17] = flags & 3;
                list[19] = 1;
                list[20..24].copy_from_slice(&u32::try_from(id.len()).unwrap().to_be_bytes());
                list.extend(id);
            } else {
                list[20] = flags;
                if let Some(initiator) = listed.filter(|_| flags & 8 != 0) {
                    let id = nexus(initiator).initiator().bytes().to_vec();
                    list.extend(u32::try_from(id.len()).unwrap().to_be_bytes());
                    list.extend(id);
                }
            }
            list.resize(length.unwrap_or(list.len()), 0);
            reserve_out(service_action, kind, list)
        },
    );
    prop_oneof![1 => read, 4 => change]
}

fn histories(each: usize) -> impl Strategy<Value = Vec<Vec<CommandBuf>>> {
    prop::collection::vec(prop::collection::vec(commands(), 1..each), INITIATORS.len())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn by_compare_and_swap(commands in histories(40)) {
        let store: Arc<dyn Store> = Arc::new(Noted(Arc::new(MemoryStore::new())));
        check(&run(&store, &commands))?;
    }

    #[test]
    fn in_place(commands in histories(40)) {
        let noted = Noted(Arc::new(MemoryStore::new()));
        let store: Arc<dyn Store> = Arc::new(NotedInPlace { noted, version: AtomicU64::new(0) });
        check(&run(&store, &commands))?;
    }
}

proptest! {
    // Every change of these is fsynced.
    #![proptest_config(ProptestConfig::with_cases(4))]

    #[test]
    fn in_files(commands in histories(12)) {
        for kind in ["sqlite", "dir"] {
            let place = tempfile::tempdir().unwrap();
            let kept = open(&format!("{kind}:{}", place.path().join("store").display())).unwrap();
            let store: Arc<dyn Store> = Arc::new(Noted(kept));
            check(&run(&store, &commands))?;
        }
    }
}

/// The check is not one that passes always.
#[test]
fn what_is_not_linearisable_is_found() {
    let history = || {
        let store: Arc<dyn Store> = Arc::new(Noted(Arc::new(MemoryStore::new())));
        run(&store, &[vec![register(1), reserve_in(READ_KEYS, 8192)], vec![register(2)]])
    };
    check(&history()).unwrap();
    let wrong: [fn(&mut Answered); 4] = [
        // A read of what had been changed already when it began; two changes of one version; a change without a
        // command.
        |answered| answered.judged_by = if answered.changed { answered.judged_by } else { 0 },
        |answered| answered.judged_by = if answered.changed { 0 } else { answered.judged_by },
        |answered| answered.judged_by += u64::from(answered.changed),
        |answered| answered.completion = CONFLICT,
    ];
    for wrong in wrong {
        let mut history = history();
        history.iter_mut().for_each(wrong);
        assert!(check(&history).is_err(), "{history:?}");
    }
}
