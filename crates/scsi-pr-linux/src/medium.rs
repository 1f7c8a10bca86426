//! [`FileMedium`]: a regular file or a block device as the medium of a disk.

mod direct;
mod lock;
mod open;
mod sync;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::{FallocateFlags, FileType, SeekFrom, fallocate, seek};
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use scsi_pr_disk::{Allocation, Durability, Extent, Medium, MediumError};

pub use lock::Holder;
pub use open::OpenMediumError;

use crate::sys;
use direct::DirectIo;
use sync::Synchronizer;

/// The zeros that one system call writes.
const ZEROS: usize = 256 << 10;

/// The longest read that is tried without waiting, in bytes: of a longer one, the copy costs more than another thread.
const MAX_CACHED: usize = 32 << 10;

/// TMPFS_MAGIC and RAMFS_MAGIC (Linux `linux/magic.h`).
const MEMORY_FILE_SYSTEMS: [i64; 2] = [0x0102_1994, 0x8584_58f6];

/// How a medium is opened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct MediumOptions {
    /// A regular file or a block device.
    pub path: PathBuf,
    /// Whether the disk may be written.
    pub access: Access,
    /// Whether the page cache is used.
    pub cache: CacheMode,
    /// LOGICAL BLOCK LENGTH of the disk in bytes. With [`CacheMode::None`], every call is for whole blocks.
    pub block_size: u32,
    /// How long to wait until another holder of the medium has closed it. The kernel holds the lock of a process that was
    /// killed until its last request has ended.
    pub lock_timeout: Duration,
}

impl MediumOptions {
    /// A writable medium with blocks of 512 bytes in the page cache, which must be free now.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let cache = CacheMode::Writeback;
        Self { path: path.into(), access: Access::ReadWrite, cache, block_size: 512, lock_timeout: Duration::ZERO }
    }
}

/// Whether a medium may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It may.
    ReadWrite,
    /// Every write is refused, and others may read the medium too.
    ReadOnly,
}

/// Whether the host's page cache is used. Both kinds have a volatile write cache: that of the device at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheMode {
    /// O_DIRECT.
    None,
    /// The page cache.
    Writeback,
}

/// A regular file or a block device, locked against every other disk and against QEMU.
///
/// After a sync that failed, every write and every flush fails until the medium is opened again: the kernel reports lost
/// writes only once, so no later sync can promise anything about them.
///
/// Opening a medium makes the process ignore SIGXFSZ, so that a write over RLIMIT_FSIZE fails and ends nothing.
#[derive(Debug)]
pub struct FileMedium {
    /// The only description of the medium: it has the lock, and does all I/O.
    file: File,
    is_regular: bool,
    is_read_only: bool,
    is_in_memory: bool,
    direct: Option<DirectIo>,
    physical_block_size: u32,
    synchronizer: Synchronizer,
}

impl FileMedium {
    /// Opens and locks the medium.
    ///
    /// # Errors
    ///
    /// [`OpenMediumError`]. Whether the size is one of whole blocks is for `Disk::open` to check.
    pub fn open(options: &MediumOptions) -> Result<Self, OpenMediumError> {
        let path = || options.path.clone();
        let failed = |errno: Errno| OpenMediumError::Open { path: path(), source: errno.into() };
        sys::ignore_file_size_signal();

        let file = open::open_and_lock(options)?;
        let stat = rustix::fs::fstat(&file).map_err(failed)?;
        let is_regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        let direct = match options.cache {
            CacheMode::None => Some(DirectIo::of(&file, is_regular).map_err(failed)?),
            CacheMode::Writeback => None,
        };
        match direct.as_ref().map(DirectIo::offset_alignment) {
            // A file that the file system does not read directly, although it accepts O_DIRECT.
            Some(0) => return Err(OpenMediumError::NoDirectIo { path: path() }),
            Some(alignment) if alignment > options.block_size => {
                return Err(OpenMediumError::Alignment { path: path(), block_size: options.block_size, alignment });
            }
            _ => {}
        }
        let physical_block_size = if is_regular {
            u32::try_from(stat.st_blksize).unwrap_or(4096)
        } else {
            rustix::fs::ioctl_blkpbszget(&file).map_err(failed)?
        };
        let file_system = rustix::fs::fstatfs(&file).map_err(failed)?;
        Ok(Self {
            is_regular,
            is_read_only: options.access == Access::ReadOnly,
            is_in_memory: is_regular && MEMORY_FILE_SYSTEMS.contains(&file_system.f_type),
            direct,
            physical_block_size: physical_block_size.next_power_of_two().clamp(options.block_size, 1 << 16),
            synchronizer: Synchronizer::default(),
            file,
        })
    }

    /// The size in bytes of the blocks that the medium writes at a time, at least the block size: a value for
    /// `DiskOptions::physical_block_size`.
    pub const fn physical_block_size(&self) -> u32 {
        self.physical_block_size
    }

    fn current_size(&self) -> Result<u64, Errno> {
        seek(&self.file, SeekFrom::End(0))
    }

    /// The reason of a failure in these bytes.
    fn failure(&self, error: io::Error, offset: u64, length: u64) -> MediumError {
        // A block device answers ENOSPC beyond its end.
        match self.current_size() {
            Ok(size) if offset.saturating_add(length) > size => MediumError::BeyondEnd,
            _ => medium_error(&error),
        }
    }

    /// Whether these bytes may be changed.
    fn check_change(&self, offset: u64, length: u64) -> Result<(), MediumError> {
        if self.is_read_only {
            return Err(MediumError::ReadOnly);
        }
        self.synchronizer.check()?;
        // A write beyond the end makes a regular file larger, and would undo what made it smaller.
        if self.is_regular {
            let size = self.current_size().map_err(|errno| medium_error(&errno.into()))?;
            if offset.saturating_add(length) > size {
                return Err(MediumError::BeyondEnd);
            }
        }
        Ok(())
    }

    fn make_durable(&self, durability: Durability) -> Result<(), MediumError> {
        match durability {
            Durability::Cached => Ok(()),
            Durability::Durable => self.flush(),
        }
    }

    fn write_bytes(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        match &self.direct {
            Some(direct) if !direct.is_aligned(data) => direct.write(&self.file, offset, data),
            _ => self.file.write_all_at(data, offset),
        }
    }

    /// Zeros the bytes without writing them. `false` when the medium cannot do that.
    fn zero_by_fallocate(&self, offset: u64, length: u64, allocation: Allocation) -> io::Result<bool> {
        let keep = FallocateFlags::ZERO_RANGE;
        let modes: &[_] = match allocation {
            Allocation::Deallocate => &[FallocateFlags::PUNCH_HOLE, keep],
            Allocation::Keep => &[keep],
        };
        for mode in modes {
            let fallocate = || fallocate(&self.file, *mode | FallocateFlags::KEEP_SIZE, offset, length);
            match rustix::io::retry_on_intr(fallocate) {
                Ok(()) => return Ok(true),
                // EINVAL: a block device with larger blocks than the disk has.
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(false)
    }
}

impl Medium for FileMedium {
    fn size(&self) -> u64 {
        self.current_size().unwrap_or(0)
    }

    fn is_read_only(&self) -> bool {
        self.is_read_only
    }

    fn is_quick(&self) -> bool {
        self.is_in_memory
    }

    fn is_cached(&self, offset: u64, length: u64) -> bool {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if self.direct.is_some() || length > MAX_CACHED {
            return false;
        }
        direct::with_buffer(length, |buffer| {
            let read = preadv2(&self.file, &mut [IoSliceMut::new(buffer)], offset, ReadWriteFlags::NOWAIT);
            read == Ok(length)
        })
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), MediumError> {
        let length = buffer.len() as u64;
        match &self.direct {
            Some(direct) if !direct.is_aligned(buffer) => direct.read(&self.file, offset, buffer),
            _ => self.file.read_exact_at(buffer, offset),
        }
        .map_err(|error| self.failure(error, offset, length))
    }

    fn write(&self, offset: u64, data: &[u8], durability: Durability) -> Result<(), MediumError> {
        let length = data.len() as u64;
        self.check_change(offset, length)?;
        self.write_bytes(offset, data).map_err(|error| self.failure(error, offset, length))?;
        self.make_durable(durability)
    }

    fn flush(&self) -> Result<(), MediumError> {
        if self.is_read_only {
            return Ok(());
        }
        self.synchronizer.sync(|| rustix::io::retry_on_intr(|| rustix::fs::fdatasync(&self.file)))
    }

    fn zero(
        &self,
        offset: u64,
        length: u64,
        allocation: Allocation,
        durability: Durability,
    ) -> Result<(), MediumError> {
        self.check_change(offset, length)?;
        let failure = |error| self.failure(error, offset, length);
        if length > 0 && !self.zero_by_fallocate(offset, length, allocation).map_err(failure)? {
            let zeros = vec![0; ZEROS.min(usize::try_from(length).unwrap_or(ZEROS))];
            let mut written = 0;
            while written < length {
                let part = (zeros.len() as u64).min(length - written);
                self.write_bytes(offset + written, &zeros[..part as usize]).map_err(failure)?;
                written += part;
            }
        }
        self.make_durable(durability)
    }

    fn extent(&self, offset: u64, length: u64) -> Result<Extent, MediumError> {
        let mapped = |length| Ok(Extent { is_mapped: true, length });
        let failure = |errno: Errno| self.failure(errno.into(), offset, length);
        let data = match seek(&self.file, SeekFrom::Data(offset)) {
            Ok(data) => data,
            // No data follows.
            Err(Errno::NXIO) if self.current_size().is_ok_and(|size| offset < size) => u64::MAX,
            // A block device, or a file system without holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return mapped(length),
            Err(errno) => return Err(failure(errno)),
        };
        if data > offset {
            return Ok(Extent { is_mapped: false, length: length.min(data - offset) });
        }
        let hole = seek(&self.file, SeekFrom::Hole(offset)).map_err(failure)?;
        // Another command may have made a hole here since.
        mapped(hole.saturating_sub(offset).clamp(1, length))
    }
}

fn medium_error(error: &io::Error) -> MediumError {
    match Errno::from_io_error(error) {
        // EFBIG: RLIMIT_FSIZE, or more than the file system can have in a file.
        Some(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => MediumError::NoSpace,
        Some(Errno::NXIO | Errno::NODEV | Errno::STALE) | None => MediumError::Gone,
        Some(Errno::ROFS | Errno::PERM | Errno::ACCESS) => MediumError::ReadOnly,
        Some(_) => MediumError::Io,
    }
}
