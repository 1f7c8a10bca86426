//! One initiator's disk. Reads and writes bypass every cache and reach the target.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::OFlags;
use rustix::io::Errno;

/// The alignment, in bytes, that O_DIRECT requires of a buffer's address and length.
const BLOCK: usize = 4096;

/// A disk, open for reading and writing with O_DIRECT.
pub(crate) struct Disk(File);

impl Disk {
    /// Opens the block device at `path`.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let direct = i32::try_from(OFlags::DIRECT.bits()).expect("a flag of open is an int");
        let file = OpenOptions::new().read(true).write(true).custom_flags(direct).open(path);
        Ok(Self(file.with_context(|| format!("open {}", path.display()))?))
    }

    /// The open device, for commands.
    pub(crate) fn file(&self) -> &File {
        &self.0
    }

    /// Fills its first block with `byte`.
    pub(crate) fn write(&self, byte: u8) -> io::Result<()> {
        let memory = [byte; 2 * BLOCK];
        let start = memory.as_ptr().align_offset(BLOCK);
        self.0.write_all_at(&memory[start..start + BLOCK], 0)
    }

    /// The first byte of its first block.
    pub(crate) fn read(&self) -> io::Result<u8> {
        let mut memory = [0; 2 * BLOCK];
        let start = memory.as_ptr().align_offset(BLOCK);
        let block = &mut memory[start..start + BLOCK];
        self.0.read_exact_at(block, 0)?;
        Ok(block[0])
    }
}

/// Whether a read or a write failed because of a reservation conflict.
pub(crate) fn is_conflict(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::BADE.raw_os_error())
}
