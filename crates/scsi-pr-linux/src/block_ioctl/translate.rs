//! Translates SCSI to the IOC_PR ioctls and back. No I/O: the ioctls are behind [`Ioctls`].

use rustix::io::Errno;
use scsi_pr::{
    Capabilities, Completion, Generation, Held as HeldReservation, Key, Keys, Reservation, ReserveIn, ReserveInAction,
    ReserveOut, SenseCode, Status, Type,
};

use super::outcome::{self, Failure};
use crate::command_error::CommandError;
use crate::nvme::{NOT_PREEMPTED, NOT_RELEASED};
use crate::type_number;

/// An ioctl that changes something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// IOC_PR_REGISTER; with PR_FL_IGNORE_KEY, or not.
    Register { old: Key, new: Key, ignore_existing: bool },
    /// IOC_PR_RESERVE.
    Reserve { key: Key, reservation_type: Type },
    /// IOC_PR_RELEASE.
    Release { key: Key, reservation_type: Type },
    /// IOC_PR_PREEMPT, or IOC_PR_PREEMPT_ABORT.
    Preempt { own: Key, victim: Key, reservation_type: Type, abort: bool },
    /// IOC_PR_CLEAR.
    Clear { key: Key },
}

/// The result of IOC_PR_READ_KEYS besides the keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KeyCount {
    pub(super) generation: u32,
    /// The number of keys, also of those without room in the buffer.
    pub(super) total: u32,
}

/// The result of IOC_PR_READ_RESERVATION.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) key: u64,
    pub(super) generation: u32,
    /// `enum pr_type`; 0 when there is no reservation.
    pub(super) kind: u32,
}

/// The ioctls of one device.
pub(super) trait Ioctls {
    /// Makes an ioctl that changes something.
    fn issue(&self, request: &Request) -> Result<(), Failure>;
    /// IOC_PR_READ_KEYS: as many keys as there is room for.
    fn read_keys(&self, keys: &mut [u64]) -> Result<KeyCount, Failure>;
    /// IOC_PR_READ_RESERVATION.
    fn read_reservation(&self) -> Result<Held, Failure>;
    /// Whether the device's driver has these ioctls. Sends nothing to the device.
    fn are_known(&self) -> Result<bool, Errno>;
}

/// The properties of a device's driver that matter here. An unknown property counts as `true`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DriverQuirks {
    /// The ioctls are those of device mapper.
    pub(super) device_mapper: bool,
    /// The NVMe driver runs them in the end.
    pub(super) nvme: bool,
}

/// The room for keys in the first attempt. It makes the NVMe driver's buffer one page. A controller may not take a larger
/// transfer.
const INITIAL_KEYS: usize = 60;
/// The most bytes of data that are read: as many as a command of the helper protocol returns.
const MAX_TRANSFER: usize = 8192;
/// The most keys in so much data.
const MAX_KEYS: usize = (MAX_TRANSFER - 8) / 8;
/// More registrants than NVMe can report and SCSI can transfer.
const MAX_PLAUSIBLE_KEYS: u32 = u16::MAX as u32;
/// The most attempts to read a reservation while registrations change.
const MAX_READS: usize = 8;

/// Runs a PERSISTENT RESERVE IN. `quirks` matters for REPORT CAPABILITIES only.
pub(super) fn read(
    ioctls: &impl Ioctls,
    command: &ReserveIn,
    quirks: DriverQuirks,
) -> Result<Completion, CommandError> {
    let data = match command.action() {
        ReserveInAction::ReadKeys => keys(ioctls).map(|keys| keys.encode()),
        ReserveInAction::ReadReservation => match reservation(ioctls) {
            Ok(Some(reservation)) => Ok(reservation.encode()),
            Ok(None) => return Ok(Completion::Status(Status::BUSY)),
            Err(failure) => Err(failure),
        },
        ReserveInAction::ReportCapabilities => match ioctls.are_known() {
            Ok(true) => Ok(capabilities(quirks).encode()),
            Ok(false) => return Ok(Completion::check(SenseCode::INVALID_OPCODE)),
            Err(errno) => return Ok(outcome::of_errno(errno, SenseCode::INVALID_OPCODE)?),
        },
        _ => {
            return Err(CommandError::Refused(
                SenseCode::INVALID_FIELD_IN_CDB,
                "the IOC_PR ioctls list keys, not registrants",
            ));
        }
    };
    match data {
        Ok(data) => Ok(command.answer(data)),
        Err(Failure::Errno(errno)) if is_unknown(errno) => match ioctls.are_known() {
            Ok(true) => Err(CommandError::Refused(
                SenseCode::INVALID_FIELD_IN_CDB,
                "this kernel or the device's driver cannot read keys and reservations by ioctl; Linux 6.19 and later can",
            )),
            Ok(false) => Ok(Completion::check(SenseCode::INVALID_OPCODE)),
            Err(errno) => Ok(outcome::of_errno(errno, SenseCode::INVALID_OPCODE)?),
        },
        Err(failure) => Ok(outcome::of_failure(failure, SenseCode::INVALID_FIELD_IN_CDB, quirks.nvme)?),
    }
}

/// Whether the kernel or the driver does not know the ioctl. Linux before 6.19 passes IOC_PR_READ_KEYS to the driver, and
/// that of SCSI disks returns EINVAL for an unknown ioctl.
fn is_unknown(errno: Errno) -> bool {
    matches!(errno, Errno::NOTTY | Errno::OPNOTSUPP | Errno::INVAL)
}

fn keys(ioctls: &impl Ioctls) -> Result<Keys, Failure> {
    let mut room = INITIAL_KEYS;
    loop {
        let mut keys = vec![0; room];
        let KeyCount { generation, total } = ioctls.read_keys(&mut keys)?;
        let total = total.min(MAX_PLAUSIBLE_KEYS) as usize;
        if total <= room || room == MAX_KEYS {
            // Keys without room are cut off the data, but count in the length.
            keys.resize(total, 0);
            return Ok(Keys { generation: Generation(generation), keys: keys.into_iter().map(Key).collect() });
        }
        room = total.min(MAX_KEYS);
    }
}

/// `None` where registrations changed with each attempt.
fn reservation(ioctls: &impl Ioctls) -> Result<Option<Reservation>, Failure> {
    let generation = || ioctls.read_keys(&mut []).map(|count| Generation(count.generation));
    for _ in 0..MAX_READS {
        let before = generation()?;
        let Held { key, generation: then, kind } = ioctls.read_reservation()?;
        if kind != 0 {
            let reservation_type = type_number::named(kind).ok_or(Failure::Errno(Errno::IO))?;
            // NVMe has the key of one of the holders, where SCSI has none.
            let key = if reservation_type.is_all_registrants() { Key::ZERO } else { Key(key) };
            let held = Some(HeldReservation { key, reservation_type });
            return Ok(Some(Reservation { generation: Generation(then), held }));
        }
        // Without a reservation the SCSI disk driver returns no generation.
        if generation()? == before {
            return Ok(Some(Reservation { generation: before, held: None }));
        }
    }
    Ok(None)
}

/// The capabilities. The types of the device are unknown, so none is reported.
fn capabilities(quirks: DriverQuirks) -> Capabilities {
    // The NVMe driver always requests persistence, and does not tell whether the namespace grants it.
    Capabilities { ptpl_c: !quirks.nvme, ..Capabilities::default() }
}

/// Runs a PERSISTENT RESERVE OUT.
pub(super) fn write(
    ioctls: &impl Ioctls,
    command: &ReserveOut,
    quirks: DriverQuirks,
) -> Result<Completion, CommandError> {
    match *command {
        ReserveOut::Register { key, service_action_key: new, ref initiator_ports, all_tg_pt, aptpl } => {
            if initiator_ports.is_some() {
                return refuse_field("the IOC_PR ioctls only register the sender: no SPEC_I_PT");
            }
            check_flags(all_tg_pt, aptpl, quirks)?;
            if quirks.nvme && new.is_zero() {
                return refuse_field(NO_UNREGISTER);
            }
            issue(ioctls, Request::Register { old: key, new, ignore_existing: false }, quirks)
        }
        ReserveOut::RegisterAndIgnoreExistingKey { service_action_key: new, all_tg_pt, aptpl } => {
            check_flags(all_tg_pt, aptpl, quirks)?;
            if quirks.nvme && new.is_zero() {
                return refuse_field(NO_UNREGISTER);
            }
            let first = Request::Register { old: Key::ZERO, new, ignore_existing: true };
            let answer = issue(ioctls, first, quirks)?;
            if quirks.nvme && answer == CONFLICT {
                // A host with another key must replace it: `old` is then not zero.
                return issue(ioctls, Request::Register { old: new, new, ignore_existing: true }, quirks);
            }
            Ok(answer)
        }
        ReserveOut::Reserve { key, reservation_type } => {
            issue(ioctls, Request::Reserve { key, reservation_type }, quirks)
        }
        // The NVMe driver ignores a key of zero. No nexus has it.
        ReserveOut::Release { key: Key::ZERO, .. } | ReserveOut::Clear { key: Key::ZERO } if quirks.nvme => {
            Ok(CONFLICT)
        }
        ReserveOut::Release { key, reservation_type } => {
            match issue(ioctls, Request::Release { key, reservation_type }, quirks)? {
                Completion::Good(_) if quirks.nvme => verify_release(ioctls, reservation_type),
                answer => Ok(answer),
            }
        }
        ReserveOut::Clear { key } => issue(ioctls, Request::Clear { key }, quirks),
        ReserveOut::Preempt { key, service_action_key, scope_type } => {
            preempt(ioctls, key, service_action_key, scope_type.reservation_type(), false, quirks)
        }
        ReserveOut::PreemptAndAbort { key, service_action_key, scope_type } => {
            if quirks.device_mapper {
                return Err(CommandError::Refused(
                    SenseCode::INVALID_FIELD_IN_CDB,
                    "device mapper turns PREEMPT AND ABORT into PREEMPT and aborts nothing",
                ));
            }
            preempt(ioctls, key, service_action_key, scope_type.reservation_type(), true, quirks)
        }
        _ => {
            Err(CommandError::Refused(SenseCode::INVALID_FIELD_IN_CDB, "the IOC_PR ioctls have no such service action"))
        }
    }
}

const CONFLICT: Completion = Completion::Status(Status::RESERVATION_CONFLICT);

const NO_UNREGISTER: &str =
    "on NVMe, Linux turns an unregistration by IOC_PR_REGISTER into a registration of the key zero";

fn refuse_field<T>(why: &'static str) -> Result<T, CommandError> {
    Err(CommandError::Refused(SenseCode::INVALID_FIELD_IN_PARAMETER_LIST, why))
}

fn check_flags(all_tg_pt: bool, aptpl: bool, quirks: DriverQuirks) -> Result<(), CommandError> {
    if all_tg_pt {
        return refuse_field("the IOC_PR ioctls register with one target port: no ALL_TG_PT");
    }
    // It is always requested of SCSI disks, which refuse it if they cannot.
    if aptpl && quirks.nvme {
        return refuse_field(
            "the IOC_PR ioctls do not tell whether an NVMe namespace keeps registrations without power",
        );
    }
    Ok(())
}

fn issue(ioctls: &impl Ioctls, request: Request, quirks: DriverQuirks) -> Result<Completion, CommandError> {
    match ioctls.issue(&request) {
        Ok(()) => Ok(Completion::Good(Vec::new())),
        Err(failure) => Ok(outcome::of_failure(failure, refusal_of(&request), quirks.nvme)?),
    }
}

/// The sense code for EINVAL. The device reported ILLEGAL REQUEST, with INVALID FIELD IN CDB or IN PARAMETER LIST, and the
/// driver lost the rest. Each service action has one possible reason.
fn refusal_of(request: &Request) -> SenseCode {
    match request {
        // APTPL, which the driver always sets.
        Request::Register { .. } => SenseCode::INVALID_FIELD_IN_PARAMETER_LIST,
        Request::Release { .. } => SenseCode::INVALID_RELEASE,
        // A key of zero means all others only for an all-registrants reservation.
        Request::Preempt { victim: Key::ZERO, .. } => SenseCode::INVALID_FIELD_IN_PARAMETER_LIST,
        // A type that the device does not have.
        Request::Preempt { .. } | Request::Reserve { .. } | Request::Clear { .. } => SenseCode::INVALID_FIELD_IN_CDB,
    }
}

fn preempt(
    ioctls: &impl Ioctls,
    own: Key,
    victim: Key,
    reservation_type: Option<Type>,
    abort: bool,
    quirks: DriverQuirks,
) -> Result<Completion, CommandError> {
    let Some(reservation_type) = reservation_type else {
        // The ioctl needs a type, and an invented one could end up in a reservation.
        return Ok(Completion::check(SenseCode::INVALID_FIELD_IN_CDB));
    };
    if quirks.nvme
        && let Some(answer) = expected_refusal(ioctls, victim)?
    {
        return Ok(answer);
    }
    let answer = issue(ioctls, Request::Preempt { own, victim, reservation_type, abort }, quirks)?;
    match answer {
        Completion::Good(_) if quirks.nvme => verify_preemption(ioctls, own, victim),
        answer => Ok(answer),
    }
}

/// The answer of SCSI to a preemption without a victim, where the kernel can read the keys. Linux' own target (nvmet of 6.13
/// to 7.2) does not report this to the reservation holder, and changes the type of the reservation.
fn expected_refusal(ioctls: &impl Ioctls, victim: Key) -> Result<Option<Completion>, CommandError> {
    let objection = if victim.is_zero() {
        let shared =
            |reservation: Reservation| reservation.held.is_some_and(|held| held.reservation_type.is_all_registrants());
        reservation(ioctls).map(|found| match found {
            None => Some(Completion::Status(Status::BUSY)),
            Some(reservation) if shared(reservation) => None,
            Some(_) => Some(Completion::check(SenseCode::INVALID_FIELD_IN_PARAMETER_LIST)),
        })
    } else {
        keys(ioctls).map(|found| (!found.keys.contains(&victim)).then_some(CONFLICT))
    };
    match objection {
        Ok(objection) => Ok(objection),
        Err(Failure::Errno(errno)) if is_unknown(errno) => Ok(None),
        Err(failure) => Ok(Some(outcome::of_failure(failure, SenseCode::INVALID_FIELD_IN_CDB, true)?)),
    }
}

/// Checks after a successful preemption on NVMe that the victim's key is gone. Linux' own target (nvmet of 6.13 to 7.2)
/// reports success to the reservation holder and removes no registration.
///
/// There is no check where the kernel cannot read keys, nor for a sender that preempts its own key, which every controller
/// has in an entry. A victim that registered again meanwhile causes an error, which is safe.
fn verify_preemption(ioctls: &impl Ioctls, own: Key, victim: Key) -> Result<Completion, CommandError> {
    let remains = match keys(ioctls) {
        Ok(Keys { keys, .. }) if victim.is_zero() => keys.iter().any(|key| *key != own),
        Ok(Keys { keys, .. }) => victim != own && keys.contains(&victim),
        Err(Failure::Errno(errno)) if is_unknown(errno) => false,
        // Also where it is not permitted: the preemption ran, so no other process may run it again.
        Err(_) => return Ok(Completion::check(SenseCode::LUN_COMMUNICATION_FAILURE)),
    };
    match remains {
        true => Err(CommandError::Refused(SenseCode::TARGET_FAILURE, NOT_PREEMPTED)),
        false => Ok(Completion::Good(Vec::new())),
    }
}

/// Checks after a successful release on NVMe that an all-registrants reservation is gone. Linux' own target (nvmet of 6.13
/// to 7.2) takes only the first registrant for a holder.
fn verify_release(ioctls: &impl Ioctls, released: Type) -> Result<Completion, CommandError> {
    let held = match reservation(ioctls) {
        Ok(Some(reservation)) => reservation.held,
        Err(Failure::Errno(errno)) if is_unknown(errno) => None,
        Ok(None) | Err(_) => return Ok(Completion::check(SenseCode::LUN_COMMUNICATION_FAILURE)),
    };
    match held.map(|held| held.reservation_type).filter(|held| held.is_all_registrants()) {
        None => Ok(Completion::Good(Vec::new())),
        Some(held) if held == released => Err(CommandError::Refused(SenseCode::TARGET_FAILURE, NOT_RELEASED)),
        Some(_) => Ok(Completion::check(SenseCode::INVALID_RELEASE)),
    }
}

#[cfg(test)]
mod tests;
