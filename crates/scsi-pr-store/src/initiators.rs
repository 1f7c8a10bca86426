//! [`Initiators`]: the shared state of each initiator, so that initiators take turns.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex};

use scsi_pr_daemon::{FifoMutex, FifoMutexGuard, RateLimiter};

use crate::contention::{self, CHANGE_TIMEOUT};
use crate::lock::lock;
use crate::log::PERIOD;
use crate::{InitiatorName, StoreError, UnitId};

/// The number of units on which one initiator reads, or makes changes, at the same time.
const LANES: usize = 4;

/// A queue for each lane; commands on one unit use one lane.
#[derive(Default)]
pub(crate) struct Lanes([FifoMutex<()>; LANES]);

impl Lanes {
    /// Waits for the turn of a command on `unit` among those of the same initiator.
    pub(crate) fn take(&self, unit: &UnitId) -> Result<FifoMutexGuard<'_, ()>, StoreError> {
        let mut hasher = DefaultHasher::new();
        unit.hash(&mut hasher);
        // The remainder is less than LANES, whatever the width of the number.
        let lane = &self.0[hasher.finish() as usize % LANES];
        lane.lock_timeout(CHANGE_TIMEOUT).ok_or_else(|| contention::too_long(unit))
    }
}

/// The state of one initiator, which all its connections share.
///
/// An initiator may have thousands of connections, each with a command. At most one of its reads and one of its changes on a
/// unit are in the store at a time; the others wait here. So the commands of other initiators wait in the store for a number
/// of initiators, not for a number of commands.
pub(crate) struct Initiator {
    pub(crate) reads: Lanes,
    pub(crate) changes: Lanes,
    /// The number of units that this initiator brought into the store.
    pub(crate) new_units: AtomicU32,
    pub(crate) refusals: RateLimiter<()>,
}

/// The initiators of a store, by name: two sockets with one name are one initiator.
#[derive(Default)]
pub(crate) struct Initiators(Mutex<HashMap<InitiatorName, Arc<Initiator>>>);

impl Initiators {
    pub(crate) fn get(&self, name: &InitiatorName) -> Arc<Initiator> {
        Arc::clone(lock(&self.0).entry(name.clone()).or_insert_with(|| {
            Arc::new(Initiator {
                reads: Lanes::default(),
                changes: Lanes::default(),
                new_units: AtomicU32::new(0),
                refusals: RateLimiter::new(1, 1, PERIOD),
            })
        }))
    }
}
