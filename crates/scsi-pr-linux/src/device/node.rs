//! Device numbers, and the properties of a descriptor or a path without sysfs.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::str::FromStr;

use rustix::fs::{AtFlags, CWD, OFlags, Statx, StatxFlags, fcntl_getfl, fstat, major, minor, statx};

/// A device number, `8:0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Number {
    /// The driver.
    pub major: u32,
    /// The device among those of the driver.
    pub minor: u32,
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl FromStr for Number {
    /// The text is not `MAJOR:MINOR`.
    type Err = ();

    /// Reads the text of [`Display`](fmt::Display), which is the kernel's.
    fn from_str(text: &str) -> Result<Self, ()> {
        let (major, minor) = text.split_once(':').ok_or(())?;
        let number = |text: &str| text.parse().map_err(drop);
        Ok(Self { major: number(major)?, minor: number(minor)? })
    }
}

/// The type of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileType {
    /// A regular file.
    RegularFile,
    /// A block device.
    BlockDevice,
    /// A character device.
    CharacterDevice,
    /// A directory.
    Directory,
    /// A pipe.
    Fifo,
    /// A socket.
    Socket,
    /// Another type, or none: a symbolic link, an epoll instance …
    Other,
}

impl FileType {
    /// The type in `st_mode` of stat(2).
    pub(crate) fn from_raw_mode(mode: u32) -> Self {
        match rustix::fs::FileType::from_raw_mode(mode) {
            rustix::fs::FileType::RegularFile => Self::RegularFile,
            rustix::fs::FileType::BlockDevice => Self::BlockDevice,
            rustix::fs::FileType::CharacterDevice => Self::CharacterDevice,
            rustix::fs::FileType::Directory => Self::Directory,
            rustix::fs::FileType::Fifo => Self::Fifo,
            rustix::fs::FileType::Socket => Self::Socket,
            _ => Self::Other,
        }
    }
}

/// A descriptor of a block device, by one fstat(2).
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockDevice<'a> {
    descriptor: BorrowedFd<'a>,
    number: Number,
}

impl<'a> BlockDevice<'a> {
    /// `None` when `descriptor` is not of a block device.
    ///
    /// # Errors
    ///
    /// Those of fstat(2).
    pub(crate) fn of(descriptor: BorrowedFd<'a>) -> io::Result<Option<Self>> {
        let stat = fstat(descriptor)?;
        let number = Number { major: major(stat.st_rdev), minor: minor(stat.st_rdev) };
        let is = FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice;
        Ok(is.then_some(Self { descriptor, number }))
    }

    pub(crate) const fn number(&self) -> Number {
        self.number
    }

    /// A number that no other disk has had since the machine started. A disk gets another one when its medium changes, as a
    /// loop device that is attached anew. A partition has that of its disk. `None` before Linux 5.15, and for `O_PATH`.
    pub(crate) fn sequence_number(&self) -> Option<u64> {
        crate::sys::disk_sequence_number(self.descriptor).ok()
    }
}

/// How a descriptor was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// For reading only, or with `O_PATH`.
    ReadOnly,
    /// For writing too, or with the access mode 3 of Linux (ioctl alone).
    Writable,
}

impl Access {
    /// # Errors
    ///
    /// Those of fcntl(2).
    pub(crate) fn of(descriptor: BorrowedFd<'_>) -> io::Result<Self> {
        let flags = fcntl_getfl(descriptor)?;
        // With `O_PATH` the kernel clears the access mode, but the manual does not promise it.
        let read_only = flags & OFlags::RWMODE == OFlags::RDONLY || flags.contains(OFlags::PATH);
        Ok(if read_only { Self::ReadOnly } else { Self::Writable })
    }
}

/// Whether `descriptor` is a block device's.
///
/// # Errors
///
/// Those of fstat(2).
pub(crate) fn is_block_device(descriptor: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(BlockDevice::of(descriptor)?.is_some())
}

/// `STATX_MNT_ID_UNIQUE` (Linux 6.8; rustix has no name for it yet): the number of a mount is never reused.
const UNIQUE_MOUNT: StatxFlags = StatxFlags::from_bits_retain(0x4000);

/// The properties of a file by statx(2): one system call, which does not wait for a file server.
#[derive(Clone, Copy, Debug)]
pub struct Node {
    /// The type of the file.
    pub file_type: FileType,
    /// The device number of a device.
    pub number: Number,
    /// The device number of the file system that the file is on.
    pub(crate) file_system: Number,
    /// The mount of a file system on a block device. `None` where the kernel has no unique number for it (before Linux
    /// 6.8), and on other file systems, where one mount may have several: the subvolumes of Btrfs.
    pub(crate) mount: Option<u64>,
    pub(crate) inode: u64,
    /// Seconds and nanoseconds of the time at which the inode was made.
    pub(crate) birth: Option<(i64, u32)>,
    /// Bytes.
    pub(crate) size: u64,
    links: u32,
}

impl Node {
    /// The file that is open.
    ///
    /// # Errors
    ///
    /// Those of statx(2).
    pub fn of(descriptor: BorrowedFd<'_>) -> io::Result<Self> {
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let mask = StatxFlags::BASIC_STATS | StatxFlags::BTIME | UNIQUE_MOUNT;
        Ok(Self::from(statx(descriptor, c"", flags, mask)?))
    }

    /// The file at a path.
    ///
    /// # Errors
    ///
    /// Those of statx(2).
    pub fn at(path: &Path) -> io::Result<Self> {
        let mask = StatxFlags::TYPE | StatxFlags::INO;
        Ok(Self::from(statx(CWD, path, AtFlags::STATX_DONT_SYNC, mask)?))
    }

    fn from(stat: Statx) -> Self {
        let has = |flag: StatxFlags| stat.stx_mask & flag.bits() != 0;
        let birth = (stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec);
        Self {
            file_type: FileType::from_raw_mode(stat.stx_mode.into()),
            number: Number { major: stat.stx_rdev_major, minor: stat.stx_rdev_minor },
            file_system: Number { major: stat.stx_dev_major, minor: stat.stx_dev_minor },
            mount: (has(UNIQUE_MOUNT) && stat.stx_dev_major != 0).then_some(stat.stx_mnt_id),
            inode: stat.stx_ino,
            birth: has(StatxFlags::BTIME).then_some(birth),
            size: stat.stx_size,
            links: stat.stx_nlink,
        }
    }

    /// Whether it is a device.
    pub fn is_device(&self) -> bool {
        matches!(self.file_type, FileType::BlockDevice | FileType::CharacterDevice)
    }

    /// Whether it is a file without a name. No other process can open it, and its inode number is free once it is closed.
    /// Unknown, and so false, for a node by [`at`](Self::at).
    pub fn is_deleted(&self) -> bool {
        self.links == 0
    }

    /// Whether both are nodes of one device, or of one file that is not a device.
    pub fn is_same(&self, other: &Self) -> bool {
        match self.file_type {
            _ if self.file_type != other.file_type => false,
            _ if self.is_device() => self.number == other.number,
            _ => (self.file_system, self.inode) == (other.file_system, other.inode),
        }
    }
}
