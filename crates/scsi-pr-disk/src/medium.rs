//! [`Medium`]: where the blocks of a disk are stored.

use thiserror::Error;

/// Stores the bytes of a disk. Every call blocks until it is done.
///
/// The device server never calls `write`, `zero` or `read` for the same bytes from two threads when one of the commands
/// must be atomic (COMPARE AND WRITE, WRITE SAME, ORWRITE). Other overlapping calls may run at the same time.
pub trait Medium: Send + Sync {
    /// The size in bytes, now. It may change while the disk is in use; the device server then reports CAPACITY DATA HAS
    /// CHANGED (2A/09). It does not ask before each read and write of blocks that the medium had before.
    fn size(&self) -> u64;

    /// Whether every write is refused.
    fn is_read_only(&self) -> bool {
        false
    }

    /// Whether reads and cached writes usually return without waiting for a device, because the bytes are in memory. A
    /// transport may then run them on the thread that receives commands.
    fn is_quick(&self) -> bool {
        false
    }

    /// Whether a read of these bytes would return without waiting for a device now. A transport then runs that read as if
    /// the medium were quick.
    fn is_cached(&self, offset: u64, length: u64) -> bool {
        let _ = (offset, length);
        false
    }

    /// Fills `buffer` from byte `offset` on.
    ///
    /// # Errors
    ///
    /// The medium could not read all of the bytes.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), MediumError>;

    /// Writes `data` from byte `offset` on.
    ///
    /// # Errors
    ///
    /// The medium may have written a part of the data, or all of it.
    fn write(&self, offset: u64, data: &[u8], durability: Durability) -> Result<(), MediumError>;

    /// Makes every write that has returned durable (SYNCHRONIZE CACHE).
    ///
    /// # Errors
    ///
    /// Writes that have returned may be lost in a power cut.
    fn flush(&self) -> Result<(), MediumError>;

    /// Writes zeros from byte `offset` on.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write).
    fn zero(&self, offset: u64, length: u64, allocation: Allocation, durability: Durability)
    -> Result<(), MediumError>;

    /// Whether the bytes from `offset` on have storage, and for how many of the next `length` bytes that holds.
    ///
    /// # Errors
    ///
    /// The medium could not find out.
    fn extent(&self, offset: u64, length: u64) -> Result<Extent, MediumError> {
        let _ = offset;
        Ok(Extent { is_mapped: true, length })
    }
}

/// When a write is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// As soon as every later read sees it: the write cache is on (WCE 1, FUA 0).
    Cached,
    /// Once it survives a power cut.
    Durable,
}

/// Whether zeros take storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocation {
    /// The medium keeps storage for the bytes, so that a later write does not fail for lack of space.
    Keep,
    /// The medium gives the storage back where it can (UNMAP).
    Deallocate,
}

/// The result of [`Medium::extent`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Whether the bytes have storage.
    pub is_mapped: bool,
    /// The number of bytes for which this holds; at least 1.
    pub length: u64,
}

/// The reason why a medium did not do what the device server asked for.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum MediumError {
    /// There is no space for the data (ENOSPC, EDQUOT).
    #[error("no space is left for the data")]
    NoSpace,
    /// The bytes could not be read or written (EIO).
    #[error("the medium has an I/O error")]
    Io,
    /// The medium is gone: the device was removed.
    #[error("the medium is gone")]
    Gone,
    /// The medium has become smaller, and ends before the bytes.
    #[error("the bytes are beyond the end of the medium")]
    BeyondEnd,
    /// The medium is read-only (EROFS, EPERM).
    #[error("the medium is read-only")]
    ReadOnly,
}
