//! Regular files: the file system, the inode number, and the birth time. The birth time tells a new file from a deleted one
//! with the same inode number.

use std::os::fd::BorrowedFd;

use rustix::fs::{fstatfs, fstatvfs};

use super::{Identity, Scope};
use crate::device::{Node, Number, SysfsError};

/// The identity of a file system.
#[derive(Clone, Debug)]
pub(super) struct FileSystem {
    identity: Identity,
    /// Whether its inodes have a birth time. A file system type has it on every host, or on none.
    has_births: bool,
}

// From Linux `include/uapi/linux/magic.h`, and of OpenZFS.
const OVERLAY: u64 = 0x794c_7630;
const F2FS: u64 = 0xf2f5_2010;
const GFS2: u64 = 0x0116_1970;
const OCFS2: u64 = 0x7461_636f;
const EXT: u64 = 0xef53;
const BTRFS: u64 = 0x9123_683e;
const XFS: u64 = 0x5846_5342;
const CEPH: u64 = 0x00c3_6400;
const ZFS: u64 = 0x2fc1_2fc1;

impl FileSystem {
    /// The file system that the file is on. `identify` identifies the block device beneath.
    pub(super) fn of(
        descriptor: BorrowedFd<'_>,
        node: &Node,
        identify: impl FnOnce(Number) -> Result<Identity, SysfsError>,
    ) -> Result<Self, SysfsError> {
        let number = node.file_system;
        // The widths of the type differ between architectures; magic numbers have 32 bits.
        let magic = fstatfs(descriptor).map_err(failed)?.f_type as u64 & 0xffff_ffff;
        let device = match (number.major, magic) {
            // On no block device, or on the devices of its layers.
            (0, _) | (_, OVERLAY) => None,
            (_, EXT | XFS | F2FS | GFS2 | OCFS2) => match identify(number) {
                Ok(identity) => Some(identity),
                // The device never has one.
                Err(SysfsError::NoIdentity(_)) => None,
                // The device may have one that cannot be read now. A second identity would split its files.
                Err(SysfsError::Unexplained(reason)) => {
                    return Err(SysfsError::Unexplained(format!(
                        "its file system is on the block device {number}: {reason}"
                    )));
                }
                Err(error) => return Err(error),
            },
            // FAT, for one, invents inode numbers when a file is opened.
            _ => {
                let reason =
                    format!("the inode numbers of its file system (type {magic:#x}) may not be those of its disk");
                return Err(SysfsError::Unexplained(reason));
            }
        };
        let has_births = matches!(magic, EXT | BTRFS | XFS);
        if let Some(identity) = device {
            return Ok(Self { identity, has_births });
        }
        let identity = match (magic, fstatvfs(descriptor).map_err(failed)?.f_fsid) {
            (EXT | BTRFS | CEPH | ZFS, id) if id != 0 => Identity::new(format!("fsid.{id:016x}"), Scope::Host),
            _ => Identity::new(format!("dev.{number}"), Scope::Boot),
        };
        Ok(Self { identity: identity?, has_births })
    }

    /// The identity of a file on it.
    pub(super) fn file(&self, node: &Node) -> Result<Identity, SysfsError> {
        self.identity.part(&match node.birth.filter(|_| self.has_births) {
            Some((seconds, nanoseconds)) => format!(".inode.{}.{seconds:x}.{nanoseconds:x}", node.inode),
            None => format!(".inode.{}", node.inode),
        })
    }
}

fn failed(error: rustix::io::Errno) -> SysfsError {
    SysfsError::Unexplained(format!("its file system does not answer: {error}"))
}
