//! The program that changes a store is killed before each of its system calls in turn.
#![cfg(target_arch = "x86_64")]

use std::path::Path;

use durability::changer::Changer;
use durability::tracer::{Decision, run};
use durability::{KINDS, Place, check};

const CHANGER: &str = env!("CARGO_BIN_EXE_changer");

/// Makes `before` changes, and kills at each system call of `changes` more and of closing the store (and of opening it, if
/// there is none before).
fn kill_at_every_call(kind: &str, before: u32, changes: u32) {
    for count in 0.. {
        let place = Place::new();
        let address = place.store(kind);
        let mut changer = Changer::start(Path::new(CHANGER), &address, before, changes);
        let mut calls = 0;
        let kill_at = |_: &_| {
            calls += 1;
            if calls > count { Decision::Kill } else { Decision::Go }
        };
        run(&mut changer, kill_at, |_, _| {});
        let report = changer.report();
        assert_eq!((&*report.failed, &*report.unopened), (&[][..], &[][..]));
        let pending = u32::from(report.kept < changes);
        let found = check(&address, before + report.kept, pending);
        assert_eq!(found, Ok(()), "{kind}, killed after {count} system calls");
        if report.closed {
            assert!(count > 20, "there were no system calls to kill it at");
            return;
        }
    }
}

#[test]
fn a_store_that_is_made_and_changed() {
    KINDS.iter().for_each(|kind| kill_at_every_call(kind, 0, 2));
}

#[test]
fn a_directory_that_removes_old_versions() {
    kill_at_every_call("dir", 33, 2);
}

#[test]
fn a_database_that_copies_its_log_back() {
    // A change is a page or two, and the log is copied after 250.
    kill_at_every_call("sqlite", 244, 8);
}
