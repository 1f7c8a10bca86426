//! Opens and locks a medium.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use thiserror::Error;

use super::lock::{self, Holder, LockError};
use super::{Access, CacheMode, MediumOptions};

/// The time between two looks whether the medium is free.
const PAUSE: Duration = Duration::from_millis(20);

/// A medium that cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenMediumError {
    /// The kernel does not open the path.
    #[error("{} cannot be opened: {source}", path.display())]
    Open {
        /// The path of the options.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// The path is one of something else.
    #[error("{} is neither a regular file nor a block device", path.display())]
    NotAMedium {
        /// The path of the options.
        path: PathBuf,
    },
    /// The path cannot be opened for writing.
    #[error("{} cannot be written: {source}; make it writable, or serve it read-only", path.display())]
    NotWritable {
        /// The path of the options.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// Another process has the medium: a disk, QEMU, or on a block device a mount or another device of the kernel.
    #[error("{} is in use{}; stop its user, or serve another medium", path.display(), Holder::suffix(holder.as_ref()))]
    InUse {
        /// The path of the options.
        path: PathBuf,
        /// The process that has the lock, if the kernel tells.
        holder: Option<Holder>,
    },
    /// The file system has no open-file-description locks.
    #[error("{} cannot be locked: {source}; move it to a file system with open-file-description locks", path.display())]
    NoLocks {
        /// The path of the options.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// The file system has no direct I/O.
    #[error("{} cannot be read without the page cache (O_DIRECT); use the cache mode writeback", path.display())]
    NoDirectIo {
        /// The path of the options.
        path: PathBuf,
    },
    /// Blocks of the disk are smaller than those that direct I/O takes.
    #[error(
        "{} takes direct I/O in units of {alignment} bytes, but blocks have {block_size}; \
         use blocks of 4096 bytes, or the cache mode writeback",
        path.display()
    )]
    Alignment {
        /// The path of the options.
        path: PathBuf,
        /// The block size of the options in bytes.
        block_size: u32,
        /// The alignment in bytes.
        alignment: u32,
    },
}

/// Opens the medium and locks it, as soon as it is free.
pub(super) fn open_and_lock(options: &MediumOptions) -> Result<File, OpenMediumError> {
    let deadline = Instant::now() + options.lock_timeout;
    let path = || options.path.clone();
    let metadata = std::fs::metadata(&options.path).map_err(|source| OpenMediumError::Open { path: path(), source })?;
    let file_type = metadata.file_type();
    // Opening a FIFO would wait for its other end.
    if !file_type.is_file() && !file_type.is_block_device() {
        return Err(OpenMediumError::NotAMedium { path: path() });
    }
    let mut flags = OFlags::NOCTTY;
    if options.cache == CacheMode::None {
        flags |= OFlags::DIRECT;
    }
    if options.access == Access::ReadWrite && file_type.is_block_device() {
        // The kernel gives a block device to one such opener, mount or device above it, through whichever node.
        flags |= OFlags::EXCL;
    }
    let mut open = OpenOptions::new();
    open.read(true).write(options.access == Access::ReadWrite).custom_flags(flags.bits().cast_signed());
    loop {
        let in_use = match try_open_and_lock(&open, options) {
            Err(error @ OpenMediumError::InUse { .. }) => error,
            result => return result,
        };
        if Instant::now() >= deadline {
            return Err(in_use);
        }
        thread::sleep(PAUSE);
    }
}

fn try_open_and_lock(open: &OpenOptions, options: &MediumOptions) -> Result<File, OpenMediumError> {
    let path = || options.path.clone();
    let file = match open.open(&options.path) {
        Ok(file) => file,
        Err(source) => {
            return Err(match source.kind() {
                io::ErrorKind::ResourceBusy => OpenMediumError::InUse { path: path(), holder: None },
                io::ErrorKind::InvalidInput if options.cache == CacheMode::None => {
                    OpenMediumError::NoDirectIo { path: path() }
                }
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
                    if options.access == Access::ReadWrite =>
                {
                    OpenMediumError::NotWritable { path: path(), source }
                }
                _ => OpenMediumError::Open { path: path(), source },
            });
        }
    };
    match lock::lock(&file, options.access) {
        Ok(()) => Ok(file),
        Err(LockError::Held) => Err(OpenMediumError::InUse { path: path(), holder: Holder::of(&file) }),
        Err(LockError::Unsupported(errno)) => Err(OpenMediumError::NoLocks { path: path(), source: errno.into() }),
    }
}
