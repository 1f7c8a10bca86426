//! The changer is killed before each of its system calls in turn.
#![cfg(target_arch = "x86_64")]

use std::path::Path;

use durability::changer::Changer;
use durability::tracer::{Decision, run};
use durability::{KINDS, StoreDirectory, check};

const CHANGER: &str = env!("CARGO_BIN_EXE_changer");

/// Makes `before` changes, and kills the changer at each system call of `changes` more and of closing the store. If `before`
/// is 0, the calls of opening the store are included.
fn kill_at_every_call(kind: &str, before: u32, changes: u32) {
    for count in 0.. {
        let directory = StoreDirectory::new();
        let address = directory.store(kind);
        let mut changer = Changer::start(Path::new(CHANGER), &address, before, changes);
        let mut calls = 0;
        let kill_at = |_: &_| {
            calls += 1;
            if calls > count { Decision::Kill } else { Decision::Run }
        };
        run(&mut changer, kill_at, |_, _| {});
        let report = changer.report();
        assert_eq!((&*report.failed, &*report.unopened), (&[][..], &[][..]));
        let pending = u32::from(report.acknowledged < changes);
        let result = check(&address, before + report.acknowledged, pending);
        assert_eq!(result, Ok(()), "{kind}, killed after {count} system calls");
        if report.closed {
            assert!(count > 20, "the changer made too few system calls");
            return;
        }
    }
}

#[test]
fn new_store_survives_kill_at_any_call() {
    KINDS.iter().for_each(|kind| kill_at_every_call(kind, 0, 2));
}

#[test]
fn directory_that_removes_old_versions_survives_kill_at_any_call() {
    kill_at_every_call("dir", 33, 2);
}

#[test]
fn database_during_checkpoint_survives_kill_at_any_call() {
    // A change is one or two pages, and SQLite runs a checkpoint after 250 pages.
    kill_at_every_call("sqlite", 244, 8);
}
