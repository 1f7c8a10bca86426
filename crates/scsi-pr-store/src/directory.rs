//! `dir:PATH`: a directory, on one host or on a file system that hosts share (a cluster file system, NFSv4).
//!
//! ```text
//! PATH/scsi-pr-store            the marker: format, and a random identifier
//! PATH/units/UNIT/VERSION       the record of a unit as of a version; the highest version counts
//! PATH/locks/UNIT               writers of the unit take turns by locks here; never replaced, written or removed
//! PATH/new/NAME                 a file that is being written; other processes ignore it
//! ```
//!
//! **A change** is a file that is written below `new`, fsynced, and given the name of the next version with link(2). If
//! another writer was first, the name exists. Then the directory is fsynced, and only then is the change
//! acknowledged. So a change needs no lease. A lock orders the writers, but a host that slept through the loss of its
//! lock finds the name taken.
//!
//! **Old versions are removed** once there are [`KEPT`](versions::KEPT) newer ones. A name may be free because it was
//! removed. So the writer lists the directory *after* the link. The highest version never goes down: if a name was
//! removed before it was linked, the list has a version that is higher by [`KEPT`](versions::KEPT). Then the outcome is
//! unknown, and the late file has no effect, as it is not the highest.
//! [`versions`] has the rules, and the tests of this crate check them in all orders of steps.
//!
//! **A reader** lists the directory and reads the highest version. The writer of an unknown version may not have
//! fsynced the directory yet, so the reader does that first.
//!
//! The file system must meet three conditions. link(2) makes a name or fails, atomically for all hosts. Data after
//! fsync(2) survive a power cut. A directory whose entries fit into one getdents64(2) is listed as it was at one time.
//! Attributes that an NFS
//! client has cached are refreshed before a directory is listed (`AT_STATX_FORCE_SYNC`).

mod root;
mod versions;

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;

use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, Mode, OFlags, fsync, linkat, openat, unlinkat};
use rustix::io::Errno;

use crate::fifo_file_lock::FifoFileLock;
use crate::records::Records;
use crate::unique::unique;
use crate::{StoreError, Swap, UnitId, Version};
use root::{Root, Store, is_same, refresh};
use versions::Verdict;

/// The number of reads after which a reader gives up, if the newest file is removed each time.
const LOOKS: u32 = 100;

/// Keeps records as files of a directory.
pub(crate) struct Directory {
    store: Store,
}

impl Directory {
    /// Opens the store in the directory `path`, and makes it if `create` and nothing is there. `shared`: whether other
    /// hosts use it, if the administrator states that.
    pub(crate) fn open(path: &Path, create: bool, shared: Option<bool>) -> Result<Self, StoreError> {
        Ok(Self { store: Store::open(path, create, shared)? })
    }

    /// Runs `look` on the unit's directory, and again if a file was removed before it was read. `None` if the unit has
    /// no record.
    fn look<T>(
        &self,
        unit: &UnitId,
        look: impl Fn(&OwnedFd) -> io::Result<Option<T>>,
    ) -> Result<Option<T>, StoreError> {
        let attempted = || format!("read the reservations of {unit} in {}", self.store.path().display());
        let root = self.store.root(&attempted)?;
        let mut looks = 0;
        loop {
            looks += 1;
            match root.unit(unit).and_then(|directory| look(&directory)) {
                Ok(found) => return Ok(found),
                // The directory of the unit is not there.
                Err(error) if error.kind() == ErrorKind::NotFound && root.has_no(unit) => return Ok(None),
                // The newest file has been removed since: there are many newer ones.
                Err(error) if looks < LOOKS && is_gone(&error) => {}
                Err(error) => return Err(unchanged(attempted(), error)),
            }
        }
    }

    /// Gives `file`, which is `new`, the name of version `version`. Returns whether it has the name: a network file
    /// system may fail because an answer was lost.
    fn link(root: &Root, new: &str, file: &File, directory: &OwnedFd, version: Version) -> Result<bool, Errno> {
        let linked = linkat(root.directory(), new, directory, versions::name(version), AtFlags::empty());
        let Err(error) = linked else { return Ok(true) };
        match refresh(file).map(|status| status.stx_nlink) {
            Ok(names) if names > 1 => Ok(true),
            Ok(_) if error == Errno::EXIST => Ok(false),
            _ => Err(error),
        }
    }
}

/// Whether a file does not exist (any more). NFS has another error for a file that was open.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(Errno::STALE.raw_os_error())
}

/// An error before any change. A foreign file needs an administrator.
fn unchanged(attempted: String, error: io::Error) -> StoreError {
    match error.kind() {
        ErrorKind::InvalidData => failed(StoreError::refused(attempted), error),
        _ => failed(StoreError::unavailable(attempted), error),
    }
}

fn failed(store_error: StoreError, error: io::Error) -> StoreError {
    let remedy = match error.kind() {
        ErrorKind::InvalidData => "move what does not belong there to another place",
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "make room on its file system",
        ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied => "let this process write the directory",
        ErrorKind::NotFound => "see whether the directory is whole and its file system is mounted",
        _ => "see what the kernel's log says of its file system",
    };
    store_error.because(error).remedy(remedy)
}

impl Records for Directory {
    fn version(&self, unit: &UnitId) -> Result<Version, StoreError> {
        let newest =
            self.look(unit, |directory| versions::list(directory).map(|versions| versions.into_iter().max()))?;
        Ok(newest.unwrap_or_default())
    }

    fn read(&self, unit: &UnitId) -> Result<Option<(Version, Vec<u8>)>, StoreError> {
        self.look(unit, |directory| {
            let Some(newest) = versions::list(directory)?.into_iter().max() else { return Ok(None) };
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let mut file = File::from(openat(directory, versions::name(newest), flags, Mode::empty())?);
            let mut record = Vec::new();
            file.read_to_end(&mut record)?;
            fsync(directory)?;
            Ok(Some((newest, record)))
        })
    }

    fn replace(&self, unit: &UnitId, expected: Version, record: &[u8]) -> Result<Swap, StoreError> {
        let attempted = || format!("store the reservations of {unit} in {}", self.store.path().display());
        let unchanged = |error: io::Error| unchanged(attempted(), error);
        let unknown = |error: io::Error| failed(StoreError::outcome_unknown(attempted()), error);

        let root = self.store.root(&attempted)?;
        if expected == Version(0) {
            root.make_unit(unit).map_err(unchanged)?;
        }
        let directory = match root.unit(unit) {
            // The caller has seen the version that it expects: its next read reports the loss.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Swap::Lost),
            directory => directory.map_err(unchanged)?,
        };
        let newest = versions::list(&directory).map_err(unchanged)?.into_iter().max().unwrap_or_default();
        if newest != expected {
            return Ok(Swap::Lost);
        }

        let version = expected.next();
        let new = New::write(&root, record).map_err(unchanged)?;
        let linked = Self::link(&root, &new.name, &new.file, &directory, version).map_err(|errno| match errno {
            // Every file system returns these before any change.
            Errno::NOSPC | Errno::DQUOT | Errno::ROFS | Errno::ACCESS | Errno::PERM | Errno::NOENT | Errno::MLINK => {
                unchanged(errno.into())
            }
            _ => unknown(errno.into()),
        })?;
        drop(new);

        let listed = versions::list(&directory).map_err(unknown)?;
        // All listed versions are durable from here on.
        fsync(&directory).map_err(|errno| unknown(errno.into()))?;
        let newest = listed.iter().copied().max().unwrap_or_default();
        match versions::verdict(version, linked, newest) {
            Verdict::Lost => return Ok(Swap::Lost),
            Verdict::Unknown => {
                return Err(StoreError::outcome_unknown(attempted())
                    .because(format!("version {newest} was there when version {version} had been made"))
                    .remedy("ask again: this process or its file system stood still for long"));
            }
            Verdict::Done => {}
        }
        // An acknowledged change must be at the path.
        if !self.store.is_in_place(&root) || !root.unit(unit).is_ok_and(|found| is_same(&found, &directory)) {
            return Err(StoreError::outcome_unknown(attempted())
                .because("the directory was moved, removed or replaced meanwhile")
                .remedy("keep the directory where it is while it is in use"));
        }
        for outdated in listed.into_iter().filter(|old| versions::is_outdated(*old, newest)) {
            // Another process may have removed it. The next change tries again to remove a file that is left.
            let _ = unlinkat(&directory, versions::name(outdated), AtFlags::empty());
        }
        Ok(Swap::Done(version))
    }

    fn units(&self) -> Result<Vec<String>, StoreError> {
        let attempted = || format!("list the units in {}", self.store.path().display());
        let names = self.store.root(&attempted)?.list_units().map_err(|error| unchanged(attempted(), error))?;
        let mut units = Vec::new();
        for name in names {
            // The directory of a unit may be there without a record.
            let is_blank = match UnitId::from_identifier(&name) {
                Ok(unit) => self.version(&unit)? == Version(0),
                Err(_) => false,
            };
            if !is_blank {
                units.push(name);
            }
        }
        Ok(units)
    }

    type Turn<'a> = Option<FifoFileLock<Box<File>>>;

    fn turn(&self, unit: &UnitId) -> Self::Turn<'_> {
        let root = self.store.root(&|| String::new()).ok()?;
        let (name, flags) = (format!("locks/{unit}"), OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC);
        let file = match openat(root.directory(), &name, flags, Mode::empty()) {
            // The file is never removed, so it is not created for a unit without a record. The first change may have to
            // try again.
            Err(Errno::NOENT) if root.unit(unit).is_ok() => {
                openat(root.directory(), &name, flags | OFlags::CREATE, Mode::from_raw_mode(0o666))
            }
            file => file,
        };
        FifoFileLock::lock(Box::new(file.ok()?.into()))
    }

    fn is_shared_between_hosts(&self) -> bool {
        self.store.is_shared()
    }

    fn location(&self, unit: &UnitId, version: Version) -> String {
        self.store.path().join("units").join(unit.as_str()).join(versions::name(version)).display().to_string()
    }
}

/// A file below `new`. Its name there is removed when this is dropped.
struct New<'a> {
    root: &'a Root,
    name: String,
    file: File,
}

impl<'a> New<'a> {
    /// A durable file with this content.
    fn write(root: &'a Root, content: &[u8]) -> io::Result<Self> {
        let name = format!("new/{}", unique()?);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(openat(root.directory(), &name, flags, Mode::from_raw_mode(0o666))?);
        let mut new = Self { root, name, file };
        new.file.write_all(content)?;
        new.file.sync_all()?;
        Ok(new)
    }
}

impl Drop for New<'_> {
    fn drop(&mut self) {
        // A file that is left is removed when a process opens the store.
        let _ = unlinkat(self.root.directory(), &self.name, AtFlags::empty());
    }
}
