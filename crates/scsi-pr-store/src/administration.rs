//! [`execute`]: commands of an administrator, who may act as any initiator.

use scsi_pr::{Command, Completion, Nexus};

use crate::{Store, StoreError, UnitId};

/// Runs one command of `nexus` on `unit`, as [`SharedReservations`](crate::SharedReservations) does for an initiator: no unit
/// attention is reported, and a change drops those in the record.
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
    let loaded = store.load(unit)?;
    loaded.check_not_owned(unit)?;
    if let Some(completion) = loaded.reservations.answer(nexus, command) {
        return Ok(completion);
    }
    let mut completion = None;
    store.update(unit, &mut |reservations| {
        let outcome = reservations.process(nexus, command);
        if outcome.changed {
            reservations.clear_unit_attentions();
        }
        completion = Some(outcome.completion);
        outcome.changed
    })?;
    completion.ok_or_else(|| {
        StoreError::unavailable(format!("run {command} on {unit}")).because("the store did not ask for the change")
    })
}
