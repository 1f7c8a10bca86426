//! The order of effects: what a reservation forbids is over before the answer that establishes it.

mod common;

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use common::*;
use scsi_pr::{Completion, SenseCode, Status};
use scsi_pr_disk::{StoreError, TaskManagement};

const TASK_ABORTED: Completion = Completion::Status(Status::TASK_ABORTED);

/// Long enough for a thread to get where it has to wait.
const MOMENT: Duration = Duration::from_millis(50);

/// Two registered initiators, of which the first holds Write Exclusive – Registrants Only.
fn cluster(fixture: &Fixture) -> (Initiator, Initiator) {
    let (loser, winner) = (fixture.initiator("iqn.2026-11.test:loser"), fixture.initiator("iqn.2026-11.test:winner"));
    for (initiator, key) in [(&loser, 1), (&winner, 2)] {
        assert!(is_good(&initiator.reserve_out(REGISTER, 0, 0, key)));
    }
    assert!(is_good(&loser.reserve_out(RESERVE, WRITE_EXCLUSIVE_REGISTRANTS_ONLY, 1, 0)));
    (loser, winner)
}

/// A write of the loser that has reached the medium and waits there.
fn held_write(fixture: &Fixture, loser: &Initiator) -> thread::JoinHandle<Option<(Completion, Vec<u8>)>> {
    fixture.medium.hold();
    let loser = loser.clone();
    let write = thread::spawn(move || loser.try_send(&write10(7, 1), &[0xaa; BLOCK]));
    eventually("the write is on the medium", || fixture.medium.waiting() == 1);
    write
}

#[test]
fn preempt_is_good_only_when_the_losers_write_has_ended() {
    for action in [PREEMPT, PREEMPT_AND_ABORT] {
        let fixture = Fixture::new();
        let (loser, winner) = cluster(&fixture);
        let write = held_write(&fixture, &loser);
        let (answered, answer) = mpsc::channel();
        thread::spawn({
            let winner = winner.clone();
            move || answered.send(winner.reserve_out(action, WRITE_EXCLUSIVE_REGISTRANTS_ONLY, 2, 1)).unwrap()
        });
        assert!(answer.recv_timeout(MOMENT).is_err(), "it was answered while the write was in flight");
        fixture.medium.release();
        assert!(is_good(&answer.recv().unwrap()));
        let (answer, _) = write.join().unwrap().unwrap();
        // PREEMPT leaves the command its answer.
        let expected = if action == PREEMPT { Completion::Good(Vec::new()) } else { TASK_ABORTED };
        assert_eq!(answer, expected);
        // After GOOD, no write of the loser changes a block.
        assert_eq!(loser.sense(&[0; 6]), "06/2a/05");
        let before = fixture.medium.block(7);
        assert!(loser.conflicts(&write10(7, 1), &[0xbb; BLOCK]));
        assert_eq!(fixture.medium.block(7), before);
        winner.write(7, &[0xcc; BLOCK]);
    }
}

#[test]
fn aborted_command_has_an_answer_or_a_unit_attention_as_tas_says() {
    for tas in [true, false] {
        let fixture = Fixture::new();
        let (loser, winner) = cluster(&fixture);
        set_tas(&winner, tas);
        // MODE PARAMETERS CHANGED.
        assert_eq!(loser.sense(&[0; 6]), "06/2a/01");
        let write = held_write(&fixture, &loser);
        let preempt = thread::spawn({
            let winner = winner.clone();
            move || winner.reserve_out(PREEMPT_AND_ABORT, WRITE_EXCLUSIVE_REGISTRANTS_ONLY, 2, 1)
        });
        thread::sleep(MOMENT);
        fixture.medium.release();
        assert!(is_good(&preempt.join().unwrap()));
        let answer = write.join().unwrap();
        assert_eq!(answer, tas.then_some((TASK_ABORTED, Vec::new())));
        if !tas {
            assert_eq!(loser.sense(&[0; 6]), "06/2f/00");
        }
        assert_eq!(loser.sense(&[0; 6]), "06/2a/05");
    }
}

/// Sets TAS of the Control mode page.
fn set_tas(initiator: &Initiator, tas: bool) {
    let mut page = initiator.good(&[0x1a, 0x08, 0x0a, 0, 0xff, 0], &[]);
    // The other value first: a mode page that does not change has no unit attention.
    for value in [!tas, tas] {
        // Reserved in MODE SELECT.
        (page[0], page[2]) = (0, 0);
        page[4 + 5] = if value { page[4 + 5] | 0x40 } else { page[4 + 5] & !0x40 };
        initiator.good(&[0x15, 0x10, 0, 0, page.len() as u8, 0], &page);
    }
}

#[test]
fn every_command_that_takes_rights_away_waits() {
    // A RESERVE shuts out an initiator that is not registered; a change of the key does not.
    let fixture = Fixture::new();
    let (unregistered, holder) =
        (fixture.initiator("iqn.2026-11.test:other"), fixture.initiator("iqn.2026-11.test:holder"));
    assert!(is_good(&holder.reserve_out(REGISTER, 0, 0, 1)));
    let write = held_write(&fixture, &unregistered);
    assert!(is_good(&holder.reserve_out(REGISTER, 0, 1, 9)));
    let (answered, answer) = mpsc::channel();
    thread::spawn(move || answered.send(holder.reserve_out(RESERVE, WRITE_EXCLUSIVE, 9, 0)).unwrap());
    assert!(answer.recv_timeout(MOMENT).is_err());
    fixture.medium.release();
    assert!(is_good(&answer.recv().unwrap()));
    assert!(is_good(&write.join().unwrap().unwrap().0));
}

#[test]
fn new_keys_are_not_shown_before_they_are_in_force() {
    let fixture = Fixture::new();
    let (loser, winner) = cluster(&fixture);
    let write = held_write(&fixture, &loser);
    let preempt = thread::spawn({
        let winner = winner.clone();
        move || winner.reserve_out(PREEMPT, WRITE_EXCLUSIVE_REGISTRANTS_ONLY, 2, 1)
    });
    eventually("the new state is durable", || fixture.store.stored().registrations().len() == 1);
    let (answered, answer) = mpsc::channel();
    thread::spawn({
        let winner = winner.clone();
        move || answered.send(winner.keys()).unwrap()
    });
    assert!(answer.recv_timeout(MOMENT).is_err(), "READ KEYS shows a state that is not in force");
    fixture.medium.release();
    assert_eq!(answer.recv().unwrap(), [2]);
    assert!(is_good(&preempt.join().unwrap()));
    write.join().unwrap();
}

#[test]
fn the_drain_outlives_the_command_that_began_it() {
    let fixture = Fixture::new();
    let (loser, winner) = cluster(&fixture);
    let write = held_write(&fixture, &loser);
    let preempt = thread::spawn({
        let winner = winner.clone();
        move || {
            let (cdb, list) = reserve_out(PREEMPT, WRITE_EXCLUSIVE_REGISTRANTS_ONLY, 2, 1);
            winner.try_send(&cdb, &list)
        }
    });
    eventually("the new state is durable", || fixture.store.stored().registrations().len() == 1);
    // The winner's time-out: it aborts its command.
    assert_eq!(winner.disk.manage(winner.session, TaskManagement::AbortTaskSet), 1);
    assert_eq!(preempt.join().unwrap(), None);
    let (answered, answer) = mpsc::channel();
    thread::spawn({
        let winner = winner.clone();
        move || answered.send(winner.keys()).unwrap()
    });
    assert!(answer.recv_timeout(MOMENT).is_err(), "the abort has ended the drain");
    fixture.medium.release();
    assert_eq!(answer.recv().unwrap(), [2]);
    write.join().unwrap();
}

#[test]
fn a_store_that_changes_nothing_leaves_the_reservation_as_it_is() {
    let fixture = Fixture::new();
    let (loser, winner) = cluster(&fixture);
    fixture.store.fail(Some((StoreError::Unchanged("no space".to_owned()), Stored::No)));
    let refused = Completion::check(SenseCode::NOT_READY);
    assert_eq!(winner.reserve_out(PREEMPT, WRITE_EXCLUSIVE_REGISTRANTS_ONLY, 2, 1), refused);
    loser.write(7, &[1; BLOCK]);
    fixture.store.fail(None);
    assert!(is_good(&winner.reserve_out(PREEMPT, WRITE_EXCLUSIVE_REGISTRANTS_ONLY, 2, 1)));
}

#[test]
fn an_unknown_outcome_closes_the_gate_until_the_store_is_read_again() {
    for kept in [Stored::Yes, Stored::No] {
        let fixture = Fixture::new();
        let (loser, winner) = cluster(&fixture);
        fixture.store.fail(Some((StoreError::OutcomeUnknown("timed out".to_owned()), kept)));
        fixture.store.fail_loads(true);
        let unknown = Completion::check(SenseCode::LUN_COMMUNICATION_FAILURE);
        assert_eq!(winner.reserve_out(PREEMPT, WRITE_EXCLUSIVE_REGISTRANTS_ONLY, 2, 1), unknown);
        for initiator in [&loser, &winner] {
            assert_eq!(initiator.sense_of(&write10(7, 1), &[1; BLOCK]), "02/04/00");
            assert_eq!(initiator.sense(&read10(7, 1)), "02/04/00");
            initiator.good(&[0x12, 0, 0, 0, 96, 0], &[]);
        }
        fixture.store.fail_loads(false);
        fixture.store.fail(None);
        if kept == Stored::Yes {
            assert_eq!(loser.sense(&[0; 6]), "06/2a/05");
        }
        // Whether the loser may write is what the store says.
        let (completion, _) = loser.send(&write10(7, 1), &[1; BLOCK]);
        match kept {
            Stored::Yes => assert_eq!(completion, Completion::Status(Status::RESERVATION_CONFLICT)),
            Stored::No => assert!(is_good(&completion), "{completion}"),
        }
    }
}

#[test]
fn a_command_that_a_session_left_behind_comes_before_the_next_session() {
    let fixture = Fixture::new();
    let first = fixture.initiator("iqn.2026-11.test:node");
    let write = held_write(&fixture, &first);
    fixture.disk.close_session(first.session);
    let second = fixture.new_session("iqn.2026-11.test:node");
    let (answered, answer) = mpsc::channel();
    thread::spawn(move || {
        assert_eq!(second.sense(&[0; 6]), "06/29/07");
        second.write(7, &[0xbb; BLOCK]);
        answered.send(()).unwrap();
    });
    assert!(answer.recv_timeout(MOMENT).is_err(), "the next session did not wait");
    fixture.medium.release();
    answer.recv().unwrap();
    assert_eq!(write.join().unwrap(), None);
    assert_eq!(fixture.medium.block(7), [0xbb; BLOCK]);
}

#[test]
fn a_logical_unit_reset_waits_for_what_it_aborts() {
    let fixture = Fixture::new();
    let (a, b) = (fixture.initiator("iqn.2026-11.test:a"), fixture.initiator("iqn.2026-11.test:b"));
    b.good(&[0x16, 0, 0, 0, 0, 0], &[]);
    assert!(a.conflicts(&[0; 6], &[]), "the SPC-2 reservation of b");
    let write = held_write(&fixture, &b);
    let (answered, answer) = mpsc::channel();
    thread::spawn({
        let a = a.clone();
        move || answered.send(a.disk.manage(a.session, TaskManagement::LogicalUnitReset)).unwrap()
    });
    assert!(answer.recv_timeout(MOMENT).is_err());
    fixture.medium.release();
    assert_eq!(answer.recv().unwrap(), 1);
    assert_eq!(write.join().unwrap(), None);
    for initiator in [&a, &b] {
        assert_eq!(initiator.sense(&[0; 6]), "06/29/03");
        initiator.good(&[0; 6], &[]);
    }
}

#[test]
fn clear_task_set_tells_the_other_initiator() {
    let fixture = Fixture::new();
    let (a, b) = (fixture.initiator("iqn.2026-11.test:a"), fixture.initiator("iqn.2026-11.test:b"));
    let write = held_write(&fixture, &b);
    let clear = thread::spawn({
        let a = a.clone();
        move || a.disk.manage(a.session, TaskManagement::ClearTaskSet)
    });
    thread::sleep(MOMENT);
    fixture.medium.release();
    assert_eq!(clear.join().unwrap(), 1);
    assert_eq!(write.join().unwrap(), Some((TASK_ABORTED, Vec::new())));
    b.good(&[0; 6], &[]);
    a.good(&[0; 6], &[]);
}

#[test]
fn reservations_are_those_of_the_store_after_a_restart() {
    let fixture = Fixture::new();
    let (_, winner) = cluster(&fixture);
    assert!(is_good(&winner.reserve_out(PREEMPT, WRITE_EXCLUSIVE_REGISTRANTS_ONLY, 2, 1)));
    let options = scsi_pr_disk::DiskOptions::new(scsi_pr_disk::Identity::from_uuid(*b"0123456789abcdef"));
    let store = Box::new(fixture.store.clone());
    let disk = scsi_pr_disk::Disk::open(options, Box::new(fixture.medium.clone()), store).unwrap();
    let again = Fixture { disk: disk.into(), medium: fixture.medium.clone(), store: fixture.store.clone() };
    let loser = again.initiator("iqn.2026-11.test:loser");
    // The attention was stored with the change: told twice rather than never.
    assert_eq!(loser.sense(&[0; 6]), "06/2a/05");
    assert!(loser.conflicts(&write10(0, 1), &[0; BLOCK]));
    assert_eq!(again.initiator("iqn.2026-11.test:winner").keys(), [2]);
}
