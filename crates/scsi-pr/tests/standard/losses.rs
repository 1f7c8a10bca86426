//! The state after a loss of power, a reset or the loss of a nexus: APTPL and PRGENERATION (5.13.5, 6.15.2).

use scsi_pr::{Completion, Generation, ReserveInAction, SenseCode, SenseKey};

use crate::unit::*;

const RESET: SenseCode = SenseCode::RESET;
const LOST: SenseCode = SenseCode { key: SenseKey::UNIT_ATTENTION, asc: 0x29, ascq: 0x07 };

fn with_aptpl(last: Step) -> bool {
    let before = [register_for_good(A, NONE, KEY_A), reserve(A, KEY_A, WE)];
    let mut unit = Unit::after(&before);
    assert!(unit.0.aptpl());
    unit.send(&last);
    unit.0.aptpl()
}

#[test]
fn the_last_successful_registration_of_anybody_decides() {
    assert!(!with_aptpl(register(B, NONE, KEY_B)));
    assert!(!with_aptpl(register(A, KEY_A, KEY_A)));
    assert!(!with_aptpl(register(A, KEY_A, NONE)));
    assert!(!with_aptpl(ignoring(C, KEY_C)));
    assert!(!with_aptpl(ignoring(C, NONE)));
    assert!(!with_aptpl(moving(A, KEY_A, KEY_B, B)));
    assert!(with_aptpl(register_for_good(B, NONE, KEY_B)));
    assert!(with_aptpl(ignoring_with(C, KEY_C, false, true)));
    assert!(with_aptpl(moving_with(A, KEY_A, KEY_B, B, false, true)));
}

#[test]
fn one_that_fails_does_not() {
    assert!(with_aptpl(register(B, OTHER, KEY_B)));
    assert!(with_aptpl(register_for(A, KEY_A, KEY_A, &[B])));
    assert!(with_aptpl(moving(A, KEY_A, NONE, B)));
}

#[test]
fn other_service_actions_do_not() {
    assert!(with_aptpl(reserve(A, KEY_A, WE)));
    assert!(with_aptpl(release(A, KEY_A, WE)));
    assert!(with_aptpl(preempt(A, KEY_A, KEY_A, EA)));
    assert!(with_aptpl(clear(A, KEY_A)));
}

#[test]
fn a_loss_of_power_without_aptpl_takes_everything() {
    let mut unit = Unit::after(&[register(A, NONE, KEY_A), register(B, NONE, KEY_B), reserve(A, KEY_A, WE)]);
    unit.0.lose_power();
    assert_eq!((unit.registrants(), unit.holder(), unit.0.generation()), (vec![], Unreserved, Generation(0)));
    assert_eq!(unit.reported(), [(A, RESET), (B, RESET)]);
}

#[test]
fn a_loss_of_power_with_aptpl_takes_only_the_generation() {
    for kind in [WE, EA_RO, WE_AR] {
        let mut unit =
            Unit::after(&[register(A, NONE, KEY_A), register_for_good(B, NONE, KEY_B), reserve(A, KEY_A, kind)]);
        let holder = unit.holder();
        unit.0.lose_power();
        assert_eq!(unit.registrants(), [(A, KEY_A), (B, KEY_B)]);
        assert_eq!((unit.holder(), unit.0.generation(), unit.0.aptpl()), (holder, Generation(0), true));
        assert_eq!(unit.reported(), [(A, RESET), (B, RESET)]);
    }
}

#[test]
fn power_on_replaces_earlier_unit_attentions() {
    let mut unit = Unit::after(&[register(A, NONE, KEY_A), register_for_good(B, NONE, KEY_B)]);
    unit.send(&preempt(A, KEY_A, KEY_B, WE));
    unit.0.lose_power();
    assert_eq!(unit.reported(), [(A, RESET), (B, RESET)]);
}

#[test]
fn a_reset_takes_nothing() {
    let mut unit = Unit::after(&[register(A, NONE, KEY_A), register(B, NONE, KEY_B), reserve(A, KEY_A, WE)]);
    let generation = unit.0.generation();
    unit.0.reset();
    assert_eq!(unit.registrants(), [(A, KEY_A), (B, KEY_B)]);
    assert_eq!((unit.holder(), unit.0.generation()), (One(WE, A), generation));
    assert_eq!(unit.reported(), [(A, RESET), (B, RESET)]);
}

#[test]
fn reset_is_reported_before_earlier_unit_attentions() {
    let mut unit = Unit::after(&[register(A, NONE, KEY_A), register(B, NONE, KEY_B)]);
    unit.send(&preempt(A, KEY_A, KEY_B, WE));
    unit.0.reset();
    assert_eq!(unit.reported(), [(A, RESET), (B, RESET), (B, PREEMPTED)]);
}

#[test]
fn a_lost_nexus_keeps_its_registration_and_what_it_holds() {
    let mut unit = Unit::after(&[register(A, NONE, KEY_A), register(B, NONE, KEY_B), reserve(A, KEY_A, EA)]);
    unit.0.lose_nexus(&A.nexus());
    assert_eq!((unit.registrants(), unit.holder()), (vec![(A, KEY_A), (B, KEY_B)], One(EA, A)));
    assert_eq!(unit.reported(), [(A, LOST)]);
}

#[test]
fn each_successful_change_counts_one() {
    let mut unit = Unit::new();
    let mut expected = 0;
    for (step, counts) in [
        (register(A, NONE, KEY_A), true),
        (register(A, KEY_A, KEY_A), true),
        (register(B, NONE, NONE), true),
        (ignoring(B, NONE), true),
        (register_for(B, NONE, KEY_B, &[C]), true),
        (reserve(A, KEY_A, WE), false),
        (reserve(A, KEY_A, WE), false),
        (reserve(B, KEY_B, WE), false),
        (read(A, ReserveInAction::ReadKeys, 8192), false),
        (read(A, ReserveInAction::ReadFullStatus, 8192), false),
        (register(A, OTHER, KEY_A), false),
        (release(A, KEY_A, WE), false),
        (preempt(A, KEY_A, OTHER, WE), false),
        // Two registrations at once, and still one.
        (preempt(A, KEY_A, KEY_B, WE), true),
        (reserve(A, KEY_A, WE), false),
        (moving(A, KEY_A, KEY_B, B), true),
        (abort(A, KEY_A, KEY_B, WE), true),
        (replace_lost(A, NONE, KEY_A), false),
        (clear(A, KEY_A), true),
    ] {
        unit.send(&step);
        unit.reported();
        expected += u32::from(counts);
        assert_eq!(unit.0.generation(), Generation(expected), "{:?}", step.command);
    }
}

#[test]
fn the_generation_is_in_what_is_read() {
    let mut unit = Unit::after(&[register(A, NONE, KEY_A), register(B, NONE, KEY_B)]);
    for action in [ReserveInAction::ReadKeys, ReserveInAction::ReadReservation, ReserveInAction::ReadFullStatus] {
        let Completion::Good(data) = unit.send(&read(A, action, 8192)) else { panic!("{action}") };
        assert_eq!(data[..4], [0, 0, 0, 2], "{action}");
    }
}
