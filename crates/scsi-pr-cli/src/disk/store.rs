//! [`OwnedStore`]: the reservations of a unit that this process owns, as the disk needs them.

use std::ops::RangeInclusive;
use std::sync::Arc;

use scsi_pr::Reservations;
use scsi_pr_disk::{ReservationStore, StoreError};
use scsi_pr_store::{Fault, Ownership, Swap, Version};

pub(crate) struct OwnedStore {
    pub(crate) ownership: Arc<Ownership>,
    /// The portal groups of this process. Those of a former process are in the record.
    pub(crate) target_ports: RangeInclusive<u16>,
}

impl ReservationStore for OwnedStore {
    fn load(&self) -> Result<(u64, Reservations), StoreError> {
        let (version, reservations) = self.ownership.load().map_err(disk_error)?;
        let mut reservations = (*reservations).clone();
        reservations.set_target_ports(self.target_ports.clone());
        Ok((version.0, reservations))
    }

    fn replace(&self, expected: u64, new: &Reservations) -> Result<u64, StoreError> {
        match self.ownership.replace(Version(expected), new).map_err(disk_error)? {
            Swap::Done(version) => Ok(version.0),
            // Only the owner writes. So the gate closes, and the next load finds out who owns the unit.
            Swap::Lost => Err(StoreError::OutcomeUnknown("another process has changed the record".to_owned())),
        }
    }
}

fn disk_error(error: scsi_pr_store::StoreError) -> StoreError {
    match error.fault() {
        Fault::OutcomeUnknown => StoreError::OutcomeUnknown(error.to_string()),
        Fault::Unavailable | Fault::Contended | Fault::Refused => StoreError::Unchanged(error.to_string()),
    }
}
