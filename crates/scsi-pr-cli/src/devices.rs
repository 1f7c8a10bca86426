//! Whose the reservations of a device are: the store's, a helper's, or nobody's here.
//!
//! It is decided by what the device is and by what the administrator said, never by trying: a disk that fails for a moment
//! would be kept here from then on, and be two disks to those who reserve it.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use pr_managers::device::{Device, Kind, Number, Sysfs};
use pr_managers::policy::Refusals;
use rustix::fs::{FileType, fstat, major, minor};
use scsi_pr::{Command, Completion};

const REMEDY: &str = "--pass=SOCKET sends what has its own reservations to a helper, --keep=PATH keeps them in this store, to \
                      which everybody must come then";

/// Decides for each command anew: device numbers are reused, and paths lead elsewhere.
#[derive(Debug)]
pub(crate) struct Devices {
    keep: Vec<PathBuf>,
    passes: bool,
    sysfs: PathBuf,
    refusals: Refusals,
}

/// Who has the reservations of a device.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// Our store.
    Store,
    /// The device itself: a helper reaches them.
    Helper,
    /// Nobody whom we may ask: the answer to every command.
    Nobody(Completion),
}

impl Devices {
    /// `keep` are the paths of devices whose reservations are kept in the store whatever they are; `passes` says whether
    /// there is a helper.
    pub(crate) fn new(keep: Vec<PathBuf>, passes: bool) -> Self {
        Self { keep, passes, sysfs: "/sys".into(), refusals: Refusals::new(REMEDY) }
    }

    /// Who answers `command`, which came with this descriptor.
    pub(crate) fn owner(&self, descriptor: BorrowedFd<'_>, command: Command<'_>) -> Owner {
        match self.look_up(descriptor) {
            Ok(Found::Store) => Owner::Store,
            Ok(Found::ItsOwn(_)) if self.passes => Owner::Helper,
            Ok(Found::ItsOwn(device)) => self.refuse(command, &device, "others may use the reservations that it has"),
            Ok(Found::Unexplained(device)) => self.refuse(command, &device, "it may have reservations of its own"),
            Err(error) => Owner::Nobody(self.refusals.put_off(command, &error)),
        }
    }

    fn refuse(&self, command: Command<'_>, device: &Device, why: &str) -> Owner {
        Owner::Nobody(self.refusals.refuse(command, device.number(), || device, why))
    }

    fn look_up(&self, descriptor: BorrowedFd<'_>) -> io::Result<Found> {
        let Some(node) = Node::of(descriptor)? else { return Ok(Found::Store) };
        if self.is_kept(node) {
            return Ok(Found::Store);
        }
        let device = Sysfs::at(&self.sysfs).device(descriptor)?;
        Ok(match device.kind() {
            Kind::ScsiBlock | Kind::ScsiGeneric | Kind::Multipath { .. } | Kind::NvmeNamespace => Found::ItsOwn(device),
            Kind::Unexplained { .. } => Found::Unexplained(device),
            // What is no disk at all the store refuses by itself.
            _ => Found::Store,
        })
    }

    /// Whether one of the paths to keep leads to the unit of this node.
    fn is_kept(&self, node: Node) -> bool {
        self.keep.iter().any(|path| {
            // A path that leads nowhere now keeps nothing.
            let Ok(Some(kept)) = Node::at(path) else { return false };
            kept == node || self.unit(kept).is_some_and(|unit| Some(unit) == self.unit(node))
        })
    }

    /// The SCSI device that a node is of: `sda` and `sg0` may have the same.
    fn unit(&self, node: Node) -> Option<PathBuf> {
        fs::canonicalize(self.sysfs.join("dev").join(node.to_string()).join("device")).ok()
    }
}

/// What a descriptor is of.
enum Found {
    /// Something without reservations of its own, or that is to be kept.
    Store,
    /// A device that has its own.
    ItsOwn(Device),
    /// Nobody knows.
    Unexplained(Device),
}

/// A device node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Node {
    is_block: bool,
    number: Number,
}

impl Node {
    fn of(descriptor: BorrowedFd<'_>) -> io::Result<Option<Self>> {
        Ok(Self::from(fstat(descriptor)?))
    }

    fn at(path: &Path) -> io::Result<Option<Self>> {
        Ok(Self::from(rustix::fs::stat(path)?))
    }

    /// `None` for what is no device.
    fn from(stat: rustix::fs::Stat) -> Option<Self> {
        let number = Number { major: major(stat.st_rdev), minor: minor(stat.st_rdev) };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::BlockDevice => Some(Self { is_block: true, number }),
            FileType::CharacterDevice => Some(Self { is_block: false, number }),
            _ => None,
        }
    }
}

impl fmt::Display for Node {
    /// As below `/sys/dev`: `block/8:0`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", if self.is_block { "block" } else { "char" }, self.number)
    }
}
