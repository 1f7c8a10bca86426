//! `memory:`: a store in the memory of the process, which ends with it.

use std::sync::{Arc, Mutex, MutexGuard};

use scsi_pr::Reservations;

use crate::entries::{Entries, Entry};
use crate::{Change, DiskRecord, Snapshot, Store, StoreError, Swap, UnitId, Version};

/// Keeps reservations in the memory of this process.
#[derive(Debug, Default)]
pub struct MemoryStore {
    units: Entries<Unit>,
}

#[derive(Debug, Default)]
struct Unit {
    newest: Mutex<Snapshot>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Entry for Unit {
    /// A unit whose change panicked is not blank, so that the store goes on to refuse it.
    fn is_blank(&self) -> bool {
        self.newest.lock().is_ok_and(|newest| newest.version == Version(0))
    }
}

impl Unit {
    /// Refuses reservations that a change left half-way by a panic: no command makes such a state.
    fn newest(&self, unit: &UnitId) -> Result<MutexGuard<'_, Snapshot>, StoreError> {
        self.newest.lock().map_err(|_| {
            StoreError::refused(format!("use the reservations of {unit}"))
                .because("a change of them was interrupted by a panic")
                .remedy("report this as a bug, with the log, and restart")
        })
    }
}

impl Store for MemoryStore {
    fn load(&self, unit: &UnitId) -> Result<Snapshot, StoreError> {
        Ok(self.units.enter(unit).newest(unit)?.clone())
    }

    fn replace(&self, unit: &UnitId, expected: Version, new: &Reservations) -> Result<Swap, StoreError> {
        let entry = self.units.enter(unit);
        let newest = entry.newest(unit)?;
        newest.check_not_owned(unit)?;
        let disk = newest.disk.clone();
        Ok(swap(newest, expected, new, disk))
    }

    fn replace_owned(
        &self,
        unit: &UnitId,
        expected: Version,
        new: &Reservations,
        disk: &DiskRecord,
    ) -> Result<Swap, StoreError> {
        let entry = self.units.enter(unit);
        let newest = entry.newest(unit)?;
        Ok(swap(newest, expected, new, Some(Arc::new(disk.clone()))))
    }

    /// Changes the reservations in place, under the lock. It copies them only if a caller still holds a [`Snapshot`].
    fn update(&self, unit: &UnitId, change: &mut Change<'_>) -> Result<(), StoreError> {
        let entry = self.units.enter(unit);
        let mut newest = entry.newest(unit)?;
        newest.check_not_owned(unit)?;
        let Snapshot { version, reservations, disk } = &mut *newest;
        if change(Arc::make_mut(reservations), disk.as_deref()) {
            *version = version.next();
        }
        Ok(())
    }

    fn units(&self) -> Result<Vec<UnitId>, StoreError> {
        let mut units = self.units.units();
        units.sort_unstable();
        Ok(units)
    }

    fn is_shared_between_hosts(&self) -> bool {
        false
    }
}

fn swap(
    mut newest: MutexGuard<'_, Snapshot>,
    expected: Version,
    new: &Reservations,
    disk: Option<Arc<DiskRecord>>,
) -> Swap {
    if newest.version != expected {
        return Swap::Lost;
    }
    *newest = Snapshot { version: expected.next(), reservations: Arc::new(new.clone()), disk };
    Swap::Done(newest.version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_changed_units_take_memory() {
        let store = MemoryStore::new();
        let unit = |name| UnitId::named(name).expect("a name");
        store.load(&unit("a")).expect("a fresh one");
        store.update(&unit("a"), &mut |_, _| false).expect("nothing to do");
        assert_eq!(store.units.len(), 0);
        store.update(&unit("a"), &mut |_, _| true).expect("kept");
        assert_eq!((store.units.len(), store.load(&unit("a")).expect("what is kept").version), (1, Version(1)));
    }
}
