//! The properties that hold for any commands from any nexuses.

use super::*;
use crate::CommandBuf;
use crate::reservations::nexus::tests::nexuses;
use crate::reserve_out::tests::{moves, out, reserve_outs};
use proptest::prelude::*;
use proptest::sample::Index;

/// One of few, so that they meet; each on two target ports.
fn few_nexuses() -> impl Strategy<Value = Nexus> {
    prop_oneof![
        9 => (1u64..5, 1u16..3).prop_map(|(n, port)| Nexus::new(id(n), port)),
        1 => nexuses(),
    ]
}

fn few_keys() -> impl Strategy<Value = Key> {
    prop::sample::select(vec![NONE, Key(1), Key(2), Key(3)])
}

fn scope_types() -> impl Strategy<Value = ScopeType> {
    prop_oneof![9 => prop::sample::select(&Type::ALL[..]).prop_map(ScopeType::from), 1 => any::<u8>().prop_map(ScopeType)]
}

/// Commands of few initiators with few keys.
fn likely_outs() -> impl Strategy<Value = ReserveOut> {
    let types = || prop::sample::select(&Type::ALL[..]);
    let ids = || (1u64..5).prop_map(id);
    let ports = prop::option::weighted(0.2, prop::collection::vec(ids(), 0..3));
    prop_oneof![
        4 => (few_keys(), few_keys(), ports, any::<(bool, bool)>()).prop_map(
            |(key, service_action_key, initiator_ports, (all_tg_pt, aptpl))| {
                ReserveOut::Register { key, service_action_key, initiator_ports, all_tg_pt, aptpl }
            }
        ),
        4 => (few_keys(), any::<(bool, bool)>()).prop_map(|(service_action_key, (all_tg_pt, aptpl))| {
            ReserveOut::RegisterAndIgnoreExistingKey { service_action_key, all_tg_pt, aptpl }
        }),
        4 => (few_keys(), types()).prop_map(|(key, reservation_type)| ReserveOut::Reserve { key, reservation_type }),
        2 => (few_keys(), types()).prop_map(|(key, reservation_type)| ReserveOut::Release { key, reservation_type }),
        1 => few_keys().prop_map(|key| ReserveOut::Clear { key }),
        3 => (few_keys(), few_keys(), scope_types(), any::<bool>()).prop_map(
            |(key, service_action_key, scope_type, abort)| match abort {
                true => ReserveOut::PreemptAndAbort { key, service_action_key, scope_type },
                false => ReserveOut::Preempt { key, service_action_key, scope_type },
            }
        ),
        2 => moves(few_keys, ids(), 1u16..4),
        1 => reserve_outs(),
    ]
    .boxed()
}

/// Anything that a guest can send.
fn commands() -> impl Strategy<Value = CommandBuf> {
    prop_oneof![
        12 => likely_outs().prop_map(|value| value.encode().unwrap()),
        2 => (prop::sample::select(&ReserveInAction::ALL[..]), 0usize..300)
            .prop_map(|(action, length)| ReserveIn::new(action, length).encode()),
        1 => (any::<u8>(), any::<u8>(), prop::collection::vec(any::<u8>(), 0..60))
            .prop_map(|(action, scope_type, list)| out(action, scope_type, &list)),
        // Known, and then damaged.
        1 => (likely_outs(), prop::collection::vec((any::<Index>(), any::<u8>()), 1..4)).prop_map(|(value, changes)| {
            let command = value.encode().unwrap();
            let mut list = command.command().parameter_list().to_vec();
            changes.into_iter().for_each(|(index, byte)| *index.get_mut(&mut list) = byte);
            CommandBuf::new(*command.cdb(), list).unwrap()
        }),
    ]
    // Else they are more than the stack of a test holds.
    .boxed()
}

#[derive(Clone, Debug)]
enum Event {
    Command(CommandBuf),
    CleanUp,
    Spc2(bool),
    LoseNexus,
    Reset,
    LosePower,
}

fn events() -> impl Strategy<Value = Vec<(Nexus, Event)>> {
    let event = prop_oneof![
        60 => commands().prop_map(Event::Command),
        1 => Just(Event::CleanUp),
        2 => any::<bool>().prop_map(Event::Spc2),
        1 => Just(Event::LoseNexus),
        1 => Just(Event::Reset),
        1 => Just(Event::LosePower),
    ];
    prop::collection::vec((few_nexuses(), event), 0..60)
}

impl Reservations {
    fn happen(&mut self, nexus: &Nexus, event: &Event) -> Option<Outcome> {
        match event {
            Event::Command(command) => return Some(self.execute(nexus, command.command())),
            Event::CleanUp => return Some(self.execute(nexus, Command::cleanup())),
            Event::Spc2(true) => return Some(Outcome::unchanged(self.reserve_spc2(nexus))),
            Event::Spc2(false) => return Some(Outcome::unchanged(self.release_spc2(nexus))),
            Event::LoseNexus => self.lose_nexus(nexus),
            Event::Reset => self.reset(),
            Event::LosePower => self.lose_power(),
        }
        None
    }

    /// Panics when the value is one that cannot be.
    fn check(&self) {
        let registered = self.registrations.len();
        assert!(registered <= usize::try_from(self.room).unwrap());
        assert!(self.unregistered.len() <= usize::try_from(self.room).unwrap());
        assert!(self.registrations().all(|it| !it.key.is_zero()));
        assert!(self.unregistered.iter().all(|(nexus, it)| !it.is_empty() && !self.registrations.contains(nexus)));
        assert!(self.spc2.is_none() || registered == 0);
        let holders = self.registrations().filter(|it| it.is_holder).count();
        match self.reservation() {
            None => assert_eq!(holders, 0),
            Some(Reserved { reservation_type, holder: None }) => {
                assert!(reservation_type.is_all_registrants() && holders == registered && registered > 0);
            }
            Some(Reserved { reservation_type, holder: Some(holder) }) => {
                assert!(!reservation_type.is_all_registrants() && holders == 1);
                assert!(self.key_of(holder).is_some() && self.is_holder(holder));
            }
        }
    }
}

fn two_ports() -> Reservations {
    Reservations::with_target_ports([1, 2]).with_room_for(6)
}

fn after(events: &[(Nexus, Event)]) -> Reservations {
    let mut value = two_ports();
    for (nexus, event) in events {
        let _ = value.happen(nexus, event);
    }
    value
}

proptest! {
    #[test]
    fn what_is_refused_changes_nothing_and_what_changes_says_so(events in events()) {
        let mut value = two_ports();
        for (nexus, event) in &events {
            let before = value.clone();
            let Some(outcome) = value.happen(nexus, event) else { continue };
            value.check();
            if !matches!(event, Event::Spc2(_)) {
                prop_assert_eq!(outcome.changed, value != before, "{:?} by {}", event, nexus);
            }
            let mut reported = before.clone();
            match (reported.take_unit_attention(nexus), event) {
                (Some(code), Event::Command(_)) => {
                    prop_assert_eq!(&outcome.completion, &Completion::check(code));
                    prop_assert_eq!(&value, &reported);
                }
                _ if matches!(outcome.completion, Completion::Good(_)) => {}
                _ => prop_assert_eq!(&value, &before, "{:?} by {}", event, nexus),
            }
            let aborts = matches!(event, Event::Command(command)
                if command.cdb().bytes()[..2] == [0x5f, 0x05] && outcome.completion == GOOD);
            prop_assert_eq!(outcome.aborted.is_empty(), !aborts);
            prop_assert!(outcome.aborted.iter().all(|nexus| before.key_of(nexus).is_some()));
        }
    }

    #[test]
    fn generations_count_what_changes_registrations(events in events()) {
        let mut value = two_ports();
        for (nexus, event) in &events {
            let before = value.clone();
            let Some(outcome) = value.happen(nexus, event) else { continue };
            let registered = |value: &Reservations| value.registrations().map(|it| (it.nexus.clone(), it.key)).collect::<Vec<_>>();
            if registered(&value) != registered(&before) {
                prop_assert_eq!(value.generation(), before.generation().next());
            }
            if value.generation() != before.generation() {
                prop_assert_eq!(value.generation(), before.generation().next());
                prop_assert_eq!(outcome.completion, GOOD);
            }
        }
    }

    /// The access that a nexus has before a command agrees with the answer to the command.
    #[test]
    fn who_is_not_permitted_conflicts(events in events(), nexus in few_nexuses(), command in commands()) {
        let mut value = after(&events);
        while value.take_unit_attention(&nexus).is_some() {}
        let access = Access::of_cdb(command.cdb().bytes());
        let permitted = value.permits(&nexus, access);
        let completion = value.execute(&nexus, command.command()).completion;
        let parsed = command.cdb().opcode() == Opcode::ReserveIn || ReserveOut::parse(command.command()).is_ok();
        if !permitted && parsed {
            prop_assert_eq!(completion, CONFLICT);
        }
    }

    #[test]
    fn registrations_keep_their_order(events in events(), nexus in few_nexuses(), command in commands()) {
        let mut value = after(&events);
        let order = |value: &Reservations| value.registrations().map(|it| it.nexus.clone()).collect::<Vec<_>>();
        let before = order(&value);
        let _ = value.execute(&nexus, command.command());
        let after = order(&value);
        let kept: Vec<_> = before.iter().filter(|nexus| after.contains(nexus)).collect();
        prop_assert!(after.iter().take(kept.len()).eq(kept));
    }

    #[test]
    fn records_are_read_again(events in events()) {
        let mut value = after(&events);
        let record = value.to_record();
        let again = Reservations::from_record(&record).unwrap();
        again.check();
        // It is the only thing that is not kept.
        value.spc2 = None;
        prop_assert_eq!(&again, &value);
        prop_assert_eq!(again.to_record(), record);
        prop_assert_eq!(format!("{again:?}"), format!("{value:?}"));
    }

    /// No later command distinguishes the value that was read from the one that was written.
    #[test]
    fn what_was_read_goes_on_as_what_was_written(first in events(), then in events()) {
        let mut value = after(&first);
        value.spc2 = None;
        let mut again = Reservations::from_record(&value.to_record()).unwrap();
        for (nexus, event) in &then {
            prop_assert_eq!(again.happen(nexus, event), value.happen(nexus, event));
        }
        prop_assert_eq!(again, value);
    }

    /// With a checksum that is right, too.
    #[test]
    fn any_record_is_read_or_refused(
        events in events(),
        changes in prop::collection::vec((any::<Index>(), any::<u8>()), 0..4),
        cut in prop::option::weighted(0.2, any::<Index>()),
    ) {
        let mut record = after(&events).to_record();
        changes.into_iter().for_each(|(index, byte)| *index.get_mut(&mut record) = byte);
        if let Some(cut) = cut {
            record.truncate(cut.index(record.len()));
        }
        record::seal(&mut record);
        if let Ok(value) = Reservations::from_record(&record) {
            // There may be less room than is taken.
            value.clone().with_room_for(1_000).check();
            prop_assert_eq!(Reservations::from_record(&value.to_record()), Ok(value));
        }
    }

    #[test]
    fn noise_is_no_record(noise in prop::collection::vec(any::<u8>(), 1..200)) {
        prop_assert!(Reservations::from_record(&noise).is_err());
    }

    #[test]
    fn any_cdb_has_a_class(cdb in prop::collection::vec(any::<u8>(), 0..40)) {
        let _ = Access::of_cdb(&cdb);
    }
}

proptest! {
    // Each case reads as many records as one has bytes or bits.
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn cut_records_are_refused(events in events()) {
        let record = after(&events).to_record();
        for length in 0..record.len() {
            let refused = Reservations::from_record(&record[..length]).unwrap_err();
            let cut = matches!(refused, InvalidRecord::Truncated { actual, .. } if actual == length);
            prop_assert!(cut, "{}", refused);
        }
        let mut longer = record.clone();
        longer.push(0);
        prop_assert_eq!(Reservations::from_record(&longer), Err(InvalidRecord::Damaged));
    }

    #[test]
    fn records_with_another_bit_are_refused(events in events()) {
        let mut record = after(&events).to_record();
        for bit in 0..record.len() * 8 {
            record[bit / 8] ^= 1 << (bit % 8);
            let refused = Reservations::from_record(&record).unwrap_err();
            match bit / 8 {
                0..8 => prop_assert_eq!(refused, InvalidRecord::NotOurs),
                10..14 => {
                    let cut = matches!(refused, InvalidRecord::Truncated { .. });
                    prop_assert!(cut || refused == InvalidRecord::Damaged);
                }
                _ => prop_assert_eq!(refused, InvalidRecord::Damaged),
            }
            record[bit / 8] ^= 1 << (bit % 8);
        }
    }
}
