//! A unit with four initiators at two target ports, and rows of tables about it.

use scsi_pr::{
    Cdb, CommandBuf, Completion, InitiatorPort, Key, Nexus, Reservations, ReserveIn, ReserveInAction, ReserveOut,
    ScopeType, SenseCode, Status, TransportId, Type,
};

/// The sender of a command: an initiator through a target port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Who(u64, u16);

pub(crate) const A: Who = Who(1, 1);
pub(crate) const B: Who = Who(2, 1);
pub(crate) const C: Who = Who(3, 1);
pub(crate) const D: Who = Who(4, 1);
/// A through the other target port.
pub(crate) const A2: Who = Who(1, 2);
pub(crate) const B2: Who = Who(2, 2);

pub(crate) const NONE: Key = Key(0);
pub(crate) const KEY_A: Key = Key(0xa);
pub(crate) const KEY_B: Key = Key(0xb);
pub(crate) const KEY_C: Key = Key(0xc);
/// A key of no registrant, at first.
pub(crate) const OTHER: Key = Key(0x07e4);

pub(crate) const WE: Type = Type::WriteExclusive;
pub(crate) const EA: Type = Type::ExclusiveAccess;
pub(crate) const WE_RO: Type = Type::WriteExclusiveRegistrantsOnly;
pub(crate) const EA_RO: Type = Type::ExclusiveAccessRegistrantsOnly;
pub(crate) const WE_AR: Type = Type::WriteExclusiveAllRegistrants;
pub(crate) const EA_AR: Type = Type::ExclusiveAccessAllRegistrants;

impl Who {
    pub(crate) fn port(self) -> TransportId {
        TransportId::new(InitiatorPort::Sas { address: self.0 }).unwrap()
    }

    pub(crate) fn nexus(self) -> Nexus {
        Nexus::new(self.port(), self.1)
    }

    fn of(nexus: &Nexus) -> Self {
        let InitiatorPort::Sas { address } = nexus.initiator().port() else { panic!("{nexus}") };
        Self(address, nexus.relative_target_port())
    }
}

/// A command on its way.
pub(crate) struct Step {
    pub(crate) from: Who,
    pub(crate) command: CommandBuf,
}

fn out(from: Who, command: &ReserveOut) -> Step {
    Step { from, command: command.encode().unwrap() }
}

pub(crate) fn register(from: Who, key: Key, service_action_key: Key) -> Step {
    register_with(from, key, service_action_key, None, false, false)
}

/// SPEC_I_PT.
pub(crate) fn register_for(from: Who, key: Key, service_action_key: Key, others: &[Who]) -> Step {
    register_with(from, key, service_action_key, Some(others), false, false)
}

/// ALL_TG_PT.
pub(crate) fn register_everywhere(from: Who, key: Key, service_action_key: Key) -> Step {
    register_with(from, key, service_action_key, None, true, false)
}

/// SPEC_I_PT and ALL_TG_PT.
pub(crate) fn register_for_everywhere(from: Who, key: Key, service_action_key: Key, others: &[Who]) -> Step {
    register_with(from, key, service_action_key, Some(others), true, false)
}

/// APTPL.
pub(crate) fn register_for_good(from: Who, key: Key, service_action_key: Key) -> Step {
    register_with(from, key, service_action_key, None, false, true)
}

fn register_with(
    from: Who,
    key: Key,
    service_action_key: Key,
    others: Option<&[Who]>,
    all_tg_pt: bool,
    aptpl: bool,
) -> Step {
    let initiator_ports = others.map(|others| others.iter().map(|who| who.port()).collect());
    out(from, &ReserveOut::Register { key, service_action_key, initiator_ports, all_tg_pt, aptpl })
}

pub(crate) fn ignoring(from: Who, service_action_key: Key) -> Step {
    ignoring_with(from, service_action_key, false, false)
}

pub(crate) fn ignoring_with(from: Who, service_action_key: Key, all_tg_pt: bool, aptpl: bool) -> Step {
    out(from, &ReserveOut::RegisterAndIgnoreExistingKey { service_action_key, all_tg_pt, aptpl })
}

pub(crate) fn reserve(from: Who, key: Key, reservation_type: Type) -> Step {
    out(from, &ReserveOut::Reserve { key, reservation_type })
}

pub(crate) fn release(from: Who, key: Key, reservation_type: Type) -> Step {
    out(from, &ReserveOut::Release { key, reservation_type })
}

pub(crate) fn clear(from: Who, key: Key) -> Step {
    out(from, &ReserveOut::Clear { key })
}

pub(crate) fn preempt(from: Who, key: Key, service_action_key: Key, scope_type: impl Into<ScopeType>) -> Step {
    out(from, &ReserveOut::Preempt { key, service_action_key, scope_type: scope_type.into() })
}

pub(crate) fn abort(from: Who, key: Key, service_action_key: Key, scope_type: impl Into<ScopeType>) -> Step {
    out(from, &ReserveOut::PreemptAndAbort { key, service_action_key, scope_type: scope_type.into() })
}

pub(crate) fn moving(from: Who, key: Key, service_action_key: Key, to: Who) -> Step {
    moving_with(from, key, service_action_key, to, false, false)
}

pub(crate) fn moving_with(
    from: Who,
    key: Key,
    service_action_key: Key,
    to: Who,
    unregister: bool,
    aptpl: bool,
) -> Step {
    let transport_id = to.port();
    let relative_target_port = to.1;
    out(
        from,
        &ReserveOut::RegisterAndMove { key, service_action_key, unregister, aptpl, relative_target_port, transport_id },
    )
}

pub(crate) fn replace_lost(from: Who, key: Key, service_action_key: Key) -> Step {
    let reservation_type = WE;
    out(from, &ReserveOut::ReplaceLostReservation { key, service_action_key, reservation_type, aptpl: false })
}

pub(crate) fn read(from: Who, action: ReserveInAction, allocation_length: usize) -> Step {
    Step { from, command: ReserveIn::new(action, allocation_length).encode() }
}

/// The same step, with a service action, SCOPE and TYPE, and list of one's own: `change` gets both.
pub(crate) fn changed(step: Step, change: impl FnOnce(&mut [u8; 16], &mut Vec<u8>)) -> Step {
    let mut cdb = *step.command.cdb().bytes();
    let mut list = step.command.command().parameter_list().to_vec();
    change(&mut cdb, &mut list);
    if cdb[0] == 0x5f {
        cdb[5..9].copy_from_slice(&u32::try_from(list.len()).unwrap().to_be_bytes());
    }
    Step { from: step.from, command: CommandBuf::new(Cdb::new(cdb).unwrap(), list).unwrap() }
}

/// With another byte of SCOPE and TYPE.
pub(crate) fn with_scope_type(step: Step, byte: u8) -> Step {
    changed(step, |cdb, _| cdb[2] = byte)
}

/// With these bits in the byte of SPEC_I_PT, ALL_TG_PT and APTPL.
pub(crate) fn with_flags(step: Step, flags: u8) -> Step {
    changed(step, |_, list| list[20] |= flags)
}

/// The answer to a command, and whether the command counts in PRGENERATION.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// GOOD; PRGENERATION is one greater.
    Counted,
    /// GOOD; PRGENERATION stays.
    Good,
    /// RESERVATION CONFLICT; nothing changes.
    Conflict,
    /// CHECK CONDITION; nothing changes.
    Check(SenseCode),
}

pub(crate) const COUNTED: Answer = Answer::Counted;
pub(crate) const GOOD: Answer = Answer::Good;
pub(crate) const CONFLICT: Answer = Answer::Conflict;
pub(crate) const LENGTH_ERROR: Answer = Answer::Check(SenseCode::PARAMETER_LIST_LENGTH_ERROR);
pub(crate) const BAD_CDB: Answer = Answer::Check(SenseCode::INVALID_FIELD_IN_CDB);
pub(crate) const BAD_LIST: Answer = Answer::Check(SenseCode::INVALID_FIELD_IN_PARAMETER_LIST);
pub(crate) const INVALID_RELEASE: Answer = Answer::Check(SenseCode::INVALID_RELEASE);
pub(crate) const NO_ROOM: Answer = Answer::Check(SenseCode::INSUFFICIENT_REGISTRATION_RESOURCES);

pub(crate) const CLEARED: SenseCode = SenseCode::RESERVATIONS_PREEMPTED;
pub(crate) const RELEASED: SenseCode = SenseCode::RESERVATIONS_RELEASED;
pub(crate) const PREEMPTED: SenseCode = SenseCode::REGISTRATIONS_PREEMPTED;

/// The holder of a reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    Unreserved,
    One(Type, Who),
    All(Type),
}

pub(crate) use Holder::{All, One, Unreserved};

/// A unit with two target ports.
pub(crate) struct Unit(pub(crate) Reservations);

impl Unit {
    pub(crate) fn new() -> Self {
        Self(Reservations::with_target_ports([1, 2]))
    }

    /// After these commands, which are all GOOD, and without pending unit attentions.
    pub(crate) fn after(steps: &[Step]) -> Self {
        let mut unit = Self::new();
        for step in steps {
            let completion = unit.send(step);
            assert!(matches!(completion, Completion::Good(_)), "{completion} to {:?}", step.command);
            unit.reported();
        }
        unit
    }

    pub(crate) fn send(&mut self, step: &Step) -> Completion {
        self.0.execute(&step.from.nexus(), step.command.command()).completion
    }

    pub(crate) fn registrants(&self) -> Vec<(Who, Key)> {
        self.0.registrations().map(|one| (Who::of(one.nexus), one.key)).collect()
    }

    pub(crate) fn holder(&self) -> Holder {
        match self.0.reservation() {
            None => Unreserved,
            Some(reserved) => match reserved.holder {
                Some(nexus) => One(reserved.reservation_type, Who::of(nexus)),
                None => All(reserved.reservation_type),
            },
        }
    }

    /// Takes the unit attentions of each nexus, in the order in which the unit reports them.
    pub(crate) fn reported(&mut self) -> Vec<(Who, SenseCode)> {
        let mut reported = Vec::new();
        for who in [A, A2, B, B2, C, D] {
            reported.extend(std::iter::from_fn(|| self.0.take_unit_attention(&who.nexus())).map(|code| (who, code)));
        }
        reported
    }
}

/// Checks one row.
pub(crate) fn check(
    before: &[Step],
    step: &Step,
    answer: Answer,
    registrants: &[(Who, Key)],
    holder: Holder,
    reported: &[(Who, SenseCode)],
) {
    let mut unit = Unit::after(before);
    let unchanged = unit.0.clone();
    let generation = unit.0.generation();
    let outcome = unit.0.execute(&step.from.nexus(), step.command.command());
    let (completion, next) = match answer {
        Answer::Counted => (Completion::Good(Vec::new()), generation.next()),
        Answer::Good => (Completion::Good(Vec::new()), generation),
        Answer::Conflict => (Completion::Status(Status::RESERVATION_CONFLICT), generation),
        Answer::Check(code) => (Completion::check(code), generation),
    };
    assert_eq!(outcome.completion, completion);
    assert_eq!(unit.0.generation(), next, "PRGENERATION");
    if !matches!(answer, Answer::Counted | Answer::Good) {
        assert_eq!(unit.0, unchanged, "what is refused changes nothing");
        assert!(!outcome.changed && outcome.aborted.is_empty());
    }
    assert_eq!(outcome.changed, unit.0 != unchanged, "whether something is to be stored");
    assert_eq!(unit.registrants(), registrants, "registrants");
    assert_eq!(unit.holder(), holder, "reservation");
    assert_eq!(unit.reported(), reported, "unit attentions");
}

/// Rows of a table, each a test: `name: [before], command => answer, [registrants], reservation, [reported];`.
macro_rules! rows {
    ($($(#[$meta:meta])* $name:ident: $before:expr, $step:expr => $answer:expr, $registrants:expr, $holder:expr, $reported:expr;)*) => {
        $(
            $(#[$meta])*
            #[test]
            fn $name() {
                crate::unit::check(&$before, &$step, $answer, &$registrants, $holder, &$reported);
            }
        )*
    };
}

pub(crate) use rows;
