//! [`Entries`]: values that a process keeps for units that are in the store.
//!
//! A client may ask for any number of units, one for each file that it can make. A unit without a record takes no memory once
//! its command has ended.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::{Arc, Mutex};

use crate::UnitId;
use crate::lock::lock;

/// A value for a unit.
pub(crate) trait Entry: Default {
    /// Whether the value equals a new one.
    fn is_blank(&self) -> bool;
}

/// An entry for each unit.
#[derive(Debug)]
pub(crate) struct Entries<T>(Mutex<HashMap<UnitId, Arc<T>>>);

/// An entry that is in use. The last guard that is dropped removes the entry if it is blank.
pub(crate) struct EntryGuard<'a, T: Entry> {
    entries: &'a Entries<T>,
    unit: &'a UnitId,
    /// `None` only while the guard is dropped.
    entry: Option<Arc<T>>,
}

impl<T> Default for Entries<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Entry> Entries<T> {
    /// The entry of `unit`. It is created if there is none.
    pub(crate) fn enter<'a>(&'a self, unit: &'a UnitId) -> EntryGuard<'a, T> {
        let mut entries = lock(&self.0);
        let entry = match entries.get(unit) {
            Some(entry) => Arc::clone(entry),
            None => Arc::clone(entries.entry(unit.clone()).or_default()),
        };
        EntryGuard { entries: self, unit, entry: Some(entry) }
    }

    /// The units with an entry that is not blank.
    pub(crate) fn units(&self) -> Vec<UnitId> {
        let entries = lock(&self.0);
        entries.iter().filter(|(_, entry)| !entry.is_blank()).map(|(unit, _)| unit.clone()).collect()
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        lock(&self.0).len()
    }
}

impl<T: Entry> Deref for EntryGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.entry.as_deref().expect("only drop takes it")
    }
}

impl<T: Entry> Drop for EntryGuard<'_, T> {
    fn drop(&mut self) {
        // The count of guards changes only under this lock.
        let mut entries = lock(&self.entries.0);
        let Some(entry) = self.entry.take() else { return };
        // One reference is the map's, one is this guard's.
        if Arc::strong_count(&entry) == 2 && entry.is_blank() {
            entries.remove(self.unit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    #[derive(Default)]
    struct Flag(AtomicBool);

    impl Entry for Flag {
        fn is_blank(&self) -> bool {
            !self.0.load(Ordering::Relaxed)
        }
    }

    fn unit(number: u32) -> UnitId {
        UnitId::named(&number.to_string()).expect("a name")
    }

    #[test]
    fn last_guard_removes_a_blank_entry() {
        let entries = Entries::<Flag>::default();
        let (one, other) = (unit(1), unit(2));
        let (first, second) = (entries.enter(&one), entries.enter(&one));
        drop(first);
        assert_eq!(entries.len(), 1);
        drop(second);
        assert_eq!(entries.len(), 0);
        entries.enter(&other).0.store(true, Ordering::Relaxed);
        assert_eq!(entries.len(), 1);
        assert!(!entries.enter(&other).is_blank());
    }

    #[test]
    fn concurrent_guards_leave_no_blank_entry() {
        let entries = Entries::<Flag>::default();
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..1_000).for_each(|number| drop(entries.enter(&unit(number % 7)))));
            }
        });
        assert_eq!(entries.len(), 0);
    }
}
