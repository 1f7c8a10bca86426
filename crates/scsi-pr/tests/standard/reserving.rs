//! RESERVE, RELEASE, CLEAR, REPLACE LOST RESERVATION (5.13.9, 5.13.11).

use crate::unit::*;

fn both() -> Vec<Step> {
    vec![register(A, NONE, KEY_A), register(B, NONE, KEY_B)]
}

fn held(kind: scsi_pr::Type) -> Vec<Step> {
    let mut steps = both();
    steps.push(reserve(A, KEY_A, kind));
    steps
}

const BOTH: [(Who, scsi_pr::Key); 2] = [(A, KEY_A), (B, KEY_B)];

mod reserve {
    use super::*;

    rows! {
        of_an_unregistered_nexus_conflicts: [], reserve(A, KEY_A, WE) => CONFLICT, [], Unreserved, [];
        of_an_unregistered_nexus_without_a_key_conflicts: [], reserve(A, NONE, WE) => CONFLICT, [], Unreserved, [];
        with_another_key_conflicts: both(), reserve(A, KEY_B, WE) => CONFLICT, BOTH, Unreserved, [];
        write_exclusive: both(), reserve(A, KEY_A, WE) => GOOD, BOTH, One(WE, A), [];
        exclusive_access: both(), reserve(A, KEY_A, EA) => GOOD, BOTH, One(EA, A), [];
        write_exclusive_registrants_only: both(), reserve(A, KEY_A, WE_RO) => GOOD, BOTH, One(WE_RO, A), [];
        exclusive_access_registrants_only: both(), reserve(A, KEY_A, EA_RO) => GOOD, BOTH, One(EA_RO, A), [];
        write_exclusive_all_registrants: both(), reserve(A, KEY_A, WE_AR) => GOOD, BOTH, All(WE_AR), [];
        exclusive_access_all_registrants: both(), reserve(A, KEY_A, EA_AR) => GOOD, BOTH, All(EA_AR), [];
        by_the_holder_again: held(WE_RO), reserve(A, KEY_A, WE_RO) => GOOD, BOTH, One(WE_RO, A), [];
        by_the_holder_of_another_type_conflicts: held(WE_RO), reserve(A, KEY_A, EA_RO) => CONFLICT, BOTH, One(WE_RO, A), [];
        by_another_conflicts: held(WE), reserve(B, KEY_B, WE) => CONFLICT, BOTH, One(WE, A), [];
        by_another_conflicts_under_registrants_only: held(WE_RO), reserve(B, KEY_B, WE_RO) => CONFLICT, BOTH, One(WE_RO, A), [];
        by_an_unregistered_nexus_under_another_conflicts: held(WE), reserve(C, NONE, WE) => CONFLICT, BOTH, One(WE, A), [];
        by_any_of_all_registrants: held(WE_AR), reserve(B, KEY_B, WE_AR) => GOOD, BOTH, All(WE_AR), [];
        by_any_of_all_registrants_of_another_type_conflicts: held(WE_AR), reserve(B, KEY_B, EA_AR) => CONFLICT, BOTH, All(WE_AR), [];
        by_who_holds_it_with_all_others_of_another_type_conflicts: held(EA_AR), reserve(A, KEY_A, WE) => CONFLICT, BOTH, All(EA_AR), [];
        of_a_type_that_is_obsolete: both(), with_scope_type(reserve(A, KEY_A, WE), 0x02) => BAD_CDB, BOTH, Unreserved, [];
        of_a_type_that_is_reserved: both(), with_scope_type(reserve(A, KEY_A, WE), 0x09) => BAD_CDB, BOTH, Unreserved, [];
        of_another_scope: both(), with_scope_type(reserve(A, KEY_A, WE), 0x11) => BAD_CDB, BOTH, Unreserved, [];
        naming_others: both(), with_flags(reserve(A, KEY_A, WE), 8) => BAD_LIST, BOTH, Unreserved, [];
        the_service_action_key_is_not_looked_at:
            both(), changed(reserve(A, KEY_A, WE), |_, list| list[8] = 1) => GOOD, BOTH, One(WE, A), [];
        the_bits_of_registering_are_not_looked_at: both(), with_flags(reserve(A, KEY_A, WE), 5) => GOOD, BOTH, One(WE, A), [];
    }
}

mod release {
    use super::*;

    rows! {
        of_an_unregistered_nexus_conflicts: [], release(A, NONE, WE) => CONFLICT, [], Unreserved, [];
        of_an_unregistered_nexus_under_another_conflicts: held(WE), release(C, NONE, WE) => CONFLICT, BOTH, One(WE, A), [];
        with_another_key_conflicts: held(WE), release(A, KEY_B, WE) => CONFLICT, BOTH, One(WE, A), [];
        with_another_key_conflicts_when_nothing_is_reserved: both(), release(A, KEY_B, WE) => CONFLICT, BOTH, Unreserved, [];
        of_nothing: both(), release(A, KEY_A, WE) => GOOD, BOTH, Unreserved, [];
        by_another_does_nothing: held(WE), release(B, KEY_B, WE) => GOOD, BOTH, One(WE, A), [];
        by_another_does_nothing_whatever_the_type: held(WE_RO), release(B, KEY_B, EA) => GOOD, BOTH, One(WE_RO, A), [];
        of_another_type_is_invalid: held(WE), release(A, KEY_A, EA) => INVALID_RELEASE, BOTH, One(WE, A), [];
        of_another_type_is_invalid_for_each_of_all_registrants: held(WE_AR), release(B, KEY_B, EA_AR) => INVALID_RELEASE, BOTH, All(WE_AR), [];
        write_exclusive_without_unit_attention: held(WE), release(A, KEY_A, WE) => GOOD, BOTH, Unreserved, [];
        exclusive_access_without_unit_attention: held(EA), release(A, KEY_A, EA) => GOOD, BOTH, Unreserved, [];
        write_exclusive_registrants_only_with_unit_attentions: held(WE_RO), release(A, KEY_A, WE_RO) => GOOD, BOTH, Unreserved, [(B, RELEASED)];
        exclusive_access_registrants_only_with_unit_attentions: held(EA_RO), release(A, KEY_A, EA_RO) => GOOD, BOTH, Unreserved, [(B, RELEASED)];
        write_exclusive_all_registrants_by_any_with_unit_attentions: held(WE_AR), release(B, KEY_B, WE_AR) => GOOD, BOTH, Unreserved, [(A, RELEASED)];
        exclusive_access_all_registrants_by_any_with_unit_attentions: held(EA_AR), release(A, KEY_A, EA_AR) => GOOD, BOTH, Unreserved, [(B, RELEASED)];
        of_another_scope: held(WE), with_scope_type(release(A, KEY_A, WE), 0x21) => BAD_CDB, BOTH, One(WE, A), [];
        of_a_type_that_is_none: held(WE), with_scope_type(release(A, KEY_A, WE), 0) => BAD_CDB, BOTH, One(WE, A), [];
        naming_others: held(WE), with_flags(release(A, KEY_A, WE), 8) => BAD_LIST, BOTH, One(WE, A), [];
    }
}

mod clear {
    use super::*;

    rows! {
        of_an_unregistered_nexus_conflicts: both(), clear(C, NONE) => CONFLICT, BOTH, Unreserved, [];
        with_another_key_conflicts: both(), clear(A, KEY_B) => CONFLICT, BOTH, Unreserved, [];
        removes_every_registration_with_unit_attentions: both(), clear(A, KEY_A) => COUNTED, [], Unreserved, [(B, CLEARED)];
        removes_the_reservation_of_the_sender: held(WE), clear(A, KEY_A) => COUNTED, [], Unreserved, [(B, CLEARED)];
        removes_the_reservation_of_another: held(EA), clear(B, KEY_B) => COUNTED, [], Unreserved, [(A, CLEARED)];
        removes_the_reservation_of_all_registrants: held(EA_AR), clear(B, KEY_B) => COUNTED, [], Unreserved, [(A, CLEARED)];
        scope_and_type_are_not_looked_at: held(WE), with_scope_type(clear(A, KEY_A), 0xff) => COUNTED, [], Unreserved, [(B, CLEARED)];
        naming_others: both(), with_flags(clear(A, KEY_A), 8) => BAD_LIST, BOTH, Unreserved, [];
    }
}

mod replace_lost {
    use super::*;

    rows! {
        when_nothing_is_lost: both(), replace_lost(A, NONE, KEY_A) => INVALID_RELEASE, BOTH, Unreserved, [];
        when_nothing_is_lost_by_an_unregistered_nexus: [], replace_lost(C, NONE, KEY_C) => INVALID_RELEASE, [], Unreserved, [];
        with_a_key_conflicts: both(), replace_lost(A, KEY_A, KEY_A) => CONFLICT, BOTH, Unreserved, [];
        by_an_unregistered_nexus_under_another_conflicts: held(WE), replace_lost(C, NONE, KEY_C) => CONFLICT, BOTH, One(WE, A), [];
        by_a_registrant_under_another: held(WE), replace_lost(B, NONE, KEY_B) => INVALID_RELEASE, BOTH, One(WE, A), [];
    }
}
