//! The identity of the logical unit behind a descriptor. A disk has one identity by every path to it.
//!
//! [`scsi_pr_linux::device`] reads the identifiers that a device or a file has itself, by statx(2), fcntl(2) and sysfs. It
//! sends nothing to a device, and guesses nothing. A unit without an identifier is refused, until the administrator names it
//! (`--unit=NAME=PATH`, [`Naming`]). It then has this name by every path to it. Identities are read again for each command. So
//! a reused device number, or a unit that was mapped again, is never taken for the former unit.
//!
//! | unit | identifier | known | stable |
//! | --- | --- | --- | --- |
//! | named by the administrator | `name.NAME` | everywhere | as long as the name is given |
//! | SCSI disk, `/dev/sdX`, `/dev/srX` or `/dev/sgX` | a designator of VPD page 83h: `naa.…`, `eui.…`, `uuid.…`, `t10.…`, `iqn.…` | everywhere | always |
//! | SCSI disk with only a locally assigned NAA designator (NAA 3h) | `naa.3…` | this host | always |
//! | dm-multipath map | that of its paths, which must agree | as theirs | as theirs |
//! | NVMe namespace with a UUID, an NGUID or an EUI-64 | `nvme.uuid.…`, `nvme.eui.…` | everywhere | always |
//! | NVMe namespace with only a serial number | `nvme.nvme.…` | this host | always |
//! | Ceph RBD image | `rbd.CLUSTER.POOL[.NAMESPACE].IMAGE[.snap-ID]`, by their ids | everywhere | always |
//! | LVM logical volume | `dm.LVM-…`: the uuids of volume group and volume | everywhere | always |
//! | dm-crypt over LUKS | `dm.CRYPT-LUKS2-…`: the uuid of the LUKS header, without the mapping's name | everywhere | always |
//! | any other device-mapper device with a uuid | `dm.UUID` | this host | as its uuid |
//! | partition, by the kernel or by kpartx | that of the disk, and `-part1` | as the disk | as the disk |
//! | loop device over the whole of a file or device | that of the file or device | as that | as that |
//! | regular file | that of its file system, `.inode.NUMBER`, and its birth time on ext2/3/4, XFS and Btrfs | as the file system | as the file system |
//! | device-mapper device without a uuid, loop device over a part, md, bcache, NBD, virtio-blk, zram … | refused | | |
//! | deleted file, memfd, descriptor opened with `O_PATH` | refused | | |
//! | pipe, socket, directory, character device other than sg | refused, and a name does not help | | |
//!
//! The file system of a regular file is identified by the first of these that applies:
//!
//! 1. The block device that it is on, where this table identifies that device. This applies to ext2/3/4, XFS, F2FS, GFS2 and
//!    OCFS2, whose inode numbers are on the disk. If the device is known everywhere, so are its files, also to the hosts of a
//!    cluster file system.
//! 2. `fsid.…`, the `f_fsid` of statfs(2), for ext2/3/4, Btrfs, ZFS and CephFS. They derive it from their UUID. It is known on
//!    this host only, because a copy of the disk has the same UUID.
//! 3. `dev.MAJOR:MINOR`, its device number, for those of 1. and for file systems on no block device: NFS, CIFS, FUSE, overlay
//!    file systems, tmpfs. It is known on this host only and *not stable*: a restart of the host or a new mount may change it.
//!
//! Files of other file systems on block devices are refused. FAT, for one, invents inode numbers when a file is opened.
//!
//! A store that several hosts share accepts only identifiers that are known everywhere. Otherwise one disk could have two
//! records, or two disks one record. A file that is replaced (`mv new.img disk.img`) or copied is another unit. So name a
//! disk that moves from file to file.
//!
//! **Parts.** A partition, a volume or a file is a unit of its own, apart from its disk. If an administrator gives out both,
//! the bytes of the part have two records. This crate cannot detect that.
//!
//! **Copies.** Two disks with one identifier share a record: clones of a LUKS header or of a volume group, or targets whose
//! vendor repeats T10 designators. Reservations of one then apply to the other, which is safe. A name separates them.
//!
//! **Mounts.** A host makes another file system of each mount of a file server with different options. A file then has two
//! records, unless it has a name.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::sync::Arc;

use scsi_pr_linux::device::{Identity, Scope};

mod names;
mod units;

pub use names::{InvalidNaming, Naming};
pub use units::Units;

/// Identifies a logical unit.
///
/// The text has ASCII letters, digits and `.`, `_`, `:`, `+`, `-`, `%` alone, begins with a letter, and has at most
/// [`UnitId::MAX_LENGTH`] bytes. It can be (a part of) a file name. Two are equal when their texts are.
#[derive(Clone, Debug)]
pub struct UnitId {
    text: Arc<str>,
    scope: Scope,
}

impl UnitId {
    /// The most bytes of an identifier.
    pub const MAX_LENGTH: usize = Identity::MAX_LENGTH;

    /// The unit that an administrator calls `name`: `name.NAME`.
    ///
    /// # Errors
    ///
    /// [`InvalidNaming::Name`] unless it is 1 to 128 ASCII letters, digits and `.`, `_`, `:`, `+`, `-`.
    pub fn named(name: &str) -> Result<Self, InvalidNaming> {
        let allowed = !name.is_empty() && name.len() <= 128 && name.bytes().all(is_plain);
        match allowed {
            true => Ok(Self { text: format!("name.{name}").into(), scope: Scope::Global }),
            false => Err(InvalidNaming::Name(name.to_owned())),
        }
    }

    /// The unit with this identifier, as a store lists it: `naa.600140500000001`, `name.shared`. The administrator vouches that
    /// it means the same unit here.
    ///
    /// # Errors
    ///
    /// [`InvalidNaming::Place`] unless it has the form of an identifier.
    pub fn from_identifier(text: &str) -> Result<Self, InvalidNaming> {
        let shaped = text.len() <= Self::MAX_LENGTH
            && text.starts_with(|first: char| first.is_ascii_lowercase())
            && text.contains('.')
            && text.bytes().all(|byte| is_plain(byte) || byte == b'%');
        match shaped {
            true => Ok(Self { text: text.into(), scope: Scope::Global }),
            false => Err(InvalidNaming::Place(text.to_owned())),
        }
    }

    /// The text: `naa.600140500000001`.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether every host that sees the disk knows it by this identifier.
    pub fn is_global(&self) -> bool {
        self.scope == Scope::Global
    }

    /// Whether the disk keeps this identifier when the host restarts.
    pub fn is_stable(&self) -> bool {
        self.scope > Scope::Boot
    }
}

/// Whether a byte needs no escape in an identifier.
const fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b':' | b'+' | b'-')
}

impl From<Identity> for UnitId {
    fn from(identity: Identity) -> Self {
        Self { text: identity.as_str().into(), scope: identity.scope() }
    }
}

impl PartialEq for UnitId {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for UnitId {}

impl PartialOrd for UnitId {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for UnitId {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.text.cmp(&other.text)
    }
}

impl std::hash::Hash for UnitId {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl fmt::Display for UnitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Why the unit of a descriptor is not identified.
#[derive(Debug)]
pub struct Unidentified {
    /// The description of the descriptor: "the block device 252:0 (vda)".
    what: String,
    why: Why,
}

/// The reasons of [`Unidentified`].
#[derive(Debug)]
pub(crate) enum Why {
    /// A pipe, a socket …
    NotADisk,
    /// It has no identifier that can be trusted.
    NoIdentity(String),
    /// A store that hosts share cannot use its identifier.
    Local(UnitId),
    /// The system failed to tell, or has no room to find out.
    Temporary(io::Error),
}

impl Unidentified {
    fn new(what: impl Into<String>, why: Why) -> Self {
        Self { what: what.into(), why }
    }

    /// Whether it may work later, without a change by an administrator.
    pub fn passes(&self) -> bool {
        matches!(self.why, Why::Temporary(_))
    }
}

impl fmt::Display for Unidentified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = &self.what;
        const NAME_IT: &str = "give it a name, the same on every host, with --unit=NAME=PATH";
        match &self.why {
            Why::NotADisk => write!(f, "{what} is no disk"),
            Why::NoIdentity(reason) => write!(f, "cannot identify {what}: {reason}; {NAME_IT}"),
            Why::Local(unit) => write!(
                f,
                "{what} is known on this host only, as {unit}, and the store is shared between hosts; {NAME_IT}"
            ),
            Why::Temporary(error) => write!(f, "cannot tell what {what} is: {error}"),
        }
    }
}

// No `source()`: the text has the cause already.
impl StdError for Unidentified {}

#[cfg(test)]
mod tests;
