//! The service actions of PERSISTENT RESERVE OUT: their checks and their effects (SPC-4 5.13.6 to 5.13.11).
//!
//! Each first checks everything, in the order of the standard, and then changes the value. So a refused command has changed
//! nothing.

use std::collections::HashSet;

use super::{Access, Attention, Holding, Nexus, Outcome, Reservations};
use crate::{
    Command, Completion, InitiatorPort, Key, ReserveOut, ReserveOutAction, ScopeType, SenseCode, Status, TransportId,
    Type,
};

/// The effect of a command.
#[derive(Default)]
struct Effect {
    changed: bool,
    aborted: Vec<Nexus>,
}

const UNCHANGED: Effect = Effect { changed: false, aborted: Vec::new() };
const CHANGED: Effect = Effect { changed: true, aborted: Vec::new() };

/// The refusal of a command, which changes nothing.
#[derive(Clone, Copy)]
enum Refusal {
    Conflict,
    Check(SenseCode),
}

impl From<Refusal> for Completion {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Conflict => Self::Status(Status::RESERVATION_CONFLICT),
            Refusal::Check(code) => Self::check(code),
        }
    }
}

const INVALID_FIELD_IN_LIST: Refusal = Refusal::Check(SenseCode::INVALID_FIELD_IN_PARAMETER_LIST);

/// The nexus that a parameter list of `sender` names. The name of an iSCSI node without an ISID stands for all known ports of the
/// node. The rules do not know these, so such a name is refused, as the standard allows (SPC-4 7.6.4.6). Else a nexus from which
/// no command ever comes would be registered. For the same reason, any ISID stands for zero where initiators are known by their
/// names alone ([`Nexus::new`]).
fn named(sender: &Nexus, initiator: &TransportId, relative_target_port: u16) -> Result<Nexus, Refusal> {
    match initiator.port() {
        InitiatorPort::Iscsi { isid: None, .. } => Err(INVALID_FIELD_IN_LIST),
        InitiatorPort::Iscsi { name, isid: Some(_) } if sender.has_isid_zero() => {
            let id = TransportId::new(InitiatorPort::Iscsi { name, isid: Some([0; 6]) });
            Ok(Nexus::new(id.expect("the name was read"), relative_target_port))
        }
        _ => Ok(Nexus::new(initiator.clone(), relative_target_port)),
    }
}

/// REGISTER and REGISTER AND IGNORE EXISTING KEY.
struct Register<'a> {
    /// `None`: REGISTER AND IGNORE EXISTING KEY.
    key: Option<Key>,
    service_action_key: Key,
    initiator_ports: Option<&'a [TransportId]>,
    all_tg_pt: bool,
    aptpl: bool,
}

impl Reservations {
    /// PERSISTENT RESERVE OUT, without unit attentions.
    pub fn reserve_out(&mut self, nexus: &Nexus, value: &ReserveOut) -> Outcome {
        match self.apply(nexus, value) {
            Ok(Effect { changed, aborted }) => Outcome { completion: Completion::Good(Vec::new()), changed, aborted },
            Err(refusal) => Outcome::unchanged(refusal.into()),
        }
    }

    fn apply(&mut self, nexus: &Nexus, value: &ReserveOut) -> Result<Effect, Refusal> {
        if self.spc2.is_some() {
            return Err(Refusal::Conflict);
        }
        match value {
            ReserveOut::Register { key, service_action_key, initiator_ports, all_tg_pt, aptpl } => {
                let register = Register {
                    key: Some(*key),
                    service_action_key: *service_action_key,
                    initiator_ports: initiator_ports.as_deref(),
                    all_tg_pt: *all_tg_pt,
                    aptpl: *aptpl,
                };
                self.register(nexus, &register)
            }
            ReserveOut::RegisterAndIgnoreExistingKey { service_action_key, all_tg_pt, aptpl } => {
                let register = Register {
                    key: None,
                    service_action_key: *service_action_key,
                    initiator_ports: None,
                    all_tg_pt: *all_tg_pt,
                    aptpl: *aptpl,
                };
                self.register(nexus, &register)
            }
            ReserveOut::Reserve { key, reservation_type } => self.reserve(nexus, *key, *reservation_type),
            ReserveOut::Release { key, reservation_type } => self.release(nexus, *key, *reservation_type),
            ReserveOut::Clear { key } => self.clear(nexus, *key),
            ReserveOut::Preempt { key, service_action_key, scope_type } => {
                self.preempt(nexus, *key, *service_action_key, *scope_type).map(|_| CHANGED)
            }
            ReserveOut::PreemptAndAbort { key, service_action_key, scope_type } => {
                let aborted = self.preempt(nexus, *key, *service_action_key, *scope_type)?;
                Ok(Effect { changed: true, aborted })
            }
            ReserveOut::RegisterAndMove {
                key,
                service_action_key,
                unregister,
                aptpl,
                relative_target_port,
                transport_id,
            } => {
                self.may_move(nexus, *key, *service_action_key)?;
                let to = named(nexus, transport_id, *relative_target_port)?;
                if to.is_same_initiator(nexus) || !self.target_ports.contains(relative_target_port) {
                    return Err(INVALID_FIELD_IN_LIST);
                }
                self.register_and_move(nexus, to, *service_action_key, *unregister)?;
                self.aptpl = *aptpl;
                Ok(CHANGED)
            }
            ReserveOut::ReplaceLostReservation { key, .. } => Err(self.refuse_replace(nexus, *key)),
        }
    }

    /// The answer to a command that [`ReserveOut::parse`] refuses with `code`. Keys are checked before the other fields of the
    /// parameter list, so a nexus with a wrong key gets a conflict.
    pub(super) fn refuse_malformed(&self, nexus: &Nexus, command: Command<'_>, code: SenseCode) -> Completion {
        let checked =
            if code == SenseCode::INVALID_FIELD_IN_PARAMETER_LIST { self.check_keys(nexus, command) } else { Ok(()) };
        checked.err().unwrap_or(Refusal::Check(code)).into()
    }

    fn check_keys(&self, nexus: &Nexus, command: Command<'_>) -> Result<(), Refusal> {
        use ReserveOutAction as Action;
        let action = Action::from_code(command.cdb().service_action());
        let (Some(action), Some((key, service_action_key))) = (action, ReserveOut::keys(command)) else {
            return Ok(());
        };
        match action {
            Action::Register => self.check_key(nexus, Some(key)),
            Action::RegisterAndIgnoreExistingKey => Ok(()),
            Action::Reserve | Action::Release | Action::Clear | Action::Preempt | Action::PreemptAndAbort => {
                self.check_registrant(nexus, key)
            }
            Action::RegisterAndMove => self.may_move(nexus, key, service_action_key),
            Action::ReplaceLostReservation => match self.refuse_replace(nexus, key) {
                Refusal::Conflict => Err(Refusal::Conflict),
                Refusal::Check(_) => Ok(()),
            },
        }
    }

    /// `key` must be the one that `nexus` has registered.
    fn check_registrant(&self, nexus: &Nexus, key: Key) -> Result<(), Refusal> {
        if self.key_of(nexus) == Some(key) { Ok(()) } else { Err(Refusal::Conflict) }
    }

    /// `key` must be the one that `nexus` has registered, or zero if there is none. `None` passes.
    fn check_key(&self, nexus: &Nexus, key: Option<Key>) -> Result<(), Refusal> {
        match key {
            Some(key) if key != self.key_of(nexus).unwrap_or(Key::ZERO) => Err(Refusal::Conflict),
            _ => Ok(()),
        }
    }

    fn check_room(&self, additional: usize) -> Result<(), Refusal> {
        match u32::try_from(self.registrations.len() + additional) {
            Ok(count) if count <= self.room => Ok(()),
            _ => Err(Refusal::Check(SenseCode::INSUFFICIENT_REGISTRATION_RESOURCES)),
        }
    }

    /// With ALL_TG_PT, the nexuses of the same initiator port with every target port, else `nexus` alone.
    fn on_target_ports(&self, nexus: &Nexus, all_tg_pt: bool) -> Vec<Nexus> {
        if !all_tg_pt {
            return vec![nexus.clone()];
        }
        let mut nexuses: Vec<Nexus> = self.target_ports.iter().map(|port| nexus.at(*port)).collect();
        // The port of the command is a target port, whether or not the device server named it.
        if !self.target_ports.contains(&nexus.relative_target_port()) {
            nexuses.push(nexus.clone());
        }
        nexuses
    }

    fn register(&mut self, nexus: &Nexus, register: &Register<'_>) -> Result<Effect, Refusal> {
        let senders = self.on_target_ports(nexus, register.all_tg_pt);
        // As if the command had come through each target port, all or nothing.
        senders.iter().try_for_each(|sender| self.check_key(sender, register.key))?;
        if register.initiator_ports.is_some() && self.registrations.contains(nexus) {
            return Err(INVALID_FIELD_IN_LIST);
        }
        if register.service_action_key.is_zero() {
            self.unregister(nexus, &senders);
        } else {
            let new = self.newcomers(nexus, &senders, register)?;
            self.check_room(new.len())?;
            for sender in &senders {
                if let Some(registration) = self.registrations.get_mut(sender) {
                    registration.key = register.service_action_key;
                }
            }
            new.into_iter().for_each(|newcomer| self.add(newcomer, register.service_action_key));
        }
        self.generation = self.generation.next();
        self.aptpl = register.aptpl;
        Ok(CHANGED)
    }

    /// The nexuses that REGISTER adds, each once: those of the sender, then those that it names.
    fn newcomers(&self, nexus: &Nexus, senders: &[Nexus], register: &Register<'_>) -> Result<Vec<Nexus>, Refusal> {
        let mut new: Vec<Nexus> =
            senders.iter().filter(|sender| !self.registrations.contains(sender)).cloned().collect();
        let Some(ports) = register.initiator_ports else { return Ok(new) };
        let mut known: HashSet<Nexus> = new.iter().cloned().collect();
        for port in ports {
            let named = named(nexus, port, nexus.relative_target_port())?;
            for named in self.on_target_ports(&named, register.all_tg_pt) {
                if self.registrations.contains(&named) {
                    return Err(INVALID_FIELD_IN_LIST);
                }
                if known.insert(named.clone()) {
                    new.push(named);
                }
            }
        }
        Ok(new)
    }

    /// Removes the registrations of the sender, without a unit attention for it, and the reservation that depends on them.
    fn unregister(&mut self, sender: &Nexus, nexuses: &[Nexus]) {
        for nexus in nexuses {
            self.remove(nexus, None);
        }
        let Some(Holding { reservation_type, holder }) = &self.reservation else { return };
        let released = match holder {
            Some(holder) => nexuses.contains(holder),
            None => self.registrations.is_empty(),
        };
        if released {
            let registrants_only = reservation_type.is_registrants_only();
            self.reservation = None;
            if registrants_only {
                self.establish_reservations_released(sender);
            }
        }
    }

    fn reserve(&mut self, nexus: &Nexus, key: Key, reservation_type: Type) -> Result<Effect, Refusal> {
        self.check_registrant(nexus, key)?;
        match &self.reservation {
            None => {
                self.reservation = Some(Holding::new(reservation_type, nexus));
                Ok(CHANGED)
            }
            Some(holding) if holding.reservation_type == reservation_type && self.is_holder(nexus) => Ok(UNCHANGED),
            Some(_) => Err(Refusal::Conflict),
        }
    }

    fn release(&mut self, nexus: &Nexus, key: Key, reservation_type: Type) -> Result<Effect, Refusal> {
        self.check_registrant(nexus, key)?;
        match &self.reservation {
            Some(holding) if self.is_holder(nexus) => {
                if holding.reservation_type != reservation_type {
                    return Err(Refusal::Check(SenseCode::INVALID_RELEASE));
                }
                self.reservation = None;
                if reservation_type.is_registrants_only() || reservation_type.is_all_registrants() {
                    self.establish_reservations_released(nexus);
                }
                Ok(CHANGED)
            }
            _ => Ok(UNCHANGED),
        }
    }

    fn clear(&mut self, nexus: &Nexus, key: Key) -> Result<Effect, Refusal> {
        self.check_registrant(nexus, key)?;
        self.reservation = None;
        let everyone: Vec<Nexus> = self.registrations.iter().map(|(nexus, _)| nexus.clone()).collect();
        for registrant in &everyone {
            let attention = if registrant == nexus { None } else { Some(Attention::ReservationsPreempted) };
            self.remove(registrant, attention);
        }
        self.generation = self.generation.next();
        Ok(CHANGED)
    }

    /// The nexuses whose key was preempted, in the order of their registrations. The sender may be one of them.
    ///
    /// Under a reservation of all registrants, a sender whose own key is preempted keeps its registration, as with LIO and
    /// SCST: otherwise a self-preempt by the last registrant would end the reservation (`docs/reference/standard.md`).
    fn preempt(&mut self, nexus: &Nexus, key: Key, victim: Key, scope_type: ScopeType) -> Result<Vec<Nexus>, Refusal> {
        self.check_registrant(nexus, key)?;
        let held_by_all = matches!(&self.reservation, Some(Holding { holder: None, .. }));
        let everyone = held_by_all && victim.is_zero();
        if victim.is_zero() && !everyone {
            return Err(INVALID_FIELD_IN_LIST);
        }
        let takes_over = match &self.reservation {
            Some(Holding { holder: Some(holder), .. }) => self.key_of(holder) == Some(victim),
            _ => everyone,
        };
        // Else scope and type are ignored.
        let new_type = if takes_over {
            let invalid = Refusal::Check(SenseCode::INVALID_FIELD_IN_CDB);
            Some(scope_type.reservation_type().ok_or(invalid)?)
        } else {
            None
        };
        let registrations = self.registrations.iter().filter(|(_, it)| everyone || it.key == victim);
        let preempted: Vec<Nexus> = registrations.map(|(nexus, _)| nexus.clone()).collect();
        if preempted.is_empty() {
            return Err(Refusal::Conflict);
        }

        for registrant in &preempted {
            if registrant != nexus {
                self.remove(registrant, Some(Attention::RegistrationsPreempted));
            } else if !takes_over && !held_by_all {
                // A registrant that preempts itself must not end, by its own departure, the reservation of all.
                self.remove(registrant, None);
            }
        }
        if let Some(new_type) = new_type {
            let old = self.reservation.replace(Holding::new(new_type, nexus));
            if old.is_some_and(|old| old.reservation_type != new_type) {
                self.establish_reservations_released(nexus);
            }
        }
        self.generation = self.generation.next();
        Ok(preempted)
    }

    /// Whether `nexus` may move the reservation, to any destination.
    fn may_move(&self, nexus: &Nexus, key: Key, service_action_key: Key) -> Result<(), Refusal> {
        if !self.permits(nexus, Access::ReserveOut(ReserveOutAction::RegisterAndMove)) {
            return Err(Refusal::Conflict);
        }
        self.check_registrant(nexus, key)?;
        if service_action_key.is_zero() {
            return Err(INVALID_FIELD_IN_LIST);
        }
        match &self.reservation {
            None => Err(Refusal::Check(SenseCode::INVALID_FIELD_IN_CDB)),
            Some(Holding { holder: None, .. }) => Err(Refusal::Conflict),
            Some(Holding { holder: Some(_), .. }) => Ok(()),
        }
    }

    fn register_and_move(&mut self, nexus: &Nexus, to: Nexus, key: Key, unregister: bool) -> Result<(), Refusal> {
        match self.registrations.get_mut(&to) {
            Some(registration) => registration.key = key,
            None => {
                self.check_room(1)?;
                self.add(to.clone(), key);
            }
        }
        if let Some(holding) = &mut self.reservation {
            holding.holder = Some(to);
        }
        if unregister {
            self.remove(nexus, None);
        }
        self.generation = self.generation.next();
        Ok(())
    }

    /// The rules never find that information was lost, so there is nothing to replace.
    fn refuse_replace(&self, nexus: &Nexus, key: Key) -> Refusal {
        let permitted = self.permits(nexus, Access::ReserveOut(ReserveOutAction::ReplaceLostReservation));
        if permitted && key.is_zero() { Refusal::Check(SenseCode::INVALID_RELEASE) } else { Refusal::Conflict }
    }

    pub(super) fn clean_up(&mut self, nexus: &Nexus) -> Outcome {
        if !self.registrations.contains(nexus) {
            return Outcome::unchanged(Completion::Good(Vec::new()));
        }
        let unregister = ReserveOut::RegisterAndIgnoreExistingKey {
            service_action_key: Key::ZERO,
            all_tg_pt: false,
            aptpl: self.aptpl,
        };
        self.reserve_out(nexus, &unregister)
    }
}
