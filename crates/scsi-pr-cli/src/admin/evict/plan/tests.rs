use proptest::prelude::*;
use scsi_pr::{Reservations, ReserveInAction};

use super::*;
use crate::admin::failure::Code;

const WE: Type = Type::WriteExclusive;
const RO: Type = Type::WriteExclusiveRegistrantsOnly;
const AR: Type = Type::WriteExclusiveAllRegistrants;

fn name(number: u64) -> InitiatorName {
    format!("vm{number}").parse().unwrap()
}

fn nexus_of(number: u64, target_port: u16) -> Nexus {
    Nexus::new(name(number).transport_id().clone(), target_port)
}

fn run(reservations: &mut Reservations, nexus: &Nexus, request: &ReserveOut) {
    let outcome = reservations.process(nexus, request.encode().unwrap().command());
    assert_eq!(outcome.completion, scsi_pr::Completion::Good(Vec::new()), "{request:?}");
}

fn register(key: u64) -> ReserveOut {
    ReserveOut::RegisterAndIgnoreExistingKey { service_action_key: Key(key), all_tg_pt: false, aptpl: true }
}

/// A unit with registrants of these numbers, target ports and keys; the first one reserves it.
fn unit(registrants: &[(u64, u16, u64)], reservation_type: Option<Type>) -> Reservations {
    let mut reservations = Reservations::with_target_ports([1, 2]);
    for (number, port, key) in registrants {
        run(&mut reservations, &nexus_of(*number, *port), &register(*key));
    }
    if let (Some(reservation_type), Some((number, port, key))) = (reservation_type, registrants.first()) {
        let request = ReserveOut::Reserve { key: Key(*key), reservation_type };
        run(&mut reservations, &nexus_of(*number, *port), &request);
    }
    reservations
}

fn status(reservations: &Reservations) -> Reading<FullStatus> {
    let data = reservations.reserve_in_data(ReserveInAction::ReadFullStatus, usize::MAX);
    Reading { value: FullStatus::parse(&data).unwrap().value, is_whole: true }
}

fn steps(reservations: &Reservations, number: u64, successor: Option<u64>) -> Result<Vec<Step>, Failure> {
    plan(&status(reservations), true, &name(number), successor.map(name).as_ref())
}

fn carry_out(reservations: &mut Reservations, steps: &[Step]) {
    for step in steps {
        let sender = match step {
            Step::Unregister { nexus, .. } | Step::Preempt { successor: nexus, .. } => nexus,
        };
        run(reservations, sender, &step.request());
    }
}

#[test]
fn registrant_that_does_not_hold_is_unregistered_and_nothing_else_changes() {
    for reservation_type in [None, Some(WE), Some(RO), Some(AR)] {
        let mut reservations = unit(&[(1, 1, 1), (2, 1, 7), (2, 2, 7), (3, 1, 7)], reservation_type);
        let plan = steps(&reservations, 2, None).unwrap();
        assert_eq!(plan.len(), 2);
        carry_out(&mut reservations, &plan);
        let left = unit(&[(1, 1, 1), (3, 1, 7)], reservation_type);
        assert_eq!(status(&reservations).value.descriptors, status(&left).value.descriptors);
        assert!(!reservations.has_unit_attention(&nexus_of(1, 1)) && reservations.aptpl());
    }
}

#[test]
fn reservation_of_the_evicted_holder_passes_to_a_registrant() {
    let mut reservations = unit(&[(1, 1, 1), (1, 2, 1), (2, 1, 2), (3, 1, 3)], Some(RO));
    let plan = steps(&reservations, 1, None).unwrap();
    assert!(matches!(plan[..], [Step::Preempt { .. }]), "one PREEMPT removes both registrations with the key");
    carry_out(&mut reservations, &plan);
    assert!(reservations.is_holder(&nexus_of(2, 1)));
    assert_eq!(reservations.registrations().len(), 2);
    assert!(reservations.has_unit_attention(&nexus_of(1, 1)), "it learns when it comes back");
    assert!(!reservations.has_unit_attention(&nexus_of(3, 1)));

    let mut reservations = unit(&[(1, 1, 1), (2, 1, 2), (3, 1, 3)], Some(WE));
    assert_eq!(steps(&reservations, 1, None).unwrap_err().code(), Code::Usage);
    assert_eq!(steps(&reservations, 1, Some(4)).unwrap_err().code(), Code::Failure);
    let plan = steps(&reservations, 1, Some(3)).unwrap();
    carry_out(&mut reservations, &plan);
    assert!(reservations.is_holder(&nexus_of(3, 1)));
}

#[test]
fn last_registrant_takes_the_reservation_with_it_and_the_plan_says_so() {
    for reservation_type in [WE, RO, AR] {
        let mut reservations = unit(&[(1, 1, 1), (1, 2, 2)], Some(reservation_type));
        let plan = steps(&reservations, 1, None).unwrap();
        let [first, last] = &plan[..] else { panic!("{plan:?}") };
        assert!(!first.intention(&name(1)).contains("releases"));
        assert!(last.intention(&name(1)).contains("releases the reservation"));
        carry_out(&mut reservations, &plan);
        assert!(reservations.reservation().is_none() && reservations.registrations().len() == 0);
    }
}

#[test]
fn key_that_another_initiator_shares_is_not_preempted() {
    let reservations = unit(&[(1, 1, 7), (2, 1, 7), (3, 1, 3)], Some(RO));
    let failure = steps(&reservations, 1, None).unwrap_err();
    assert!(failure.to_string().contains("vm2"), "{failure}");
}

#[test]
fn list_that_is_cut_is_not_acted_on() {
    let reading = Reading { is_whole: false, ..status(&unit(&[(1, 1, 1)], None)) };
    assert!(plan(&reading, false, &name(1), None).is_err());
}

proptest! {
    /// The others keep their registrations, and the unit stays reserved while one of them is registered.
    #[test]
    fn eviction_keeps_other_registrations_and_the_reservation(
        registrants in prop::collection::btree_map((1_u64..5, 1_u16..3), 1_u64..6, 1..8),
        reservation_type in prop::option::of(prop::sample::select(&Type::ALL[..])),
        evicted in 1_u64..5,
        successor in prop::option::of(1_u64..5),
    ) {
        let registrants: Vec<_> = registrants.into_iter().map(|((number, port), key)| (number, port, key)).collect();
        let mut reservations = unit(&registrants, reservation_type);
        let others: Vec<_> = registrants.iter().filter(|(number, ..)| *number != evicted).collect();
        if let Ok(plan) = steps(&reservations, evicted, successor) {
            carry_out(&mut reservations, &plan);
            let left: Vec<_> = reservations.registrations().map(|one| (one.nexus.clone(), one.key)).collect();
            prop_assert_eq!(left.len(), others.len());
            for (number, port, key) in &others {
                prop_assert!(left.contains(&(nexus_of(*number, *port), Key(*key))));
            }
            let held = reservations.reservation().map(|held| held.reservation_type);
            prop_assert_eq!(held, reservation_type.filter(|_| !others.is_empty()));
        }
    }
}
