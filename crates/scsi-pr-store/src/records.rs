//! [`RecordStore`]: a [`Store`] over [`Records`], the bytes that SQLite and a directory keep alike.

use std::sync::{Arc, Mutex};

use scsi_pr::Reservations;
use scsi_pr_daemon::FifoMutex;

use crate::contention::{self, CHANGE_TIMEOUT};
use crate::entries::{Entries, Entry};
use crate::lock::lock;
use crate::{Change, DiskRecord, Snapshot, Store, StoreError, Swap, UnitId, Version, disk_record};

/// Keeps one record of bytes for each unit, as [`Store`] keeps reservations.
pub(crate) trait Records: Send + Sync {
    /// The version of a unit's record, 0 if there is none.
    fn version(&self, unit: &UnitId) -> Result<Version, StoreError>;

    /// The record and its version, once it is durable. `None` if there is none.
    fn read(&self, unit: &UnitId) -> Result<Option<(Version, Vec<u8>)>, StoreError>;

    /// Compare-and-swap, as [`Store::replace`].
    fn replace(&self, unit: &UnitId, expected: Version, record: &[u8]) -> Result<Swap, StoreError>;

    /// The identifiers of the units that have a record.
    fn units(&self) -> Result<Vec<String>, StoreError>;

    /// The turn of this process to change a unit, until it is dropped.
    type Turn<'a>
    where
        Self: 'a;

    /// Waits while other processes change the unit, if processes can take turns there. Correctness does not depend on it.
    fn turn(&self, unit: &UnitId) -> Self::Turn<'_>;

    fn is_shared_between_hosts(&self) -> bool;

    /// The path of a version's record, for an administrator: "/var/pr.db".
    fn location(&self, unit: &UnitId, version: Version) -> String;
}

/// A [`Store`] over [`Records`]. It caches the newest record of each unit, parsed, and reads a record only after a change.
pub(crate) struct RecordStore<R> {
    records: R,
    units: Entries<CachedUnit>,
}

#[derive(Default)]
struct CachedUnit {
    /// The turn to change the unit, within this process.
    change: FifoMutex<()>,
    /// The newest version that this process has read or written.
    newest: Mutex<Snapshot>,
}

impl<R: Records> RecordStore<R> {
    pub(crate) fn new(records: R) -> Self {
        Self { records, units: Entries::default() }
    }

    /// Refuses a store that went back to an older version: `known` was read before `found`.
    fn check_monotonic(&self, unit: &UnitId, known: Version, found: Version) -> Result<(), StoreError> {
        if found >= known {
            return Ok(());
        }
        let location = self.records.location(unit, found);
        Err(StoreError::refused(format!("read the reservations of {unit} in {location}"))
            .because(format!("version {known} of them was there, and now it is version {found}"))
            .remedy("put the newer one back; restart to go on with the older one"))
    }
}

impl<R: Records> RecordStore<R> {
    fn swap(
        &self,
        unit: &UnitId,
        expected: Version,
        new: &Reservations,
        disk: Option<Arc<DiskRecord>>,
    ) -> Result<Swap, StoreError> {
        let swap = self.records.replace(unit, expected, &disk_record::encode(new, disk.as_deref()))?;
        if let Swap::Done(version) = swap {
            self.units.enter(unit).update(&Snapshot { version, reservations: Arc::new(new.clone()), disk });
        }
        Ok(swap)
    }
}

impl CachedUnit {
    fn update(&self, snapshot: &Snapshot) {
        let mut newest = lock(&self.newest);
        if newest.version < snapshot.version {
            *newest = snapshot.clone();
        }
    }
}

impl Entry for CachedUnit {
    fn is_blank(&self) -> bool {
        lock(&self.newest).version == Version(0)
    }
}

impl<R: Records> Store for RecordStore<R> {
    fn load(&self, unit: &UnitId) -> Result<Snapshot, StoreError> {
        let entry = self.units.enter(unit);
        let known = lock(&entry.newest).clone();
        if self.records.version(unit)? == known.version {
            return Ok(known);
        }
        let (version, record) = self.records.read(unit)?.unwrap_or_default();
        self.check_monotonic(unit, known.version, version)?;
        if version == known.version {
            return Ok(known);
        }
        let (reservations, disk) = disk_record::decode(&record).map_err(|invalid| {
            let location = self.records.location(unit, version);
            StoreError::refused(format!("read the reservations of {unit} in {location}")).because(invalid).remedy(
                "put back a copy of it from before it was damaged, or use a version of this program that reads it",
            )
        })?;
        let snapshot = Snapshot { version, reservations: Arc::new(reservations), disk: disk.map(Arc::new) };
        entry.update(&snapshot);
        Ok(snapshot)
    }

    fn replace(&self, unit: &UnitId, expected: Version, new: &Reservations) -> Result<Swap, StoreError> {
        // The caller has mostly just loaded it.
        let mut newest = lock(&self.units.enter(unit).newest).clone();
        if newest.version != expected {
            newest = self.load(unit)?;
        }
        newest.check_not_owned(unit)?;
        if newest.version != expected {
            return Ok(Swap::Lost);
        }
        self.swap(unit, expected, new, newest.disk)
    }

    fn replace_owned(
        &self,
        unit: &UnitId,
        expected: Version,
        new: &Reservations,
        disk: &DiskRecord,
    ) -> Result<Swap, StoreError> {
        self.swap(unit, expected, new, Some(Arc::new(disk.clone())))
    }

    fn update(&self, unit: &UnitId, change: &mut Change<'_>) -> Result<(), StoreError> {
        let entry = self.units.enter(unit);
        let _thread_turn = entry.change.lock_timeout(CHANGE_TIMEOUT).ok_or_else(|| contention::too_long(unit))?;
        let _process_turn = self.records.turn(unit);
        contention::update(self, unit, change)
    }

    fn units(&self) -> Result<Vec<UnitId>, StoreError> {
        let identify = |text: String| {
            UnitId::from_identifier(&text).map_err(|_| {
                StoreError::refused("list the units of the store")
                    .because(format!("{text:?} is no identifier of a unit"))
                    .remedy("move what does not belong there to another place")
            })
        };
        let mut units = self.records.units()?.into_iter().map(identify).collect::<Result<Vec<_>, _>>()?;
        units.sort_unstable();
        Ok(units)
    }

    fn is_shared_between_hosts(&self) -> bool {
        self.records.is_shared_between_hosts()
    }
}
