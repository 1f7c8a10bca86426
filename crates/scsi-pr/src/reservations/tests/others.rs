//! PERSISTENT RESERVE IN, malformed commands, unit attentions, events, SPC-2, records.

use super::*;
use crate::{Cdb, CommandBuf, Parsed};

fn read(unit: &mut Unit, n: u64, action: ReserveInAction, allocation_length: usize) -> Completion {
    unit.0.execute(&nexus(n), ReserveIn::new(action, allocation_length).encode().command()).completion
}

#[test]
fn full_status_has_every_registration() {
    for (reservation_type, holders) in [(None, [false, false]), (Some(EA), [true, false]), (Some(WE_AR), [true, true])]
    {
        let mut unit = Unit::registered(2);
        if let Some(reservation_type) = reservation_type {
            assert_eq!(unit.reserve(1, reservation_type), GOOD);
        }
        let Completion::Good(data) = read(&mut unit, 9, ReserveInAction::ReadFullStatus, 8192) else { panic!() };
        let FullStatus { generation, descriptors } = FullStatus::parse(&data).unwrap().value;
        assert_eq!(generation, Generation(2));
        for (n, (descriptor, holder)) in (1..).zip(descriptors.iter().zip(holders)) {
            assert_eq!((descriptor.key, descriptor.transport_id().unwrap()), (key(n), id(n)));
            assert_eq!((descriptor.all_tg_pt, descriptor.relative_target_port), (false, 1));
            assert_eq!(descriptor.held, reservation_type.filter(|_| holder));
        }
    }
}

#[test]
fn capabilities_are_all_there_are() {
    let mut unit = Unit::new();
    assert_eq!(
        read(&mut unit, 1, ReserveInAction::ReportCapabilities, 8192),
        Completion::Good(vec![0, 8, 0x1d, 0xc0, 0xea, 0x01, 0, 0])
    );
    let ignore = ReserveOut::RegisterAndIgnoreExistingKey { service_action_key: key(1), all_tg_pt: false, aptpl: true };
    assert_eq!(unit.out(1, &ignore), GOOD);
    assert_eq!(read(&mut unit, 1, ReserveInAction::ReportCapabilities, 4), Completion::Good(vec![0, 8, 0x1d, 0xc1]));
}

#[test]
fn lengths_tell_of_what_was_cut() {
    let mut unit = Unit::registered(3);
    let cut = read(&mut unit, 1, ReserveInAction::ReadKeys, 20);
    assert_eq!(cut, Completion::Good(vec![0, 0, 0, 3, 0, 0, 0, 24, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0]));
    let Completion::Good(data) = read(&mut unit, 1, ReserveInAction::ReadFullStatus, 8) else { panic!() };
    assert_eq!(data, [0, 0, 0, 3, 0, 0, 0, 144]);
    assert_eq!(read(&mut unit, 1, ReserveInAction::ReadReservation, 0), GOOD);
}

#[test]
fn ten_thousand_are_registered_and_read() {
    let mut unit = Unit::new();
    let ignore =
        |n| ReserveOut::RegisterAndIgnoreExistingKey { service_action_key: key(n), all_tg_pt: false, aptpl: false };
    for n in 1..=10_000 {
        assert_eq!(unit.outcome(&nexus(n), &ignore(n)).completion, GOOD);
    }
    assert_eq!(unit.outcome(&nexus(10_001), &ignore(1)).completion, check(0x55, 0x04));
    let Completion::Good(data) = read(&mut unit, 1, ReserveInAction::ReadKeys, 8192) else { panic!() };
    assert_eq!(data.len(), 8192);
    let Parsed { value, length, truncated } = Keys::parse(&data).unwrap();
    assert_eq!((value.generation, length, truncated), (Generation(10_000), 8 + 8 * 10_000, true));
    assert!(value.keys.into_iter().eq((1..=1023).map(key)));
    let Completion::Good(data) = read(&mut unit, 1, ReserveInAction::ReadFullStatus, 8192) else { panic!() };
    // Nor does the answer hold on to what was cut.
    assert!(data.capacity() < 2 * 8192, "{}", data.capacity());
    let Parsed { value, length, truncated } = FullStatus::parse(&data).unwrap();
    assert_eq!((value.descriptors.len(), length, truncated), ((8192 - 8) / 48, 8 + 48 * 10_000, true));
}

/// A basic list with `flags`, of any service action.
fn raw(service_action: u8, scope_type: u8, key: Key, flags: u8) -> CommandBuf {
    let mut list = [key.0.to_be_bytes(), Key(7).0.to_be_bytes(), [0; 8]].concat();
    list[20] = flags;
    let mut cdb = [0; 16];
    (cdb[0], cdb[1], cdb[2], cdb[8]) = (0x5f, service_action, scope_type, 24);
    CommandBuf::new(Cdb::new(cdb).unwrap(), list).unwrap()
}

#[test]
fn keys_are_checked_before_the_fields_of_the_list() {
    const SPEC_I_PT: u8 = 0x08;
    let mut unit = Unit::reserved(2, WE);
    for action in [1, 2, 3, 4, 5] {
        for (n, own, expected) in [(9, NONE, CONFLICT), (2, key(1), CONFLICT), (2, key(2), check(0x26, 0x00))] {
            let mut list = raw(action, 1, own, SPEC_I_PT).command().parameter_list().to_vec();
            list.extend([0; 4]);
            let mut cdb = *raw(action, 1, own, SPEC_I_PT).cdb().bytes();
            cdb[8] = 28;
            let command = CommandBuf::new(Cdb::new(cdb).unwrap(), list).unwrap();
            assert_eq!(unit.0.execute(&nexus(n), command.command()), Outcome::unchanged(expected), "{action}");
        }
    }
    // TransportIDs of REGISTER that are none.
    for (n, own, expected) in [(9, key(1), CONFLICT), (2, NONE, CONFLICT), (9, NONE, check(0x26, 0x00))] {
        let list = [raw(0, 0, own, SPEC_I_PT).command().parameter_list(), &[0, 0, 0, 1, 0xff]].concat();
        let command = crate::reserve_out::tests::out(0, 0, &list);
        assert_eq!(unit.0.execute(&nexus(n), command.command()), Outcome::unchanged(expected));
    }
    // The CDB comes before both.
    for action in [9, 0x1f] {
        assert_eq!(unit.0.execute(&nexus(9), raw(action, 1, NONE, 0).command()).completion, check(0x24, 0x00));
    }
    assert_eq!(unit.0.execute(&nexus(9), raw(1, 0, NONE, 0).command()).completion, check(0x24, 0x00));
    unit.keys_are(2, &[1, 2]);
}

#[test]
fn nothing_was_lost_that_could_be_replaced() {
    let replace = |key| ReserveOut::ReplaceLostReservation {
        key,
        service_action_key: Key(7),
        reservation_type: WE,
        aptpl: false,
    };
    let mut unit = Unit::registered(2);
    assert_eq!(unit.out(9, &replace(NONE)), check(0x26, 0x04));
    assert_eq!(unit.out(1, &replace(NONE)), check(0x26, 0x04));
    assert_eq!(unit.out(1, &replace(key(1))), CONFLICT);
    assert_eq!(unit.reserve(1, WE), GOOD);
    assert_eq!(unit.out(2, &replace(NONE)), check(0x26, 0x04));
    assert_eq!(unit.out(9, &replace(NONE)), CONFLICT);
}

#[test]
fn unit_attention_is_reported_first_and_once() {
    let mut unit = Unit::reserved(2, WE_RO);
    assert_eq!(unit.release(1, WE_RO), GOOD);
    assert_eq!(unit.out(1, &ReserveOut::Clear { key: key(1) }), GOOD);
    // In the order in which it happened, whatever comes, and also to who is not registered any more.
    assert_eq!(read(&mut unit, 2, ReserveInAction::ReadKeys, 8), attention(0x2a, 0x04));
    assert_eq!(unit.0.execute(&nexus(2), raw(0x1f, 0, NONE, 0).command()).completion, attention(0x2a, 0x03));
    assert_eq!(read(&mut unit, 2, ReserveInAction::ReadKeys, 8), Completion::Good(vec![0, 0, 0, 3, 0, 0, 0, 0]));
}

#[test]
fn a_unit_attention_changes_the_record_and_does_nothing_else() {
    let mut unit = Unit::reserved(2, WE_RO);
    assert_eq!(unit.release(1, WE_RO), GOOD);
    let outcome = unit.outcome(&nexus(2), &ReserveOut::Clear { key: key(2) });
    assert_eq!(outcome, Outcome { completion: attention(0x2a, 0x04), changed: true, aborted: vec![] });
    unit.keys_are(2, &[1, 2]);
}

#[test]
fn unit_attentions_of_unregistered_nexuses_are_bounded() {
    let mut unit = Unit(Reservations::new().with_room_for(2));
    for n in [1, 3, 5] {
        assert_eq!((unit.register(n, NONE, key(n)), unit.register(n + 1, NONE, key(n + 1))), (GOOD, GOOD));
        assert_eq!(unit.out(n, &ReserveOut::Clear { key: key(n) }), GOOD);
    }
    let reported: Vec<bool> = (1..=6).map(|n| !unit.reported(n).is_empty()).collect();
    assert_eq!(reported, [false, false, false, true, false, true]);
}

#[test]
fn loss_of_power_keeps_what_aptpl_says() {
    for aptpl in [false, true] {
        let mut unit = Unit::reserved(2, WE_RO);
        let ignore = ReserveOut::RegisterAndIgnoreExistingKey { service_action_key: key(2), all_tg_pt: false, aptpl };
        assert_eq!(unit.out(2, &ignore), GOOD);
        assert_eq!(unit.register(3, NONE, NONE), GOOD);
        assert_eq!(unit.out(2, &ignore), GOOD);
        unit.0.lose_power();
        unit.keys_are(0, if aptpl { &[1, 2] } else { &[] });
        assert_eq!(unit.held(), aptpl.then_some((key(1), WE_RO)));
        assert_eq!((unit.reported(1), unit.reported(2), unit.reported(3)), (vec![(0x29, 0)], vec![(0x29, 0)], vec![]));
    }
}

#[test]
fn loss_of_power_leaves_nothing_else_to_tell() {
    let mut unit = Unit::reserved(3, WE_RO);
    let ignore = ReserveOut::RegisterAndIgnoreExistingKey { service_action_key: key(1), all_tg_pt: false, aptpl: true };
    assert_eq!((unit.out(1, &ignore), unit.preempt(1, key(3), WE), unit.release(1, WE_RO)), (GOOD, GOOD, GOOD));
    unit.0.lose_power();
    assert_eq!(
        (unit.reported(1), unit.reported(2), unit.reported(3)),
        (vec![(0x29, 0)], vec![(0x29, 0)], vec![(0x29, 0)])
    );
}

#[test]
fn sender_of_a_release_keeps_an_earlier_unit_attention() {
    let mut unit = Unit::reserved(2, WE_AR);
    let release = ReserveOut::Release { key: key(1), reservation_type: WE_AR };
    assert_eq!((unit.release(2, WE_AR), unit.reserve(2, WE_AR)), (GOOD, GOOD));
    // Without a look at unit attentions.
    assert_eq!(unit.0.reserve_out(&nexus(1), &release).completion, GOOD);
    assert_eq!((unit.reported(1), unit.reported(2)), (vec![RELEASED], vec![RELEASED]));
}

#[test]
fn resets_and_loss_of_a_nexus_keep_everything() {
    let mut unit = Unit::reserved(2, WE);
    unit.0.reset();
    unit.0.lose_nexus(&nexus(1));
    unit.0.lose_nexus(&nexus(3));
    unit.keys_are(2, &[1, 2]);
    assert_eq!(unit.held(), Some((key(1), WE)));
    let reported = (unit.reported(1), unit.reported(2), unit.reported(3));
    assert_eq!(reported, (vec![(0x29, 0), (0x29, 7)], vec![(0x29, 0)], vec![(0x29, 7)]));
}

#[test]
fn a_spc2_reservation_shuts_out_persistent_ones() {
    let mut unit = Unit::new();
    assert_eq!(unit.0.reserve_spc2(&nexus(1)), GOOD);
    assert_eq!(unit.0.reserve_spc2(&nexus(1)), GOOD);
    assert_eq!(unit.0.reserve_spc2(&nexus(2)), CONFLICT);
    for n in [1, 2] {
        assert_eq!(unit.register(n, NONE, key(n)), CONFLICT);
        assert_eq!(read(&mut unit, n, ReserveInAction::ReadKeys, 8), CONFLICT);
        // Nothing else is looked at.
        assert_eq!(unit.0.execute(&nexus(n), raw(0x1f, 0, NONE, 0).command()), Outcome::unchanged(CONFLICT));
        assert_eq!(unit.0.reserve_out(&nexus(n), &ReserveOut::Clear { key: NONE }), Outcome::unchanged(CONFLICT));
    }
    assert_eq!(unit.0.release_spc2(&nexus(2)), GOOD);
    assert_eq!(unit.0.spc2_holder(), Some(&nexus(1)));
    assert_eq!(unit.0.release_spc2(&nexus(1)), GOOD);
    assert_eq!(unit.0, Reservations::new());
    for end in [Reservations::reset, Reservations::lose_power, |it: &mut Reservations| it.lose_nexus(&nexus(1))] {
        assert_eq!(unit.0.reserve_spc2(&nexus(1)), GOOD);
        end(&mut unit.0);
        assert_eq!(unit.0.spc2_holder(), None);
    }
}

#[test]
fn reserve_and_release_of_spc2_do_no_harm_to_registrants_with_access() {
    for (held, allowed) in [(WE, [true, false, false]), (EA_RO, [true, true, false]), (WE_AR, [true, true, false])] {
        let mut unit = Unit::reserved(2, held);
        let before = unit.0.clone();
        for (n, allowed) in (1..).zip(allowed) {
            let expected = if allowed { GOOD } else { CONFLICT };
            assert_eq!(unit.0.reserve_spc2(&nexus(n)), expected);
            assert_eq!(unit.0, before);
            assert_eq!(unit.0.release_spc2(&nexus(n)), expected);
            assert_eq!(unit.0, before);
        }
    }
    let mut unit = Unit::registered(1);
    assert_eq!(unit.0.reserve_spc2(&nexus(1)), CONFLICT);
    assert_eq!(unit.0.release_spc2(&nexus(1)), CONFLICT);
}

/// A front that carries reservation commands alone.
#[test]
fn process_reports_no_unit_attention_and_clear_drops_all() {
    let mut unit = Unit::reserved(4, WE_RO);
    assert_eq!(unit.preempt(2, key(4), WE_RO), GOOD);
    assert_eq!(unit.release(1, WE_RO), GOOD);
    for n in [2, 3, 4] {
        assert!(unit.0.has_unit_attention(&nexus(n)));
        let read_keys = ReserveIn::new(ReserveInAction::ReadKeys, 8).encode();
        let outcome = unit.0.process(&nexus(n), read_keys.command());
        assert!(matches!(outcome.completion, Completion::Good(_)) && !outcome.changed);
        assert!(unit.0.has_unit_attention(&nexus(n)));
    }
    let mut cleared = unit.0.clone();
    cleared.clear_unit_attentions();
    assert!((1..=4).all(|n| !cleared.has_unit_attention(&nexus(n))));
    // One byte for each unit attention, and the unregistered nexus with it.
    let unregistered_nexus = 2 + 1 + 1 + 24;
    assert_eq!(unit.0.to_record().len() - cleared.to_record().len(), 3 + unregistered_nexus);
    assert!(cleared.registrations().eq(unit.0.registrations()));
}

#[test]
fn full_status_is_as_long_as_its_header_says_after_any_departure() {
    let length = |unit: &Unit| {
        let value = ReserveIn::new(ReserveInAction::ReadFullStatus, 8192);
        let Completion::Good(data) = unit.0.reserve_in(&nexus(99), &value) else { panic!("READ FULL STATUS") };
        assert_eq!(data[4..8], u32::try_from(data.len() - 8).unwrap().to_be_bytes());
        data.len()
    };
    let mut unit = Unit::registered(3);
    assert_eq!(length(&unit), 8 + 3 * 48);
    assert_eq!(unit.preempt(1, key(2), WE), GOOD);
    assert_eq!(length(&unit), 8 + 2 * 48);
    assert_eq!(unit.register(1, key(1), NONE), GOOD);
    assert_eq!(unit.register(3, key(3), key(5)), GOOD);
    assert_eq!(length(&unit), 8 + 48);
    assert_eq!(length(&Unit(Reservations::from_record(&unit.0.to_record()).unwrap())), 8 + 48);
    unit.0.lose_power();
    assert_eq!(length(&unit), 8);
}
