//! [`DiskRecord`]: the part of a unit's record that a disk adds to the reservations: its identity and its owner.
//!
//! ```text
//! frame:  magic "scsi-pr\0" · version 8001h u16 · length u32 of the whole record · body · CRC-32 of all before
//! body:   UUID 16 bytes · epoch u64 · host, name of the host, boot: text
//!         · owned u8 (1: process u32 · control, medium: text) · the record of the reservations
//! text:   length u16 · UTF-8
//! ```
//!
//! The frame is that of [`Reservations::to_record`], so that a program that knows no disks refuses the record as one of a
//! later format. A unit that no disk has served has the record of the reservations alone.

use std::borrow::Cow;
use std::fmt;

use scsi_pr::Reservations;

const MAGIC: &[u8; 8] = b"scsi-pr\0";
const VERSION: [u8; 2] = [0x80, 0x01];
const HEADER: usize = MAGIC.len() + VERSION.len() + 4;

/// The identity of a unit that a disk serves or has served, and its last owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskRecord {
    /// The identity of the unit, for good.
    pub uuid: [u8; 16],
    /// The number of ownerships so far.
    pub epoch: u64,
    /// The last owner's host.
    pub host: Host,
    /// The owner; `None` once it has released the unit.
    pub owner: Option<Owner>,
}

/// A host, and its boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// The identity of the installation (machine-id(5)).
    pub id: String,
    /// Its name, for messages.
    pub name: String,
    /// The identity of the boot: `/proc/sys/kernel/random/boot_id`.
    pub boot: String,
}

/// The process that alone may change the reservations of a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its process id on its host.
    pub process: u32,
    /// The path of its control socket, through which reservations are changed.
    pub control: String,
    /// The identity of the open medium on its host, for this boot: which lock proves that the owner is gone.
    pub medium: String,
}

impl fmt::Display for DiskRecord {
    /// The owner, as in "owned by process 7 on node1 (epoch 3)".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { epoch, host: Host { name, .. }, .. } = self;
        match &self.owner {
            Some(owner) => write!(f, "owned by the disk of process {} on {name} (epoch {epoch})", owner.process),
            None => write!(f, "released by the disk on {name} (epoch {epoch})"),
        }
    }
}

/// The record of a unit.
pub(crate) fn encode(reservations: &Reservations, disk: Option<&DiskRecord>) -> Vec<u8> {
    let plain = reservations.to_record();
    let Some(disk) = disk else { return plain };
    let mut bytes = [&MAGIC[..], &VERSION, &[0; 4], &disk.uuid, &disk.epoch.to_be_bytes()].concat();
    [&disk.host.id, &disk.host.name, &disk.host.boot].into_iter().for_each(|text| write_text(&mut bytes, text));
    bytes.push(u8::from(disk.owner.is_some()));
    if let Some(Owner { process, control, medium }) = &disk.owner {
        bytes.extend(process.to_be_bytes());
        write_text(&mut bytes, control);
        write_text(&mut bytes, medium);
    }
    bytes.extend(plain);
    let length = u32::try_from(bytes.len() + 4).expect("a record has less than a gigabyte");
    bytes[HEADER - 4..HEADER].copy_from_slice(&length.to_be_bytes());
    let checksum = crc32fast::hash(&bytes);
    bytes.extend(checksum.to_be_bytes());
    bytes
}

/// Reads the record of a unit: the reservations, and the part of a disk.
///
/// # Errors
///
/// Text for an administrator.
pub(crate) fn decode(bytes: &[u8]) -> Result<(Reservations, Option<DiskRecord>), Cow<'static, str>> {
    let is_of_disk = bytes.starts_with(MAGIC) && bytes.get(MAGIC.len()..MAGIC.len() + 2) == Some(&VERSION);
    if !is_of_disk {
        let reservations = Reservations::from_record(bytes).map_err(|invalid| invalid.to_string())?;
        return Ok((reservations, None));
    }
    let damaged = Cow::Borrowed("the record of the disk is damaged or cut off");
    let (disk, plain) = body(bytes).ok_or(damaged)?;
    let reservations = Reservations::from_record(plain).map_err(|invalid| invalid.to_string())?;
    Ok((reservations, Some(disk)))
}

/// The part of a disk, and the record of the reservations.
fn body(bytes: &[u8]) -> Option<(DiskRecord, &[u8])> {
    let (content, checksum) = bytes.split_last_chunk::<4>()?;
    let mut rest = content.get(HEADER..)?;
    let length = u32::from_be_bytes(content[HEADER - 4..HEADER].try_into().ok()?);
    if length as usize != bytes.len() || crc32fast::hash(content) != u32::from_be_bytes(*checksum) {
        return None;
    }
    let reader = &mut rest;
    let uuid = take(reader)?;
    let epoch = u64::from_be_bytes(take(reader)?);
    let host = Host { id: read_text(reader)?, name: read_text(reader)?, boot: read_text(reader)? };
    let owner = match take::<1>(reader)? {
        [0] => None,
        [1] => Some(Owner {
            process: u32::from_be_bytes(take(reader)?),
            control: read_text(reader)?,
            medium: read_text(reader)?,
        }),
        _ => return None,
    };
    Some((DiskRecord { uuid, epoch, host, owner }, rest))
}

fn write_text(bytes: &mut Vec<u8>, text: &str) {
    // Paths have at most 4,096 bytes, and the other texts are short.
    let text = &text.as_bytes()[..text.len().min(usize::from(u16::MAX))];
    bytes.extend((text.len() as u16).to_be_bytes());
    bytes.extend(text);
}

fn read_text(reader: &mut &[u8]) -> Option<String> {
    let length = u16::from_be_bytes(take(reader)?);
    let (text, rest) = reader.split_at_checked(usize::from(length))?;
    *reader = rest;
    String::from_utf8(text.to_vec()).ok()
}

fn take<const N: usize>(reader: &mut &[u8]) -> Option<[u8; N]> {
    let (bytes, rest) = reader.split_first_chunk::<N>()?;
    *reader = rest;
    Some(*bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(owner: Option<Owner>) -> DiskRecord {
        let host = Host { id: "1".into(), name: "node1".into(), boot: "b".into() };
        DiskRecord { uuid: *b"0123456789abcdef", epoch: 3, host, owner }
    }

    fn owner() -> Owner {
        Owner { process: 7, control: "/run/control".into(), medium: "1:2".into() }
    }

    #[test]
    fn records_are_read_as_they_were_written() {
        let reservations = Reservations::new();
        for disk in [None, Some(record(None)), Some(record(Some(owner())))] {
            assert_eq!(decode(&encode(&reservations, disk.as_ref())).unwrap(), (reservations.clone(), disk));
        }
    }

    #[test]
    fn a_record_without_a_disk_is_that_of_earlier_versions() {
        assert_eq!(encode(&Reservations::new(), None), Reservations::new().to_record());
    }

    #[test]
    fn a_program_that_knows_no_disks_takes_the_record_for_a_later_format() {
        let bytes = encode(&Reservations::new(), Some(&record(None)));
        let error = Reservations::from_record(&bytes).unwrap_err();
        assert_eq!(error, scsi_pr::InvalidRecord::Newer(0x8001));
    }

    proptest! {
        #[test]
        fn a_record_with_another_bit_or_length_is_refused(at in 0_usize..200, bit in 0_u8..8, cut in 1_usize..200) {
            let bytes = encode(&Reservations::new(), Some(&record(Some(owner()))));
            let mut flipped = bytes.clone();
            let at = at % bytes.len();
            flipped[at] ^= 1 << bit;
            prop_assert!(decode(&flipped).is_err());
            prop_assert!(decode(&bytes[..bytes.len() - cut.min(bytes.len())]).is_err());
        }
    }
}
