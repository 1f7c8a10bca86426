//! [`ReservationStore`]: where the reservations of a disk are durable.

use scsi_pr::Reservations;
use thiserror::Error;

/// Stores the reservations of one logical unit. Nothing else changes them while the disk is served.
pub trait ReservationStore: Send + Sync {
    /// Reads the reservations and their version.
    ///
    /// # Errors
    ///
    /// The store could not read them.
    fn load(&self) -> Result<(u64, Reservations), StoreError>;

    /// Makes `new` durable in place of version `expected`, and returns the version of `new`.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unchanged`] when the stored reservations are certainly those of version `expected`, otherwise
    /// [`StoreError::OutcomeUnknown`].
    fn replace(&self, expected: u64, new: &Reservations) -> Result<u64, StoreError>;
}

/// The reason why reservations are not durable.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum StoreError {
    /// The store has changed nothing.
    #[error("the store changed nothing: {0}")]
    Unchanged(String),
    /// The store may have made the change durable or not, or something else has changed the reservations.
    #[error("the state of the store is not known: {0}")]
    OutcomeUnknown(String),
}
