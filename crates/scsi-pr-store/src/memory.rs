//! `memory:`: a store that lives and dies with the process.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use scsi_pr::Reservations;

use crate::entries::{Entries, Entry};
use crate::{Loaded, Store, StoreError, Swap, UnitId, Version};

/// Keeps reservations in the memory of this process. Nothing outlasts it.
#[derive(Debug, Default)]
pub struct MemoryStore {
    units: Entries<Unit>,
}

#[derive(Debug, Default)]
struct Unit {
    kept: Mutex<Loaded>,
    changed: Condvar,
}

impl MemoryStore {
    /// A store that keeps nothing yet.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Entry for Unit {
    /// Not after a change that panicked: that it did is to be remembered.
    fn is_blank(&self) -> bool {
        self.kept.lock().is_ok_and(|kept| kept.version == Version(0))
    }
}

impl Unit {
    /// A change that panicked half-way left the reservations in a state that no command makes; they are not served.
    fn kept(&self, unit: &UnitId) -> Result<MutexGuard<'_, Loaded>, StoreError> {
        self.kept.lock().map_err(|_| {
            StoreError::refused(format!("use the reservations of {unit}"))
                .because("a change of them was broken off")
                .remedy("report this as a bug, with the log, and restart")
        })
    }

    fn count_change(&self, kept: &mut Loaded) -> Version {
        kept.version = kept.version.next();
        self.changed.notify_all();
        kept.version
    }
}

impl Store for MemoryStore {
    fn load(&self, unit: &UnitId) -> Result<Loaded, StoreError> {
        Ok(self.units.enter(unit).kept(unit)?.clone())
    }

    fn replace(&self, unit: &UnitId, expected: Version, new: &Reservations) -> Result<Swap, StoreError> {
        let entry = self.units.enter(unit);
        let mut kept = entry.kept(unit)?;
        if kept.version != expected {
            return Ok(Swap::Lost);
        }
        kept.reservations = Arc::new(new.clone());
        Ok(Swap::Done(entry.count_change(&mut kept)))
    }

    fn wait(&self, unit: &UnitId, seen: Version, timeout: Duration) -> Result<Version, StoreError> {
        let deadline = Instant::now() + timeout;
        let entry = self.units.enter(unit);
        let mut kept = entry.kept(unit)?;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if kept.version != seen || left.is_zero() {
                return Ok(kept.version);
            }
            (kept, _) = match entry.changed.wait_timeout(kept, left) {
                Ok(woken) => woken,
                Err(_) => return entry.kept(unit).map(|kept| kept.version),
            };
        }
    }

    /// In place, under the lock: nothing is copied unless somebody holds what [`load`](Store::load) gave out.
    fn update(&self, unit: &UnitId, change: &mut dyn FnMut(&mut Reservations) -> bool) -> Result<(), StoreError> {
        let entry = self.units.enter(unit);
        let mut kept = entry.kept(unit)?;
        if change(Arc::make_mut(&mut kept.reservations)) {
            entry.count_change(&mut kept);
        }
        Ok(())
    }

    fn is_shared_between_hosts(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_units_that_have_changed_are_remembered() {
        let store = MemoryStore::new();
        let unit = |name| UnitId::named(name).expect("a name");
        store.load(&unit("a")).expect("a fresh one");
        store.update(&unit("a"), &mut |_| false).expect("nothing to do");
        store.wait(&unit("a"), Version(0), Duration::ZERO).expect("a version");
        assert_eq!(store.units.len(), 0);
        store.update(&unit("a"), &mut |_| true).expect("kept");
        assert_eq!((store.units.len(), store.load(&unit("a")).expect("what is kept").version), (1, Version(1)));
    }
}
