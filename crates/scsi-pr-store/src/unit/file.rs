//! Regular files: the file system, the number of the inode, and when that was made, so that a new file is not taken for a
//! deleted one whose number it was given.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, FileType, Statx, StatxFlags, fstatfs, fstatvfs, statx};

use super::block::{Walk, too_long};
use super::sysfs::{Number, Untold};
use super::{Known, UnitId};

/// `STATX_MNT_ID_UNIQUE` (since Linux 6.8; rustix has no name for it yet): the number of the mount is never used again.
const UNIQUE_MOUNT: StatxFlags = StatxFlags::from_bits_retain(0x4000);

/// What statx(2) tells of an open file: one system call, and no question to a server whose answer could be long in coming.
pub(super) fn look(descriptor: BorrowedFd<'_>) -> io::Result<Statx> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    Ok(statx(descriptor, c"", flags, StatxFlags::BASIC_STATS | StatxFlags::BTIME | UNIQUE_MOUNT)?)
}

pub(super) fn file_type(stat: &Statx) -> FileType {
    FileType::from_raw_mode(stat.stx_mode.into())
}

/// The device that a descriptor is of.
pub(super) fn device(stat: &Statx) -> Number {
    Number { major: stat.stx_rdev_major, minor: stat.stx_rdev_minor }
}

/// What a file system is known by.
#[derive(Clone, Debug)]
pub(super) struct FileSystem {
    unit: UnitId,
    /// Whether its inodes tell when they were made; those that do, have done so for long, on every host alike.
    births: bool,
}

/// Of which mount a [`FileSystem`] was found out. A mount has but one file system on a block device, for as long as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Mount {
    number: u64,
    device: Number,
}

impl Mount {
    /// `None` where it cannot be told apart from others before and after it: before Linux 6.8; and on file systems without a
    /// block device, where one mount may have several (the subvolumes of Btrfs).
    pub(super) fn of(stat: &Statx) -> Option<Self> {
        let unique = stat.stx_mask & UNIQUE_MOUNT.bits() != 0 && stat.stx_dev_major != 0;
        unique.then(|| Self { number: stat.stx_mnt_id, device: on(stat) })
    }
}

/// The number of the file system that the file is on.
fn on(stat: &Statx) -> Number {
    Number { major: stat.stx_dev_major, minor: stat.stx_dev_minor }
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
    /// The one that the file is on.
    pub(super) fn of(walk: Walk<'_>, descriptor: BorrowedFd<'_>, stat: &Statx) -> Result<Self, Untold> {
        let number = on(stat);
        // The widths of the type differ between architectures; magic numbers have 32 bits.
        let magic = fstatfs(descriptor).map_err(failed)?.f_type as u64 & 0xffff_ffff;
        let device = match (number.major, magic) {
            // On no block device; or on whatever the layers are on.
            (0, _) | (_, OVERLAY) => None,
            (_, EXT | XFS | F2FS | GFS2 | OCFS2) => match walk.block(number) {
                Ok(unit) => Some(unit),
                // It will never have one.
                Err(Untold::Nothing(_)) => None,
                // It may have one that cannot be told; another in its place would be a second one.
                Err(Untold::Because(reason)) => {
                    return Err(Untold::Because(format!("its file system is on the block device {number}: {reason}")));
                }
                Err(for_now) => return Err(for_now),
            },
            // FAT, for one, makes numbers up when a file is opened.
            _ => {
                let reason =
                    format!("the inode numbers of its file system (type {magic:#x}) may not be those of its disk");
                return Err(Untold::Because(reason));
            }
        };
        let births = matches!(magic, EXT | BTRFS | XFS);
        if let Some(unit) = device {
            return Ok(Self { unit, births });
        }
        let unit = match (magic, fstatvfs(descriptor).map_err(failed)?.f_fsid) {
            (EXT | BTRFS | CEPH | ZFS, id) if id != 0 => UnitId::new(format!("fsid.{id:016x}"), Known::Here),
            _ => UnitId::new(format!("dev.{number}"), Known::ForNow),
        };
        Ok(Self { unit: unit.ok_or_else(too_long)?, births })
    }

    /// The file itself.
    pub(super) fn file(&self, stat: &Statx) -> Result<UnitId, Untold> {
        let born = self.births && stat.stx_mask & StatxFlags::BTIME.bits() != 0;
        let suffix = match born {
            true => {
                let at = &stat.stx_btime;
                format!(".inode.{}.{:x}.{:x}", stat.stx_ino, at.tv_sec, at.tv_nsec)
            }
            false => format!(".inode.{}", stat.stx_ino),
        };
        self.unit.part(&suffix).ok_or_else(too_long)
    }
}

fn failed(error: rustix::io::Errno) -> Untold {
    Untold::Because(format!("its file system does not answer: {error}"))
}

/// A file without a name: nobody else can open it, and its inode number is free once it is closed.
pub(super) fn is_deleted(stat: &Statx) -> bool {
    stat.stx_nlink == 0
}

/// What a loop device gives access to.
pub(super) struct Behind {
    pub(super) unit: UnitId,
    /// The bytes of a regular file.
    pub(super) size: Option<u64>,
}

/// What is behind a loop device, by a descriptor that need not be good for more than looking.
pub(super) fn behind(walk: Walk<'_>, descriptor: &impl AsFd) -> Result<Behind, Untold> {
    let descriptor = descriptor.as_fd();
    let stat = look(descriptor).map_err(|error| Untold::Because(error.to_string()))?;
    match file_type(&stat) {
        FileType::RegularFile if !is_deleted(&stat) => {
            let unit = FileSystem::of(walk, descriptor, &stat)?.file(&stat)?;
            Ok(Behind { unit, size: Some(stat.stx_size) })
        }
        FileType::BlockDevice => Ok(Behind { unit: walk.block(device(&stat))?, size: None }),
        _ => Err(Untold::because("it is no file")),
    }
}
