//! [`execute`] and [`execute_if`]: commands of an administrator, who may act as any initiator.

use scsi_pr::{Command, Completion, Nexus, Reservation, Reservations};

use crate::process::process;
use crate::{Store, StoreError, UnitId};

/// Runs one command of `nexus` on `unit`, as [`SharedReservations`](crate::SharedReservations) does for an initiator: no unit
/// attention is reported.
///
/// A change drops the unit attentions in the record, unless the unit has been served by a disk: the disk reports those.
///
/// # Errors
///
/// Those of the store, and that a disk owns the unit: its control socket takes the command.
pub fn execute(
    store: &dyn Store,
    unit: &UnitId,
    nexus: &Nexus,
    command: Command<'_>,
) -> Result<Completion, StoreError> {
    let completion = run(store, unit, nexus, command, &|_| true)?;
    completion.ok_or_else(|| {
        StoreError::unavailable(format!("run {command} on {unit}")).because("the store did not ask for the change")
    })
}

/// The same if the unit has this reservation and generation, and this holder. RESERVE and RELEASE do not change the generation, and
/// another nexus may have the same key, so the reservation alone does not tell who holds it. A `holder` of `None` stands for any.
///
/// The check and the change are one compare-and-swap. `None`: the unit has another state, and nothing was changed.
///
/// # Errors
///
/// Those of [`execute`].
pub fn execute_if(
    store: &dyn Store,
    unit: &UnitId,
    nexus: &Nexus,
    command: Command<'_>,
    expected: &Reservation,
    holder: Option<&Nexus>,
) -> Result<Option<Completion>, StoreError> {
    run(store, unit, nexus, command, &|reservations| {
        reservations.read_reservation() == *expected && holder.is_none_or(|holder| reservations.is_holder(holder))
    })
}

/// `None`: the reservations are not `expected`.
fn run(
    store: &dyn Store,
    unit: &UnitId,
    nexus: &Nexus,
    command: Command<'_>,
    is_expected: &dyn Fn(&Reservations) -> bool,
) -> Result<Option<Completion>, StoreError> {
    let loaded = store.load(unit)?;
    loaded.check_not_owned(unit)?;
    if let Some(completion) = loaded.reservations.answer(nexus, command) {
        return Ok(is_expected(&loaded.reservations).then_some(completion));
    }
    let mut completion = None;
    store.update(unit, &mut |reservations, disk| {
        completion = None;
        if !is_expected(reservations) {
            return false;
        }
        let outcome = process(reservations, disk, nexus, command);
        completion = Some(outcome.completion);
        outcome.changed
    })?;
    Ok(completion)
}
