//! RESERVE and RELEASE of SPC-2 beside persistent reservations (SPC-2 5.5.1, SPC-4 5.13.3).

use scsi_pr::{Access, Completion, ReserveInAction, Status};

use crate::unit::*;

const GOOD_: Completion = Completion::Good(Vec::new());
const CONFLICT_: Completion = Completion::Status(Status::RESERVATION_CONFLICT);

/// The answers of both.
fn both(unit: &mut Unit, who: Who) -> [Completion; 2] {
    [unit.0.reserve_spc2(&who.nexus()), unit.0.release_spc2(&who.nexus())]
}

#[test]
fn holder_gets_good_without_effect() {
    for kind in scsi_pr::Type::ALL {
        let mut unit = Unit::after(&[register(A, NONE, KEY_A), reserve(A, KEY_A, kind)]);
        let before = unit.0.clone();
        assert_eq!(both(&mut unit, A), [GOOD_, GOOD_], "{kind}");
        assert_eq!(unit.0, before, "{kind}");
    }
}

#[test]
fn so_is_a_registrant_under_registrants_only_or_all() {
    for kind in scsi_pr::Type::ALL {
        let mut unit = Unit::after(&[register(A, NONE, KEY_A), register(B, NONE, KEY_B), reserve(A, KEY_A, kind)]);
        let before = unit.0.clone();
        let expected = if matches!(kind, WE | EA) { CONFLICT_ } else { GOOD_ };
        assert_eq!(both(&mut unit, B), [expected.clone(), expected], "{kind}");
        assert_eq!(unit.0, before, "{kind}");
    }
}

#[test]
fn everybody_else_conflicts_while_anything_is_registered() {
    let mut unit = Unit::after(&[register(A, NONE, KEY_A)]);
    for who in [A, B] {
        assert_eq!(both(&mut unit, who), [CONFLICT_, CONFLICT_]);
    }
    for kind in scsi_pr::Type::ALL {
        let mut unit = Unit::after(&[register(A, NONE, KEY_A), reserve(A, KEY_A, kind)]);
        assert_eq!(both(&mut unit, C), [CONFLICT_, CONFLICT_], "{kind}");
    }
}

#[test]
fn a_unit_is_reserved_by_one_and_released_by_it() {
    let mut unit = Unit::new();
    assert_eq!(unit.0.reserve_spc2(&A.nexus()), GOOD_);
    assert_eq!(unit.0.reserve_spc2(&A.nexus()), GOOD_);
    assert_eq!(unit.0.reserve_spc2(&B.nexus()), CONFLICT_);
    assert_eq!(unit.0.release_spc2(&B.nexus()), GOOD_);
    assert_eq!(unit.0.spc2_holder(), Some(&A.nexus()));
    assert_eq!(unit.0.release_spc2(&A.nexus()), GOOD_);
    assert_eq!(unit.0.spc2_holder(), None);
    assert_eq!(unit.0.reserve_spc2(&B.nexus()), GOOD_);
}

#[test]
fn then_every_persistent_reservation_command_conflicts_its_holders_too() {
    for who in [A, B] {
        let mut unit = Unit::new();
        unit.0.reserve_spc2(&A.nexus());
        for action in ReserveInAction::ALL {
            assert_eq!(unit.send(&read(who, action, 8192)), CONFLICT_, "{action}");
        }
        for step in [
            register(who, NONE, KEY_A),
            ignoring(who, KEY_A),
            reserve(who, NONE, WE),
            release(who, NONE, WE),
            clear(who, NONE),
            preempt(who, NONE, KEY_A, WE),
            abort(who, NONE, KEY_A, WE),
            moving(who, NONE, KEY_A, C),
            replace_lost(who, NONE, KEY_A),
            changed(register(who, NONE, KEY_A), |_, list| list.truncate(4)),
            changed(register(who, NONE, KEY_A), |cdb, _| cdb[1] = 0x1f),
        ] {
            assert_eq!(unit.send(&step), CONFLICT_, "{:?}", step.command);
        }
        assert_eq!(unit.registrants(), []);
    }
}

#[test]
fn others_may_only_ask_what_the_unit_is() {
    let mut unit = Unit::new();
    unit.0.reserve_spc2(&A.nexus());
    let passes = |who: Who, cdb: &[u8]| unit.0.permits(&who.nexus(), Access::of_cdb(cdb));
    for (name, cdb, allowed) in [
        ("INQUIRY", &[0x12][..], true),
        ("LOG SENSE", &[0x4d], true),
        ("REPORT LUNS", &[0xa0], true),
        ("REQUEST SENSE", &[0x03], true),
        ("READ CAPACITY(10)", &[0x25], true),
        ("PREVENT ALLOW MEDIUM REMOVAL, allow", &[0x1e, 0, 0, 0, 0], true),
        ("START STOP UNIT, start", &[0x1b, 0, 0, 0, 1], true),
        ("RELEASE(6)", &[0x17], true),
        ("RELEASE(10)", &[0x57], true),
        ("TEST UNIT READY", &[0x00], false),
        ("MODE SENSE(6)", &[0x1a], false),
        ("READ(10)", &[0x28], false),
        ("WRITE(10)", &[0x2a], false),
        ("RESERVE(6)", &[0x16], false),
        ("RESERVE(10)", &[0x56], false),
        ("PREVENT ALLOW MEDIUM REMOVAL, prevent", &[0x1e, 0, 0, 0, 1], false),
        ("START STOP UNIT, stop", &[0x1b, 0, 0, 0, 0], false),
    ] {
        assert_eq!(passes(B, cdb), allowed, "{name}");
        assert!(passes(A, cdb), "{name} of the holder");
    }
}

#[test]
fn it_ends_with_a_reset_a_loss_of_power_and_its_nexus() {
    type Event = fn(&mut scsi_pr::Reservations);
    let events: [(Event, bool); 4] = [
        (|unit| unit.reset(), false),
        (|unit| unit.lose_power(), false),
        (|unit| unit.lose_nexus(&A.nexus()), false),
        (|unit| unit.lose_nexus(&B.nexus()), true),
    ];
    for (event, stays) in events {
        let mut unit = Unit::new();
        unit.0.reserve_spc2(&A.nexus());
        event(&mut unit.0);
        assert_eq!(unit.0.spc2_holder().is_some(), stays);
    }
}
