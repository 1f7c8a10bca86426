//! Lengths, malformed lists, and the order of the checks (6.16.1, 6.16.3, 6.16.4).

use scsi_pr::Key;

use crate::unit::*;

const ONE: [(Who, Key); 1] = [(A, KEY_A)];

fn one() -> Vec<Step> {
    vec![register(A, NONE, KEY_A)]
}

/// With a list that is cut or filled with zeros.
fn resized(step: Step, length: usize) -> Step {
    changed(step, |_, list| list.resize(length, 0))
}

/// Another service action.
fn action(step: Step, action: u8) -> Step {
    changed(step, |cdb, _| cdb[1] = action)
}

/// The TransportID of an iSCSI node in place of another.
fn to_iscsi_node(step: Step) -> Step {
    changed(step, |_, list| {
        list.truncate(list.len() - 24);
        list.extend(b"\x05\0\0\x14iqn.2026-11.rules:0\0");
    })
}

rows! {
    move_to_an_iscsi_node_without_a_port:
        [register(A, NONE, KEY_A), reserve(A, KEY_A, WE)], to_iscsi_node(moving(A, KEY_A, KEY_B, B))
        => BAD_LIST, ONE, One(WE, A), [];
    no_list: [], resized(register(A, NONE, KEY_A), 0) => LENGTH_ERROR, [], Unreserved, [];
    a_short_list: [], resized(register(A, NONE, KEY_A), 23) => LENGTH_ERROR, [], Unreserved, [];
    a_long_list: [], resized(register(A, NONE, KEY_A), 25) => LENGTH_ERROR, [], Unreserved, [];
    a_long_list_of_reserve: one(), resized(reserve(A, KEY_A, WE), 28) => LENGTH_ERROR, ONE, Unreserved, [];
    a_short_list_of_release: one(), resized(release(A, KEY_A, WE), 16) => LENGTH_ERROR, ONE, Unreserved, [];
    a_short_list_of_clear: one(), resized(clear(A, KEY_A), 8) => LENGTH_ERROR, ONE, Unreserved, [];
    a_long_list_of_preempt: one(), resized(preempt(A, KEY_A, KEY_A, WE), 32) => LENGTH_ERROR, ONE, Unreserved, [];
    a_long_list_of_preempt_and_abort: one(), resized(abort(A, KEY_A, KEY_A, WE), 32) => LENGTH_ERROR, ONE, Unreserved, [];
    a_short_list_of_ignore: [], resized(ignoring(A, KEY_A), 12) => LENGTH_ERROR, [], Unreserved, [];
    a_short_list_of_replace_lost: [], resized(replace_lost(A, NONE, KEY_A), 20) => LENGTH_ERROR, [], Unreserved, [];
    a_short_list_of_move: one(), resized(moving(A, KEY_A, KEY_B, B), 23) => LENGTH_ERROR, ONE, Unreserved, [];
    a_move_whose_transport_id_is_cut: one(), resized(moving(A, KEY_A, KEY_B, B), 47) => LENGTH_ERROR, ONE, Unreserved, [];
    a_move_with_more_than_its_transport_id: one(), resized(moving(A, KEY_A, KEY_B, B), 52) => LENGTH_ERROR, ONE, Unreserved, [];
    spec_i_pt_without_a_length: [], resized(register_for(A, NONE, KEY_A, &[]), 24) => LENGTH_ERROR, [], Unreserved, [];
    spec_i_pt_with_too_great_a_length:
        [], changed(register_for(A, NONE, KEY_A, &[B]), |_, list| list[27] += 4) => BAD_LIST, [], Unreserved, [];
    spec_i_pt_with_too_small_a_length:
        [], changed(register_for(A, NONE, KEY_A, &[B]), |_, list| list[27] -= 4) => BAD_LIST, [], Unreserved, [];
    spec_i_pt_with_an_unknown_protocol:
        [], changed(register_for(A, NONE, KEY_A, &[B]), |_, list| list[28] = 0x0f) => BAD_LIST, [], Unreserved, [];
    spec_i_pt_where_the_second_is_malformed:
        [], changed(register_for(A, NONE, KEY_A, &[B, C]), |_, list| list[52] = 0x0f) => BAD_LIST, [], Unreserved, [];
    spec_i_pt_that_is_malformed_with_the_wrong_key:
        [], changed(register_for(A, OTHER, KEY_A, &[B]), |_, list| list[28] = 0x0f) => CONFLICT, [], Unreserved, [];
    spec_i_pt_with_an_iscsi_node_without_a_port:
        [], to_iscsi_node(register_for(A, NONE, KEY_A, &[B])) => BAD_LIST, [], Unreserved, [];
    spec_i_pt_may_name_the_same_twice:
        [], register_for(A, NONE, KEY_A, &[B, B]) => COUNTED, [(A, KEY_A), (B, KEY_A)], Unreserved, [];
    spec_i_pt_may_name_the_sender: [], register_for(A, NONE, KEY_A, &[A, B]) => COUNTED, [(A, KEY_A), (B, KEY_A)], Unreserved, [];
    an_unknown_service_action: one(), action(register(A, KEY_A, KEY_B), 0x09) => BAD_CDB, ONE, Unreserved, [];
    the_greatest_service_action: one(), action(register(A, KEY_A, KEY_B), 0x1f) => BAD_CDB, ONE, Unreserved, [];
    a_service_action_of_which_only_four_bits_are_known:
        one(), action(register(A, KEY_A, KEY_B), 0x10) => BAD_CDB, ONE, Unreserved, [];
    an_unknown_service_action_of_an_unregistered_nexus: [], action(register(A, NONE, KEY_A), 0x0a) => BAD_CDB, [], Unreserved, [];
    the_length_comes_before_the_key: one(), resized(reserve(A, KEY_B, WE), 25) => LENGTH_ERROR, ONE, Unreserved, [];
    the_length_comes_before_the_service_action: [], resized(action(register(A, NONE, KEY_A), 9), 8) => LENGTH_ERROR, [], Unreserved, [];
    scope_and_type_come_before_the_key: one(), with_scope_type(reserve(A, KEY_B, WE), 0x04) => BAD_CDB, ONE, Unreserved, [];
    the_key_comes_before_spec_i_pt: one(), with_flags(reserve(A, KEY_B, WE), 8) => CONFLICT, ONE, Unreserved, [];
    the_key_comes_before_the_victims: one(), preempt(A, KEY_B, NONE, WE) => CONFLICT, ONE, Unreserved, [];
}

#[test]
fn the_upper_half_of_the_list_length_counts() {
    let step = register(A, NONE, KEY_A);
    let mut cdb = *step.command.cdb().bytes();
    cdb[6] = 1;
    let command =
        scsi_pr::Command::new(scsi_pr::Cdb::new(cdb).unwrap(), step.command.command().parameter_list()).unwrap();
    let mut unit = Unit::new();
    let Answer::Check(code) = LENGTH_ERROR else { unreachable!() };
    assert_eq!(unit.0.execute(&A.nexus(), command).completion, scsi_pr::Completion::check(code));
    assert_eq!(unit.registrants(), []);
}
