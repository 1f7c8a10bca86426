//! A SCSI logical unit by the rules of SPC-4 5.12 and 6.16.

use proptest::prelude::*;
use scsi_pr::{Completion, Held, Key, Reservation, ReserveOut, ScopeType, SenseCode, Status, Type};

/// A nexus. With four, one host can have three paths beside another host's one.
pub(crate) type Nexus = usize;
pub(crate) const NEXUSES: usize = 4;

const CONFLICT: Completion = Completion::Status(Status::RESERVATION_CONFLICT);
const GOOD: Completion = Completion::Good(Vec::new());

/// The state of a unit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Unit {
    pub(crate) generation: u32,
    pub(crate) keys: [Option<Key>; NEXUSES],
    pub(crate) reservation: Option<Taken>,
}

/// A reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) reservation_type: Type,
    /// `None` when every registrant is a holder.
    pub(crate) holder: Option<Nexus>,
}

impl Taken {
    fn by(nexus: Nexus, reservation_type: Type) -> Self {
        Self { reservation_type, holder: (!reservation_type.is_all_registrants()).then_some(nexus) }
    }
}

impl Unit {
    /// The keys of READ KEYS, sorted: their order has no meaning.
    pub(crate) fn sorted_keys(&self) -> Vec<Key> {
        let mut keys: Vec<_> = self.keys.iter().flatten().copied().collect();
        keys.sort_unstable();
        keys
    }

    /// The data of READ RESERVATION.
    pub(crate) fn shown(&self) -> Reservation {
        let held = self.reservation.map(|Taken { reservation_type, holder }| {
            let key = holder.map_or(Key::ZERO, |holder| self.keys[holder].expect("holders are registered"));
            Held { key, reservation_type }
        });
        Reservation { generation: scsi_pr::Generation(self.generation), held }
    }

    fn is_holder(&self, nexus: Nexus) -> bool {
        self.reservation.is_some_and(|taken| match taken.holder {
            Some(holder) => holder == nexus,
            None => self.keys[nexus].is_some(),
        })
    }

    /// Runs a command. REGISTER of nothing where nothing is registered does not count.
    pub(crate) fn run(&mut self, nexus: Nexus, command: &ReserveOut) -> Completion {
        match *command {
            ReserveOut::Register { key, service_action_key, .. } => match self.keys[nexus] {
                None if !key.is_zero() => CONFLICT,
                Some(own) if own != key => CONFLICT,
                _ => self.register(nexus, service_action_key),
            },
            ReserveOut::RegisterAndIgnoreExistingKey { service_action_key, .. } => {
                self.register(nexus, service_action_key)
            }
            ReserveOut::Reserve { key, .. }
            | ReserveOut::Release { key, .. }
            | ReserveOut::Clear { key }
            | ReserveOut::Preempt { key, .. }
            | ReserveOut::PreemptAndAbort { key, .. }
                if self.keys[nexus] != Some(key) =>
            {
                CONFLICT
            }
            ReserveOut::Reserve { reservation_type, .. } => match self.reservation {
                None => {
                    self.reservation = Some(Taken::by(nexus, reservation_type));
                    GOOD
                }
                Some(taken) if self.is_holder(nexus) && taken.reservation_type == reservation_type => GOOD,
                Some(_) => CONFLICT,
            },
            ReserveOut::Release { reservation_type, .. } => {
                if !self.is_holder(nexus) {
                    return GOOD;
                }
                if self.reservation.is_some_and(|taken| taken.reservation_type != reservation_type) {
                    return Completion::check(SenseCode::INVALID_RELEASE);
                }
                self.reservation = None;
                GOOD
            }
            ReserveOut::Clear { .. } => {
                self.keys = [None; NEXUSES];
                self.reservation = None;
                self.count()
            }
            ReserveOut::Preempt { service_action_key, scope_type, .. }
            | ReserveOut::PreemptAndAbort { service_action_key, scope_type, .. } => {
                self.preempt(nexus, service_action_key, scope_type)
            }
            _ => Completion::check(SenseCode::INVALID_FIELD_IN_CDB),
        }
    }

    fn register(&mut self, nexus: Nexus, new: Key) -> Completion {
        if new.is_zero() {
            if self.keys[nexus].is_none() {
                return GOOD;
            }
            self.remove(nexus);
        } else {
            self.keys[nexus] = Some(new);
        }
        self.count()
    }

    fn preempt(&mut self, nexus: Nexus, victim: Key, scope_type: ScopeType) -> Completion {
        let takes_over = match self.reservation {
            Some(Taken { holder: None, .. }) => victim.is_zero(),
            Some(_) | None if victim.is_zero() => return Completion::check(SenseCode::INVALID_FIELD_IN_PARAMETER_LIST),
            Some(Taken { holder: Some(holder), .. }) => self.keys[holder] == Some(victim),
            None => false,
        };
        let is_hit = |(other, key): (Nexus, Option<Key>)| {
            let hit = if victim.is_zero() { key.is_some() } else { key == Some(victim) };
            hit.then_some(other)
        };
        let hit: Vec<_> = self.keys.into_iter().enumerate().filter_map(is_hit).collect();
        if hit.is_empty() {
            return CONFLICT;
        }
        if takes_over {
            let Some(reservation_type) = scope_type.reservation_type() else {
                return Completion::check(SenseCode::INVALID_FIELD_IN_CDB);
            };
            hit.into_iter().filter(|other| *other != nexus).for_each(|other| self.keys[other] = None);
            self.reservation = Some(Taken::by(nexus, reservation_type));
        } else {
            hit.into_iter().for_each(|other| self.remove(other));
        }
        self.count()
    }

    /// Removes one registration, and the reservation that goes with it.
    fn remove(&mut self, nexus: Nexus) {
        let was_holder = self.is_holder(nexus);
        self.keys[nexus] = None;
        if self.reservation.is_some_and(|taken| taken.holder.is_some()) && was_holder || self.sorted_keys().is_empty() {
            self.reservation = None;
        }
    }

    fn count(&mut self) -> Completion {
        self.generation = self.generation.wrapping_add(1);
        GOOD
    }
}

/// Keys that meet each other often; zero is among them.
pub(crate) fn keys() -> impl Strategy<Value = Key> {
    (0_u64..5).prop_map(Key)
}

/// Types that meet each other often.
fn types() -> impl Strategy<Value = Type> {
    prop_oneof![
        prop::sample::select(&Type::ALL[..]),
        Just(Type::WriteExclusiveRegistrantsOnly),
        Just(Type::WriteExclusiveAllRegistrants),
    ]
}

/// Commands without the flags that not every unit has; one in many with a TYPE that is none.
pub(crate) fn commands() -> impl Strategy<Value = ReserveOut> {
    let scope_type = || prop_oneof![9 => types().prop_map(ScopeType::from), 1 => Just(ScopeType(0))];
    prop_oneof![
        3 => (keys(), keys()).prop_map(|(key, service_action_key)| ReserveOut::Register {
            key, service_action_key, initiator_ports: None, all_tg_pt: false, aptpl: false
        }),
        3 => keys().prop_map(|service_action_key| ReserveOut::RegisterAndIgnoreExistingKey {
            service_action_key, all_tg_pt: false, aptpl: false
        }),
        3 => (keys(), types()).prop_map(|(key, reservation_type)| ReserveOut::Reserve { key, reservation_type }),
        2 => (keys(), types()).prop_map(|(key, reservation_type)| ReserveOut::Release { key, reservation_type }),
        1 => keys().prop_map(|key| ReserveOut::Clear { key }),
        3 => (keys(), keys(), scope_type()).prop_map(|(key, service_action_key, scope_type)| ReserveOut::Preempt {
            key, service_action_key, scope_type
        }),
        2 => (keys(), keys(), scope_type()).prop_map(|(key, service_action_key, scope_type)| {
            ReserveOut::PreemptAndAbort { key, service_action_key, scope_type }
        }),
    ]
}

/// A command of one nexus.
///
/// With random keys most commands are conflicts. So mostly the sender names the key that it has, and a preemption the key of
/// a registrant.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) nexus: Nexus,
    command: ReserveOut,
    own: bool,
    victim: Option<Nexus>,
}

impl Step {
    /// The command, aimed at what `unit` is like.
    pub(crate) fn command(&self, unit: &Unit) -> ReserveOut {
        let mut command = self.command.clone();
        if let (
            true,
            ReserveOut::Register { key, .. }
            | ReserveOut::Reserve { key, .. }
            | ReserveOut::Release { key, .. }
            | ReserveOut::Clear { key }
            | ReserveOut::Preempt { key, .. }
            | ReserveOut::PreemptAndAbort { key, .. },
        ) = (self.own, &mut command)
        {
            *key = unit.keys[self.nexus].unwrap_or_default();
        }
        if let (
            Some(victim),
            ReserveOut::Preempt { service_action_key, .. } | ReserveOut::PreemptAndAbort { service_action_key, .. },
        ) = (self.victim.and_then(|victim| unit.keys[victim]), &mut command)
        {
            *service_action_key = victim;
        }
        command
    }
}

/// A history of commands of all nexuses.
pub(crate) fn histories() -> impl Strategy<Value = Vec<Step>> {
    let step = (0..NEXUSES, commands(), prop::bool::weighted(0.85), prop::option::weighted(0.6, 0..NEXUSES));
    let step = step.prop_map(|(nexus, command, own, victim)| Step { nexus, command, own, victim });
    prop::collection::vec(step, 1..40)
}

/// Each row of tables 67 to 72 that the other tests lean on.
#[cfg(test)]
mod tests {
    use super::*;

    const A: Key = Key(0xa);
    const B: Key = Key(0xb);

    fn register(key: Key, service_action_key: Key) -> ReserveOut {
        ReserveOut::Register { key, service_action_key, initiator_ports: None, all_tg_pt: false, aptpl: false }
    }

    fn preempt(key: Key, service_action_key: Key, reservation_type: Type) -> ReserveOut {
        ReserveOut::Preempt { key, service_action_key, scope_type: reservation_type.into() }
    }

    fn two() -> Unit {
        let mut unit = Unit::default();
        assert_eq!(unit.run(0, &register(Key::ZERO, A)), GOOD);
        assert_eq!(unit.run(1, &register(Key::ZERO, B)), GOOD);
        unit
    }

    #[test]
    fn registering() {
        let mut unit = two();
        assert_eq!(unit.run(0, &register(Key::ZERO, A)), CONFLICT);
        assert_eq!(unit.run(2, &register(A, A)), CONFLICT);
        assert_eq!(unit.run(2, &register(Key::ZERO, Key::ZERO)), GOOD);
        assert_eq!(unit.generation, 2);
        assert_eq!(unit.run(0, &register(A, Key::ZERO)), GOOD);
        assert_eq!((unit.sorted_keys(), unit.generation), (vec![B], 3));
    }

    #[test]
    fn a_reservation_of_one_goes_with_its_holder_and_one_of_all_with_the_last() {
        for (reservation_type, stays) in
            [(Type::WriteExclusiveRegistrantsOnly, false), (Type::WriteExclusiveAllRegistrants, true)]
        {
            let mut unit = two();
            assert_eq!(unit.run(0, &ReserveOut::Reserve { key: A, reservation_type }), GOOD);
            assert_eq!(unit.run(1, &ReserveOut::Reserve { key: B, reservation_type }) == GOOD, stays);
            assert_eq!(unit.run(0, &register(A, Key::ZERO)), GOOD);
            assert_eq!(unit.shown().held.is_some(), stays);
            assert_eq!(unit.run(1, &register(B, Key::ZERO)), GOOD);
            assert_eq!(unit.shown().held, None);
        }
    }

    #[test]
    fn preempting() {
        let kind = Type::WriteExclusive;
        let mut unit = two();
        assert_eq!(unit.run(0, &preempt(A, Key(0xdead), kind)), CONFLICT);
        assert_eq!(unit.run(0, &ReserveOut::Reserve { key: A, reservation_type: kind }), GOOD);
        let refused = Completion::check(SenseCode::INVALID_FIELD_IN_PARAMETER_LIST);
        assert_eq!(unit.run(1, &preempt(B, Key::ZERO, kind)), refused);
        assert_eq!(unit.run(1, &preempt(B, A, Type::ExclusiveAccess)), GOOD);
        assert_eq!(unit.sorted_keys(), [B]);
        assert_eq!(unit.shown().held, Some(Held { key: B, reservation_type: Type::ExclusiveAccess }));
    }

    #[test]
    fn taking_over_from_all() {
        let kind = Type::WriteExclusiveAllRegistrants;
        let mut unit = two();
        assert_eq!(unit.run(0, &ReserveOut::Reserve { key: A, reservation_type: kind }), GOOD);
        assert_eq!(unit.run(1, &preempt(B, Key::ZERO, Type::WriteExclusive)), GOOD);
        assert_eq!(unit.sorted_keys(), [B]);
        assert_eq!(unit.shown().held, Some(Held { key: B, reservation_type: Type::WriteExclusive }));
    }
}
