//! Unit attentions: whom which event tells what, once, and before anything else (5.13, SAM-5 5.14).

use scsi_pr::{Completion, ReserveInAction, SenseCode};

use crate::unit::*;

fn three(kind: scsi_pr::Type) -> Vec<Step> {
    vec![register(A, NONE, KEY_A), register(B, NONE, KEY_B), register(C, NONE, KEY_C), reserve(A, KEY_A, kind)]
}

fn attentions_after(before: &[Step], step: &Step) -> Vec<(Who, SenseCode)> {
    let mut unit = Unit::after(before);
    assert!(matches!(unit.send(step), Completion::Good(_)));
    unit.reported()
}

#[test]
fn release_for_registrants_only_or_all_tells_the_other_registrants() {
    for kind in [WE_RO, EA_RO, WE_AR, EA_AR] {
        assert_eq!(attentions_after(&three(kind), &release(A, KEY_A, kind)), [(B, RELEASED), (C, RELEASED)], "{kind}");
    }
}

#[test]
fn release_of_an_exclusive_one_makes_no_unit_attention() {
    for kind in [WE, EA] {
        assert_eq!(attentions_after(&three(kind), &release(A, KEY_A, kind)), [], "{kind}");
    }
}

#[test]
fn a_holder_for_registrants_only_that_leaves_tells_the_others() {
    for kind in [WE_RO, EA_RO] {
        assert_eq!(attentions_after(&three(kind), &register(A, KEY_A, NONE)), [(B, RELEASED), (C, RELEASED)], "{kind}");
    }
}

#[test]
fn any_other_that_unregisters_makes_no_unit_attention() {
    for kind in [WE, EA, WE_AR, EA_AR] {
        assert_eq!(attentions_after(&three(kind), &ignoring(A, NONE)), [], "{kind}");
        assert_eq!(attentions_after(&three(kind), &register(B, KEY_B, NONE)), [], "{kind}");
    }
}

#[test]
fn preempt_tells_who_lost_its_registration_and_of_another_type_the_others() {
    assert_eq!(attentions_after(&three(WE), &preempt(B, KEY_B, KEY_A, WE)), [(A, PREEMPTED)]);
    assert_eq!(attentions_after(&three(WE), &preempt(B, KEY_B, KEY_A, EA)), [(A, PREEMPTED), (C, RELEASED)]);
    assert_eq!(attentions_after(&three(WE), &abort(B, KEY_B, KEY_A, EA)), [(A, PREEMPTED), (C, RELEASED)]);
}

#[test]
fn sender_that_removes_itself_gets_no_unit_attention() {
    assert_eq!(attentions_after(&three(WE), &preempt(B, KEY_B, KEY_B, WE)), []);
}

#[test]
fn clear_tells_everybody_else_that_was_registered() {
    assert_eq!(attentions_after(&three(WE), &clear(B, KEY_B)), [(A, CLEARED), (C, CLEARED)]);
}

#[test]
fn register_reserve_and_move_make_no_unit_attention() {
    assert_eq!(attentions_after(&three(WE_RO), &register(B, KEY_B, OTHER)), []);
    assert_eq!(attentions_after(&three(WE_RO), &register(D, NONE, OTHER)), []);
    assert_eq!(attentions_after(&three(WE_RO), &reserve(A, KEY_A, WE_RO)), []);
    assert_eq!(attentions_after(&three(WE_RO), &moving_with(A, KEY_A, OTHER, B, true, false)), []);
}

#[test]
fn the_next_command_is_answered_with_it_and_not_done() {
    let mut unit = Unit::after(&three(WE));
    unit.send(&clear(A, KEY_A));
    let before = unit.registrants();
    assert_eq!(unit.send(&register(B, NONE, KEY_B)), Completion::check(CLEARED));
    assert_eq!(unit.registrants(), before);
    assert_eq!(unit.send(&register(B, NONE, KEY_B)), Completion::Good(vec![]));
    // C has its own, and READ KEYS is answered with it too.
    assert_eq!(unit.send(&read(C, ReserveInAction::ReadKeys, 8192)), Completion::check(CLEARED));
    assert!(matches!(unit.send(&read(C, ReserveInAction::ReadKeys, 8192)), Completion::Good(_)));
}

#[test]
fn it_comes_before_the_checks_of_the_command() {
    let mut unit = Unit::after(&three(WE));
    unit.send(&clear(A, KEY_A));
    let malformed = changed(register(B, NONE, KEY_B), |_, list| list.truncate(3));
    assert_eq!(unit.send(&malformed), Completion::check(CLEARED));
    let Answer::Check(code) = LENGTH_ERROR else { unreachable!() };
    assert_eq!(unit.send(&malformed), Completion::check(code));
}

#[test]
fn report_of_a_unit_attention_is_a_change_to_store() {
    let mut unit = Unit::after(&three(WE));
    unit.send(&clear(A, KEY_A));
    let step = read(B, ReserveInAction::ReadKeys, 8);
    let outcome = unit.0.execute(&B.nexus(), step.command.command());
    assert!(outcome.changed);
    let outcome = unit.0.execute(&B.nexus(), step.command.command());
    assert!(!outcome.changed);
}

#[test]
fn several_unit_attentions_are_reported_one_by_one() {
    let mut unit = Unit::after(&three(WE_RO));
    unit.send(&release(A, KEY_A, WE_RO));
    unit.send(&reserve(A, KEY_A, EA_RO));
    unit.send(&release(A, KEY_A, EA_RO));
    unit.send(&preempt(A, KEY_A, KEY_B, WE));
    assert_eq!(unit.reported(), [(B, RELEASED), (B, PREEMPTED), (C, RELEASED)]);
    assert_eq!(unit.reported(), []);
}

#[test]
fn nexus_that_registers_again_keeps_its_unit_attentions() {
    let mut unit = Unit::after(&three(WE));
    unit.send(&preempt(A, KEY_A, KEY_B, WE));
    unit.send(&register_for(D, NONE, OTHER, &[B]));
    assert_eq!(unit.registrants(), [(A, KEY_A), (C, KEY_C), (D, OTHER), (B, OTHER)]);
    assert_eq!(unit.reported(), [(B, PREEMPTED)]);
}
