//! [`WriteLog`]: the log of dm-log-writes, and the disk that a power cut leaves.
//!
//! The kernel logs a write when it is durable: at the end of a write with FUA, or at the end of a flush that began after the
//! write had ended. The log up to a mark therefore has all that is sure to survive a power cut at the mark, and nothing of
//! a volatile cache. Documentation/admin-guide/device-mapper/log-writes.rst of Linux; the format is that of its tools:
//!
//! ```text
//! sector 0: magic u64 · version u64 · entries u64 · sector size u32
//! entry:    sector u64 · sectors u64 · flags u64 · length u64 of a mark · the mark; then the data, from the next sector on
//! ```

use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};

const MAGIC: u64 = 0x6a_7366_7773_6872;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
const MARK: u64 = 8;
/// The length of the fields of an entry in bytes.
const FIELDS: usize = 32;

pub(crate) struct WriteLog {
    entries: Vec<Entry>,
}

/// A change of the disk, or a mark.
struct Entry {
    /// The offset in bytes.
    offset: u64,
    /// The data that was written, or zeros for a discard.
    data: Vec<u8>,
    flags: u64,
    mark: Vec<u8>,
}

impl WriteLog {
    /// Reads the log from its device.
    pub(crate) fn read(device: &Path) -> Result<Self> {
        let log = File::open(device).with_context(|| format!("open {}", device.display()))?;
        let read = |at: u64, length: usize| -> Result<Vec<u8>> {
            let mut bytes = vec![0; length];
            log.read_exact_at(&mut bytes, at).context("read the log of writes")?;
            Ok(bytes)
        };
        let header = read(0, 28)?;
        ensure!(word(&header, 0) == MAGIC && word(&header, 8) == 1, "not a log of dm-log-writes: {header:02x?}");
        let sector_size = u64::from(u32::from_le_bytes(header[24..28].try_into()?));
        let mut at = sector_size;
        let mut entries = Vec::new();
        for _ in 0..word(&header, 16) {
            let head = read(at, sector_size as usize)?;
            let [sector, sectors, flags, mark] = [0, 8, 16, 24].map(|field| word(&head, field));
            at += sector_size;
            let length = (sectors * sector_size) as usize;
            let data = if flags & DISCARD == 0 { read(at, length)? } else { vec![0; length] };
            if flags & DISCARD == 0 {
                at += sectors * sector_size;
            }
            let mark = head.get(FIELDS..FIELDS + mark as usize).context("a mark is longer than a sector")?.to_vec();
            entries.push(Entry { offset: sector * sector_size, data, flags, mark });
        }
        Ok(Self { entries })
    }

    /// The number of entries before a mark.
    pub(crate) fn until(&self, mark: &str) -> Result<usize> {
        let is_it = |entry: &Entry| entry.flags & MARK != 0 && entry.mark.starts_with(mark.as_bytes());
        self.entries.iter().position(is_it).with_context(|| format!("the log has no mark {mark:?}"))
    }

    /// The power cuts between two of these numbers of entries that leave different disks: those after a flush or FUA.
    pub(crate) fn cuts(&self, range: Range<usize>) -> Vec<usize> {
        range.filter(|index| self.entries[*index].flags & (FLUSH | FUA) != 0).map(|index| index + 1).collect()
    }

    /// Makes the first `entries` changes to `device`, which has the content that the logged device had at first.
    pub(crate) fn replay(&self, entries: usize, device: &Path) -> Result<()> {
        let disk = OpenOptions::new().write(true).open(device)?;
        for entry in &self.entries[..entries] {
            disk.write_all_at(&entry.data, entry.offset).context("replay a write")?;
        }
        disk.sync_all().context("replay writes")
    }
}

/// A little-endian number.
fn word(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}
