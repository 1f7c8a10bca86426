//! PREEMPT, PREEMPT AND ABORT (SPC-4 5.13.11.2.4 to 5.13.11.2.6) and REGISTER AND MOVE (5.13.8).

use super::*;

fn preempt_and_abort(n: u64, victim: Key, reservation_type: Type) -> ReserveOut {
    ReserveOut::PreemptAndAbort { key: key(n), service_action_key: victim, scope_type: reservation_type.into() }
}

/// Table "Preempting actions", row by row.
#[test]
fn preempt_all_registrants_with_no_key_takes_over() {
    for new in Type::ALL {
        let mut unit = Unit::reserved(3, WE_AR);
        assert_eq!(unit.preempt(2, NONE, new), GOOD);
        unit.keys_are(4, &[2]);
        let holder = if new.is_all_registrants() { NONE } else { key(2) };
        assert_eq!(unit.held(), Some((holder, new)));
        let reported = vec![REGISTRATION_PREEMPTED];
        assert_eq!((unit.reported(1), unit.reported(2), unit.reported(3)), (reported.clone(), vec![], reported));
    }
}

#[test]
fn preempt_all_registrants_with_a_key_removes_only_registrations() {
    let mut unit = Unit::reserved(3, EA_AR);
    assert_eq!(unit.preempt(2, key(1), WE), GOOD);
    unit.keys_are(4, &[2, 3]);
    assert_eq!(unit.held(), Some((NONE, EA_AR)));
    assert_eq!((unit.reported(1), unit.reported(2), unit.reported(3)), (vec![REGISTRATION_PREEMPTED], vec![], vec![]));
    // The sender keeps its own registration, and with it the reservation.
    assert_eq!(unit.preempt(3, key(2), WE), GOOD);
    assert_eq!(unit.out(3, &preempt_and_abort(3, key(3), WE)), GOOD);
    unit.keys_are(6, &[3]);
    assert_eq!(unit.held(), Some((NONE, EA_AR)));
    assert!(unit.reported(3).is_empty());
}

#[test]
fn preempt_of_the_holder_takes_over() {
    for old in [WE, EA, WE_RO, EA_RO] {
        for new in Type::ALL {
            let mut unit = Unit::reserved(3, old);
            assert_eq!(unit.preempt(2, key(1), new), GOOD);
            unit.keys_are(4, &[2, 3]);
            let holder = if new.is_all_registrants() { NONE } else { key(2) };
            assert_eq!(unit.held(), Some((holder, new)));
            let reported = if old == new { vec![] } else { vec![RELEASED] };
            assert_eq!(
                (unit.reported(1), unit.reported(2), unit.reported(3)),
                (vec![REGISTRATION_PREEMPTED], vec![], reported)
            );
        }
    }
}

#[test]
fn preempt_of_a_non_holder_removes_only_registrations() {
    for held in [WE, EA, WE_RO, EA_RO] {
        let mut unit = Unit::reserved(3, held);
        assert_eq!(unit.preempt(1, key(3), EA), GOOD);
        assert_eq!(unit.preempt(2, key(2), EA), GOOD);
        unit.keys_are(5, &[1]);
        assert_eq!(unit.held(), Some((key(1), held)));
        assert_eq!(
            (unit.reported(1), unit.reported(2), unit.reported(3)),
            (vec![], vec![], vec![REGISTRATION_PREEMPTED])
        );
    }
}

#[test]
fn preempt_without_a_reservation_removes_only_registrations() {
    let mut unit = Unit::registered(3);
    assert_eq!(unit.preempt(1, key(3), EA), GOOD);
    assert_eq!(unit.preempt(1, key(1), EA), GOOD);
    unit.keys_are(5, &[2]);
    assert_eq!(unit.held(), None);
    assert!(unit.reported(1).is_empty());
}

#[test]
fn preempt_with_no_key_is_for_all_registrants_only() {
    for held in [None, Some(WE), Some(EA_RO)] {
        let mut unit = Unit::registered(2);
        if let Some(held) = held {
            assert_eq!(unit.reserve(1, held), GOOD);
        }
        assert_eq!(unit.preempt(1, NONE, WE), check(0x26, 0x00));
        assert_eq!(unit.preempt(2, NONE, WE), check(0x26, 0x00));
    }
}

#[test]
fn preempt_of_an_unknown_key_conflicts() {
    for held in Type::ALL {
        let mut unit = Unit::reserved(2, held);
        assert_eq!(unit.preempt(1, key(9), WE), CONFLICT);
        unit.keys_are(2, &[1, 2]);
    }
}

#[test]
fn the_type_counts_only_where_a_reservation_is_made() {
    for scope_type in [ScopeType(0), ScopeType(0x09), ScopeType(0x11)] {
        let value = |victim| ReserveOut::Preempt { key: key(2), service_action_key: victim, scope_type };
        let mut unit = Unit::reserved(3, WE_RO);
        assert_eq!(unit.out(2, &value(key(1))), check(0x24, 0x00));
        assert_eq!(unit.out(2, &value(key(3))), GOOD);
        let mut unit = Unit::reserved(3, WE_AR);
        assert_eq!(unit.out(2, &value(NONE)), check(0x24, 0x00));
        assert_eq!(unit.out(2, &value(key(1))), GOOD);
    }
}

#[test]
fn a_sender_that_shares_the_key_of_the_holder_is_kept() {
    let mut unit = Unit::reserved(1, WE_RO);
    for n in [2, 3] {
        assert_eq!(unit.register(n, NONE, key(1)), GOOD);
    }
    let value = ReserveOut::Preempt { key: key(1), service_action_key: key(1), scope_type: EA.into() };
    assert_eq!(unit.out(2, &value), GOOD);
    unit.keys_are(4, &[1]);
    assert!(unit.0.is_holder(&nexus(2)));
    let reported = vec![REGISTRATION_PREEMPTED];
    assert_eq!((unit.reported(1), unit.reported(2), unit.reported(3)), (reported.clone(), vec![], reported));
}

#[test]
fn a_holder_changes_the_type_by_preempting_itself() {
    let mut unit = Unit::reserved(2, WE_RO);
    assert_eq!(unit.preempt(1, key(1), EA), GOOD);
    unit.keys_are(3, &[1, 2]);
    assert_eq!(unit.held(), Some((key(1), EA)));
    assert_eq!((unit.reported(1), unit.reported(2)), (vec![], vec![RELEASED]));
}

#[test]
fn preempt_and_abort_says_whose_commands_to_abort() {
    let mut unit = Unit::reserved(3, WE_RO);
    assert_eq!(unit.register(4, NONE, key(3)), GOOD);
    let outcome = unit.outcome(&nexus(2), &preempt_and_abort(2, key(3), WE));
    assert_eq!(outcome, Outcome { completion: GOOD, changed: true, aborted: vec![nexus(3), nexus(4)] });
    let outcome = unit.outcome(&nexus(2), &preempt_and_abort(2, key(9), WE));
    assert_eq!(outcome, Outcome::unchanged(CONFLICT));
    // Of all registrants, the sender's other commands too.
    let mut unit = Unit::reserved(3, WE_AR);
    let outcome = unit.outcome(&nexus(2), &preempt_and_abort(2, NONE, WE));
    assert_eq!(outcome.aborted, [nexus(1), nexus(2), nexus(3)]);
    // PREEMPT lets them end.
    let mut unit = Unit::reserved(3, WE);
    let value = ReserveOut::Preempt { key: key(2), service_action_key: key(1), scope_type: WE.into() };
    assert!(unit.outcome(&nexus(2), &value).aborted.is_empty());
}

fn move_to(n: u64, to: u64, service_action_key: Key, unregister: bool) -> ReserveOut {
    ReserveOut::RegisterAndMove {
        key: key(n),
        service_action_key,
        unregister,
        aptpl: true,
        relative_target_port: 1,
        transport_id: id(to),
    }
}

#[test]
fn register_and_move_hands_over_the_reservation() {
    for held in [WE, EA, WE_RO, EA_RO] {
        for unregister in [false, true] {
            let mut unit = Unit::reserved(2, held);
            // To a new registrant.
            assert_eq!(unit.out(1, &move_to(1, 3, key(3), unregister)), GOOD);
            unit.keys_are(3, if unregister { &[2, 3] } else { &[1, 2, 3] });
            assert_eq!(unit.held(), Some((key(3), held)));
            assert!(unit.0.aptpl());
            // To one that is registered, with a new key.
            assert_eq!(unit.out(3, &move_to(3, 2, key(7), unregister)), GOOD);
            assert_eq!(unit.held(), Some((key(7), held)));
            assert!((1..=3).all(|n| unit.reported(n).is_empty()));
        }
    }
}

#[test]
fn register_and_move_is_refused_in_the_order_of_the_standard() {
    let mut unit = Unit::registered(2);
    assert_eq!(unit.out(9, &move_to(9, 3, NONE, false)), CONFLICT);
    assert_eq!(unit.out(1, &move_to(2, 3, NONE, false)), CONFLICT);
    assert_eq!(unit.out(1, &move_to(1, 3, NONE, false)), check(0x26, 0x00));
    assert_eq!(unit.out(1, &move_to(1, 3, key(3), false)), check(0x24, 0x00));
    assert_eq!(unit.reserve(1, WE_RO), GOOD);
    assert_eq!(unit.out(2, &move_to(2, 3, NONE, false)), CONFLICT);
    assert_eq!(unit.out(1, &move_to(1, 1, key(3), false)), check(0x26, 0x00));
    let mut unit = Unit::reserved(2, WE_AR);
    assert_eq!(unit.out(1, &move_to(1, 3, key(3), false)), CONFLICT);
}

#[test]
fn invalid_destination_is_refused_after_all_other_checks() {
    let to_invalid = |key: Key, service_action_key: Key| {
        let [key, service_action_key] = [key, service_action_key].map(|key| key.0.to_be_bytes());
        let list = [&key[..], &service_action_key, &[0, 0, 0, 1, 0, 0, 0, 24], &[0xff; 24]].concat();
        crate::reserve_out::tests::out(7, 0, &list)
    };
    let mut unit = Unit::registered(2);
    let answer = |unit: &mut Unit, n: u64, service_action_key| {
        unit.0.execute(&nexus(n), to_invalid(key(n), service_action_key).command()).completion
    };
    assert_eq!(answer(&mut unit, 9, key(3)), CONFLICT);
    assert_eq!(answer(&mut unit, 1, key(3)), check(0x24, 0x00));
    assert_eq!(answer(&mut unit, 1, NONE), check(0x26, 0x00));
    assert_eq!(unit.reserve(1, WE), GOOD);
    assert_eq!(answer(&mut unit, 2, key(3)), CONFLICT);
    assert_eq!(answer(&mut unit, 1, key(3)), check(0x26, 0x00));
    let mut unit = Unit::reserved(2, EA_AR);
    assert_eq!(answer(&mut unit, 1, key(3)), CONFLICT);
}

#[test]
fn register_and_move_goes_to_a_target_port_that_there_is() {
    let mut unit = Unit::reserved(1, WE);
    let reserve = ReserveOut::Reserve { key: key(1), reservation_type: WE };
    let value = |relative_target_port| ReserveOut::RegisterAndMove {
        key: key(1),
        service_action_key: key(2),
        unregister: false,
        aptpl: false,
        relative_target_port,
        transport_id: id(2),
    };
    for port in [0, 2, 0xffff] {
        assert_eq!(unit.out(1, &value(port)), check(0x26, 0x00));
    }
    assert_eq!(unit.out(1, &value(1)), GOOD);
    // But not to the sender's own initiator port on another one.
    let mut unit = Unit(Reservations::with_target_ports([1, 2]));
    assert_eq!((unit.register(2, NONE, key(1)), unit.outcome(&nexus(2), &reserve).completion), (GOOD, GOOD));
    assert_eq!(unit.out(2, &value(2)), check(0x26, 0x00));
}

#[test]
fn register_and_move_needs_room_for_a_newcomer() {
    let mut unit = Unit::reserved(2, WE);
    unit.0 = unit.0.with_room_for(2);
    assert_eq!(unit.out(1, &move_to(1, 3, key(3), false)), check(0x55, 0x04));
    assert_eq!(unit.out(1, &move_to(1, 2, key(2), false)), GOOD);
}
