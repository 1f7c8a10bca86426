//! REGISTER (table 67), REGISTER AND IGNORE EXISTING KEY (table 68), SPEC_I_PT, ALL_TG_PT (6.16.3), and what becomes of a
//! reservation whose holder leaves (5.13.11.2.3).

use scsi_pr::{Key, Reservations};

use crate::unit::*;

mod table_67 {
    use super::*;

    rows! {
        an_unregistered_nexus_with_a_key_conflicts: [], register(A, OTHER, KEY_A) => CONFLICT, [], Unreserved, [];
        an_unregistered_nexus_with_a_key_conflicts_when_it_wants_none: [], register(A, OTHER, NONE) => CONFLICT, [], Unreserved, [];
        an_unregistered_nexus_with_a_key_conflicts_whomever_it_names:
            [], register_for(A, OTHER, KEY_A, &[B]) => CONFLICT, [], Unreserved, [];
        an_unregistered_nexus_that_wants_no_key_gets_nothing: [], register(A, NONE, NONE) => COUNTED, [], Unreserved, [];
        an_unregistered_nexus_that_wants_no_key_gets_nothing_for_others:
            [], register_for(A, NONE, NONE, &[B]) => COUNTED, [], Unreserved, [];
        an_unregistered_nexus_is_registered: [], register(A, NONE, KEY_A) => COUNTED, [(A, KEY_A)], Unreserved, [];
        an_unregistered_nexus_is_registered_with_those_it_names:
            [], register_for(A, NONE, KEY_A, &[B, C]) => COUNTED, [(A, KEY_A), (B, KEY_A), (C, KEY_A)], Unreserved, [];
        unregistered_nexus_may_send_an_empty_list: [], register_for(A, NONE, KEY_A, &[]) => COUNTED, [(A, KEY_A)], Unreserved, [];
        nothing_is_registered_when_one_that_is_named_is_already:
            [register(C, NONE, KEY_C)], register_for(A, NONE, KEY_A, &[B, C]) => BAD_LIST, [(C, KEY_C)], Unreserved, [];
        a_registered_nexus_with_another_key_conflicts:
            [register(A, NONE, KEY_A)], register(A, OTHER, KEY_B) => CONFLICT, [(A, KEY_A)], Unreserved, [];
        a_registered_nexus_with_no_key_conflicts:
            [register(A, NONE, KEY_A)], register(A, NONE, KEY_B) => CONFLICT, [(A, KEY_A)], Unreserved, [];
        a_registered_nexus_with_another_key_conflicts_whomever_it_names:
            [register(A, NONE, KEY_A)], register_for(A, OTHER, KEY_B, &[B]) => CONFLICT, [(A, KEY_A)], Unreserved, [];
        a_registered_nexus_is_unregistered: [register(A, NONE, KEY_A)], register(A, KEY_A, NONE) => COUNTED, [], Unreserved, [];
        a_registered_nexus_gets_another_key:
            [register(A, NONE, KEY_A)], register(A, KEY_A, OTHER) => COUNTED, [(A, OTHER)], Unreserved, [];
        a_registered_nexus_may_get_the_same_key:
            [register(A, NONE, KEY_A)], register(A, KEY_A, KEY_A) => COUNTED, [(A, KEY_A)], Unreserved, [];
        a_registered_nexus_may_not_name_others:
            [register(A, NONE, KEY_A)], register_for(A, KEY_A, KEY_B, &[B]) => BAD_LIST, [(A, KEY_A)], Unreserved, [];
        a_registered_nexus_may_not_unregister_others:
            [register(A, NONE, KEY_A), register(B, NONE, KEY_A)], register_for(A, KEY_A, NONE, &[B])
            => BAD_LIST, [(A, KEY_A), (B, KEY_A)], Unreserved, [];
        another_key_keeps_the_place_in_the_order:
            [register(A, NONE, KEY_A), register(B, NONE, KEY_B)], register(A, KEY_A, OTHER)
            => COUNTED, [(A, OTHER), (B, KEY_B)], Unreserved, [];
        many_may_have_one_key:
            [register(A, NONE, OTHER)], register(B, NONE, OTHER) => COUNTED, [(A, OTHER), (B, OTHER)], Unreserved, [];
        scope_and_type_are_not_looked_at:
            [], with_scope_type(register(A, NONE, KEY_A), 0xff) => COUNTED, [(A, KEY_A)], Unreserved, [];
    }
}

mod table_68 {
    use super::*;

    rows! {
        an_unregistered_nexus_that_wants_no_key_gets_nothing: [], ignoring(A, NONE) => COUNTED, [], Unreserved, [];
        an_unregistered_nexus_is_registered: [], ignoring(A, KEY_A) => COUNTED, [(A, KEY_A)], Unreserved, [];
        a_registered_nexus_is_unregistered: [register(A, NONE, KEY_A)], ignoring(A, NONE) => COUNTED, [], Unreserved, [];
        a_registered_nexus_gets_another_key:
            [register(A, NONE, KEY_A)], ignoring(A, OTHER) => COUNTED, [(A, OTHER)], Unreserved, [];
        the_reservation_key_is_not_looked_at:
            [register(A, NONE, KEY_A)], changed(ignoring(A, KEY_B), |_, list| list[0] = 0xff)
            => COUNTED, [(A, KEY_B)], Unreserved, [];
        list_without_transport_ids_is_allowed: [], with_flags(ignoring(A, KEY_A), 8) => BAD_LIST, [], Unreserved, [];
        scope_and_type_are_not_looked_at:
            [], with_scope_type(ignoring(A, KEY_A), 0xff) => COUNTED, [(A, KEY_A)], Unreserved, [];
    }
}

mod all_target_ports {
    use super::*;

    rows! {
        the_initiator_is_registered_on_each:
            [], register_everywhere(A, NONE, KEY_A) => COUNTED, [(A, KEY_A), (A2, KEY_A)], Unreserved, [];
        so_are_those_that_are_named:
            [], register_for_everywhere(A, NONE, KEY_A, &[B])
            => COUNTED, [(A, KEY_A), (A2, KEY_A), (B, KEY_A), (B2, KEY_A)], Unreserved, [];
        one_that_is_named_is_registered_elsewhere_already:
            [register(B2, NONE, KEY_B)], register_for_everywhere(A, NONE, KEY_A, &[B]) => BAD_LIST, [(B2, KEY_B)], Unreserved, [];
        without_the_bit_only_this_port_counts:
            [register(B2, NONE, KEY_B)], register_for(A, NONE, KEY_A, &[B])
            => COUNTED, [(B2, KEY_B), (A, KEY_A), (B, KEY_A)], Unreserved, [];
        a_key_is_changed_on_each:
            [register_everywhere(A, NONE, KEY_A)], register_everywhere(A, KEY_A, OTHER)
            => COUNTED, [(A, OTHER), (A2, OTHER)], Unreserved, [];
        the_initiator_leaves_each: [register_everywhere(A, NONE, KEY_A)], register_everywhere(A, KEY_A, NONE)
            => COUNTED, [], Unreserved, [];
        without_the_bit_it_leaves_only_this_one: [register_everywhere(A, NONE, KEY_A)], register(A, KEY_A, NONE)
            => COUNTED, [(A2, KEY_A)], Unreserved, [];
        ignoring_keys_it_is_registered_on_each: [register(A2, NONE, OTHER)], ignoring_with(A, KEY_A, true, false)
            => COUNTED, [(A2, KEY_A), (A, KEY_A)], Unreserved, [];
        ignoring_keys_it_leaves_each: [register_everywhere(A, NONE, KEY_A)], ignoring_with(A, NONE, true, false)
            => COUNTED, [], Unreserved, [];
        a_nexus_at_another_port_is_another: [register(A, NONE, KEY_A)], reserve(A2, KEY_A, WE)
            => CONFLICT, [(A, KEY_A)], Unreserved, [];
    }
}

/// 5.13.11.2.3.
mod leaving {
    use super::*;

    fn two(kind: scsi_pr::Type) -> Vec<Step> {
        vec![register(A, NONE, KEY_A), register(B, NONE, KEY_B), reserve(A, KEY_A, kind)]
    }

    rows! {
        the_holder_of_write_exclusive_takes_it_along: two(WE), register(A, KEY_A, NONE) => COUNTED, [(B, KEY_B)], Unreserved, [];
        the_holder_of_exclusive_access_takes_it_along: two(EA), register(A, KEY_A, NONE) => COUNTED, [(B, KEY_B)], Unreserved, [];
        holder_for_registrants_only_ends_it_with_unit_attentions:
            two(WE_RO), register(A, KEY_A, NONE) => COUNTED, [(B, KEY_B)], Unreserved, [(B, RELEASED)];
        the_same_with_exclusive_access_and_ignoring_keys:
            two(EA_RO), ignoring(A, NONE) => COUNTED, [(B, KEY_B)], Unreserved, [(B, RELEASED)];
        one_of_all_registrants_leaves_it_behind: two(WE_AR), register(A, KEY_A, NONE) => COUNTED, [(B, KEY_B)], All(WE_AR), [];
        one_of_all_registrants_with_exclusive_access_too:
            two(EA_AR), register(B, KEY_B, NONE) => COUNTED, [(A, KEY_A)], All(EA_AR), [];
        the_last_of_all_registrants_takes_it_along:
            [register(A, NONE, KEY_A), reserve(A, KEY_A, WE_AR)], register(A, KEY_A, NONE) => COUNTED, [], Unreserved, [];
        who_holds_nothing_leaves_it_alone: two(WE_RO), register(B, KEY_B, NONE) => COUNTED, [(A, KEY_A)], One(WE_RO, A), [];
        another_key_changes_nothing_else:
            two(EA), register(A, KEY_A, OTHER) => COUNTED, [(A, OTHER), (B, KEY_B)], One(EA, A), [];
    }
}

#[test]
fn there_may_be_room_for_no_more() {
    let mut unit = Unit(Reservations::with_target_ports([1, 2]).with_room_for(2));
    let answer = |unit: &mut Unit, step: Step| unit.send(&step);
    let Answer::Check(code) = NO_ROOM else { unreachable!() };
    let no_room = scsi_pr::Completion::check(code);
    assert_eq!(answer(&mut unit, register_for(A, NONE, KEY_A, &[B, C])), no_room);
    assert_eq!(unit.registrants(), []);
    answer(&mut unit, register(A, NONE, KEY_A));
    answer(&mut unit, register(B, NONE, KEY_B));
    for step in [register(C, NONE, KEY_C), ignoring(C, KEY_C), register_everywhere(C, NONE, KEY_C)] {
        assert_eq!(answer(&mut unit, step), no_room);
    }
    // A registrant needs no more room.
    answer(&mut unit, register(A, KEY_A, Key(1)));
    assert_eq!(unit.registrants(), [(A, Key(1)), (B, KEY_B)]);
    answer(&mut unit, reserve(A, Key(1), WE));
    assert_eq!(answer(&mut unit, moving(A, Key(1), KEY_C, C)), no_room);
    assert_eq!(unit.holder(), One(WE, A));
}
