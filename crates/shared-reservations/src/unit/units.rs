//! [`Units`]: how a descriptor becomes a [`UnitId`].

use std::collections::HashMap;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{FileType, OFlags, Statx, fcntl_getfl};
use rustix::io::Errno;

use super::block::{Sysfs, Told, Walk};
use super::file::{self, FileSystem, Mount};
use super::names::Naming;
use super::sysfs::Untold;
use super::{Unidentified, UnitId, Why};

/// Finds out of which unit a descriptor is: by the names that the administrator gave, else by what the unit tells of itself.
/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct Units(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    sysfs: Sysfs,
    names: Vec<Naming>,
    /// The file systems of the mounts that were seen: a regular file then costs one statx.
    file_systems: Mutex<HashMap<Mount, FileSystem>>,
}

/// How many mounts are remembered. Libvirt gives each virtual machine a mount namespace, so there may be many.
const MOST_MOUNTS: usize = 4096;

impl Default for Units {
    fn default() -> Self {
        Self::new([])
    }
}

impl Units {
    /// With these names, of which the first that fits counts.
    pub fn new(names: impl IntoIterator<Item = Naming>) -> Self {
        Self::with_sysfs("/sys", names)
    }

    pub(super) fn with_sysfs(root: &str, names: impl IntoIterator<Item = Naming>) -> Self {
        let names = names.into_iter().collect();
        Self(Arc::new(Inner { sysfs: Sysfs::at(root), names, file_systems: Mutex::default() }))
    }

    /// The unit that `descriptor` is of.
    ///
    /// A descriptor that was opened with `O_PATH` is refused: whoever has it may not have been allowed to open the disk.
    ///
    /// # Errors
    ///
    /// What the descriptor is of, and why that is not known.
    pub fn identify(&self, descriptor: BorrowedFd<'_>) -> Result<UnitId, Unidentified> {
        let fails = |error: Errno| Unidentified::new(describe(descriptor), Why::ForNow(error.into()));
        if fcntl_getfl(descriptor).map_err(fails)?.contains(OFlags::PATH) {
            return Err(Unidentified::new("a descriptor that was opened with O_PATH", Why::NotADisk));
        }
        let stat =
            file::look(descriptor).map_err(|error| Unidentified::new(describe(descriptor), Why::ForNow(error)))?;
        match file::file_type(&stat) {
            FileType::RegularFile => self.named(&stat).map_or_else(|| self.file(descriptor, &stat), Ok),
            FileType::BlockDevice => self.named(&stat).map_or_else(
                || {
                    let number = file::device(&stat);
                    settle("block device", number, self.0.sysfs.block(number))
                },
                Ok,
            ),
            FileType::CharacterDevice => {
                let number = file::device(&stat);
                let told = self.0.sysfs.generic(number);
                let told = told.ok_or_else(|| not_a_disk(&format!("the character device {number}")))?;
                self.named(&stat).map_or_else(|| settle("SCSI generic device", number, told), Ok)
            }
            FileType::Directory => Err(not_a_disk("a directory")),
            FileType::Fifo => Err(not_a_disk("a pipe")),
            FileType::Socket => Err(not_a_disk("a socket")),
            _ => Err(not_a_disk("what is neither a device nor a file")),
        }
    }

    /// The unit that `descriptor` is of, for a store that several hosts share.
    ///
    /// # Errors
    ///
    /// As [`identify`](Self::identify); and a unit that is not [global](UnitId::is_global).
    pub fn identify_between_hosts(&self, descriptor: BorrowedFd<'_>) -> Result<UnitId, Unidentified> {
        match self.identify(descriptor)? {
            unit if unit.is_global() => Ok(unit),
            unit => Err(Unidentified::new(describe(descriptor), Why::Local(unit))),
        }
    }

    fn named(&self, stat: &Statx) -> Option<UnitId> {
        self.0.names.iter().find(|naming| naming.is_of(stat)).map(|naming| naming.unit().clone())
    }

    fn file(&self, descriptor: BorrowedFd<'_>, stat: &Statx) -> Result<UnitId, Unidentified> {
        if file::is_deleted(stat) {
            return Err(unknown(describe(descriptor), Untold::because("it has no name any more, or never had one")));
        }
        let unit = self.file_system(descriptor, stat).and_then(|file_system| file_system.file(stat));
        unit.map_err(|untold| unknown(describe(descriptor), untold))
    }

    fn file_system(&self, descriptor: BorrowedFd<'_>, stat: &Statx) -> Result<FileSystem, Untold> {
        let mount = Mount::of(stat);
        let remembered = || self.0.file_systems.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = mount.and_then(|mount| remembered().get(&mount).cloned()) {
            return Ok(known);
        }
        let found = FileSystem::of(Walk::new(&self.0.sysfs), descriptor, stat)?;
        if let Some(mount) = mount {
            let mut remembered = remembered();
            if remembered.len() >= MOST_MOUNTS {
                remembered.clear();
            }
            remembered.insert(mount, found.clone());
        }
        Ok(found)
    }
}

fn settle(kind: &str, number: super::sysfs::Number, told: Told) -> Result<UnitId, Unidentified> {
    told.unit.map_err(|untold| {
        let name = told.name.map(|name| format!(" ({name})")).unwrap_or_default();
        unknown(format!("the {kind} {number}{name}"), untold)
    })
}

fn unknown(what: String, untold: Untold) -> Unidentified {
    Unidentified::new(
        what,
        match untold {
            Untold::Nothing(reason) => Why::Unknown(reason.into()),
            Untold::Because(reason) => Why::Unknown(reason),
            Untold::ForNow(error) => Why::ForNow(error),
        },
    )
}

fn not_a_disk(what: &str) -> Unidentified {
    Unidentified::new(what, Why::NotADisk)
}

/// The file or device as this process would find it, for the log: no file system is asked for that.
fn describe(descriptor: BorrowedFd<'_>) -> String {
    let path = std::fs::read_link(format!("/proc/self/fd/{}", descriptor.as_raw_fd()));
    path.map_or_else(|_| "the descriptor".to_owned(), |path| format!("{path:?}"))
}
