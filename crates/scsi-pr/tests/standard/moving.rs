//! REGISTER AND MOVE (table 70, 5.13.8).

use scsi_pr::{Key, Type};

use crate::unit::*;

fn held(kind: Type) -> Vec<Step> {
    vec![register(A, NONE, KEY_A), register(B, NONE, KEY_B), reserve(A, KEY_A, kind)]
}

const BOTH: [(Who, Key); 2] = [(A, KEY_A), (B, KEY_B)];

mod table_70 {
    use super::*;

    rows! {
        an_unregistered_nexus_conflicts: [], moving(C, NONE, KEY_B, B) => CONFLICT, [], Unreserved, [];
        an_unregistered_nexus_conflicts_under_a_reservation: held(WE), moving(C, NONE, KEY_C, B) => CONFLICT, BOTH, One(WE, A), [];
        who_does_not_hold_it_conflicts: held(WE), moving(B, KEY_B, KEY_C, C) => CONFLICT, BOTH, One(WE, A), [];
        who_does_not_hold_it_conflicts_under_registrants_only:
            held(WE_RO), moving(B, KEY_B, KEY_C, C) => CONFLICT, BOTH, One(WE_RO, A), [];
        the_wrong_key_conflicts: held(WE), moving(A, KEY_B, KEY_C, C) => CONFLICT, BOTH, One(WE, A), [];
        no_key_for_the_other: held(WE), moving(A, KEY_A, NONE, C) => BAD_LIST, BOTH, One(WE, A), [];
        all_registrants_conflict: held(WE_AR), moving(A, KEY_A, KEY_C, C) => CONFLICT, BOTH, All(WE_AR), [];
        all_registrants_with_exclusive_access_conflict: held(EA_AR), moving(B, KEY_B, KEY_C, C) => CONFLICT, BOTH, All(EA_AR), [];
        nothing_to_move: [register(A, NONE, KEY_A)], moving(A, KEY_A, KEY_B, B) => BAD_CDB, [(A, KEY_A)], Unreserved, [];
        to_itself: held(WE), moving(A, KEY_A, OTHER, A) => BAD_LIST, BOTH, One(WE, A), [];
        to_itself_at_another_target_port: held(WE), moving(A, KEY_A, OTHER, A2) => BAD_LIST, BOTH, One(WE, A), [];
        to_a_target_port_that_does_not_exist:
            held(WE), changed(moving(A, KEY_A, KEY_C, C), |_, list| list[19] = 9) => BAD_LIST, BOTH, One(WE, A), [];
        to_a_nexus_that_is_not_registered:
            held(WE), moving(A, KEY_A, KEY_C, C) => COUNTED, [(A, KEY_A), (B, KEY_B), (C, KEY_C)], One(WE, C), [];
        to_a_registrant_that_gets_another_key:
            held(EA_RO), moving(A, KEY_A, OTHER, B) => COUNTED, [(A, KEY_A), (B, OTHER)], One(EA_RO, B), [];
        to_a_registrant_at_another_target_port:
            held(EA_RO), moving(A, KEY_A, OTHER, B2) => COUNTED, [(A, KEY_A), (B, KEY_B), (B2, OTHER)], One(EA_RO, B2), [];
        and_leave: held(WE), moving_with(A, KEY_A, KEY_C, C, true, false) => COUNTED, [(B, KEY_B), (C, KEY_C)], One(WE, C), [];
        and_leave_under_registrants_only: held(WE_RO), moving_with(A, KEY_A, KEY_B, B, true, false)
            => COUNTED, [(B, KEY_B)], One(WE_RO, B), [];
        scope_and_type_are_not_looked_at:
            held(WE), with_scope_type(moving(A, KEY_A, KEY_C, C), 0xff)
            => COUNTED, [(A, KEY_A), (B, KEY_B), (C, KEY_C)], One(WE, C), [];
        a_malformed_transport_id: held(WE), changed(moving(A, KEY_A, KEY_C, C), |_, list| list[24] = 0x0f)
            => BAD_LIST, BOTH, One(WE, A), [];
        a_transport_id_that_is_too_short: held(WE), changed(moving(A, KEY_A, KEY_C, C), |_, list| {
            list.truncate(44);
            list[23] = 20;
        }) => BAD_LIST, BOTH, One(WE, A), [];
        a_malformed_transport_id_is_not_reached_with_the_wrong_key:
            held(WE), changed(moving(A, KEY_B, KEY_C, C), |_, list| list[24] = 0x0f) => CONFLICT, BOTH, One(WE, A), [];
        a_malformed_transport_id_is_not_reached_when_there_is_nothing_to_move:
            [register(A, NONE, KEY_A)], changed(moving(A, KEY_A, KEY_C, C), |_, list| list[24] = 0x0f)
            => BAD_CDB, [(A, KEY_A)], Unreserved, [];
    }
}

#[test]
fn aptpl_follows_the_move() {
    let mut unit = Unit::after(&held(WE));
    assert!(!unit.0.aptpl());
    unit.send(&moving_with(A, KEY_A, KEY_B, B, false, true));
    assert!(unit.0.aptpl());
    unit.send(&moving_with(B, KEY_B, KEY_A, A, false, false));
    assert!(!unit.0.aptpl());
}
