//! [`DirectIo`]: O_DIRECT with buffers of any address.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{AtFlags, StatxFlags, statx};
use rustix::io::Errno;

/// The bytes that are copied at a time. A thread keeps that much memory for copies at most.
const CHUNK: usize = 1 << 20;

/// The alignment of buffers for copies: that of a page, with which every device can do.
const PAGE: usize = 4096;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The alignment that a file wants for direct I/O.
#[derive(Debug)]
pub(super) struct DirectIo {
    /// Of buffers, in bytes.
    memory: usize,
    /// Of offsets and lengths, in bytes.
    offset: u32,
}

impl DirectIo {
    pub(super) fn of(file: &File, is_regular: bool) -> Result<Self, Errno> {
        let statx = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN);
        if let Some(statx) = statx.ok().filter(|statx| statx.stx_mask & StatxFlags::DIOALIGN.bits() != 0) {
            return Ok(Self { memory: statx.stx_dio_mem_align as usize, offset: statx.stx_dio_offset_align });
        }
        // Before Linux 6.1, and on some file systems still.
        let offset = match is_regular {
            false => rustix::fs::ioctl_blksszget(file)?,
            true => match with_buffer(512, |buffer| file.read_at(buffer, 512)) {
                Ok(_) => 512,
                Err(_) => PAGE as u32,
            },
        };
        Ok(Self { memory: PAGE, offset })
    }

    /// The alignment of offsets and lengths in bytes; 0 where there is no direct I/O.
    pub(super) const fn offset_alignment(&self) -> u32 {
        self.offset
    }

    /// Whether the kernel takes this buffer.
    pub(super) fn is_aligned(&self, buffer: &[u8]) -> bool {
        buffer.as_ptr().addr().is_multiple_of(self.memory)
    }

    /// Reads all of `buffer`, which has any address.
    pub(super) fn read(&self, file: &File, mut offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        for part in buffer.chunks_mut(CHUNK) {
            with_buffer(part.len(), |aligned| {
                file.read_exact_at(aligned, offset)?;
                part.copy_from_slice(aligned);
                io::Result::Ok(())
            })?;
            offset += part.len() as u64;
        }
        Ok(())
    }

    /// Writes all of `data`, which has any address.
    pub(super) fn write(&self, file: &File, mut offset: u64, data: &[u8]) -> io::Result<()> {
        for part in data.chunks(CHUNK) {
            with_buffer(part.len(), |aligned| {
                aligned.copy_from_slice(part);
                file.write_all_at(aligned, offset)
            })?;
            offset += part.len() as u64;
        }
        Ok(())
    }
}

/// Runs `work` with an aligned buffer of this thread.
pub(super) fn with_buffer<T>(length: usize, work: impl FnOnce(&mut [u8]) -> T) -> T {
    BUFFER.with_borrow_mut(|bytes| {
        if bytes.len() < length + PAGE {
            bytes.resize(length + PAGE, 0);
        }
        let start = bytes.as_ptr().align_offset(PAGE);
        work(&mut bytes[start..start + length])
    })
}
