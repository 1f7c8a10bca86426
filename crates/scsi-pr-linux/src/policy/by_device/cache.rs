//! What devices were found to be, for as long as it holds.

use std::sync::{PoisonError, RwLock};

use super::route::Route;
use crate::device::Number;

/// Routes by device number, each for the disk with one sequence number. A number has one entry, and there is room for a
/// bounded count of numbers.
#[derive(Debug, Default)]
pub(super) struct Cache(RwLock<Vec<Entry>>);

/// They are in the order of their numbers: looking one up takes as long as in a hash table, whose code would be memory of
/// every helper.
#[derive(Clone, Copy, Debug)]
struct Entry {
    number: Number,
    sequence_number: u64,
    route: Route,
}

/// More devices than this in use at once are looked at again now and then.
pub(super) const MOST: usize = 8192;

impl Cache {
    /// The route of this disk's device, if it is known.
    pub(super) fn get(&self, number: Number, sequence_number: u64) -> Option<Route> {
        let entries = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let place = entries.binary_search_by_key(&number, |entry| entry.number).ok()?;
        let entry = entries[place];
        (entry.sequence_number == sequence_number).then_some(entry.route)
    }

    /// Keeps the route in place of what is known of another disk that had the number. It must be found out *after* the
    /// sequence number: of a disk that changes in between, the entry is then for the number that never comes again.
    pub(super) fn keep(&self, number: Number, sequence_number: u64, route: Route) {
        let mut entries = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let entry = Entry { number, sequence_number, route };
        match entries.binary_search_by_key(&number, |entry| entry.number) {
            Ok(place) => entries[place] = entry,
            Err(place) if entries.len() < MOST => entries.insert(place, entry),
            Err(_) => *entries = vec![entry],
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.read().unwrap().len()
    }
}
