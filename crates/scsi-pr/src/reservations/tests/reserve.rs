//! RESERVE, RELEASE (SPC-4 5.13.9, 5.13.11.2.2) and CLEAR (5.13.11.2.7).

use super::*;

#[test]
fn who_is_not_registered_conflicts() {
    let mut unit = Unit::new();
    let key = key(1);
    for value in [
        ReserveOut::Reserve { key, reservation_type: WE },
        ReserveOut::Release { key, reservation_type: WE },
        ReserveOut::Clear { key },
        ReserveOut::Preempt { key, service_action_key: key, scope_type: WE.into() },
        ReserveOut::PreemptAndAbort { key, service_action_key: key, scope_type: WE.into() },
    ] {
        assert_eq!(unit.out(1, &value), CONFLICT, "{value:?}");
    }
    assert_eq!(unit.0, Reservations::new());
}

#[test]
fn the_wrong_key_conflicts() {
    for reservation_type in Type::ALL {
        let mut unit = Unit::reserved(2, reservation_type);
        for wrong in [NONE, key(2)] {
            for value in [
                ReserveOut::Reserve { key: wrong, reservation_type },
                ReserveOut::Release { key: wrong, reservation_type },
                ReserveOut::Clear { key: wrong },
                ReserveOut::Preempt { key: wrong, service_action_key: key(2), scope_type: WE.into() },
            ] {
                assert_eq!(unit.out(1, &value), CONFLICT, "{value:?}");
            }
        }
        unit.keys_are(2, &[1, 2]);
    }
}

#[test]
fn reserve_is_for_one_holder_and_one_type() {
    for held in Type::ALL {
        for wanted in Type::ALL {
            let mut unit = Unit::reserved(2, held);
            let own = if held == wanted { GOOD } else { CONFLICT };
            assert_eq!(unit.reserve(1, wanted), own, "{held}, {wanted}");
            // Every registrant is a holder of one of all registrants.
            let others = if held == wanted && held.is_all_registrants() { GOOD } else { CONFLICT };
            assert_eq!(unit.reserve(2, wanted), others, "{held}, {wanted}");
            unit.keys_are(2, &[1, 2]);
            let key = if held.is_all_registrants() { NONE } else { key(1) };
            assert_eq!(unit.held(), Some((key, held)));
            assert!(unit.reported(1).is_empty() && unit.reported(2).is_empty());
        }
    }
}

#[test]
fn release_tells_the_other_registrants_if_they_had_a_part() {
    for (reservation_type, reported) in [
        (WE, &[][..]),
        (EA, &[]),
        (WE_RO, &[RELEASED]),
        (EA_RO, &[RELEASED]),
        (WE_AR, &[RELEASED]),
        (EA_AR, &[RELEASED]),
    ] {
        let mut unit = Unit::reserved(3, reservation_type);
        assert_eq!(unit.release(1, reservation_type), GOOD);
        assert_eq!(unit.held(), None);
        unit.keys_are(3, &[1, 2, 3]);
        assert_eq!(
            (unit.reported(1), unit.reported(2), unit.reported(3)),
            (vec![], reported.to_vec(), reported.to_vec())
        );
        // There is nothing to release any more.
        assert_eq!(unit.release(1, EA), GOOD);
        assert_eq!(unit.release(2, WE), GOOD);
    }
}

#[test]
fn release_of_another_type_is_invalid_for_a_holder() {
    for held in Type::ALL {
        let mut unit = Unit::reserved(2, held);
        for released in Type::ALL.into_iter().filter(|released| *released != held) {
            assert_eq!(unit.release(1, released), check(0x26, 0x04));
            let other = if held.is_all_registrants() { check(0x26, 0x04) } else { GOOD };
            assert_eq!(unit.release(2, released), other);
        }
        assert!(unit.held().is_some_and(|(_, reservation_type)| reservation_type == held));
    }
}

#[test]
fn any_registrant_releases_for_all() {
    let mut unit = Unit::reserved(3, WE_AR);
    assert_eq!(unit.release(2, WE_AR), GOOD);
    assert_eq!(unit.held(), None);
    assert_eq!((unit.reported(1), unit.reported(2), unit.reported(3)), (vec![RELEASED], vec![], vec![RELEASED]));
}

#[test]
fn repeated_releases_are_reported_once() {
    let mut unit = Unit::reserved(3, WE_RO);
    assert_eq!(unit.release(1, WE_RO), GOOD);
    assert_eq!(unit.reported(3), [RELEASED]);
    assert_eq!((unit.reserve(1, WE_RO), unit.release(1, WE_RO)), (GOOD, GOOD));
    assert_eq!(unit.reported(2), [RELEASED]);
    assert_eq!(unit.reported(3), [RELEASED]);
    // A later registrant gets no unit attention.
    assert_eq!(unit.register(4, NONE, key(4)), GOOD);
    assert!(unit.reported(4).is_empty());
}

#[test]
fn clear_removes_everything_and_tells_everybody_else() {
    for reservation_type in Type::ALL {
        let mut unit = Unit::reserved(3, reservation_type);
        assert_eq!(unit.out(2, &ReserveOut::Clear { key: key(2) }), GOOD);
        unit.keys_are(4, &[]);
        assert_eq!(unit.held(), None);
        assert_eq!((unit.reported(1), unit.reported(2), unit.reported(3)), (vec![PREEMPTED], vec![], vec![PREEMPTED]));
    }
}

#[test]
fn clear_leaves_aptpl_alone() {
    let mut unit = Unit::new();
    let ignore = ReserveOut::RegisterAndIgnoreExistingKey { service_action_key: key(1), all_tg_pt: false, aptpl: true };
    assert_eq!(unit.out(1, &ignore), GOOD);
    assert_eq!(unit.out(1, &ReserveOut::Clear { key: key(1) }), GOOD);
    assert!(unit.0.aptpl());
}
