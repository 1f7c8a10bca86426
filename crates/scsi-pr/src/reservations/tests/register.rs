//! REGISTER, REGISTER AND IGNORE EXISTING KEY (SPC-4 5.13.7), and leaving (5.13.11.2.3).

use super::*;

fn register(key: Key, service_action_key: Key) -> ReserveOut {
    ReserveOut::Register { key, service_action_key, initiator_ports: None, all_tg_pt: false, aptpl: false }
}

fn with_ports(ids: impl IntoIterator<Item = TransportId>, all_tg_pt: bool) -> ReserveOut {
    let initiator_ports = Some(ids.into_iter().collect());
    ReserveOut::Register { key: NONE, service_action_key: key(1), initiator_ports, all_tg_pt, aptpl: false }
}

fn ignore(service_action_key: Key) -> ReserveOut {
    ReserveOut::RegisterAndIgnoreExistingKey { service_action_key, all_tg_pt: false, aptpl: false }
}

/// Table "Register behaviors for a REGISTER service action", row by row.
#[test]
fn register_by_an_unregistered_nexus() {
    let mut unit = Unit::new();
    assert_eq!(unit.register(1, key(1), key(1)), CONFLICT);
    assert_eq!(unit.register(1, key(1), NONE), CONFLICT);
    unit.keys_are(0, &[]);
    // Nothing is registered; the command was completed, and counts.
    assert_eq!(unit.register(1, NONE, NONE), GOOD);
    unit.keys_are(1, &[]);
    assert_eq!(unit.register(1, NONE, key(1)), GOOD);
    unit.keys_are(2, &[1]);
}

#[test]
fn register_by_a_registered_nexus() {
    let mut unit = Unit::registered(2);
    for wrong in [NONE, key(2), key(9)] {
        assert_eq!(unit.register(1, wrong, key(7)), CONFLICT);
    }
    unit.keys_are(2, &[1, 2]);
    assert_eq!(unit.register(1, key(1), key(7)), GOOD);
    unit.keys_are(3, &[7, 2]);
    assert_eq!(unit.register(1, key(7), NONE), GOOD);
    unit.keys_are(4, &[2]);
    assert!(unit.reported(1).is_empty() && unit.reported(2).is_empty());
}

#[test]
fn two_may_have_the_same_key() {
    let mut unit = Unit::registered(1);
    assert_eq!(unit.register(2, NONE, key(1)), GOOD);
    unit.keys_are(2, &[1, 1]);
}

#[test]
fn register_and_ignore_existing_key() {
    let mut unit = Unit::new();
    assert_eq!(unit.out(1, &ignore(NONE)), GOOD);
    assert_eq!(unit.out(1, &ignore(key(1))), GOOD);
    unit.keys_are(2, &[1]);
    assert_eq!(unit.out(1, &ignore(key(7))), GOOD);
    unit.keys_are(3, &[7]);
    assert_eq!(unit.out(1, &ignore(NONE)), GOOD);
    unit.keys_are(4, &[]);
}

#[test]
fn a_new_key_leaves_the_reservation_alone() {
    let mut unit = Unit::reserved(2, WE);
    assert_eq!(unit.register(1, key(1), key(7)), GOOD);
    assert_eq!(unit.held(), Some((key(7), WE)));
    assert!(unit.reported(2).is_empty());
}

#[test]
fn a_holder_that_unregisters_gives_up_the_reservation() {
    for (reservation_type, reported) in [(WE, &[][..]), (EA, &[]), (WE_RO, &[RELEASED]), (EA_RO, &[RELEASED])] {
        let mut unit = Unit::reserved(3, reservation_type);
        assert_eq!(unit.register(1, key(1), NONE), GOOD);
        assert_eq!(unit.held(), None);
        unit.keys_are(4, &[2, 3]);
        assert_eq!(
            (unit.reported(1), unit.reported(2), unit.reported(3)),
            (vec![], reported.to_vec(), reported.to_vec())
        );
    }
}

#[test]
fn the_last_of_all_registrants_gives_up_the_reservation() {
    for reservation_type in [WE_AR, EA_AR] {
        let mut unit = Unit::reserved(2, reservation_type);
        assert_eq!(unit.register(1, key(1), NONE), GOOD);
        assert_eq!(unit.held(), Some((NONE, reservation_type)));
        assert_eq!(unit.register(2, key(2), NONE), GOOD);
        assert_eq!(unit.held(), None);
        assert!(unit.reported(1).is_empty() && unit.reported(2).is_empty());
    }
}

#[test]
fn who_does_not_hold_leaves_without_a_trace() {
    let mut unit = Unit::reserved(2, WE_RO);
    assert_eq!(unit.register(2, key(2), NONE), GOOD);
    assert_eq!(unit.held(), Some((key(1), WE_RO)));
    assert!(unit.reported(1).is_empty());
}

#[test]
fn spec_i_pt_registers_all_or_nothing() {
    let mut unit = Unit::new();
    assert_eq!(unit.out(1, &with_ports([id(2), id(3)], false)), GOOD);
    unit.keys_are(1, &[1, 1, 1]);
    assert_eq!(unit.0.key_of(&nexus(3)), Some(key(1)));

    let mut unit = Unit::new();
    assert_eq!(unit.register(3, NONE, key(3)), GOOD);
    assert_eq!(unit.out(1, &with_ports([id(2), id(3)], false)), check(0x26, 0x00));
    unit.keys_are(1, &[3]);
    // By one that is registered, even with its key.
    assert_eq!(unit.register(1, NONE, key(1)), GOOD);
    let mut value = with_ports([id(4)], false);
    if let ReserveOut::Register { key: own, .. } = &mut value {
        *own = key(1);
    }
    assert_eq!(unit.out(1, &value), check(0x26, 0x00));
    assert_eq!(unit.out(1, &with_ports([id(4)], false)), CONFLICT);
}

#[test]
fn who_is_named_twice_is_registered_once() {
    let mut unit = Unit::new();
    assert_eq!(unit.out(1, &with_ports([id(2), id(1), id(2)], false)), GOOD);
    unit.keys_are(1, &[1, 1]);
}

#[test]
fn the_name_of_a_node_is_the_name_of_no_port() {
    let port = |isid| TransportId::new(InitiatorPort::Iscsi { name: "iqn.2026-11.org.example:b", isid }).unwrap();
    let mut unit = Unit::new();
    assert_eq!(unit.out(1, &with_ports([id(2), port(None)], false)), check(0x26, 0x00));
    unit.keys_are(0, &[]);
    assert_eq!(unit.out(1, &with_ports([id(2), port(Some([0; 6]))], false)), GOOD);
    assert_eq!(unit.reserve(1, WE), GOOD);
    let value = |isid| ReserveOut::RegisterAndMove {
        key: key(1),
        service_action_key: key(3),
        unregister: false,
        aptpl: false,
        relative_target_port: 1,
        transport_id: port(isid),
    };
    assert_eq!(unit.out(1, &value(None)), check(0x26, 0x00));
    assert_eq!(unit.out(1, &value(Some([0; 6]))), GOOD);
}

#[test]
fn any_isid_names_the_initiator_where_isids_are_zero() {
    let port = |name, isid| TransportId::new(InitiatorPort::Iscsi { name, isid: Some(isid) }).unwrap();
    let nexus = |name| Nexus::new(port(name, [0; 6]), 1);
    let (a, b, c) =
        (nexus("iqn.2026-11.org.example:a"), nexus("iqn.2026-11.org.example:b"), nexus("iqn.2026-11.org.example:c"));
    let mut unit = Unit::new();
    let value = with_ports([port("iqn.2026-11.org.example:b", [1; 6])], false);
    assert_eq!(unit.outcome(&a, &value).completion, GOOD);
    let value = |name| ReserveOut::RegisterAndMove {
        key: key(1),
        service_action_key: key(3),
        unregister: false,
        aptpl: false,
        relative_target_port: 1,
        transport_id: port(name, [2; 6]),
    };
    let reserve = ReserveOut::Reserve { key: key(1), reservation_type: WE };
    assert_eq!(unit.outcome(&a, &reserve).completion, GOOD);
    assert_eq!(unit.outcome(&a, &value("iqn.2026-11.org.example:a")).completion, check(0x26, 0x00));
    assert_eq!(unit.outcome(&a, &value("iqn.2026-11.org.example:c")).completion, GOOD);
    let registered: Vec<Nexus> = unit.0.registrations().map(|registrant| registrant.nexus.clone()).collect();
    assert_eq!(registered, [a, b, c.clone()]);
    assert!(unit.0.is_holder(&c));
}

#[test]
fn spec_i_pt_without_a_key_registers_no_nexus() {
    let mut unit = Unit::new();
    let initiator_ports = Some(vec![id(2)]);
    let value =
        ReserveOut::Register { key: NONE, service_action_key: NONE, initiator_ports, all_tg_pt: false, aptpl: false };
    assert_eq!(unit.out(1, &value), GOOD);
    unit.keys_are(1, &[]);
}

#[test]
fn all_tg_pt_is_every_target_port() {
    let on = |n, port| Nexus::new(id(n), port);
    let mut unit = Unit(Reservations::with_target_ports([2, 1, 2]));
    assert_eq!(unit.out(1, &with_ports([id(2)], true)), GOOD);
    let nexuses: Vec<Nexus> = unit.0.registrations().map(|registrant| registrant.nexus.clone()).collect();
    assert_eq!(nexuses, [on(1, 1), on(1, 2), on(2, 1), on(2, 2)]);
    unit.keys_are(1, &[1, 1, 1, 1]);

    let all = |key, service_action_key| ReserveOut::Register {
        key,
        service_action_key,
        initiator_ports: None,
        all_tg_pt: true,
        aptpl: false,
    };
    assert_eq!(unit.out(1, &all(key(1), key(7))), GOOD);
    unit.keys_are(2, &[7, 7, 1, 1]);
    // As if it had come through each port: on port 2, the key is another.
    assert_eq!(unit.outcome(&on(1, 2), &register(key(7), key(8))).completion, GOOD);
    assert_eq!(unit.out(1, &all(key(7), NONE)), CONFLICT);
    unit.keys_are(3, &[7, 8, 1, 1]);
    assert_eq!(
        unit.out(
            1,
            &ReserveOut::RegisterAndIgnoreExistingKey { service_action_key: NONE, all_tg_pt: true, aptpl: false }
        ),
        GOOD
    );
    unit.keys_are(4, &[1, 1]);
    // Through a target port that the device server did not name.
    let mut unit = Unit::new();
    assert_eq!(unit.outcome(&on(3, 7), &all(NONE, key(3))).completion, GOOD);
    assert_eq!((unit.0.key_of(&on(3, 1)), unit.0.key_of(&on(3, 7))), (Some(key(3)), Some(key(3))));
    assert_eq!(unit.outcome(&on(3, 7), &all(NONE, key(3))).completion, CONFLICT);
}

#[test]
fn the_latest_registration_rules_aptpl() {
    let mut unit = Unit::new();
    let register = |aptpl| ReserveOut::Register {
        key: NONE,
        service_action_key: key(1),
        initiator_ports: None,
        all_tg_pt: false,
        aptpl,
    };
    assert_eq!(unit.out(1, &register(true)), GOOD);
    assert!(unit.0.aptpl());
    // Refused: it does not count.
    assert_eq!(unit.out(1, &register(false)), CONFLICT);
    assert!(unit.0.aptpl());
    assert_eq!(unit.out(2, &register(false)), GOOD);
    assert!(!unit.0.aptpl());
}

#[test]
fn without_room_no_nexus_is_registered() {
    let mut unit = Unit(Reservations::new().with_room_for(2));
    assert_eq!(unit.register(1, NONE, key(1)), GOOD);
    assert_eq!(unit.out(2, &with_ports([id(3)], false)), check(0x55, 0x04));
    unit.keys_are(1, &[1]);
    assert_eq!(unit.register(2, NONE, key(2)), GOOD);
    assert_eq!(unit.register(3, NONE, key(3)), check(0x55, 0x04));
    // A nexus that is named twice needs room once.
    let mut other = Unit(Reservations::new().with_room_for(2));
    assert_eq!(other.out(1, &with_ports([id(2), id(1), id(2)], false)), GOOD);
    // Commands that need no room still work.
    assert_eq!(unit.register(1, key(1), key(7)), GOOD);
    assert_eq!(unit.register(3, NONE, NONE), GOOD);
}

#[test]
fn cleanup_forgets_the_nexus_and_nothing_else() {
    let mut unit = Unit::reserved(2, WE_RO);
    assert_eq!(
        unit.out(
            2,
            &ReserveOut::RegisterAndIgnoreExistingKey { service_action_key: key(2), all_tg_pt: false, aptpl: true }
        ),
        GOOD
    );
    let before = unit.0.clone();
    assert_eq!(unit.0.execute(&nexus(3), Command::cleanup()), Outcome::unchanged(GOOD));
    assert_eq!(unit.0, before);
    let outcome = unit.0.execute(&nexus(1), Command::cleanup());
    assert_eq!(outcome, Outcome { completion: GOOD, changed: true, aborted: vec![] });
    unit.keys_are(4, &[2]);
    assert_eq!((unit.held(), unit.0.aptpl()), (None, true));
    // CLEANUP leaves unit attentions pending.
    let before = unit.0.clone();
    assert_eq!(unit.reported(2), [RELEASED]);
    unit.0 = before;
    assert_eq!(unit.0.execute(&nexus(2), Command::cleanup()).completion, GOOD);
    assert_eq!(unit.reported(2), [RELEASED]);
}
