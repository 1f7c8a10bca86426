//! The record: [`Reservations`] in bytes, as stores keep them.
//!
//! ```text
//! frame, of every version:  magic "scsi-pr\0" · version u16 · length u32 of the whole record · body · CRC-32 of all before
//! body of version 1:        generation u32 · flags u8 (1: APTPL) · type u8 (0: not reserved) · holder u32 · room u32
//!                           · ports u16, each u16
//!                           · registrations u32, each: key u64 · nexus
//!                           · others u32, each: nexus
//! nexus:                    relative target port u16 · unit attentions u8, each u8 · TransportID: length / 4 u8, bytes
//! ```
//!
//! Numbers are big endian. The holder is the place of its registration, FFFFFFFFh for none or all. Equal values have
//! equal records. A SPC-2 reservation is not recorded: such a one does not survive the device server (SPC-2 5.5.1).

use super::attention::{Attention, Attentions};
use super::{Holding, MOST_ROOM, Nexus, Reservations};
use crate::{Generation, Key, TransportId, Type};

const MAGIC: [u8; 8] = *b"scsi-pr\0";
/// The version that is written, and the greatest that is read.
const VERSION: u16 = 1;
const LENGTH_OFFSET: usize = MAGIC.len() + 2;
const HEADER_LENGTH: usize = LENGTH_OFFSET + 4;
const CHECKSUM_LENGTH: usize = 4;
const APTPL: u8 = 0x01;
const NO_HOLDER: u32 = u32::MAX;

/// The cause for which bytes cannot be read as a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidRecord {
    /// The bytes do not begin as a record does.
    #[error("this is no record of persistent reservations")]
    NotOurs,
    /// The end is missing.
    #[error("the record of persistent reservations is cut off: {actual} of at least {expected} bytes")]
    Truncated {
        /// How many bytes there must be; at least, when even the length is missing.
        expected: usize,
        /// How many there are.
        actual: usize,
    },
    /// The checksum is wrong, or the content cannot be.
    #[error("the record of persistent reservations is damaged")]
    Damaged,
    /// The record has a format of a later version of this library: this number.
    #[error(
        "the record of persistent reservations has format {0}, and this program knows formats up to {VERSION}: use a later one"
    )]
    Newer(u16),
}

impl Reservations {
    /// The record: everything except a SPC-2 reservation.
    pub fn to_record(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(64 + 64 * (self.registrations.len() + self.unregistered.len()));
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_be_bytes());
        bytes.extend([0; 4]);

        let (reservation_type, holder) = match &self.reservation {
            None => (0, None),
            Some(Holding { reservation_type, holder }) => (reservation_type.code(), holder.as_ref()),
        };
        let holder = holder.and_then(|holder| self.registrations.iter().position(|(nexus, _)| nexus == holder));
        bytes.extend(self.generation.0.to_be_bytes());
        bytes.extend([if self.aptpl { APTPL } else { 0 }, reservation_type]);
        bytes.extend(holder.map_or(NO_HOLDER, count).to_be_bytes());
        bytes.extend(self.room.to_be_bytes());
        bytes.extend(
            u16::try_from(self.target_ports.len()).expect("each number is there once, zero is none").to_be_bytes(),
        );
        bytes.extend(self.target_ports.iter().flat_map(|port| port.to_be_bytes()));
        bytes.extend(count(self.registrations.len()).to_be_bytes());
        for (nexus, registration) in self.registrations.iter() {
            bytes.extend(registration.key.0.to_be_bytes());
            write_nexus(&mut bytes, nexus, &registration.pending(self.releases));
        }
        bytes.extend(count(self.unregistered.len()).to_be_bytes());
        for (nexus, pending) in self.unregistered.iter() {
            write_nexus(&mut bytes, nexus, pending);
        }

        bytes.extend([0; CHECKSUM_LENGTH]);
        seal(&mut bytes);
        bytes
    }

    /// Reads a record.
    ///
    /// # Errors
    ///
    /// The cause for which the bytes cannot be read. A unit with such a record has unknown reservations, not none.
    pub fn from_record(bytes: &[u8]) -> Result<Self, InvalidRecord> {
        let (version, body) = open(bytes)?;
        match version {
            0 => Err(InvalidRecord::Damaged),
            1 => read_body(&mut Reader(body)).ok_or(InvalidRecord::Damaged),
            newer => Err(InvalidRecord::Newer(newer)),
        }
    }
}

/// Writes the length and the checksum of a record, if it is long enough to have them.
pub(super) fn seal(bytes: &mut [u8]) {
    let length = count(bytes.len());
    if let Some((content, checksum)) = bytes.split_last_chunk_mut::<CHECKSUM_LENGTH>()
        && let Some(field) = content.get_mut(LENGTH_OFFSET..HEADER_LENGTH)
    {
        field.copy_from_slice(&length.to_be_bytes());
        *checksum = crc32fast::hash(content).to_be_bytes();
    }
}

/// The room for registrants is so bounded that 32 bits count everything.
fn count(count: usize) -> u32 {
    u32::try_from(count).expect("there are at most a million registrants")
}

fn write_nexus(bytes: &mut Vec<u8>, nexus: &Nexus, pending: &Attentions) {
    bytes.extend(nexus.relative_target_port().to_be_bytes());
    bytes.push(u8::try_from(pending.iter().count()).expect("there are five kinds"));
    bytes.extend(pending.iter().map(Attention::code));
    let id = nexus.initiator().bytes();
    bytes.push(u8::try_from(id.len() / 4).expect("a TransportID has at most 256 bytes"));
    bytes.extend_from_slice(id);
}

/// The version and the body of a record with a valid frame.
fn open(bytes: &[u8]) -> Result<(u16, &[u8]), InvalidRecord> {
    let actual = bytes.len();
    let magic = &bytes[..actual.min(MAGIC.len())];
    if !MAGIC.starts_with(magic) {
        return Err(InvalidRecord::NotOurs);
    }
    let mut reader = Reader(&bytes[magic.len()..]);
    let least = HEADER_LENGTH + CHECKSUM_LENGTH;
    let (Some(version), Some(length)) = (reader.u16(), reader.u32()) else {
        return Err(InvalidRecord::Truncated { expected: least, actual });
    };
    let expected = usize::try_from(length).unwrap_or(usize::MAX).max(least);
    if actual < expected {
        return Err(InvalidRecord::Truncated { expected, actual });
    }
    let Some((content, checksum)) = bytes.split_last_chunk::<CHECKSUM_LENGTH>() else {
        return Err(InvalidRecord::Truncated { expected, actual });
    };
    if actual > expected || crc32fast::hash(content) != u32::from_be_bytes(*checksum) {
        return Err(InvalidRecord::Damaged);
    }
    Ok((version, &content[HEADER_LENGTH..]))
}

/// The part of a body that has not been read yet.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_be_bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn nexus(&mut self) -> Option<(Nexus, Attentions)> {
        let relative_target_port = self.u16()?;
        let mut pending = Attentions::NONE;
        let codes = usize::from(self.u8()?);
        for code in self.bytes(codes)? {
            pending.add(Attention::from_code(*code)?);
        }
        let length = usize::from(self.u8()?) * 4;
        let id = TransportId::from_bytes(self.bytes(length)?).ok()?;
        Some((Nexus::new(id, relative_target_port), pending))
    }
}

/// `None` if [`Reservations::to_record`] cannot have written the body.
fn read_body(reader: &mut Reader<'_>) -> Option<Reservations> {
    let generation = Generation(reader.u32()?);
    let flags = reader.u8()?;
    let reservation_type = reader.u8()?;
    let holder = reader.u32()?;
    let room = reader.u32()?;
    let ports = (0..reader.u16()?).map(|_| reader.u16()).collect::<Option<Vec<u16>>>()?;
    if flags & !APTPL != 0 || room > MOST_ROOM || ports.is_empty() || !ports.is_sorted_by(|a, b| a < b) {
        return None;
    }
    let mut value = Reservations::with_target_ports(ports);
    value.generation = generation;
    value.aptpl = flags & APTPL != 0;
    value.room = room;

    for place in 0..reader.u32()? {
        let key = Key(reader.u64()?);
        let (nexus, attentions) = reader.nexus()?;
        if key.is_zero() || value.registrations.contains(&nexus) {
            return None;
        }
        if place == holder {
            value.reservation =
                Some(Holding { reservation_type: Type::from_code(reservation_type)?, holder: Some(nexus.clone()) });
        }
        value.add(nexus.clone(), key);
        value.registrations.get_mut(&nexus)?.attentions = attentions;
    }
    for _ in 0..reader.u32()? {
        let (nexus, pending) = reader.nexus()?;
        if pending.is_empty()
            || value.registrations.contains(&nexus)
            || value.unregistered.insert(nexus, pending).is_some()
        {
            return None;
        }
    }
    if holder == NO_HOLDER && reservation_type != 0 {
        let reservation_type = Type::from_code(reservation_type)?;
        value.reservation = Some(Holding { reservation_type, holder: None });
    }
    let fits = match &value.reservation {
        None => holder == NO_HOLDER && reservation_type == 0,
        Some(Holding { reservation_type, holder }) => {
            reservation_type.is_all_registrants() == holder.is_none() && !value.registrations.is_empty()
        }
    };
    (fits && reader.0.is_empty()).then_some(value)
}
