//! [`Store`]: the place of the reservations of shared units.

use std::sync::Arc;

use scsi_pr::Reservations;

use crate::{DiskRecord, StoreError, UnitId, contention, ownership};

/// Keeps one record for each logical unit: its [`Reservations`]. Records change by compare-and-swap alone. A writer that read
/// an older version than the newest loses, and begins again.
///
/// A store never loses a change that it acknowledged, and never makes a change that it refused. A record that it returns is
/// durable: a power cut does not undo it. The memory store is the exception.
///
/// # Errors
///
/// A [`StoreError`] says what was attempted, on which path, and what to do. Unless it is
/// [`Fault::OutcomeUnknown`](crate::Fault::OutcomeUnknown), nothing was changed. A store that failed serves again as soon as
/// it can; the caller need not open it anew.
pub trait Store: Send + Sync {
    /// The newest record of `unit`. A unit without a record has version 0 and fresh reservations.
    fn load(&self, unit: &UnitId) -> Result<Snapshot, StoreError>;

    /// Replaces version `expected` by `new`. The result is [`Swap::Done`] once the change is durable. It is [`Swap::Lost`] if
    /// another version is the newest; then nothing was changed. A unit that a disk owns is refused.
    fn replace(&self, unit: &UnitId, expected: Version, new: &Reservations) -> Result<Swap, StoreError>;

    /// The same for the [`Ownership`](crate::Ownership) of a unit, with the owner's part of the record.
    fn replace_owned(
        &self,
        unit: &UnitId,
        expected: Version,
        new: &Reservations,
        disk: &DiskRecord,
    ) -> Result<Swap, StoreError>;

    /// Loads the record and calls `change` with it. If `change` returns `true`, the store replaces the record, and begins again
    /// with the load when another writer was first. `Ok` once the change is durable, or if there was none.
    ///
    /// The store may call `change` several times, each time with the newest reservations. Only the last call counts. A unit
    /// that a disk owns is refused.
    fn update(&self, unit: &UnitId, change: &mut Change<'_>) -> Result<(), StoreError> {
        contention::update(self, unit, change)
    }

    /// The units that have a record, in ascending order.
    fn units(&self) -> Result<Vec<UnitId>, StoreError>;

    /// Whether several hosts may use this store. It then takes only units that all hosts know by the same identifier.
    fn is_shared_between_hosts(&self) -> bool;
}

/// A change of the reservations of a unit, and whether it is one. The other argument is the part of the record that a disk
/// has added; `None` if no disk has served the unit.
pub type Change<'a> = dyn FnMut(&mut Reservations, Option<&DiskRecord>) -> bool + 'a;

/// The number of changes of a record. A unit without a record has version 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u64);

impl Version {
    /// The version after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// The reservations of a unit as of one version.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The version; 0 if the unit has no record.
    pub version: Version,
    /// The reservations. The store shares them, so that a load copies nothing.
    pub reservations: Arc<Reservations>,
    /// The part of a disk; `None` if no disk has served the unit.
    pub disk: Option<Arc<DiskRecord>>,
}

impl Snapshot {
    /// Refuses a unit that a disk owns: its reservations are read and changed through that disk.
    ///
    /// # Errors
    ///
    /// Names the owner and its control socket.
    pub fn check_not_owned(&self, unit: &UnitId) -> Result<(), StoreError> {
        self.disk.as_deref().and_then(|disk| ownership::owned(unit, disk)).map_or(Ok(()), Err)
    }
}

/// The result of a compare-and-swap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Swap {
    /// The change is durable. It has this version.
    Done(Version),
    /// Another writer was first. Nothing was changed.
    Lost,
}
