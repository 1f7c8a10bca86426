//! Which logical unit a descriptor is of, so that one disk has one truth, by whichever way it is reached.
//!
//! Told from statx(2), fcntl(2) and sysfs. Nothing is opened but files of sysfs (and, without access to it, the file behind
//! a loop device), nothing is sent to a device, and nothing is guessed: what has no identity of its own is refused, until
//! the administrator gives it a name (`--unit=NAME=PATH`, [`Naming`]), which it then has by every way that leads to it.
//! Identities are read anew for every command, so a device number that now belongs to another disk, or a logical unit that
//! was mapped anew, is never taken for the old one.
//!
//! | what | identifier | known | stays |
//! | --- | --- | --- | --- |
//! | named by the administrator | `name.NAME` | everywhere | as long as the name is given |
//! | SCSI disk, `/dev/sdX`, `/dev/srX` or `/dev/sgX` | a designator of VPD page 83h: `naa.…`, `eui.…`, `uuid.…`, `t10.…`, `iqn.…` | everywhere | always |
//! | SCSI disk that has but a locally assigned NAA designator (NAA 3h) | `naa.3…` | this host | always |
//! | dm-multipath map | that of its paths, which must agree | as theirs | as theirs |
//! | NVMe namespace with a UUID, an NGUID or an EUI-64 | `nvme.uuid.…`, `nvme.eui.…` | everywhere | always |
//! | NVMe namespace with only a serial number | `nvme.nvme.…` | this host | always |
//! | Ceph RBD image | `rbd.CLUSTER.POOL[.NAMESPACE].IMAGE[.snap-ID]`, by their ids | everywhere | always |
//! | LVM logical volume | `dm.LVM-…`: the uuids of volume group and volume | everywhere | always |
//! | dm-crypt over LUKS | `dm.CRYPT-LUKS2-…`: the uuid of the LUKS header, without the mapping's name | everywhere | always |
//! | any other device-mapper device with a uuid | `dm.UUID` | this host | as its uuid |
//! | partition, by the kernel or by kpartx | that of the disk, and `-part1` | as the disk | as the disk |
//! | loop device over the whole of a file or device | that of the file or device | as that | as that |
//! | regular file | that of its file system, `.inode.NUMBER`, and when it was made, where ext2/3/4, XFS and Btrfs tell | as the file system | as the file system |
//! | device-mapper device without a uuid, loop device over a part, md, bcache, NBD, virtio-blk, zram … | refused | | |
//! | deleted file, memfd, descriptor opened with `O_PATH` | refused | | |
//! | pipe, socket, directory, character device other than sg | refused, and a name does not help | | |
//!
//! The file system of a regular file is identified by
//!
//! 1. for ext2/3/4, XFS, F2FS, GFS2 and OCFS2, whose inode numbers are on the disk: the block device that it is on, where
//!    this table identifies that one. What is known of the disk everywhere makes its files known everywhere, also to the
//!    hosts of a cluster file system;
//! 2. else, for ext2/3/4, Btrfs, ZFS and CephFS: `fsid.…`, `f_fsid` of statfs(2), which they make of their UUID. This host
//!    only, because the UUID goes along when a host's disk is copied;
//! 3. else, for those of 1. and for file systems that are on no block device: `dev.MAJOR:MINOR`, its device number. This host
//!    only, and *not stable*: it may be another one after a restart of the host or a new mount. So are NFS, CIFS, FUSE,
//!    overlay file systems, tmpfs, and XFS on a disk without identity.
//!
//! Files of any other file system on a block device are refused: FAT, for one, makes inode numbers up when a file is opened.
//!
//! A store that several hosts share takes only what is known everywhere: an identifier that two hosts may understand
//! differently would give one disk two truths, or two disks one. A file that is replaced (`mv new.img disk.img`) is another
//! unit, and so is one that was copied: a disk that moves from file to file is given a name.
//!
//! **Parts.** A partition, a volume or a file is a unit of its own, and never the disk that it is on; who hands out both
//! the whole and a part has two truths for the bytes of that part, which cannot be told here.
//!
//! **Copies.** Two disks with one identifier (clones of a LUKS header or of a volume group, targets whose vendor repeats
//! T10 designators) have one truth: reservations of the one are reservations of the other. It errs on the side of refusing,
//! and a name ends it.
//!
//! **Mounts.** A file on a file server is one file for each time that the server is mounted with options of its own, because
//! the host makes another file system of it. It has two truths then, until it is given a name.

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
/// Its text is made of ASCII letters, digits and `.`, `_`, `:`, `+`, `-`, `%` alone, begins with a letter and has at most
/// [`UnitId::MAX_LENGTH`] bytes: it can be (a part of) a file name. Two are equal when their texts are.
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

/// Why a descriptor is of no known unit.
#[derive(Debug)]
pub struct Unidentified {
    /// What the descriptor is of: "the block device 252:0 (vda)".
    what: String,
    why: Why,
}

/// The reasons of [`Unidentified`].
#[derive(Debug)]
pub(crate) enum Why {
    /// A pipe, a socket …
    NotADisk,
    /// It tells nothing of its identity, or not so that it can be trusted.
    Unknown(String),
    /// Its identifier is no use to a store that hosts share.
    Local(UnitId),
    /// The system has no room to find out, or fails to tell.
    ForNow(io::Error),
}

impl Unidentified {
    fn new(what: impl Into<String>, why: Why) -> Self {
        Self { what: what.into(), why }
    }

    /// Whether it may be known later, without anybody's doing.
    pub fn passes(&self) -> bool {
        matches!(self.why, Why::ForNow(_))
    }
}

impl fmt::Display for Unidentified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = &self.what;
        const NAME_IT: &str = "give it a name, the same on every host, with --unit=NAME=PATH";
        match &self.why {
            Why::NotADisk => write!(f, "{what} is no disk"),
            Why::Unknown(reason) => write!(f, "cannot identify {what}: {reason}; {NAME_IT}"),
            Why::Local(unit) => write!(
                f,
                "{what} is known on this host only, as {unit}, and the store is shared between hosts; {NAME_IT}"
            ),
            Why::ForNow(error) => write!(f, "cannot tell what {what} is: {error}"),
        }
    }
}

// No `source()`: the text has the cause already.
impl StdError for Unidentified {}

#[cfg(test)]
mod tests;
