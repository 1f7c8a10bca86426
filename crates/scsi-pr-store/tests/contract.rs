//! The behaviour that all stores share.

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::thread;

use scsi_pr::{
    Completion, Generation, Held, Key, Keys, Reservation, Reservations, ReserveIn, ReserveInAction, ReserveOut, Status,
    Type,
};
use scsi_pr_store::{MemoryStore, Store, Swap, Version, execute, execute_if, open, open_existing};

mod support;
use support::{change, changes, nexus, register, unit};

/// Runs a test on a store of each kind that is fresh.
fn on_each(test: impl Fn(Arc<dyn Store>)) {
    test(Arc::new(MemoryStore::new()));
    for kind in ["sqlite", "dir"] {
        let place = tempfile::tempdir().expect("a place for a store");
        test(open(&format!("{kind}:{}", place.path().join("store").display())).expect("a store"));
    }
}

#[test]
fn what_was_never_changed_is_fresh() {
    on_each(|store| {
        let loaded = store.load(&unit("a")).expect("a fresh one");
        assert_eq!((loaded.version, &*loaded.reservations), (Version(0), &Reservations::new()));
        assert!(!store.is_shared_between_hosts());
    });
}

#[test]
fn what_is_kept_is_loaded() {
    on_each(|store| {
        let mut reservations = Reservations::new();
        for number in 1..=20 {
            assert!(register(&mut reservations, &nexus(number)));
        }
        let swap = store.replace(&unit("a"), Version(0), &reservations).expect("kept");
        assert_eq!(swap, Swap::Done(Version(1)));
        let loaded = store.load(&unit("a")).expect("what is kept");
        assert_eq!((loaded.version, &*loaded.reservations), (Version(1), &reservations));
        assert_eq!(changes(&*store, &unit("b")), 0, "another unit");
    });
}

#[test]
fn a_swap_is_lost_unless_the_version_is_the_newest() {
    on_each(|store| {
        let unit = unit("a");
        let mut reservations = Reservations::new();
        assert_eq!(store.replace(&unit, Version(1), &reservations).expect("an answer"), Swap::Lost);
        for version in 0..3 {
            register(&mut reservations, &nexus(1));
            let swap = store.replace(&unit, Version(version), &reservations).expect("kept");
            assert_eq!(swap, Swap::Done(Version(version + 1)));
        }
        for version in [0, 1, 2, 4, u64::MAX >> 1] {
            let swap = store.replace(&unit, Version(version), &Reservations::new()).expect("an answer");
            assert_eq!(swap, Swap::Lost, "version {version}");
        }
        let loaded = store.load(&unit).expect("what is kept");
        assert_eq!((loaded.version, &*loaded.reservations), (Version(3), &reservations));
    });
}

#[test]
fn units_with_a_record_are_listed_in_order() {
    on_each(|store| {
        assert_eq!(store.units().expect("a list"), []);
        for name in ["b", "a", "c"] {
            store.update(&unit(name), &mut |reservations, _| register(reservations, &nexus(1))).expect("kept");
        }
        store.load(&unit("d")).expect("a fresh one");
        assert_eq!(store.units().expect("a list"), ["a", "b", "c"].map(unit));
    });
}

#[test]
fn command_of_an_administrator_runs_as_any_nexus() {
    on_each(|store| {
        let register = |key| ReserveOut::RegisterAndIgnoreExistingKey {
            service_action_key: Key(key),
            all_tg_pt: false,
            aptpl: false,
        };
        for number in [1, 2] {
            let command = register(number).encode().expect("a command");
            let completion = execute(&*store, &unit("a"), &nexus(number), command.command()).expect("an answer");
            assert_eq!(completion, Completion::Good(Vec::new()));
        }
        let read = ReserveIn::new(ReserveInAction::ReadKeys, 100).encode();
        let Ok(Completion::Good(data)) = execute(&*store, &unit("a"), &nexus(3), read.command()) else {
            panic!("no data")
        };
        assert_eq!(Keys::parse(&data).expect("keys").value.keys, [Key(1), Key(2)]);
        let release =
            ReserveOut::Release { key: Key(7), reservation_type: Type::WriteExclusive }.encode().expect("one");
        let completion = execute(&*store, &unit("a"), &nexus(1), release.command()).expect("an answer");
        assert_eq!(completion, Completion::Status(Status::RESERVATION_CONFLICT));
    });
}

#[test]
fn command_under_a_condition_runs_only_if_the_reservation_and_the_generation_are_those() {
    on_each(|store| {
        let register =
            ReserveOut::RegisterAndIgnoreExistingKey { service_action_key: Key(1), all_tg_pt: false, aptpl: false };
        let command = register.encode().expect("a command");
        let run = |generation, held| {
            let expected = Reservation { generation: Generation(generation), held };
            execute_if(&*store, &unit("a"), &nexus(1), command.command(), &expected, None).expect("an answer")
        };
        let held = Held { key: Key(1), reservation_type: Type::WriteExclusive };
        assert_eq!((run(1, None), run(0, Some(held))), (None, None));
        assert_eq!(store.load(&unit("a")).expect("a record").reservations.generation(), Generation(0));
        assert_eq!(run(0, None), Some(Completion::Good(Vec::new())));
        assert_eq!(run(0, None), None);
        let reserve =
            ReserveOut::Reserve { key: Key(1), reservation_type: Type::WriteExclusive }.encode().expect("a command");
        execute(&*store, &unit("a"), &nexus(1), reserve.command()).expect("an answer");
        // RESERVE does not change the generation.
        assert_eq!((run(1, None), run(1, Some(held))), (None, Some(Completion::Good(Vec::new()))));
    });
}

#[test]
fn command_under_a_condition_runs_only_if_the_holder_is_the_expected_one() {
    on_each(|store| {
        let execute = |number, request: ReserveOut| {
            let command = request.encode().expect("a command");
            let completion = execute(&*store, &unit("a"), &nexus(number), command.command()).expect("an answer");
            assert_eq!(completion, Completion::Good(Vec::new()));
        };
        let (key, reservation_type) = (Key(1), Type::WriteExclusive);
        for number in [1, 2] {
            let (all_tg_pt, aptpl) = (false, false);
            execute(number, ReserveOut::RegisterAndIgnoreExistingKey { service_action_key: key, all_tg_pt, aptpl });
        }
        execute(1, ReserveOut::Reserve { key, reservation_type });
        let expected = store.load(&unit("a")).expect("a record").reservations.read_reservation();
        execute(1, ReserveOut::Release { key, reservation_type });
        execute(2, ReserveOut::Reserve { key, reservation_type });
        // The key, the type and the generation are the same.
        assert_eq!(store.load(&unit("a")).expect("a record").reservations.read_reservation(), expected);
        let clear = ReserveOut::Clear { key }.encode().expect("a command");
        let run = |holder| {
            let nexus = nexus(2);
            execute_if(&*store, &unit("a"), &nexus, clear.command(), &expected, Some(&holder)).expect("an answer")
        };
        assert_eq!(run(nexus(1)), None);
        assert_eq!(store.load(&unit("a")).expect("a record").reservations.registrations().len(), 2);
        assert_eq!(run(nexus(2)), Some(Completion::Good(Vec::new())));
    });
}

#[test]
fn store_that_is_not_there_is_not_made_for_an_administrator() {
    for kind in ["sqlite", "dir"] {
        let place = tempfile::tempdir().expect("a place for a store");
        let path = place.path().join("store");
        let address = format!("{kind}:{}", path.display());
        assert!(open_existing(&address).is_err());
        assert!(!path.exists());
        open(&address).expect("a store");
        open_existing(&address).expect("the same store");
    }
}

#[test]
fn an_update_that_changes_nothing_is_not_kept() {
    on_each(|store| {
        change(&*store, &unit("a")).expect("kept");
        store.update(&unit("a"), &mut |_, _| false).expect("nothing to do");
        assert_eq!(store.load(&unit("a")).expect("what is kept").version, Version(1));
    });
}

/// A process that may read a file of a store may lock it, and so delay changes.
#[test]
fn a_store_that_is_made_is_its_owner_s_alone() {
    for (kind, mode) in [("sqlite", 0o600), ("dir", 0o700)] {
        let place = tempfile::tempdir().expect("a place for a store");
        let path = place.path().join("store");
        let store = open(&format!("{kind}:{}", path.display())).expect("a store");
        change(&*store, &unit("a")).expect("kept");
        assert_eq!(path.metadata().expect("the store").mode() & 0o777, mode, "{kind}");
    }
}

/// Clients may ask for any number of units.
#[test]
fn what_was_only_asked_for_leaves_nothing_behind() {
    let place = tempfile::tempdir().expect("a place for a store");
    let path = place.path().join("store");
    let store = open(&format!("dir:{}", path.display())).expect("a store");
    store.load(&unit("a")).expect("a fresh one");
    store.update(&unit("a"), &mut |_, _| false).expect("nothing to do");
    let count = |part| std::fs::read_dir(path.join(part)).expect("a directory").count();
    assert_eq!(["units", "locks", "new"].map(count), [0; 3]);
    change(&*store, &unit("a")).expect("kept");
    change(&*store, &unit("a")).expect("kept");
    assert_eq!(["units", "locks", "new"].map(count), [1, 1, 0]);
}

#[test]
fn change_of_another_process_is_seen() {
    for kind in ["sqlite", "dir"] {
        let place = tempfile::tempdir().expect("a place for a store");
        let address = format!("{kind}:{}", place.path().join("store").display());
        let (one, other) = (open(&address).expect("a store"), open(&address).expect("a store"));
        for version in 0..3 {
            change(&*other, &unit("a")).expect("kept");
            assert_eq!(one.load(&unit("a")).expect("what is kept").version, Version(version + 1));
            assert_eq!(u64::from(changes(&*one, &unit("a"))), version + 1);
        }
    }
}

#[test]
fn contenders_all_have_their_way() {
    on_each(|store| {
        const EACH: u32 = 5;
        thread::scope(|scope| {
            for number in 1..=64 {
                let store = &store;
                scope.spawn(move || {
                    for _ in 0..EACH {
                        let changed =
                            store.update(&unit("a"), &mut |reservations, _| register(reservations, &nexus(number)));
                        changed.expect("kept");
                    }
                });
            }
        });
        let loaded = store.load(&unit("a")).expect("what is kept");
        assert_eq!(loaded.version, Version(64 * u64::from(EACH)));
        assert_eq!(loaded.reservations.generation().0, 64 * EACH);
        assert_eq!(loaded.reservations.registrations().len(), 64);
    });
}
