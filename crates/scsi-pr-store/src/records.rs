//! What SQLite and a directory have in common: they keep bytes. [`Kept`] makes a [`Store`] of them.

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use scsi_pr::Reservations;

use crate::contention::{self, PATIENCE};
use crate::entries::{Entries, Entry};
use crate::lock::lock;
use crate::queue::Queue;
use crate::{Loaded, POLL_INTERVAL, Store, StoreError, Swap, UnitId, Version};

/// Keeps one record of bytes for each unit, as [`Store`] keeps reservations.
pub(crate) trait Records: Send + Sync {
    /// The version of a unit's record, 0 where there is none.
    fn version(&self, unit: &UnitId) -> Result<Version, StoreError>;

    /// The record and its version, once it is durable; `None` where there is none.
    fn read(&self, unit: &UnitId) -> Result<Option<(Version, Vec<u8>)>, StoreError>;

    /// Compare-and-swap, as [`Store::replace`].
    fn replace(&self, unit: &UnitId, expected: Version, record: &[u8]) -> Result<Swap, StoreError>;

    /// The turn of a process to change a unit; it ends when this is dropped.
    type Turn<'a>
    where
        Self: 'a;

    /// Waits for those of other processes who are changing the unit, where there is a way to. Nothing rests on it.
    fn turn(&self, unit: &UnitId) -> Self::Turn<'_>;

    fn is_shared_between_hosts(&self) -> bool;

    /// Where the record of a version is: "/var/pr.db", for an administrator.
    fn place(&self, unit: &UnitId, version: Version) -> String;
}

/// A [`Store`] over [`Records`]. Remembers what it has read: a record that has not changed is neither read nor parsed again.
pub(crate) struct Kept<R> {
    records: R,
    units: Entries<Unit>,
}

/// What is known of a unit.
#[derive(Default)]
struct Unit {
    /// Those of this process who want to change it.
    changers: Queue<()>,
    /// The newest that was read or written here.
    newest: Mutex<Loaded>,
    /// There is something newer.
    changed: Condvar,
}

impl<R: Records> Kept<R> {
    pub(crate) fn new(records: R) -> Self {
        Self { records, units: Entries::default() }
    }

    /// A store that forgets is not believed: `known` was read before `found` was asked for.
    fn no_older(&self, unit: &UnitId, known: Version, found: Version) -> Result<(), StoreError> {
        if found >= known {
            return Ok(());
        }
        let place = self.records.place(unit, found);
        Err(StoreError::refused(format!("read the reservations of {unit} in {place}"))
            .because(format!("version {known} of them was there, and now it is version {found}"))
            .remedy("put the newer one back; restart to go on with the older one"))
    }
}

impl Unit {
    fn learn(&self, loaded: &Loaded) {
        let mut newest = lock(&self.newest);
        if newest.version < loaded.version {
            *newest = loaded.clone();
            self.changed.notify_all();
        }
    }
}

impl Entry for Unit {
    fn is_blank(&self) -> bool {
        lock(&self.newest).version == Version(0)
    }
}

impl<R: Records> Store for Kept<R> {
    fn load(&self, unit: &UnitId) -> Result<Loaded, StoreError> {
        let entry = self.units.enter(unit);
        let known = lock(&entry.newest).clone();
        if self.records.version(unit)? == known.version {
            return Ok(known);
        }
        let (version, record) = self.records.read(unit)?.unwrap_or_default();
        self.no_older(unit, known.version, version)?;
        if version == known.version {
            return Ok(known);
        }
        let reservations = Reservations::from_record(&record).map_err(|invalid| {
            let place = self.records.place(unit, version);
            StoreError::refused(format!("read the reservations of {unit} in {place}")).because(invalid).remedy(
                "put back a copy of it from before it was damaged, or use a version of this program that reads it",
            )
        })?;
        let loaded = Loaded { version, reservations: Arc::new(reservations) };
        entry.learn(&loaded);
        Ok(loaded)
    }

    fn replace(&self, unit: &UnitId, expected: Version, new: &Reservations) -> Result<Swap, StoreError> {
        let swap = self.records.replace(unit, expected, &new.to_record())?;
        if let Swap::Done(version) = swap {
            self.units.enter(unit).learn(&Loaded { version, reservations: Arc::new(new.clone()) });
        }
        Ok(swap)
    }

    fn wait(&self, unit: &UnitId, seen: Version, timeout: Duration) -> Result<Version, StoreError> {
        let deadline = Instant::now() + timeout;
        let entry = self.units.enter(unit);
        loop {
            let known = lock(&entry.newest).version;
            let version = self.records.version(unit)?;
            let left = deadline.saturating_duration_since(Instant::now());
            if version != seen || left.is_zero() {
                return Ok(version);
            }
            let newest = lock(&entry.newest);
            // What was learnt since is looked at, at once.
            if newest.version == known {
                drop(entry.changed.wait_timeout(newest, left.min(POLL_INTERVAL)));
            }
        }
    }

    fn update(&self, unit: &UnitId, change: &mut dyn FnMut(&mut Reservations) -> bool) -> Result<(), StoreError> {
        let entry = self.units.enter(unit);
        let _turn = entry.changers.take(PATIENCE).ok_or_else(|| contention::too_long(unit))?;
        let _order = self.records.turn(unit);
        contention::update(self, unit, change)
    }

    fn is_shared_between_hosts(&self) -> bool {
        self.records.is_shared_between_hosts()
    }
}
