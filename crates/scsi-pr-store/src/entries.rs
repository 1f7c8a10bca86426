//! [`Entries`]: what a process remembers of units; nothing of those of which nothing is kept.
//!
//! A client may ask for any number of units, one for each file that it can make. Of a unit that was only asked for nothing
//! stays behind: memory is for units that are in the store.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::{Arc, Mutex};

use crate::UnitId;
use crate::lock::lock;

/// What is remembered of a unit.
pub(crate) trait Entry: Default {
    /// Whether it is as good as one that was just made.
    fn is_blank(&self) -> bool;
}

/// An entry for each unit.
#[derive(Debug)]
pub(crate) struct Entries<T>(Mutex<HashMap<UnitId, Arc<T>>>);

/// An entry that is in use. When the last user drops it and it is blank, it is forgotten.
pub(crate) struct Entered<'a, T: Entry> {
    entries: &'a Entries<T>,
    unit: &'a UnitId,
    /// `None` only while this is dropped.
    entry: Option<Arc<T>>,
}

impl<T> Default for Entries<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Entry> Entries<T> {
    /// The entry of `unit`, made if there is none.
    pub(crate) fn enter<'a>(&'a self, unit: &'a UnitId) -> Entered<'a, T> {
        let mut entries = lock(&self.0);
        let entry = match entries.get(unit) {
            Some(entry) => Arc::clone(entry),
            None => Arc::clone(entries.entry(unit.clone()).or_default()),
        };
        Entered { entries: self, unit, entry: Some(entry) }
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        lock(&self.0).len()
    }
}

impl<T: Entry> Deref for Entered<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.entry.as_deref().expect("it is there until this is dropped")
    }
}

impl<T: Entry> Drop for Entered<'_, T> {
    fn drop(&mut self) {
        // Entries come into use, and go out of it, under this lock alone.
        let mut entries = lock(&self.entries.0);
        let Some(entry) = self.entry.take() else { return };
        // The map, and this.
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
    fn what_is_blank_is_forgotten_by_its_last_user() {
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
    fn nothing_is_left_behind_by_many() {
        let entries = Entries::<Flag>::default();
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..1_000).for_each(|number| drop(entries.enter(&unit(number % 7)))));
            }
        });
        assert_eq!(entries.len(), 0);
    }
}
