//! The basics of each service action, by name; and what must hold for any commands whatever.

mod access;
mod others;
mod preempt;
mod properties;
mod records;
mod register;
mod reserve;

use super::*;
use crate::{FullStatus, InitiatorPort, Keys, ScopeType, SenseKey, TransportId};

pub(super) use Type::{
    ExclusiveAccess as EA, ExclusiveAccessAllRegistrants as EA_AR, ExclusiveAccessRegistrantsOnly as EA_RO,
    WriteExclusive as WE, WriteExclusiveAllRegistrants as WE_AR, WriteExclusiveRegistrantsOnly as WE_RO,
};

pub(super) const GOOD: Completion = Completion::Good(Vec::new());
pub(super) const NONE: Key = Key::ZERO;

/// The key of initiator `n`, unless it has another.
pub(super) fn key(n: u64) -> Key {
    Key(0x100 + n)
}

pub(super) fn id(n: u64) -> TransportId {
    TransportId::new(InitiatorPort::Sas { address: n }).unwrap()
}

/// Initiator `n` on target port 1.
pub(super) fn nexus(n: u64) -> Nexus {
    Nexus::new(id(n), 1)
}

pub(super) fn check(asc: u8, ascq: u8) -> Completion {
    Completion::check(SenseCode { key: SenseKey::ILLEGAL_REQUEST, asc, ascq })
}

pub(super) fn attention(asc: u8, ascq: u8) -> Completion {
    Completion::check(SenseCode { key: SenseKey::UNIT_ATTENTION, asc, ascq })
}

/// A unit, and commands to it in few words. Commands are encoded first, as from a guest.
#[derive(Clone)]
pub(super) struct Unit(pub(super) Reservations);

impl Unit {
    pub(super) fn new() -> Self {
        Self(Reservations::new())
    }

    /// Initiators 1 to `count` are registered, each with its own key.
    pub(super) fn registered(count: u64) -> Self {
        let mut unit = Self::new();
        for n in 1..=count {
            assert_eq!(unit.register(n, NONE, key(n)), GOOD);
        }
        unit
    }

    /// And initiator 1 has a reservation of this type.
    pub(super) fn reserved(count: u64, reservation_type: Type) -> Self {
        let mut unit = Self::registered(count);
        assert_eq!(unit.reserve(1, reservation_type), GOOD);
        unit
    }

    pub(super) fn outcome(&mut self, sender: &Nexus, value: &ReserveOut) -> Outcome {
        self.0.execute(sender, value.encode().unwrap().command())
    }

    pub(super) fn out(&mut self, n: u64, value: &ReserveOut) -> Completion {
        let before = self.0.clone();
        let outcome = self.outcome(&nexus(n), value);
        assert_eq!(outcome.changed, self.0 != before, "{value:?}");
        outcome.completion
    }

    pub(super) fn register(&mut self, n: u64, key: Key, service_action_key: Key) -> Completion {
        let (initiator_ports, all_tg_pt, aptpl) = (None, false, false);
        self.out(n, &ReserveOut::Register { key, service_action_key, initiator_ports, all_tg_pt, aptpl })
    }

    pub(super) fn reserve(&mut self, n: u64, reservation_type: Type) -> Completion {
        self.out(n, &ReserveOut::Reserve { key: key(n), reservation_type })
    }

    pub(super) fn release(&mut self, n: u64, reservation_type: Type) -> Completion {
        self.out(n, &ReserveOut::Release { key: key(n), reservation_type })
    }

    pub(super) fn preempt(&mut self, n: u64, victim: Key, reservation_type: Type) -> Completion {
        let scope_type = reservation_type.into();
        self.out(n, &ReserveOut::Preempt { key: key(n), service_action_key: victim, scope_type })
    }

    /// READ KEYS of an unregistered nexus.
    pub(super) fn keys(&self) -> (u32, Vec<Key>) {
        let read_keys = ReserveIn::new(ReserveInAction::ReadKeys, 8192);
        let Completion::Good(data) = self.0.reserve_in(&nexus(99), &read_keys) else { panic!("READ KEYS") };
        let Keys { generation, keys } = Keys::parse(&data).unwrap().value;
        (generation.0, keys)
    }

    /// The keys of these initiators.
    pub(super) fn keys_are(&self, generation: u32, initiators: &[u64]) {
        assert_eq!(self.keys(), (generation, initiators.iter().map(|n| key(*n)).collect()));
    }

    /// READ RESERVATION: key and type.
    pub(super) fn held(&self) -> Option<(Key, Type)> {
        let action = ReserveIn::new(ReserveInAction::ReadReservation, 8192);
        let Completion::Good(data) = self.0.reserve_in(&nexus(99), &action) else { panic!("READ RESERVATION") };
        Reservation::parse(&data).unwrap().value.held.map(|held| (held.key, held.reservation_type))
    }

    /// Takes the unit attentions of initiator `n`.
    pub(super) fn reported(&mut self, n: u64) -> Vec<(u8, u8)> {
        let reported = std::iter::from_fn(|| self.0.take_unit_attention(&nexus(n)));
        reported.map(|code| (code.asc, code.ascq)).collect()
    }
}

pub(super) const PREEMPTED: (u8, u8) = (0x2a, 0x03);
pub(super) const RELEASED: (u8, u8) = (0x2a, 0x04);
pub(super) const REGISTRATION_PREEMPTED: (u8, u8) = (0x2a, 0x05);
