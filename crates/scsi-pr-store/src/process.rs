//! [`process`]: a command on the reservations in a record.

use scsi_pr::{Command, Nexus, Outcome, Reservations};

use crate::DiskRecord;

/// Runs a command on the reservations of a record, and reports no unit attention. `disk` is the rest of the record.
///
/// A change drops the pending unit attentions, as no command here reports them. If a disk has served the unit, they stay: the
/// disk reports them when it serves the unit again.
pub(crate) fn process(
    reservations: &mut Reservations,
    disk: Option<&DiskRecord>,
    nexus: &Nexus,
    command: Command<'_>,
) -> Outcome {
    let outcome = reservations.process(nexus, command);
    if outcome.changed && disk.is_none() {
        reservations.clear_unit_attentions();
    }
    outcome
}
