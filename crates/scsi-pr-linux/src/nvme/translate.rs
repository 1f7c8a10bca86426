//! SCSI to the reservation commands of NVMe and back. No I/O: the commands go through [`Namespace`].

use std::cell::Cell;

use rustix::io::Errno;
use scsi_pr::{
    Capabilities, Completion, FullStatus, FullStatusDescriptor, Held, Key, Keys, Reservation, ReserveIn,
    ReserveInAction, ReserveOut, SenseCode, Status, Type, TypeMask,
};

use super::command::{self, Change, IDENTIFY_LENGTH, Persistence, RESCAP, Registration, Request};
use super::outcome::{HOST_ID_INCONSISTENT, code_of, of_failure};
use super::report::{self, Format, Host, Report};
use crate::NotPermitted;
use crate::permission::Stop;
use crate::type_number;

/// A command that was not a success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The kernel failed it.
    Errno(Errno),
    /// The status of the command. Never 0.
    Status(u32),
}

/// One namespace, to which commands are sent.
pub(super) trait Namespace {
    /// Runs a command that takes `data`.
    fn send(&self, request: Request, data: &[u8]) -> Result<(), Failure>;
    /// Runs a command that fills `data`.
    fn receive(&self, request: Request, data: &mut [u8]) -> Result<(), Failure>;
}

/// How much is read of a report at first: a page, which any controller can transfer.
const FIRST_ROOM: usize = 4096;
/// How often a report is read again because it has grown meanwhile.
const MOST_READS: usize = 8;
/// How often a host tries to register and, as it is registered already, to replace its key.
const MOST_ROUNDS: usize = 3;

const GOOD: Completion = Completion::Good(Vec::new());
const CONFLICT: Completion = Completion::Status(Status::RESERVATION_CONFLICT);

/// Why a preemption that was said to be done is not believed.
pub(crate) const NOT_PREEMPTED: &str = "the namespace said that the preemption was done, and the registration to be \
     removed is there; Linux' own target does this to who holds the reservation";
/// Why a release that was said to be done is not believed.
pub(crate) const NOT_RELEASED: &str = "the namespace said that the reservation was released, and it is still held by \
     all registrants; Linux' own target does this to all but the first of them";

/// One command under way.
pub(super) struct Session<'a, N> {
    namespace: &'a N,
    /// Whether something has been changed: from then on, no other process must run the command.
    changed: Cell<bool>,
}

impl<'a, N: Namespace> Session<'a, N> {
    pub(super) fn new(namespace: &'a N) -> Self {
        Self { namespace, changed: Cell::new(false) }
    }

    /// Runs a PERSISTENT RESERVE IN.
    pub(super) fn read(&self, command: &ReserveIn) -> Result<Completion, Stop> {
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
    pub(super) fn write(&self, command: &ReserveOut) -> Result<Completion, Stop> {
        match *command {
            ReserveOut::Register { initiator_ports: Some(_), .. } => Err(Stop::Because(
                SenseCode::INVALID_FIELD_IN_PARAMETER_LIST,
                "an NVMe host can register nobody but itself: no SPEC_I_PT",
            )),
            ReserveOut::Register { key, service_action_key, aptpl, .. } => {
                let persistence = self.persistence(aptpl)?;
                let registration = match (key.is_zero(), service_action_key.is_zero()) {
                    (true, true) => return self.register_nothing(),
                    (true, false) => Registration::Register { new: service_action_key },
                    (false, true) => Registration::Unregister { current: Some(key) },
                    (false, false) => Registration::Replace { current: Some(key), new: service_action_key },
                };
                self.change(Change::Register(registration, persistence), SenseCode::INVALID_FIELD_IN_PARAMETER_LIST)
            }
            ReserveOut::RegisterAndIgnoreExistingKey { service_action_key, aptpl, .. } => {
                let persistence = self.persistence(aptpl)?;
                match service_action_key {
                    Key::ZERO => self.unregister_whatever(persistence),
                    new => self.register_whatever(new, persistence),
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
            _ => Err(Stop::Because(SenseCode::INVALID_FIELD_IN_CDB, "NVMe has no such service action")),
        }
    }

    /// What CPTPL says for APTPL, if the namespace can do that.
    fn persistence(&self, aptpl: bool) -> Result<Persistence, Stop> {
        if !aptpl {
            return Ok(Persistence::Volatile);
        }
        match self.rescap()? & PTPLS {
            0 => Err(Stop::Because(
                SenseCode::INVALID_FIELD_IN_PARAMETER_LIST,
                "the namespace keeps no registrations without power: no APTPL",
            )),
            _ => Ok(Persistence::Persistent),
        }
    }

    /// REGISTER of no key by who says that it has none. In NVMe the key zero would be registered.
    fn register_nothing(&self) -> Result<Completion, Stop> {
        match self.own_key()? {
            Own::None => Ok(GOOD),
            Own::Key(_) => Ok(CONFLICT),
            Own::Unknown => Err(Stop::Because(
                SenseCode::INVALID_FIELD_IN_PARAMETER_LIST,
                "this host has no identifier (HOSTID), so whether it is registered cannot be told",
            )),
        }
    }

    fn unregister_whatever(&self, persistence: Persistence) -> Result<Completion, Stop> {
        let change = Change::Register(Registration::Unregister { current: None }, persistence);
        let answer = self.change(change, SenseCode::INVALID_FIELD_IN_PARAMETER_LIST)?;
        // To SCSI it is no conflict to have nothing to unregister.
        if answer == CONFLICT && self.own_key()? == Own::None {
            return Ok(GOOD);
        }
        Ok(answer)
    }

    /// Registers, or replaces what is registered. Each of the two is one indivisible command, and where the first is a
    /// conflict it has changed nothing; between them only somebody else can change this host's registration, by removing
    /// it, and then the next round registers.
    fn register_whatever(&self, new: Key, persistence: Persistence) -> Result<Completion, Stop> {
        let steps = [Registration::Register { new }, Registration::Replace { current: None, new }];
        for registration in steps.into_iter().cycle().take(MOST_ROUNDS * steps.len()) {
            let change = Change::Register(registration, persistence);
            let answer = self.change(change, SenseCode::INVALID_FIELD_IN_PARAMETER_LIST)?;
            if answer != CONFLICT {
                return Ok(answer);
            }
        }
        Ok(CONFLICT)
    }

    fn reserve(&self, key: Key, reservation_type: Type) -> Result<Completion, Stop> {
        let answer = self.change(Change::Acquire { key, reservation_type }, SenseCode::INVALID_FIELD_IN_CDB)?;
        // Who is registered holds what all registrants hold, and may reserve it once more. Linux' own target (nvmet of
        // 6.13 to 7.2) takes the first registrant alone for a holder. It counts if nothing is left to be done.
        if answer == CONFLICT
            && reservation_type.is_all_registrants()
            && self.report()?.reservation_type == Some(reservation_type)
            && self.own_key()? == Own::Key(key)
        {
            return Ok(GOOD);
        }
        Ok(answer)
    }

    fn release(&self, key: Key, reservation_type: Type) -> Result<Completion, Stop> {
        let before = self.report()?;
        if before.is_held_by_all() && before.reservation_type != Some(reservation_type) {
            return Ok(match before.count(key) {
                0 => CONFLICT,
                _ => Completion::check(SenseCode::INVALID_RELEASE),
            });
        }
        let answer = self.change(Change::Release { key, reservation_type }, SenseCode::INVALID_RELEASE)?;
        if answer == GOOD && before.is_held_by_all() && self.report()?.is_held_by_all() {
            return Err(Stop::Because(SenseCode::TARGET_FAILURE, NOT_RELEASED));
        }
        Ok(answer)
    }

    fn preempt(&self, key: Key, victim: Key, reservation_type: Option<Type>, abort: bool) -> Result<Completion, Stop> {
        let Some(reservation_type) = reservation_type else {
            // The command must have a type, and one of our choice could end up in a reservation.
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
            // The sender itself may stay.
            let (remaining, most) = match victim {
                Key::ZERO => (after.registrants.len(), 1),
                victim => (after.count(victim), usize::from(victim == key)),
            };
            // One that registered anew meanwhile is taken for one that was not removed: an error on the safe side.
            if remaining > most {
                return Err(Stop::Because(SenseCode::TARGET_FAILURE, NOT_PREEMPTED));
            }
        }
        Ok(answer)
    }

    /// Sends a command that changes something. `refusal` is the sense that stands for Invalid Field in Command.
    fn change(&self, change: Change, refusal: SenseCode) -> Result<Completion, Stop> {
        let (request, data) = change.encode();
        match self.namespace.send(request, &data) {
            Ok(()) => {
                self.changed.set(true);
                Ok(GOOD)
            }
            Err(failure) => Ok(self.answer(failure, refusal)?),
        }
    }

    /// What a failure comes to. Not being permitted to do the rest of what was begun is no case for another process.
    fn answer(&self, failure: Failure, refusal: SenseCode) -> Result<Completion, NotPermitted> {
        match of_failure(failure, refusal) {
            Err(not_permitted) if self.changed.get() => Ok(not_permitted.completion()),
            answer => answer,
        }
    }

    /// A failure of a command that only reads.
    fn stop(&self, failure: Failure) -> Stop {
        self.answer(failure, SenseCode::INVALID_FIELD_IN_CDB).map_or_else(Stop::NotPermitted, Stop::With)
    }

    /// RESCAP: what the namespace can do.
    fn rescap(&self) -> Result<u8, Stop> {
        let mut identity = [0; IDENTIFY_LENGTH];
        let received = self.namespace.receive(command::identify_namespace(), &mut identity);
        received.map_err(|failure| self.stop(failure))?;
        Ok(identity[RESCAP])
    }

    /// Who is registered, and the reservation.
    fn report(&self) -> Result<Report, Stop> {
        let is_inconsistent =
            |failure: &Failure| matches!(failure, Failure::Status(status) if code_of(*status) == HOST_ID_INCONSISTENT);
        let long = self.read_report(Format::Extended);
        let (format, bytes) = match &long {
            Ok(Some(bytes)) if report::may_be_extended(bytes) => (Format::Extended, long),
            // It was not extended, unless the namespace insists.
            Ok(Some(_)) => match self.read_report(Format::Short) {
                Err(failure) if is_inconsistent(&failure) => (Format::Extended, long),
                short => (Format::Short, short),
            },
            Err(failure) if is_inconsistent(failure) => (Format::Short, self.read_report(Format::Short)),
            Ok(None) | Err(_) => (Format::Extended, long),
        };
        let bytes = bytes.map_err(|failure| self.stop(failure))?;
        let bytes = bytes.ok_or(Stop::With(Completion::Status(Status::BUSY)))?;
        Report::parse(format, &bytes).ok_or(Stop::With(Completion::check(SenseCode::TARGET_FAILURE)))
    }

    /// A whole report; `None` when it grew all the time.
    fn read_report(&self, format: Format) -> Result<Option<Vec<u8>>, Failure> {
        let mut room = FIRST_ROOM;
        for _ in 0..MOST_READS {
            let mut bytes = vec![0; room];
            self.namespace.receive(command::report(room, format == Format::Extended), &mut bytes)?;
            match report::length(format, &bytes) {
                Some(length) if length > room => room = length,
                _ => return Ok(Some(bytes)),
            }
        }
        Ok(None)
    }

    /// What this host has registered.
    fn own_key(&self) -> Result<Own, Stop> {
        let Some(host) = self.own_host()? else { return Ok(Own::Unknown) };
        Ok(self.report()?.key_of(host).map_or(Own::None, Own::Key))
    }

    /// Who this host is to the controller. `None` when it has no identifier.
    fn own_host(&self) -> Result<Option<Host>, Stop> {
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

/// What this host has registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Own {
    /// Nothing.
    None,
    /// This key.
    Key(Key),
    /// It has no identifier by which its registration could be found.
    Unknown,
}

/// RESCAP, bit 0: Persist Through Power Loss Support.
const PTPLS: u8 = 0x01;

/// A key for each host, however many controllers it uses.
fn keys(report: &Report) -> Keys {
    Keys { generation: report.generation, keys: report.registrants.iter().map(|registrant| registrant.key).collect() }
}

/// `None` when the report has a reservation of one holder and names none.
fn reservation(report: &Report) -> Option<Reservation> {
    let held = match report.reservation_type {
        None => None,
        // To SCSI, no key is the holder's where every registrant is one.
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
        // A host is registered with all controllers, which is what ALL_TG_PT says; one without an identifier, with one.
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
