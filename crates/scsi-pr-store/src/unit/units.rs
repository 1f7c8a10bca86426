//! [`Units`]: how a descriptor becomes a [`UnitId`].

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{OFlags, fcntl_getfl};
use rustix::io::Errno;
use scsi_pr_linux::device::{FileSystems, FileType, Identified, Node, Number, Sysfs, SysfsError};

use super::names::{Followed, Naming};
use super::{Unidentified, UnitId, Why};

/// Identifies the unit of a descriptor: by the administrator's names, else by the unit's own identifiers. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Units(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    sysfs: Sysfs,
    names: Vec<Naming>,
    file_systems: FileSystems,
}

impl Default for Units {
    fn default() -> Self {
        Self::new([])
    }
}

impl Units {
    /// With these names. The first that fits counts.
    pub fn new(names: impl IntoIterator<Item = Naming>) -> Self {
        Self::with_sysfs("/sys", names)
    }

    /// The same, with a sysfs that is mounted at `root`.
    pub fn with_sysfs(root: impl Into<PathBuf>, names: impl IntoIterator<Item = Naming>) -> Self {
        let names = names.into_iter().collect();
        Self(Arc::new(Inner { sysfs: Sysfs::at(root), names, file_systems: FileSystems::default() }))
    }

    /// The unit of `descriptor`.
    ///
    /// A descriptor that was opened with `O_PATH` is refused: its owner may have no permission to open the disk.
    ///
    /// # Errors
    ///
    /// Describes the descriptor, and why its unit is not identified.
    pub fn identify(&self, descriptor: BorrowedFd<'_>) -> Result<UnitId, Unidentified> {
        let fails = |error: Errno| Unidentified::new(describe(descriptor), Why::Temporary(error.into()));
        if fcntl_getfl(descriptor).map_err(fails)?.contains(OFlags::PATH) {
            return Err(Unidentified::new("a descriptor that was opened with O_PATH", Why::NotADisk));
        }
        let node =
            Node::of(descriptor).map_err(|error| Unidentified::new(describe(descriptor), Why::Temporary(error)))?;
        if let Some(unit) = self.named_at(&node) {
            return Ok(unit);
        }
        let unit = self.own(descriptor, &node)?;
        Ok(self.named_as(&unit, &node).unwrap_or(unit))
    }

    /// The unit of `descriptor`, for a store that several hosts share.
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

    /// The name of the open disk, by its path or number. A name does not apply to a descriptor that is not of a disk.
    fn named_at(&self, node: &Node) -> Option<UnitId> {
        let is_disk = match node.file_type {
            _ if self.0.names.is_empty() => false,
            FileType::RegularFile => !node.is_deleted(),
            FileType::BlockDevice => true,
            FileType::CharacterDevice => self.0.sysfs.identify_generic(node.number).is_some(),
            _ => false,
        };
        if !is_disk {
            return None;
        }
        self.0.names.iter().find(|naming| naming.is_of(node)).map(|naming| naming.unit().clone())
    }

    /// The name of a unit with an identifier, where another path to it has the name: another path to a disk, or a loop device
    /// over a file.
    fn named_as(&self, unit: &UnitId, node: &Node) -> Option<UnitId> {
        let is_file = |node: &Node| node.file_type == FileType::RegularFile;
        let leads_to = |naming: &&Naming| match naming.followed() {
            Followed::Unit(text) => text == unit.as_str(),
            Followed::Block(number) => {
                self.0.sysfs.identify_block(number).identity.is_ok_and(|there| there.as_str() == unit.as_str())
            }
            Followed::Open(opened) => Node::of(opened.as_fd()).is_ok_and(|there| {
                // `named_at` has compared files.
                !(is_file(&there) && is_file(node))
                    && self.own(opened.as_fd(), &there).is_ok_and(|there| there == *unit)
            }),
            Followed::Nowhere => false,
        };
        self.0.names.iter().find(leads_to).map(|naming| naming.unit().clone())
    }

    /// The open unit, by its own identifiers.
    fn own(&self, descriptor: BorrowedFd<'_>, node: &Node) -> Result<UnitId, Unidentified> {
        let number = node.number;
        match node.file_type {
            FileType::RegularFile => {
                let identity = self.0.file_systems.identify(&self.0.sysfs, descriptor, node);
                identity.map(UnitId::from).map_err(|error| unidentified(describe(descriptor), error))
            }
            FileType::BlockDevice => unit("block device", number, self.0.sysfs.identify_block(number)),
            FileType::CharacterDevice => match self.0.sysfs.identify_generic(number) {
                Some(identified) => unit("SCSI generic device", number, identified),
                None => Err(not_a_disk(&format!("the character device {number}"))),
            },
            FileType::Directory => Err(not_a_disk("a directory")),
            FileType::Fifo => Err(not_a_disk("a pipe")),
            FileType::Socket => Err(not_a_disk("a socket")),
            _ => Err(not_a_disk("what is neither a device nor a file")),
        }
    }
}

fn unit(kind: &str, number: Number, identified: Identified) -> Result<UnitId, Unidentified> {
    identified.identity.map(UnitId::from).map_err(|error| {
        let name = identified.name.map(|name| format!(" ({name})")).unwrap_or_default();
        unidentified(format!("the {kind} {number}{name}"), error)
    })
}

fn unidentified(what: String, error: SysfsError) -> Unidentified {
    let why = match error {
        SysfsError::TooManyOpenFiles(error) => Why::Temporary(error),
        error => Why::NoIdentity(error.to_string()),
    };
    Unidentified::new(what, why)
}

fn not_a_disk(what: &str) -> Unidentified {
    Unidentified::new(what, Why::NotADisk)
}

/// The path of the file or device, for the log. The kernel knows it without the file system.
fn describe(descriptor: BorrowedFd<'_>) -> String {
    let path = std::fs::read_link(format!("/proc/self/fd/{}", descriptor.as_raw_fd()));
    path.map_or_else(|_| "the descriptor".to_owned(), |path| format!("{path:?}"))
}
