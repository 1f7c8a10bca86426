//! Translates SCSI to the reservation commands of NVMe and back. No I/O: the commands go through [`Namespace`].

use std::cell::Cell;

use scsi_pr::{
    Capabilities, Completion, FullStatus, FullStatusDescriptor, Held, Key, Keys, Reservation, ReserveIn,
    ReserveInAction, ReserveOut, SenseCode, Status, Type, TypeMask,
};

use super::command::{self, Change, IDENTIFY_LENGTH, Persistence, RESCAP, Registration, Request};
use super::outcome::{Failure, HOST_ID_INCONSISTENT, code_of, of_failure};
use super::report::{self, Format, Host, Report};
use crate::NotPermitted;
use crate::command_error::CommandError;
use crate::type_number;

/// One namespace.
pub(super) trait Namespace {
    /// Runs a command that takes `data`.
    fn send(&self, request: Request, data: &[u8]) -> Result<(), Failure>;
    /// Runs a command that fills `data`.
    fn receive(&self, request: Request, data: &mut [u8]) -> Result<(), Failure>;
}

/// The bytes of the first attempt to read a report: a page, which any controller can transfer.
const INITIAL_LENGTH: usize = 4096;
/// The most attempts to read a report that grows meanwhile.
const MAX_READS: usize = 8;
/// The most attempts to register and, where the host is registered already, to replace its key.
const MAX_ROUNDS: usize = 3;

const GOOD: Completion = Completion::Good(Vec::new());
const CONFLICT: Completion = Completion::Status(Status::RESERVATION_CONFLICT);

/// Why a successful preemption is reported as failed.
pub(crate) const NOT_PREEMPTED: &str = "the namespace reported success, but the victim is still registered; Linux' own \
     target does this when the reservation holder preempts";
/// Why a successful release is reported as failed.
pub(crate) const NOT_RELEASED: &str = "the namespace reported success, but all registrants still hold the reservation; \
     Linux' own target does this for all but the first of them";

/// One running command.
pub(super) struct Session<'a, N> {
    namespace: &'a N,
    /// Whether something has changed. From then on, no other process may run the command.
    changed: Cell<bool>,
}

impl<'a, N: Namespace> Session<'a, N> {
    pub(super) fn new(namespace: &'a N) -> Self {
        Self { namespace, changed: Cell::new(false) }
    }

    /// Runs a PERSISTENT RESERVE IN.
    pub(super) fn read(&self, command: &ReserveIn) -> Result<Completion, CommandError> {
        let data = match command.action() {
            ReserveInAction::ReadKeys => keys(&self.report()?).encode(),
            ReserveInAction::ReadReservation => match reservation(&self.report()?) {
                Some(reservation) => reservation.encode(),
                None => return Ok(Completion::check(SenseCode::TARGET_FAILURE)),
            },
            ReserveInAction::ReadFullStatus => full_status(&self.report()?).encode(),
            ReserveInAction::ReportCapabilities => match self.rescap()? {
                0 => return Ok(Completion::check(SenseCode::INVALID_OPCODE)),
                rescap => capabilities(rescap, self.report()?.persistent).encode(),
            },
            _ => return Ok(Completion::check(SenseCode::INVALID_FIELD_IN_CDB)),
        };
        Ok(command.answer(data))
    }

    /// Runs a PERSISTENT RESERVE OUT.
    pub(super) fn write(&self, command: &ReserveOut) -> Result<Completion, CommandError> {
        match *command {
            ReserveOut::Register { initiator_ports: Some(_), .. } => Err(CommandError::Refused(
                SenseCode::INVALID_FIELD_IN_PARAMETER_LIST,
                "an NVMe host can only register itself: no SPEC_I_PT",
            )),
            ReserveOut::Register { key, service_action_key, aptpl, .. } => {
                let persistence = self.persistence(aptpl)?;
                let registration = match (key.is_zero(), service_action_key.is_zero()) {
                    (true, true) => return self.register_zero(),
                    (true, false) => Registration::Register { new: service_action_key },
                    (false, true) => Registration::Unregister { current: Some(key) },
                    (false, false) => Registration::Replace { current: Some(key), new: service_action_key },
                };
                self.change(Change::Register(registration, persistence), SenseCode::INVALID_FIELD_IN_PARAMETER_LIST)
            }
            ReserveOut::RegisterAndIgnoreExistingKey { service_action_key, aptpl, .. } => {
                let persistence = self.persistence(aptpl)?;
                match service_action_key {
                    Key::ZERO => self.unregister_any(persistence),
                    new => self.register_any(new, persistence),
                }
            }
            ReserveOut::Reserve { key, reservation_type } => self.reserve(key, reservation_type),
            ReserveOut::Release { key, reservation_type } => self.release(key, reservation_type),
            ReserveOut::Clear { key } => self.change(Change::Clear { key }, SenseCode::INVALID_FIELD_IN_CDB),
            ReserveOut::Preempt { key, service_action_key, scope_type } => {
                self.preempt(key, service_action_key, scope_type.reservation_type(), false)
            }
            ReserveOut::PreemptAndAbort { key, service_action_key, scope_type } => {
                self.preempt(key, service_action_key, scope_type.reservation_type(), true)
            }
            _ => Err(CommandError::Refused(SenseCode::INVALID_FIELD_IN_CDB, "NVMe has no such service action")),
        }
    }

    /// CPTPL for this APTPL, if the namespace supports it.
    fn persistence(&self, aptpl: bool) -> Result<Persistence, CommandError> {
        if !aptpl {
            return Ok(Persistence::Volatile);
        }
        match self.rescap()? & PTPLS {
            0 => Err(CommandError::Refused(
                SenseCode::INVALID_FIELD_IN_PARAMETER_LIST,
                "the namespace loses its registrations with the power: no APTPL",
            )),
            _ => Ok(Persistence::Persistent),
        }
    }

    /// REGISTER of zero by a sender that claims to be unregistered. NVMe would register the key zero.
    fn register_zero(&self) -> Result<Completion, CommandError> {
        match self.own_key()? {
            Own::None => Ok(GOOD),
            Own::Key(_) => Ok(CONFLICT),
            Own::Unknown => Err(CommandError::Refused(
                SenseCode::INVALID_FIELD_IN_PARAMETER_LIST,
                "this host has no identifier (HOSTID), so its registration cannot be found",
            )),
        }
    }

    fn unregister_any(&self, persistence: Persistence) -> Result<Completion, CommandError> {
        let change = Change::Register(Registration::Unregister { current: None }, persistence);
        let answer = self.change(change, SenseCode::INVALID_FIELD_IN_PARAMETER_LIST)?;
        // In SCSI it is no conflict to unregister without a registration.
        if answer == CONFLICT && self.own_key()? == Own::None {
            return Ok(GOOD);
        }
        Ok(answer)
    }

    /// Registers, or replaces the registered key. Each of the two is one atomic command, and a conflict changes nothing.
    /// Between them, another host can only remove this host's registration. Then the next attempt registers.
    fn register_any(&self, new: Key, persistence: Persistence) -> Result<Completion, CommandError> {
        let steps = [Registration::Register { new }, Registration::Replace { current: None, new }];
        for registration in steps.into_iter().cycle().take(MAX_ROUNDS * steps.len()) {
            let change = Change::Register(registration, persistence);
            let answer = self.change(change, SenseCode::INVALID_FIELD_IN_PARAMETER_LIST)?;
            if answer != CONFLICT {
                return Ok(answer);
            }
        }
        Ok(CONFLICT)
    }

    fn reserve(&self, key: Key, reservation_type: Type) -> Result<Completion, CommandError> {
        let answer = self.change(Change::Acquire { key, reservation_type }, SenseCode::INVALID_FIELD_IN_CDB)?;
        // Each registrant holds an all-registrants reservation, and may reserve it again. Linux' own target (nvmet of 6.13
        // to 7.2) takes only the first registrant for a holder. The answer is GOOD if the reservation is as requested.
        if answer == CONFLICT
            && reservation_type.is_all_registrants()
            && self.report()?.reservation_type == Some(reservation_type)
            && self.own_key()? == Own::Key(key)
        {
            return Ok(GOOD);
        }
        Ok(answer)
    }

    fn release(&self, key: Key, reservation_type: Type) -> Result<Completion, CommandError> {
        let before = self.report()?;
        if before.is_held_by_all() && before.reservation_type != Some(reservation_type) {
            return Ok(match before.count(key) {
                0 => CONFLICT,
                _ => Completion::check(SenseCode::INVALID_RELEASE),
            });
        }
        let answer = self.change(Change::Release { key, reservation_type }, SenseCode::INVALID_RELEASE)?;
        if answer == GOOD && before.is_held_by_all() && self.report()?.is_held_by_all() {
            return Err(CommandError::Refused(SenseCode::TARGET_FAILURE, NOT_RELEASED));
        }
        Ok(answer)
    }

    fn preempt(
        &self,
        key: Key,
        victim: Key,
        reservation_type: Option<Type>,
        abort: bool,
    ) -> Result<Completion, CommandError> {
        let Some(reservation_type) = reservation_type else {
            // The command needs a type, and an invented one could end up in a reservation.
            return Ok(Completion::check(SenseCode::INVALID_FIELD_IN_CDB));
        };
        let before = self.report()?;
        match victim {
            Key::ZERO if before.count(key) == 0 => return Ok(CONFLICT),
            Key::ZERO if !before.is_held_by_all() => {
                return Ok(Completion::check(SenseCode::INVALID_FIELD_IN_PARAMETER_LIST));
            }
            Key::ZERO => {}
            victim if before.count(victim) == 0 => return Ok(CONFLICT),
            _ => {}
        }
        let change = Change::Preempt { key, victim, reservation_type, abort };
        let answer = self.change(change, SenseCode::INVALID_FIELD_IN_CDB)?;
        if answer == GOOD {
            let after = self.report()?;
            // The sender may remain.
            let (remaining, most) = match victim {
                Key::ZERO => (after.registrants.len(), 1),
                victim => (after.count(victim), usize::from(victim == key)),
            };
            // A victim that registered again meanwhile looks like one that was not removed. That error is safe.
            if remaining > most {
                return Err(CommandError::Refused(SenseCode::TARGET_FAILURE, NOT_PREEMPTED));
            }
        }
        Ok(answer)
    }

    /// Sends a command that changes something. `refusal` is the sense code for Invalid Field in Command.
    fn change(&self, change: Change, refusal: SenseCode) -> Result<Completion, CommandError> {
        let (request, data) = change.encode();
        match self.namespace.send(request, &data) {
            Ok(()) => {
                self.changed.set(true);
                Ok(GOOD)
            }
            Err(failure) => Ok(self.answer(failure, refusal)?),
        }
    }

    /// The completion of a failed command. After a change, no other process may run the command from the beginning.
    fn answer(&self, failure: Failure, refusal: SenseCode) -> Result<Completion, NotPermitted> {
        match of_failure(failure, refusal) {
            Err(not_permitted) if self.changed.get() => Ok(not_permitted.completion()),
            answer => answer,
        }
    }

    /// The error of a failed command that only reads.
    fn stop(&self, failure: Failure) -> CommandError {
        self.answer(failure, SenseCode::INVALID_FIELD_IN_CDB)
            .map_or_else(CommandError::NotPermitted, CommandError::Answer)
    }

    /// RESCAP: the capabilities of the namespace.
    fn rescap(&self) -> Result<u8, CommandError> {
        let mut identity = [0; IDENTIFY_LENGTH];
        let received = self.namespace.receive(command::identify_namespace(), &mut identity);
        received.map_err(|failure| self.stop(failure))?;
        Ok(identity[RESCAP])
    }

    /// The registrations and the reservation.
    fn report(&self) -> Result<Report, CommandError> {
        let is_inconsistent =
            |failure: &Failure| matches!(failure, Failure::Status(status) if code_of(*status) == HOST_ID_INCONSISTENT);
        let long = self.read_report(Format::Extended);
        let (format, bytes) = match &long {
            Ok(Some(bytes)) if report::may_be_extended(bytes) => (Format::Extended, long),
            // The report was not extended, unless the namespace refuses the short format.
            Ok(Some(_)) => match self.read_report(Format::Short) {
                Err(failure) if is_inconsistent(&failure) => (Format::Extended, long),
                short => (Format::Short, short),
            },
            Err(failure) if is_inconsistent(failure) => (Format::Short, self.read_report(Format::Short)),
            Ok(None) | Err(_) => (Format::Extended, long),
        };
        let bytes = bytes.map_err(|failure| self.stop(failure))?;
        let bytes = bytes.ok_or(CommandError::Answer(Completion::Status(Status::BUSY)))?;
        Report::parse(format, &bytes).ok_or(CommandError::Answer(Completion::check(SenseCode::TARGET_FAILURE)))
    }

    /// A whole report; `None` where it grew with each attempt.
    fn read_report(&self, format: Format) -> Result<Option<Vec<u8>>, Failure> {
        let mut room = INITIAL_LENGTH;
        for _ in 0..MAX_READS {
            let mut bytes = vec![0; room];
            self.namespace.receive(command::report(room, format == Format::Extended), &mut bytes)?;
            match report::length(format, &bytes) {
                Some(length) if length > room => room = length,
                _ => return Ok(Some(bytes)),
            }
        }
        Ok(None)
    }

    /// The registration of this host.
    fn own_key(&self) -> Result<Own, CommandError> {
        let Some(host) = self.own_host()? else { return Ok(Own::Unknown) };
        Ok(self.report()?.key_of(host).map_or(Own::None, Own::Key))
    }

    /// The identity of this host at the controller; `None` where it has no identifier.
    fn own_host(&self) -> Result<Option<Host>, CommandError> {
        let mut long = [0; 16];
        match self.namespace.receive(command::host_identifier(true), &mut long) {
            Ok(()) => return Ok(Host::named(&long)),
            Err(Failure::Status(_)) => {}
            Err(failure) => return Err(self.stop(failure)),
        }
        let mut short = [0; 8];
        match self.namespace.receive(command::host_identifier(false), &mut short) {
            Ok(()) => Ok(Host::named(&short)),
            Err(Failure::Status(_)) => Ok(None),
            Err(failure) => Err(self.stop(failure)),
        }
    }
}

/// The registration of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Own {
    /// Nothing.
    None,
    /// This key.
    Key(Key),
    /// Unknown: the host has no identifier.
    Unknown,
}

/// RESCAP, bit 0: Persist Through Power Loss Support.
const PTPLS: u8 = 0x01;

/// A key for each host, however many controllers it uses.
fn keys(report: &Report) -> Keys {
    Keys { generation: report.generation, keys: report.registrants.iter().map(|registrant| registrant.key).collect() }
}

/// `None` where the report has a reservation of one holder, but no holder.
fn reservation(report: &Report) -> Option<Reservation> {
    let held = match report.reservation_type {
        None => None,
        // In SCSI an all-registrants reservation has no key.
        Some(reservation_type) if reservation_type.is_all_registrants() => {
            Some(Held { key: Key::ZERO, reservation_type })
        }
        Some(reservation_type) => {
            let holder = report.registrants.iter().find(|registrant| registrant.is_holder)?;
            Some(Held { key: holder.key, reservation_type })
        }
    };
    Some(Reservation { generation: report.generation, held })
}

fn full_status(report: &Report) -> FullStatus {
    let descriptors = report.registrants.iter().map(|registrant| {
        // A host is registered with all controllers, as by ALL_TG_PT. One without an identifier is registered with one.
        let (all_tg_pt, relative_target_port) = match registrant.host {
            Host::Named(_) => (true, 0),
            Host::Controller(controller) => (false, controller),
        };
        let port = registrant.host.transport_id();
        let mut descriptor = FullStatusDescriptor::new(registrant.key, &port, relative_target_port);
        descriptor.all_tg_pt = all_tg_pt;
        descriptor.held = report.reservation_type.filter(|_| registrant.is_holder || report.is_held_by_all());
        descriptor
    });
    FullStatus { generation: report.generation, descriptors: descriptors.collect() }
}

fn capabilities(rescap: u8, persistent: bool) -> Capabilities {
    let has = |reservation_type: &Type| rescap & (1 << type_number::of(*reservation_type)) != 0;
    Capabilities {
        atp_c: true,
        ptpl_c: rescap & PTPLS != 0,
        ptpl_a: persistent,
        tmv: true,
        type_mask: Type::ALL.into_iter().filter(has).collect::<TypeMask>(),
        ..Capabilities::default()
    }
}

#[cfg(test)]
mod tests;
