//! PREEMPT and PREEMPT AND ABORT (table 72, 5.13.11.2.4 to 5.13.11.2.6).

use scsi_pr::{Key, ScopeType, Type};

use crate::unit::*;

fn three() -> Vec<Step> {
    vec![register(A, NONE, KEY_A), register(B, NONE, KEY_B), register(C, NONE, KEY_C)]
}

/// A holds it.
fn held(kind: Type) -> Vec<Step> {
    let mut steps = three();
    steps.push(reserve(A, KEY_A, kind));
    steps
}

/// A and B have one key; A holds it.
fn shared(kind: Type) -> Vec<Step> {
    vec![register(A, NONE, OTHER), register(B, NONE, OTHER), register(C, NONE, KEY_C), reserve(A, OTHER, kind)]
}

const ALL_THREE: [(Who, Key); 3] = [(A, KEY_A), (B, KEY_B), (C, KEY_C)];

mod table_72 {
    use super::*;

    rows! {
        all_registrants_no_key_takes_over:
            held(WE_AR), preempt(B, KEY_B, NONE, EA) => COUNTED, [(B, KEY_B)], One(EA, B), [(A, PREEMPTED), (C, PREEMPTED)];
        all_registrants_no_key_may_keep_the_type:
            held(WE_AR), preempt(B, KEY_B, NONE, WE_AR) => COUNTED, [(B, KEY_B)], All(WE_AR), [(A, PREEMPTED), (C, PREEMPTED)];
        all_registrants_no_key_from_the_only_one:
            [register(A, NONE, KEY_A), reserve(A, KEY_A, EA_AR)], preempt(A, KEY_A, NONE, WE) => COUNTED, [(A, KEY_A)], One(WE, A), [];
        all_registrants_no_key_and_no_type:
            held(WE_AR), preempt(B, KEY_B, NONE, ScopeType(0)) => BAD_CDB, ALL_THREE, All(WE_AR), [];
        all_registrants_a_key_removes_its_registrations:
            held(WE_AR), preempt(B, KEY_B, KEY_A, EA) => COUNTED, [(B, KEY_B), (C, KEY_C)], All(WE_AR), [(A, PREEMPTED)];
        all_registrants_a_key_that_is_nobodys: held(WE_AR), preempt(B, KEY_B, OTHER, EA) => CONFLICT, ALL_THREE, All(WE_AR), [];
        all_registrants_the_key_of_some:
            shared(EA_AR), preempt(C, KEY_C, OTHER, EA) => COUNTED, [(C, KEY_C)], All(EA_AR), [(A, PREEMPTED), (B, PREEMPTED)];
        all_registrants_the_senders_own_key_keeps_the_sender:
            held(WE_AR), preempt(B, KEY_B, KEY_B, EA) => COUNTED, ALL_THREE, All(WE_AR), [];
        all_registrants_the_key_of_all_keeps_the_sender_and_the_reservation:
            [register(A, NONE, OTHER), register(B, NONE, OTHER), reserve(A, OTHER, WE_AR)], preempt(B, OTHER, OTHER, EA)
            => COUNTED, [(B, OTHER)], All(WE_AR), [(A, PREEMPTED)];
        all_registrants_the_key_of_the_only_one_keeps_it_and_the_reservation:
            [register(A, NONE, KEY_A), reserve(A, KEY_A, EA_AR)], preempt(A, KEY_A, KEY_A, EA_AR)
            => COUNTED, [(A, KEY_A)], All(EA_AR), [];
        all_registrants_a_key_and_no_type:
            held(WE_AR), preempt(B, KEY_B, KEY_A, ScopeType(0xff)) => COUNTED, [(B, KEY_B), (C, KEY_C)], All(WE_AR), [(A, PREEMPTED)];
        one_holder_no_key: held(WE_RO), preempt(B, KEY_B, NONE, WE_RO) => BAD_LIST, ALL_THREE, One(WE_RO, A), [];
        one_holder_its_key_takes_over:
            held(WE_RO), preempt(B, KEY_B, KEY_A, WE_RO) => COUNTED, [(B, KEY_B), (C, KEY_C)], One(WE_RO, B), [(A, PREEMPTED)];
        one_holder_its_key_with_another_type_makes_unit_attentions:
            held(WE_RO), preempt(B, KEY_B, KEY_A, EA) => COUNTED, [(B, KEY_B), (C, KEY_C)], One(EA, B), [(A, PREEMPTED), (C, RELEASED)];
        one_holder_its_key_for_all_registrants:
            held(EA), preempt(B, KEY_B, KEY_A, EA_AR) => COUNTED, [(B, KEY_B), (C, KEY_C)], All(EA_AR), [(A, PREEMPTED), (C, RELEASED)];
        one_holder_its_key_and_no_type: held(WE), preempt(B, KEY_B, KEY_A, ScopeType(2)) => BAD_CDB, ALL_THREE, One(WE, A), [];
        one_holder_its_key_and_another_scope: held(WE), preempt(B, KEY_B, KEY_A, ScopeType(0x11)) => BAD_CDB, ALL_THREE, One(WE, A), [];
        one_holder_its_key_removes_all_that_have_it:
            shared(WE), preempt(C, KEY_C, OTHER, WE) => COUNTED, [(C, KEY_C)], One(WE, C), [(A, PREEMPTED), (B, PREEMPTED)];
        one_holder_its_key_which_the_sender_has_too:
            shared(WE), preempt(B, OTHER, OTHER, WE) => COUNTED, [(B, OTHER), (C, KEY_C)], One(WE, B), [(A, PREEMPTED)];
        the_holder_itself_changes_the_type:
            held(WE), preempt(A, KEY_A, KEY_A, EA_RO) => COUNTED, ALL_THREE, One(EA_RO, A), [(B, RELEASED), (C, RELEASED)];
        the_holder_itself_keeps_the_type: held(WE), preempt(A, KEY_A, KEY_A, WE) => COUNTED, ALL_THREE, One(WE, A), [];
        the_holder_itself_removes_others_with_its_key:
            shared(WE_RO), preempt(A, OTHER, OTHER, WE_RO) => COUNTED, [(A, OTHER), (C, KEY_C)], One(WE_RO, A), [(B, PREEMPTED)];
        one_holder_the_key_of_another_removes_its_registrations:
            held(EA), preempt(B, KEY_B, KEY_C, WE) => COUNTED, [(A, KEY_A), (B, KEY_B)], One(EA, A), [(C, PREEMPTED)];
        one_holder_the_key_of_another_and_no_type:
            held(EA), preempt(B, KEY_B, KEY_C, ScopeType(0xee)) => COUNTED, [(A, KEY_A), (B, KEY_B)], One(EA, A), [(C, PREEMPTED)];
        one_holder_the_senders_own_key: held(EA), preempt(B, KEY_B, KEY_B, WE) => COUNTED, [(A, KEY_A), (C, KEY_C)], One(EA, A), [];
        one_holder_a_key_that_is_nobodys: held(EA), preempt(B, KEY_B, OTHER, WE) => CONFLICT, ALL_THREE, One(EA, A), [];
        nothing_reserved_no_key: three(), preempt(A, KEY_A, NONE, WE) => BAD_LIST, ALL_THREE, Unreserved, [];
        nothing_reserved_a_key_removes_its_registrations:
            three(), preempt(A, KEY_A, KEY_B, WE) => COUNTED, [(A, KEY_A), (C, KEY_C)], Unreserved, [(B, PREEMPTED)];
        nothing_reserved_a_key_and_no_type:
            three(), preempt(A, KEY_A, KEY_B, ScopeType(0xff)) => COUNTED, [(A, KEY_A), (C, KEY_C)], Unreserved, [(B, PREEMPTED)];
        nothing_reserved_the_senders_own_key: three(), preempt(A, KEY_A, KEY_A, WE) => COUNTED, [(B, KEY_B), (C, KEY_C)], Unreserved, [];
        nothing_reserved_a_key_that_is_nobodys: three(), preempt(A, KEY_A, OTHER, WE) => CONFLICT, ALL_THREE, Unreserved, [];
        an_unregistered_nexus_conflicts: three(), preempt(D, NONE, KEY_A, WE) => CONFLICT, ALL_THREE, Unreserved, [];
        an_unregistered_nexus_conflicts_under_a_reservation: held(WE), preempt(D, NONE, KEY_A, WE) => CONFLICT, ALL_THREE, One(WE, A), [];
        the_wrong_key_conflicts: held(WE), preempt(B, KEY_C, KEY_A, WE) => CONFLICT, ALL_THREE, One(WE, A), [];
        naming_others: held(WE), with_flags(preempt(B, KEY_B, KEY_A, WE), 8) => BAD_LIST, ALL_THREE, One(WE, A), [];
    }
}

/// PREEMPT AND ABORT does what PREEMPT does, and says whose commands are to be aborted.
fn aborts(before: &[Step], preempting: Step, aborted: &[Who]) {
    let mut preempted = Unit::after(before);
    let outcome = preempted.0.execute(&preempting.from.nexus(), preempting.command.command());
    assert!(outcome.changed && outcome.aborted.is_empty(), "PREEMPT aborts nothing");

    let mut unit = Unit::after(before);
    let aborting = changed(preempting, |cdb, _| cdb[1] = 5);
    let outcome = unit.0.execute(&aborting.from.nexus(), aborting.command.command());
    assert_eq!(outcome.completion, scsi_pr::Completion::Good(Vec::new()));
    assert_eq!(unit.0, preempted.0, "all else is as with PREEMPT");
    let aborted: Vec<_> = aborted.iter().map(|who| who.nexus()).collect();
    assert_eq!(outcome.aborted, aborted);
}

#[test]
fn the_commands_of_the_holder_are_aborted() {
    aborts(&held(WE), preempt(B, KEY_B, KEY_A, WE), &[A]);
}

#[test]
fn the_commands_of_all_that_have_the_holders_key_are_aborted() {
    aborts(&shared(WE), preempt(C, KEY_C, OTHER, EA), &[A, B]);
}

#[test]
fn the_commands_of_registrants_that_hold_nothing_are_aborted() {
    aborts(&held(WE), preempt(B, KEY_B, KEY_C, WE), &[C]);
}

#[test]
fn commands_are_aborted_where_nothing_is_reserved() {
    aborts(&three(), preempt(A, KEY_A, KEY_B, WE), &[B]);
}

#[test]
fn the_commands_of_some_of_all_registrants_are_aborted() {
    aborts(&held(EA_AR), preempt(B, KEY_B, KEY_C, WE), &[C]);
}

#[test]
fn the_commands_of_all_registrants_are_aborted_the_senders_others_too() {
    aborts(&held(EA_AR), preempt(B, KEY_B, NONE, WE), &[A, B, C]);
}

#[test]
fn a_sender_that_removes_itself_has_its_other_commands_aborted() {
    aborts(&held(WE), preempt(B, KEY_B, KEY_B, WE), &[B]);
}

#[test]
fn a_holder_that_preempts_itself_has_its_other_commands_aborted() {
    aborts(&held(WE), preempt(A, KEY_A, KEY_A, EA), &[A]);
}

#[test]
fn what_is_refused_aborts_nothing() {
    for (step, answer) in [
        (abort(B, KEY_B, OTHER, WE), CONFLICT),
        (abort(B, KEY_A, KEY_A, WE), CONFLICT),
        (abort(D, NONE, KEY_A, WE), CONFLICT),
        (abort(B, KEY_B, NONE, WE), BAD_LIST),
        (with_scope_type(abort(B, KEY_B, KEY_A, WE), 0x0f), BAD_CDB),
    ] {
        check(&held(WE), &step, answer, &ALL_THREE, One(WE, A), &[]);
    }
}
