//! `memory:`: a store that lives and dies with the process.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use scsi_pr::Reservations;

use crate::lock::lock;
use crate::{Loaded, Store, StoreError, Swap, UnitId, Version};

/// Keeps reservations in the memory of this process. Nothing outlasts it.
#[derive(Debug, Default)]
pub struct MemoryStore {
    units: Mutex<HashMap<UnitId, Arc<Unit>>>,
}

#[derive(Debug)]
struct Unit {
    kept: Mutex<Loaded>,
    changed: Condvar,
}

impl MemoryStore {
    /// A store that keeps nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    fn unit(&self, unit: &UnitId) -> Arc<Unit> {
        let mut units = lock(&self.units);
        if let Some(known) = units.get(unit) {
            return Arc::clone(known);
        }
        let fresh = Loaded { version: Version(0), reservations: Arc::new(Reservations::new()) };
        let new = Arc::new(Unit { kept: Mutex::new(fresh), changed: Condvar::new() });
        units.insert(unit.clone(), Arc::clone(&new));
        new
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
        Ok(self.unit(unit).kept(unit)?.clone())
    }

    fn replace(&self, unit: &UnitId, expected: Version, new: &Reservations) -> Result<Swap, StoreError> {
        let entry = self.unit(unit);
        let mut kept = entry.kept(unit)?;
        if kept.version != expected {
            return Ok(Swap::Lost);
        }
        kept.reservations = Arc::new(new.clone());
        Ok(Swap::Done(entry.count_change(&mut kept)))
    }

    fn wait(&self, unit: &UnitId, seen: Version, timeout: Duration) -> Result<Version, StoreError> {
        let deadline = Instant::now() + timeout;
        let entry = self.unit(unit);
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
        let entry = self.unit(unit);
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
