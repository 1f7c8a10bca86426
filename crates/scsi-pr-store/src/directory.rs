//! `dir:PATH`: a directory, on one host or on a file system that hosts share (a cluster file system, NFSv4).
//!
//! ```text
//! PATH/scsi-pr-store            what this is: format, and an identifier by chance
//! PATH/units/UNIT/VERSION       the record of a unit as of a version; the highest version counts
//! PATH/locks/UNIT               those who want to change the unit queue here, by locks; never replaced, written or removed
//! PATH/new/NAME                 what is being written; of no meaning to anybody else
//! ```
//!
//! **A change** is a file that is written below `new`, fsynced, and given the name of the next version with link(2): the
//! name is there already when somebody else was first. Then the directory is fsynced, and only then is the change
//! acknowledged. So whoever changes a unit needs nobody's permission, and nobody's lease: what orders the contenders is a
//! lock, but a host that slept through the loss of its lock finds the name taken.
//!
//! **Old versions are removed** once there are [`KEPT`](versions::KEPT) newer ones. A name that is free because it was
//! removed is told from one that never was by listing the directory *after* the link: the highest version never goes down,
//! so if a name had been removed before it was linked, a version that is higher by [`KEPT`](versions::KEPT) is in the list.
//! Then the outcome is called unknown, and the file that came too late is of no consequence, as it is not the highest.
//! [`versions`] has the rules, and the tests of this crate check them in all orders of steps.
//!
//! **A reader** lists the directory and reads the highest version. One that it does not know yet may have been linked by a
//! writer who has not come to fsync the directory, so the reader does that before it believes it.
//!
//! What is asked of the file system: link(2) makes a name or fails, atomically for all hosts; what was fsynced outlasts a
//! power cut; a directory whose entries fit into one getdents64(2) is listed as it was at one time. Attributes that an NFS
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

/// How often to look again when the file that was the newest has been removed.
const LOOKS: u32 = 100;

/// Keeps records as files of a directory.
pub(crate) struct Directory {
    store: Store,
}

impl Directory {
    /// Opens the store in the directory `path`, and makes it if `create` and nothing is there. `shared`: what the
    /// administrator says of whether other hosts use it.
    pub(crate) fn open(path: &Path, create: bool, shared: Option<bool>) -> Result<Self, StoreError> {
        Ok(Self { store: Store::open(path, create, shared)? })
    }

    /// Runs `look` on the unit's directory, again when what it found there was removed before it was read. `None` where there
    /// is nothing yet.
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
                // The file was the newest, and has been removed since: there are many newer ones.
                Err(error) if looks < LOOKS && is_gone(&error) => {}
                Err(error) => return Err(unchanged(attempted(), error)),
            }
        }
    }

    /// Gives `file`, which is `new`, the name of version `version`. Whether it has it: an error of a network file system may
    /// be that of an answer which was lost.
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

/// Whether a file is not there (any more). A client of NFS is told so by another error if it had the file open.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(Errno::STALE.raw_os_error())
}

/// An error that kept something from being done. What is foreign there waits for somebody to act.
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
            // Whoever expects a version has seen it: the next look says that it is gone.
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
            // Said before anything is done, by every file system.
            Errno::NOSPC | Errno::DQUOT | Errno::ROFS | Errno::ACCESS | Errno::PERM | Errno::NOENT | Errno::MLINK => {
                unchanged(errno.into())
            }
            _ => unknown(errno.into()),
        })?;
        drop(new);

        let listed = versions::list(&directory).map_err(unknown)?;
        // All that was listed is durable from here on.
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
        // What is acknowledged must be found by whoever looks at the path.
        if !self.store.is_in_place(&root) || !root.unit(unit).is_ok_and(|found| is_same(&found, &directory)) {
            return Err(StoreError::outcome_unknown(attempted())
                .because("the directory was moved, removed or replaced meanwhile")
                .remedy("keep the directory where it is while it is in use"));
        }
        for outdated in listed.into_iter().filter(|old| versions::is_outdated(*old, newest)) {
            // Somebody else may have removed it; and what cannot be removed now is next time.
            let _ = unlinkat(&directory, versions::name(outdated), AtFlags::empty());
        }
        Ok(Swap::Done(version))
    }

    type Turn<'a> = Option<FifoFileLock<Box<File>>>;

    fn turn(&self, unit: &UnitId) -> Self::Turn<'_> {
        let root = self.store.root(&|| String::new()).ok()?;
        let (name, flags) = (format!("locks/{unit}"), OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC);
        let file = match openat(root.directory(), &name, flags, Mode::empty()) {
            // A file that is never removed is not made for a unit that was only asked for: whoever makes the unit may
            // have to try again.
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

/// A file below `new`, whose name there goes away with this.
struct New<'a> {
    root: &'a Root,
    name: String,
    file: File,
}

impl<'a> New<'a> {
    /// A file with this content, which is durable.
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
        // What is left is removed when the store is opened, some day.
        let _ = unlinkat(self.root.directory(), &self.name, AtFlags::empty());
    }
}
