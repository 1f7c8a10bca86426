//! [`Ownership`]: one process owns a unit, and alone changes its reservations.

use std::sync::Arc;

use rustix::rand::{GetRandomFlags, getrandom};
use scsi_pr::Reservations;

use crate::{DiskRecord, Host, Owner, Snapshot, Store, StoreError, Swap, UnitId, Version};

/// The number of attempts of a claim while others change the record.
const ATTEMPTS: u32 = 100;

/// The wish of a process to own a unit. It holds the lock of the medium.
#[derive(Clone, Debug)]
pub struct Claim {
    /// This host.
    pub host: Host,
    /// This process.
    pub owner: Owner,
    /// The hosts that can reach the medium.
    pub reach: MediumReach,
    /// The epoch of the former owner, which the administrator states to be fenced.
    pub takeover: Option<u64>,
    /// The identity of a disk that was moved in from elsewhere; `None` for the one in the store, or a new one.
    pub uuid: Option<[u8; 16]>,
}

/// The hosts that can reach a medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MediumReach {
    /// This host alone: a file on a local file system. A restart of the host ends all I/O to it.
    Host,
    /// Perhaps others: a block device.
    Hosts,
    /// Perhaps others: a file on a file system that is not known to be local. On NFS the kernel lets go of the lock of a
    /// process that was killed while its last requests are still on their way.
    FileServer,
}

/// A unit that this process owns.
pub struct Ownership {
    store: Arc<dyn Store>,
    unit: UnitId,
    record: DiskRecord,
}

impl Ownership {
    /// Takes the ownership of `unit`, with the next epoch.
    ///
    /// A former owner that has not released the unit must be gone. On this boot of this host, the lock of the same medium
    /// proves that, unless a file server has the medium. After a restart of this host it is proven for a medium that other hosts do not reach. Otherwise the
    /// administrator must state it ([`Claim::takeover`]).
    ///
    /// After a restart of the host, registrations without APTPL are dropped ([`Reservations::lose_power`]). A unit that
    /// moves to another host has not lost its power.
    ///
    /// # Errors
    ///
    /// The former owner may still be there; the text says what the administrator has to be sure of. And those of the store.
    pub fn claim(store: Arc<dyn Store>, unit: UnitId, claim: &Claim) -> Result<Self, StoreError> {
        let attempted = || format!("own {unit}");
        for _ in 0..ATTEMPTS {
            let Snapshot { version, reservations, disk } = store.load(&unit)?;
            let former = disk.as_deref();
            if let Some(former) = former {
                claim.check(former).map_err(|why| {
                    StoreError::refused(attempted())
                        .because(format!("it is {former}, {}", why.reason()))
                        .remedy(why.remedy(former))
                })?;
            }
            let mut reservations = (*reservations).clone();
            if former.is_some_and(|former| former.host.id == claim.host.id && former.host.boot != claim.host.boot) {
                reservations.lose_power();
            }
            let uuid = match claim.uuid.or(former.map(|former| former.uuid)) {
                Some(uuid) => uuid,
                None => new_uuid().map_err(|error| StoreError::unavailable(attempted()).because(error))?,
            };
            let epoch = former.map_or(0, |former| former.epoch) + 1;
            let record = DiskRecord { uuid, epoch, host: claim.host.clone(), owner: Some(claim.owner.clone()) };
            if let Swap::Done(_) = store.replace_owned(&unit, version, &reservations, &record)? {
                return Ok(Self { store, unit, record });
            }
        }
        Err(StoreError::contended(attempted()).because("other programs keep changing it"))
    }

    /// The identity, the epoch and the owner, as the store has them.
    pub fn record(&self) -> &DiskRecord {
        &self.record
    }

    /// The newest reservations.
    ///
    /// # Errors
    ///
    /// Those of the store, and that another process has taken the unit over.
    pub fn load(&self) -> Result<(Version, Arc<Reservations>), StoreError> {
        let Snapshot { version, reservations, disk } = self.store.load(&self.unit)?;
        match disk.as_deref() {
            Some(disk) if *disk == self.record => Ok((version, reservations)),
            disk => Err(self.lost(disk)),
        }
    }

    /// Makes `new` durable in place of version `expected`. `Swap::Lost` means that another process owns the unit now.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub fn replace(&self, expected: Version, new: &Reservations) -> Result<Swap, StoreError> {
        self.store.replace_owned(&self.unit, expected, new, &self.record)
    }

    /// Releases the unit: any process may own it, or change its reservations.
    ///
    /// # Errors
    ///
    /// Those of the store, and that another process has taken the unit over.
    pub fn release(&self) -> Result<(), StoreError> {
        let (version, reservations) = self.load()?;
        let released = DiskRecord { owner: None, ..self.record.clone() };
        match self.store.replace_owned(&self.unit, version, &reservations, &released)? {
            Swap::Done(_) => Ok(()),
            Swap::Lost => Err(self.lost(None)),
        }
    }

    fn lost(&self, disk: Option<&DiskRecord>) -> StoreError {
        let now = disk.map_or_else(|| "it was changed meanwhile".to_owned(), |disk| format!("it is {disk} now"));
        StoreError::refused(format!("use {} as its owner of epoch {}", self.unit, self.record.epoch))
            .because(now)
            .remedy("stop this disk: it may no longer serve the unit")
    }
}

/// The reason why it is not proven that the former owner is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unproven {
    /// The former owner ran on this boot, with another medium: the lock of this one proves nothing.
    Medium,
    /// It ran on this boot, and its last requests may still be on their way to the file server.
    Requests,
    /// It ran before this host started again, and other hosts reach the medium.
    Boot,
    /// It ran on another host.
    Host,
}

impl Claim {
    fn check(&self, former: &DiskRecord) -> Result<(), Unproven> {
        let Some(owner) = &former.owner else { return Ok(()) };
        if self.takeover == Some(former.epoch) {
            return Ok(());
        }
        let is_same_host = former.host.id == self.host.id;
        match former.host.boot == self.host.boot {
            true if owner.medium != self.owner.medium => Err(Unproven::Medium),
            true if self.reach == MediumReach::FileServer => Err(Unproven::Requests),
            true => Ok(()),
            false if is_same_host && self.reach == MediumReach::Host => Ok(()),
            false if is_same_host => Err(Unproven::Boot),
            false => Err(Unproven::Host),
        }
    }
}

impl Unproven {
    const fn reason(self) -> &'static str {
        match self {
            Self::Medium => "which has another file or device as its medium and did not release the unit",
            Self::Requests => "whose last requests to the file server may still be on their way",
            Self::Boot => "which ran before this host was started again and did not release the unit",
            Self::Host => "which did not release the unit",
        }
    }

    fn remedy(self, former: &DiskRecord) -> String {
        let sure = match self {
            Self::Medium => "once that process has ended",
            Self::Requests => "once that process has ended, and the file server has none of its requests any more",
            Self::Boot => "once no other host writes to the medium",
            Self::Host => "once that host is fenced: it is off, or it can no longer reach the medium",
        };
        let name = former.host.name.as_str();
        format!("stop the disk on {name}; or, {sure}, start with --takeover={}", former.epoch)
    }
}

/// A random UUID (RFC 9562, version 4).
fn new_uuid() -> rustix::io::Result<[u8; 16]> {
    let mut uuid = [0; 16];
    // Up to 256 bytes come whole or not at all (getrandom(2)).
    getrandom(&mut uuid, GetRandomFlags::empty())?;
    uuid[6] = 0x40 | uuid[6] & 0x0f;
    uuid[8] = 0x80 | uuid[8] & 0x3f;
    Ok(uuid)
}

/// The error of a change of a unit that a disk owns, by another writer.
pub(crate) fn owned(unit: &UnitId, disk: &DiskRecord) -> Option<StoreError> {
    let owner = disk.owner.as_ref()?;
    Some(
        StoreError::refused(format!("use the reservations of {unit}"))
            .because(format!("it is {disk}"))
            .remedy(format!("use the control socket of the disk, {}", owner.control)),
    )
}
