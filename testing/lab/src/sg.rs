//! Any SCSI command, by write and read on a `/dev/sgN`: the first interface of sg(4), which has no pointers in it.
//!
//! No layer between this module and the target checks the command, retries it or consumes a unit attention.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// `struct sg_header`: five numbers, the fourth an error code of Linux and the fifth a field of bits, and 16 bytes of
/// sense data.
const HEADER: usize = 36;

/// A disk, for any command.
pub(crate) struct Sg {
    path: PathBuf,
    file: File,
}

/// The data transfer of a command.
#[derive(Clone, Copy)]
pub(crate) enum Transfer<'a> {
    /// Up to so many bytes from the disk.
    In(usize),
    /// These bytes to the disk.
    Out(&'a [u8]),
}

/// The disk's answer.
#[derive(Debug)]
pub(crate) struct Reply {
    /// The status byte.
    pub(crate) status: u8,
    /// The first bytes of the sense data.
    pub(crate) sense: [u8; 16],
    /// The data of the disk.
    pub(crate) data: Vec<u8>,
}

impl Sg {
    /// Opens the SCSI generic device of the block device `disk`.
    pub(crate) fn open(disk: &Path) -> Result<Self> {
        let name = disk.file_name().context("a disk has a name")?.to_string_lossy();
        let directory = format!("/sys/block/{name}/device/scsi_generic");
        let entry = std::fs::read_dir(&directory)?.next().with_context(|| format!("{directory} is empty"))??;
        let path = Path::new("/dev").join(entry.file_name());
        let file = OpenOptions::new().read(true).write(true).open(&path);
        let file = file.with_context(|| format!("open {}", path.display()))?;
        Ok(Self { path, file })
    }

    /// The path of the device.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Sends a command of 6, 10 or 16 bytes, and waits until it ends.
    pub(crate) fn send(&self, cdb: &[u8], transfer: Transfer<'_>) -> Result<Reply> {
        let (capacity, data) = match transfer {
            Transfer::In(length) => (HEADER + length, &[][..]),
            Transfer::Out(data) => (HEADER, data),
        };
        let mut request = vec![0; HEADER];
        request[4..8].copy_from_slice(&i32::try_from(capacity)?.to_ne_bytes());
        request.extend_from_slice(cdb);
        request.extend_from_slice(data);
        let written = (&self.file).write(&request).context("send a command by sg")?;
        ensure!(written == request.len(), "sg accepted {written} of {} bytes", request.len());
        let mut reply = vec![0; capacity];
        let count = (&self.file).read(&mut reply).context("read the answer of sg")?;
        ensure!(count >= HEADER, "sg answered {count} bytes");
        let bits = u32::from_ne_bytes(reply[16..20].try_into()?);
        // The field has bits 5 to 1 of the status.
        let (status, host) = ((bits >> 1 & 0x1f) << 1, bits >> 6 & 0xff);
        ensure!(host == 0, "the host reports error {host} about command {cdb:02x?}");
        let sense = reply[20..HEADER].try_into()?;
        Ok(Reply { status: u8::try_from(status)?, sense, data: reply.split_off(HEADER) })
    }
}
