//! The rows of known block devices.

use std::sync::{PoisonError, RwLock};

use super::table::Target;
use crate::device::Number;

/// Rows by device number, each for the disk with one sequence number. A device number has one entry.
#[derive(Debug, Default)]
pub(super) struct Cache(RwLock<Vec<Entry>>);

/// Entries are sorted by device number. A lookup takes as long as in a hash table, and the program stays smaller.
#[derive(Clone, Copy, Debug)]
struct Entry {
    number: Number,
    sequence_number: u64,
    target: Target,
}

/// The most entries. A full cache starts again.
pub(super) const MAX_ENTRIES: usize = 8192;

impl Cache {
    /// The row of this disk's device, if it is known.
    pub(super) fn get(&self, number: Number, sequence_number: u64) -> Option<Target> {
        let entries = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let index = entries.binary_search_by_key(&number, |entry| entry.number).ok()?;
        let entry = entries[index];
        (entry.sequence_number == sequence_number).then_some(entry.target)
    }

    /// Stores a row, in place of that of another disk with this device number. The caller must find out the row *after*
    /// the sequence number. If the disk changes in between, the entry has a sequence number that no later disk has.
    pub(super) fn insert(&self, number: Number, sequence_number: u64, target: Target) {
        let mut entries = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let entry = Entry { number, sequence_number, target };
        match entries.binary_search_by_key(&number, |entry| entry.number) {
            Ok(index) => entries[index] = entry,
            Err(index) if entries.len() < MAX_ENTRIES => entries.insert(index, entry),
            Err(_) => *entries = vec![entry],
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.read().unwrap().len()
    }
}
