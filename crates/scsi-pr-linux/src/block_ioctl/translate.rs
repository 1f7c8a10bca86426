//! SCSI to the IOC_PR ioctls and back. No I/O: the ioctls are behind [`Ioctls`].

use rustix::io::Errno;
use scsi_pr::{
    Capabilities, Completion, Generation, Held as HeldReservation, Key, Keys, MAX_TRANSFER, Reservation, ReserveIn,
    ReserveInAction, ReserveOut, SenseCode, Status, Type,
};

use super::outcome;
use crate::nvme::{NOT_PREEMPTED, NOT_RELEASED};
use crate::permission::Stop;
use crate::type_number;

/// An ioctl that is to change something.
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

/// An ioctl that did not return 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// It failed.
    Errno(Errno),
    /// It "succeeded": the status of the device, or the driver's word for a broken path. Never 0.
    Status(u32),
}

/// What IOC_PR_READ_KEYS tells besides the keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KeyCount {
    pub(super) generation: u32,
    /// How many keys there are, whether there was room for them or not.
    pub(super) total: u32,
}

/// What IOC_PR_READ_RESERVATION tells.
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
    /// Whether the device's driver has these ioctls. Nothing is asked of the device itself.
    fn are_known(&self) -> Result<bool, Errno>;
}

/// What of a device's driver makes a difference. What is not known is taken to be so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Nature {
    /// The ioctls are those of device mapper.
    pub(super) device_mapper: bool,
    /// They come to the NVMe driver in the end.
    pub(super) nvme: bool,
}

/// How much room for keys there is at first. The NVMe driver's buffer for them is then one page: a larger transfer may be
/// more than the controller takes.
const FIRST_ROOM: usize = 60;
/// How many keys the data of one command hold.
const MOST_KEYS: usize = (MAX_TRANSFER - 8) / 8;
/// More registrants than NVMe can report and SCSI can transfer.
const ABSURD_KEYS: u32 = u16::MAX as u32;
/// How often a reservation is read again because registrations have changed meanwhile.
const MOST_READS: usize = 8;

/// Runs a PERSISTENT RESERVE IN. `nature` is looked at for REPORT CAPABILITIES only.
pub(super) fn read(ioctls: &impl Ioctls, command: &ReserveIn, nature: Nature) -> Result<Completion, Stop> {
    let data = match command.action() {
        ReserveInAction::ReadKeys => keys(ioctls).map(|keys| keys.encode()),
        ReserveInAction::ReadReservation => match reservation(ioctls) {
            Ok(Some(reservation)) => Ok(reservation.encode()),
            Ok(None) => return Ok(Completion::Status(Status::BUSY)),
            Err(failure) => Err(failure),
        },
        ReserveInAction::ReportCapabilities => match ioctls.are_known() {
            Ok(true) => Ok(capabilities(nature).encode()),
            Ok(false) => return Ok(Completion::check(SenseCode::INVALID_OPCODE)),
            Err(errno) => return Ok(outcome::of_errno(errno, SenseCode::INVALID_OPCODE)?),
        },
        _ => {
            return Err(Stop::Because(
                SenseCode::INVALID_FIELD_IN_CDB,
                "the IOC_PR ioctls do not tell who is registered, only the keys",
            ));
        }
    };
    match data {
        Ok(data) => Ok(command.answer(data)),
        Err(Failure::Errno(errno)) if is_unknown(errno) => match ioctls.are_known() {
            Ok(true) => Err(Stop::Because(
                SenseCode::INVALID_FIELD_IN_CDB,
                "this kernel or the device's driver cannot read keys and reservations by ioctl; Linux 6.19 and later can",
            )),
            Ok(false) => Ok(Completion::check(SenseCode::INVALID_OPCODE)),
            Err(errno) => Ok(outcome::of_errno(errno, SenseCode::INVALID_OPCODE)?),
        },
        Err(failure) => Ok(outcome::of_failure(failure, SenseCode::INVALID_FIELD_IN_CDB, nature.nvme)?),
    }
}

/// Whether an ioctl failed as one that the kernel or the driver does not know. Linux before 6.19 leaves
/// IOC_PR_READ_KEYS to the driver, and the one of SCSI disks says EINVAL to what it does not know.
fn is_unknown(errno: Errno) -> bool {
    matches!(errno, Errno::NOTTY | Errno::OPNOTSUPP | Errno::INVAL)
}

fn keys(ioctls: &impl Ioctls) -> Result<Keys, Failure> {
    let mut room = FIRST_ROOM;
    loop {
        let mut keys = vec![0; room];
        let KeyCount { generation, total } = ioctls.read_keys(&mut keys)?;
        let total = total.min(ABSURD_KEYS) as usize;
        if total <= room || room == MOST_KEYS {
            // What there was no room for is cut off the data, but counts in their length.
            keys.resize(total, 0);
            return Ok(Keys { generation: Generation(generation), keys: keys.into_iter().map(Key).collect() });
        }
        room = total.min(MOST_KEYS);
    }
}

/// `None` when registrations changed all the time.
fn reservation(ioctls: &impl Ioctls) -> Result<Option<Reservation>, Failure> {
    let generation = || ioctls.read_keys(&mut []).map(|count| Generation(count.generation));
    for _ in 0..MOST_READS {
        let before = generation()?;
        let Held { key, generation: then, kind } = ioctls.read_reservation()?;
        if kind != 0 {
            let reservation_type = type_number::named(kind).ok_or(Failure::Errno(Errno::IO))?;
            // NVMe names the key of one of the holders, where SCSI names none.
            let key = if reservation_type.is_all_registrants() { Key::ZERO } else { Key(key) };
            let held = Some(HeldReservation { key, reservation_type });
            return Ok(Some(Reservation { generation: Generation(then), held }));
        }
        // Of a unit without a reservation, the SCSI disk driver tells no generation.
        if generation()? == before {
            return Ok(Some(Reservation { generation: before, held: None }));
        }
    }
    Ok(None)
}

/// What works. The types that a device has are not known, so none are promised.
fn capabilities(nature: Nature) -> Capabilities {
    // The NVMe driver always asks for persistence, and nobody says whether it was granted.
    Capabilities { ptpl_c: !nature.nvme, ..Capabilities::default() }
}

/// Runs a PERSISTENT RESERVE OUT.
pub(super) fn write(ioctls: &impl Ioctls, command: &ReserveOut, nature: Nature) -> Result<Completion, Stop> {
    match *command {
        ReserveOut::Register { key, service_action_key: new, ref initiator_ports, all_tg_pt, aptpl } => {
            if initiator_ports.is_some() {
                return refuse_field("the IOC_PR ioctls register nobody but the sender: no SPEC_I_PT");
            }
            check_flags(all_tg_pt, aptpl, nature)?;
            if nature.nvme && new.is_zero() {
                return refuse_field(NO_UNREGISTER);
            }
            issue(ioctls, Request::Register { old: key, new, ignore_existing: false }, nature)
        }
        ReserveOut::RegisterAndIgnoreExistingKey { service_action_key: new, all_tg_pt, aptpl } => {
            check_flags(all_tg_pt, aptpl, nature)?;
            if nature.nvme && new.is_zero() {
                return refuse_field(NO_UNREGISTER);
            }
            let first = Request::Register { old: Key::ZERO, new, ignore_existing: true };
            let answer = issue(ioctls, first, nature)?;
            if nature.nvme && answer == CONFLICT {
                // Who has another key already is asked to replace it, which an `old` that is not zero stands for.
                return issue(ioctls, Request::Register { old: new, new, ignore_existing: true }, nature);
            }
            Ok(answer)
        }
        ReserveOut::Reserve { key, reservation_type } => {
            issue(ioctls, Request::Reserve { key, reservation_type }, nature)
        }
        // The NVMe driver takes a key of zero for one that is not to be looked at. No nexus has it.
        ReserveOut::Release { key: Key::ZERO, .. } | ReserveOut::Clear { key: Key::ZERO } if nature.nvme => {
            Ok(CONFLICT)
        }
        ReserveOut::Release { key, reservation_type } => {
            match issue(ioctls, Request::Release { key, reservation_type }, nature)? {
                Completion::Good(_) if nature.nvme => verify_release(ioctls, reservation_type),
                answer => Ok(answer),
            }
        }
        ReserveOut::Clear { key } => issue(ioctls, Request::Clear { key }, nature),
        ReserveOut::Preempt { key, service_action_key, scope_type } => {
            preempt(ioctls, key, service_action_key, scope_type.reservation_type(), false, nature)
        }
        ReserveOut::PreemptAndAbort { key, service_action_key, scope_type } => {
            if nature.device_mapper {
                return Err(Stop::Because(
                    SenseCode::INVALID_FIELD_IN_CDB,
                    "device mapper makes a PREEMPT of PREEMPT AND ABORT and aborts nothing",
                ));
            }
            preempt(ioctls, key, service_action_key, scope_type.reservation_type(), true, nature)
        }
        _ => Err(Stop::Because(SenseCode::INVALID_FIELD_IN_CDB, "the IOC_PR ioctls have no such service action")),
    }
}

const CONFLICT: Completion = Completion::Status(Status::RESERVATION_CONFLICT);

const NO_UNREGISTER: &str =
    "Linux makes of an unregistration by IOC_PR_REGISTER on NVMe a registration of the key zero, which stays";

fn refuse_field<T>(why: &'static str) -> Result<T, Stop> {
    Err(Stop::Because(SenseCode::INVALID_FIELD_IN_PARAMETER_LIST, why))
}

fn check_flags(all_tg_pt: bool, aptpl: bool, nature: Nature) -> Result<(), Stop> {
    if all_tg_pt {
        return refuse_field("the IOC_PR ioctls register with the target port that is used: no ALL_TG_PT");
    }
    // Of SCSI disks it is always asked for, and they refuse if they cannot.
    if aptpl && nature.nvme {
        return refuse_field("whether an NVMe namespace keeps registrations without power, IOC_PR ioctls do not tell");
    }
    Ok(())
}

fn issue(ioctls: &impl Ioctls, request: Request, nature: Nature) -> Result<Completion, Stop> {
    match ioctls.issue(&request) {
        Ok(()) => Ok(Completion::Good(Vec::new())),
        Err(failure) => Ok(outcome::of_failure(failure, refusal_of(&request), nature.nvme)?),
    }
}

/// What the device says by EINVAL: sense data with ILLEGAL REQUEST and INVALID FIELD IN CDB or PARAMETER LIST, of which
/// the driver kept no more. Which of the two, and why, there is one reason for each service action that can be met here.
fn refusal_of(request: &Request) -> SenseCode {
    match request {
        // APTPL, which the driver always sets.
        Request::Register { .. } => SenseCode::INVALID_FIELD_IN_PARAMETER_LIST,
        Request::Release { .. } => SenseCode::INVALID_RELEASE,
        // A key of zero stands for all others only where every registrant is a holder.
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
    nature: Nature,
) -> Result<Completion, Stop> {
    let Some(reservation_type) = reservation_type else {
        // An ioctl must have a type, and one of our choice could end up in a reservation.
        return Ok(Completion::check(SenseCode::INVALID_FIELD_IN_CDB));
    };
    if nature.nvme
        && let Some(answer) = expected_refusal(ioctls, victim)?
    {
        return Ok(answer);
    }
    let answer = issue(ioctls, Request::Preempt { own, victim, reservation_type, abort }, nature)?;
    match answer {
        Completion::Good(_) if nature.nvme => verify_preemption(ioctls, own, victim),
        answer => Ok(answer),
    }
}

/// What SCSI answers to a preemption that has nobody to hit, where the kernel can read what there is. Linux' own target
/// (nvmet of 6.13 to 7.2) does not say so to the holder of a reservation, and changes its type.
fn expected_refusal(ioctls: &impl Ioctls, victim: Key) -> Result<Option<Completion>, Stop> {
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

/// After a preemption that an NVMe namespace says was done: whether the victim's key is gone. Linux' own target (nvmet of
/// 6.13 to 7.2) says so to the holder of a reservation and removes nobody.
///
/// A kernel that cannot read keys leaves no choice but to believe it, and so does a sender that preempts its own key, of
/// which every controller has an entry. The victim may have registered anew meanwhile; the error is then one on the safe
/// side.
fn verify_preemption(ioctls: &impl Ioctls, own: Key, victim: Key) -> Result<Completion, Stop> {
    let remains = match keys(ioctls) {
        Ok(Keys { keys, .. }) if victim.is_zero() => keys.iter().any(|key| *key != own),
        Ok(Keys { keys, .. }) => victim != own && keys.contains(&victim),
        Err(Failure::Errno(errno)) if is_unknown(errno) => false,
        // Not permitted either: but the preemption was, so this is no case for another process.
        Err(_) => return Ok(Completion::check(SenseCode::LUN_COMMUNICATION_FAILURE)),
    };
    match remains {
        true => Err(Stop::Because(SenseCode::TARGET_FAILURE, NOT_PREEMPTED)),
        false => Ok(Completion::Good(Vec::new())),
    }
}

/// After a release that an NVMe namespace says was done: a registrant, which the sender must be, has released what every
/// registrant holds. Linux' own target (nvmet of 6.13 to 7.2) takes the first registrant alone for a holder.
fn verify_release(ioctls: &impl Ioctls, released: Type) -> Result<Completion, Stop> {
    let held = match reservation(ioctls) {
        Ok(Some(reservation)) => reservation.held,
        Err(Failure::Errno(errno)) if is_unknown(errno) => None,
        Ok(None) | Err(_) => return Ok(Completion::check(SenseCode::LUN_COMMUNICATION_FAILURE)),
    };
    match held.map(|held| held.reservation_type).filter(|held| held.is_all_registrants()) {
        None => Ok(Completion::Good(Vec::new())),
        Some(held) if held == released => Err(Stop::Because(SenseCode::TARGET_FAILURE, NOT_RELEASED)),
        Some(_) => Ok(Completion::check(SenseCode::INVALID_RELEASE)),
    }
}

#[cfg(test)]
mod tests;
