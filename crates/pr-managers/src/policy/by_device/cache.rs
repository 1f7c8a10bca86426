//! What devices were found to be, for as long as it holds.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use super::route::Route;
use crate::device::Number;

/// Routes by device number, each for the disk with one sequence number. A number has one entry, and there is room for a
/// bounded count of numbers.
#[derive(Debug, Default)]
pub(super) struct Cache(RwLock<HashMap<Number, Entry>>);

#[derive(Clone, Copy, Debug)]
struct Entry {
    sequence_number: u64,
    route: Route,
}

/// More devices than this in use at once are looked at again now and then.
pub(super) const MOST: usize = 8192;

impl Cache {
    /// The route of this disk's device, if it is known.
    pub(super) fn get(&self, number: Number, sequence_number: u64) -> Option<Route> {
        let entries = self.0.read().unwrap_or_else(PoisonError::into_inner);
        entries.get(&number).filter(|entry| entry.sequence_number == sequence_number).map(|entry| entry.route)
    }

    /// Keeps the route in place of what is known of another disk that had the number. It must be found out *after* the
    /// sequence number: of a disk that changes in between, the entry is then for the number that never comes again.
    pub(super) fn keep(&self, number: Number, sequence_number: u64, route: Route) {
        let mut entries = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= MOST && !entries.contains_key(&number) {
            entries.clear();
        }
        entries.insert(number, Entry { sequence_number, route });
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.read().unwrap().len()
    }
}
