//! Reads the state of a unit by PERSISTENT RESERVE IN.

use scsi_pr::{
    Capabilities, Completion, FullStatus, InvalidData, Keys, Parsed, Reservation, ReserveIn, ReserveInAction,
};
use scsi_pr_daemon::log::escape;
use tracing::info;

use super::access::{Condition, Sender, Unit};
use super::failure::{Code, Effect, Failure};
use super::report::{Reading, StateReport};

/// The first allocation length. LIO of Linux 6.1 writes beyond the end of a shorter buffer.
const FIRST_LENGTH: usize = 8192;

/// The most bytes of a descriptor of READ FULL STATUS. A list that has less room left may be cut, as some targets announce
/// only the bytes that they return.
const MAX_DESCRIPTOR: usize = 280;

/// How often a state of several readings is read again because it changed meanwhile.
const MAX_CHANGES: u32 = 10;

/// Why a reservation command conflicts that changes nothing.
const CONFLICT: &str = "another initiator has reserved the unit by the RESERVE of SPC-2";

/// The registered keys.
pub(crate) fn keys(unit: &Unit) -> Result<Reading<Keys>, Failure> {
    read(unit, ReserveInAction::ReadKeys, Keys::parse)
}

/// The reservation.
pub(crate) fn reservation(unit: &Unit) -> Result<Reservation, Failure> {
    read(unit, ReserveInAction::ReadReservation, Reservation::parse).map(|reading| reading.value)
}

/// The capabilities.
pub(crate) fn capabilities(unit: &Unit) -> Result<Capabilities, Failure> {
    read(unit, ReserveInAction::ReportCapabilities, Capabilities::parse).map(|reading| reading.value)
}

/// Every registration with its initiator.
pub(crate) fn full_status(unit: &Unit) -> Result<Reading<FullStatus>, Failure> {
    read(unit, ReserveInAction::ReadFullStatus, FullStatus::parse)
}

/// The report of READ FULL STATUS alone.
pub(crate) fn status(unit: &Unit) -> Result<StateReport, Failure> {
    full_status(unit).map(|status| StateReport::of_full_status(&status, &unit.path.own()))
}

/// Everything about a unit, of one generation. Without READ FULL STATUS, the initiators are not known.
pub(crate) fn state(unit: &Unit) -> Result<StateReport, Failure> {
    state_for_change(unit).map(|(report, _)| report)
}

/// The same, with the condition of a change.
pub(crate) fn state_for_change(unit: &Unit) -> Result<(StateReport, Condition), Failure> {
    let own = unit.path.own();
    let mut last = None;
    for _ in 0..MAX_CHANGES {
        let keys = keys(unit)?;
        let status = match full_status(unit) {
            Ok(status) => Some(status),
            Err(failure) if failure.code() == Code::Unsupported => {
                info!("{}: READ FULL STATUS: {failure}", escape(&unit.name));
                None
            }
            Err(failure) => return Err(failure),
        };
        let reservation = reservation(unit)?;
        let generations = [Some(keys.value.generation), status.as_ref().map(|status| status.value.generation)];
        if generations.iter().flatten().all(|generation| *generation == reservation.generation) {
            let report = StateReport::new(&keys, &reservation, status.as_ref(), &own);
            let condition = Condition::new(reservation, status.as_ref().map(|status| &status.value));
            if status.is_none_or(|status| is_of_one_reservation(&status, &reservation)) {
                return Ok((report, condition));
            }
            last = Some((report, condition));
        }
        info!("{}: the reservations changed meanwhile: they are read again", escape(&unit.name));
    }
    let (mut report, condition) = last.ok_or_else(always_changing)?;
    report.notes.push("READ RESERVATION and READ FULL STATUS disagree about the holder".to_owned());
    Ok((report, condition))
}

/// Everything that an eviction needs to know, of one generation.
pub(crate) struct Registrants {
    pub(crate) status: Reading<FullStatus>,
    pub(crate) reservation: Reservation,
    /// PTPL_A: whether APTPL is active.
    pub(crate) aptpl: bool,
}

/// Reads the registrants of a unit.
pub(crate) fn registrants(unit: &Unit) -> Result<Registrants, Failure> {
    for _ in 0..MAX_CHANGES {
        let reservation = reservation(unit)?;
        let aptpl = capabilities(unit)?.ptpl_a;
        // It comes last: a change of APTPL is of another generation than the reservation.
        let status = full_status(unit)?;
        if status.value.generation == reservation.generation && is_of_one_reservation(&status, &reservation) {
            return Ok(Registrants { status, reservation, aptpl });
        }
        info!("{}: the reservations changed meanwhile: they are read again", escape(&unit.name));
    }
    Err(always_changing())
}

fn always_changing() -> Failure {
    Failure::new(Code::Unavailable, "the registrations change all the time: try again")
}

/// Whether two readings have the same reservation. RESERVE and RELEASE do not change the generation.
fn is_of_one_reservation(status: &Reading<FullStatus>, reservation: &Reservation) -> bool {
    let descriptors = status.value.descriptors.iter();
    let held = descriptors.filter_map(|descriptor| Some((descriptor.key, descriptor.held?))).next();
    match (held, reservation.held) {
        (Some((key, held)), Some(now)) => held == now.reservation_type && (held.is_all_registrants() || key == now.key),
        (Some(_), None) => false,
        // The holder may be in the part of the list that was cut.
        (None, Some(_)) => !status.is_whole,
        (None, None) => true,
    }
}

/// Reads with more room until the data are whole, or the way has no more room.
fn read<T>(
    unit: &Unit,
    action: ReserveInAction,
    parse: fn(&[u8]) -> Result<Parsed<T>, InvalidData>,
) -> Result<Reading<T>, Failure> {
    let parsed = |data: &[u8]| {
        parse(data).map_err(|error| {
            let text = format!("{action} returned data that cannot be: {error}; see the log of the target");
            Failure::new(Code::Failure, text)
        })
    };
    if let Some(data) = unit.path.read_record(action) {
        return Ok(Reading { value: parsed(&data?)?.value, is_whole: true });
    }
    let max = unit.path.max_allocation_length();
    let mut length = FIRST_LENGTH.min(max);
    loop {
        let command = ReserveIn::new(action, length).encode();
        let data = match unit.execute(Sender::Own, command.command())? {
            Completion::Good(data) => data,
            other => return Err(Failure::of_completion(&other, Effect::Reads, CONFLICT)),
        };
        let Parsed { value, length: whole, truncated } = parsed(&data)?;
        let is_list = matches!(action, ReserveInAction::ReadKeys | ReserveInAction::ReadFullStatus);
        let may_be_cut = truncated || is_list && whole + MAX_DESCRIPTOR > length;
        if !may_be_cut || length == max {
            return Ok(Reading { value, is_whole: !truncated });
        }
        info!("{}: {action} may need more than {length} bytes: it is read again", escape(&unit.name));
        length = max;
    }
}

#[cfg(test)]
mod tests;
