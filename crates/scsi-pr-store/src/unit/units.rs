//! [`Units`]: how a descriptor becomes a [`UnitId`].

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{FileType, OFlags, Statx, fcntl_getfl};
use rustix::io::Errno;

use super::block::{Sysfs, Told, Walk};
use super::file::{self, FileSystem, Mount};
use super::names::{Followed, Naming};
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

    /// The same, with a sysfs that is mounted at `root`.
    pub fn with_sysfs(root: impl Into<PathBuf>, names: impl IntoIterator<Item = Naming>) -> Self {
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
        if let Some(unit) = self.named_at(&stat) {
            return Ok(unit);
        }
        let unit = self.own(descriptor, &stat)?;
        Ok(self.named_as(&unit, &stat).unwrap_or(unit))
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

    /// The name of the disk that is open, by where it is found. A name makes no disk of what is none.
    fn named_at(&self, stat: &Statx) -> Option<UnitId> {
        let is_disk = match file::file_type(stat) {
            _ if self.0.names.is_empty() => false,
            FileType::RegularFile => !file::is_deleted(stat),
            FileType::BlockDevice => true,
            FileType::CharacterDevice => self.0.sysfs.generic(file::device(stat)).is_some(),
            _ => false,
        };
        if !is_disk {
            return None;
        }
        self.0.names.iter().find(|naming| naming.is_of(stat)).map(|naming| naming.unit().clone())
    }

    /// The name of a unit that identifies itself, when it is another way to it that was named: another path to a disk, or a
    /// loop device over a file.
    fn named_as(&self, unit: &UnitId, stat: &Statx) -> Option<UnitId> {
        let is_file = |stat: &Statx| file::file_type(stat) == FileType::RegularFile;
        let leads_to = |naming: &&Naming| match naming.followed() {
            Followed::Unit(text) => text == unit.as_str(),
            Followed::Block(number) => self.0.sysfs.block(number).unit.is_ok_and(|there| there == *unit),
            Followed::Open(opened) => file::look(opened.as_fd()).is_ok_and(|there| {
                // Two files are one if they are the same file, which has been looked for.
                !(is_file(&there) && is_file(stat))
                    && self.own(opened.as_fd(), &there).is_ok_and(|there| there == *unit)
            }),
            Followed::Nowhere => false,
        };
        self.0.names.iter().find(leads_to).map(|naming| naming.unit().clone())
    }

    /// What is open, by what it tells of itself.
    fn own(&self, descriptor: BorrowedFd<'_>, stat: &Statx) -> Result<UnitId, Unidentified> {
        let number = file::device(stat);
        match file::file_type(stat) {
            FileType::RegularFile => self.file(descriptor, stat),
            FileType::BlockDevice => settle("block device", number, self.0.sysfs.block(number)),
            FileType::CharacterDevice => match self.0.sysfs.generic(number) {
                Some(told) => settle("SCSI generic device", number, told),
                None => Err(not_a_disk(&format!("the character device {number}"))),
            },
            FileType::Directory => Err(not_a_disk("a directory")),
            FileType::Fifo => Err(not_a_disk("a pipe")),
            FileType::Socket => Err(not_a_disk("a socket")),
            _ => Err(not_a_disk("what is neither a device nor a file")),
        }
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
