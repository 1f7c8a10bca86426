//! [`Store`]: where the reservations of shared units are kept.

use std::sync::Arc;
use std::time::Duration;

use scsi_pr::Reservations;

use crate::{StoreError, UnitId, contention};

/// Keeps one record for each logical unit: its [`Reservations`]. They change by compare-and-swap alone, so that whoever
/// acted on what somebody else has changed meanwhile is told, and begins again.
///
/// A change that was acknowledged is never lost, a change that was refused was never made, and what a reader is given is
/// durable: it does not go away in a power cut. The memory store is the exception that its name says.
///
/// # Errors
///
/// Every function ends in a [`StoreError`] that says what was attempted, on which path, and what to do. Unless it is
/// [`Fault::OutcomeUnknown`](crate::Fault::OutcomeUnknown), nothing was changed. A store that has failed serves again as
/// soon as it can: nothing needs to be opened anew.
pub trait Store: Send + Sync {
    /// What is kept of `unit`: version 0 and fresh reservations where nothing is kept yet.
    fn load(&self, unit: &UnitId) -> Result<Loaded, StoreError>;

    /// Keeps `new` in place of version `expected`. [`Swap::Done`] only once it is durable; [`Swap::Lost`] when somebody
    /// else was first, and nothing was changed.
    fn replace(&self, unit: &UnitId, expected: Version, new: &Reservations) -> Result<Swap, StoreError>;

    /// Blocks until the version of `unit` differs from `seen`, or until `timeout` is over. The version then.
    ///
    /// A change that this process makes is seen at once. What others change is looked for every
    /// [`POLL_INTERVAL`]; a version that is seen here may become durable a moment later, [`load`](Self::load) waits
    /// for it.
    fn wait(&self, unit: &UnitId, seen: Version, timeout: Duration) -> Result<Version, StoreError>;

    /// Loads, lets `change` decide, keeps what it made if it returns `true`, and begins again from the load when somebody
    /// else was first. `Ok` once the change is kept, or when there was none to keep.
    ///
    /// `change` may be called several times, each time with the state as it is then; only what it did last counts.
    fn update(&self, unit: &UnitId, change: &mut dyn FnMut(&mut Reservations) -> bool) -> Result<(), StoreError> {
        contention::update(self, unit, change)
    }

    /// Whether several hosts may use this store: then only units that all of them know by the same name have a place here.
    fn is_shared_between_hosts(&self) -> bool;
}

/// How often the stores that other processes use too are looked at by [`Store::wait`].
pub const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Counts the changes of a record, from 0: nothing is kept yet.
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

/// What a store keeps of a unit. Where nothing is kept: version 0, and fresh reservations.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// Which version it is.
    pub version: Version,
    /// The reservations; shared with the store, so that loading them copies nothing.
    pub reservations: Arc<Reservations>,
}

/// What became of a compare-and-swap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Swap {
    /// The change is kept, as this version.
    Done(Version),
    /// Somebody else was first. Nothing was changed.
    Lost,
}
