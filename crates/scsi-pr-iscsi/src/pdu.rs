//! Protocol data units (RFC 7143 11): the basic header segment, and a decoder that is fed bytes.

use thiserror::Error;

/// The length of a basic header segment.
pub const BHS_LENGTH: usize = 48;

/// The longest data segment that this side accepts: its MaxRecvDataSegmentLength.
pub const MAX_RECV_DATA_SEGMENT: usize = 256 << 10;

/// The longest data segment before the full feature phase (RFC 7143 13.12).
pub const MAX_LOGIN_DATA_SEGMENT: usize = 8192;

/// An operation code of an initiator (RFC 7143 11.2.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// 00h.
    NopOut,
    /// 01h.
    ScsiCommand,
    /// 02h.
    TaskManagement,
    /// 03h.
    Login,
    /// 04h.
    Text,
    /// 05h.
    DataOut,
    /// 06h.
    Logout,
    /// 10h.
    Snack,
    /// Any other code.
    Unknown(u8),
}

/// An operation code of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Answer {
    /// NOP-In.
    NopIn = 0x20,
    /// SCSI Response.
    ScsiResponse = 0x21,
    /// Task Management Function Response.
    TaskManagement = 0x22,
    /// Login Response.
    Login = 0x23,
    /// Text Response.
    Text = 0x24,
    /// SCSI Data-In.
    DataIn = 0x25,
    /// Logout Response.
    Logout = 0x26,
    /// Ready To Transfer.
    ReadyToTransfer = 0x31,
    /// Asynchronous Message.
    Asynchronous = 0x32,
    /// Reject.
    Reject = 0x3f,
}

/// A basic header segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header(pub [u8; BHS_LENGTH]);

/// The value of a task tag that names no task.
pub const NO_TAG: u32 = 0xffff_ffff;

/// The F bit, in byte 1 of most PDUs.
pub const FINAL: u8 = 0x80;

impl Header {
    /// A header of a target with this operation code and this byte 1; everything else is zero.
    pub fn new(answer: Answer, flags: u8) -> Self {
        let mut header = [0; BHS_LENGTH];
        header[0] = answer as u8;
        header[1] = flags;
        Self(header)
    }

    /// The operation code.
    pub fn request(&self) -> Request {
        match self.0[0] & 0x3f {
            0x00 => Request::NopOut,
            0x01 => Request::ScsiCommand,
            0x02 => Request::TaskManagement,
            0x03 => Request::Login,
            0x04 => Request::Text,
            0x05 => Request::DataOut,
            0x06 => Request::Logout,
            0x10 => Request::Snack,
            other => Request::Unknown(other),
        }
    }

    /// The I bit: immediate delivery.
    pub fn is_immediate(&self) -> bool {
        self.0[0] & 0x40 != 0
    }

    /// The F bit.
    pub fn is_final(&self) -> bool {
        self.0[1] & FINAL != 0
    }

    /// Length of the additional header segments in bytes.
    pub fn ahs_length(&self) -> usize {
        usize::from(self.0[4]) * 4
    }

    /// DataSegmentLength in bytes, without padding.
    pub fn data_length(&self) -> usize {
        usize::from(self.0[5]) << 16 | usize::from(self.0[6]) << 8 | usize::from(self.0[7])
    }

    /// Sets DataSegmentLength.
    pub fn set_data_length(&mut self, length: usize) {
        let bytes = (length as u32).to_be_bytes();
        self.0[5..8].copy_from_slice(&bytes[1..]);
    }

    /// The LUN field.
    pub fn lun(&self) -> [u8; 8] {
        self.0[8..16].try_into().expect("eight bytes")
    }

    /// Initiator Task Tag.
    pub fn task_tag(&self) -> u32 {
        self.word(16)
    }

    /// Four bytes, big endian.
    pub fn word(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.0[at..at + 4].try_into().expect("four bytes"))
    }

    /// Sets four bytes.
    pub fn set_word(&mut self, at: usize, value: u32) {
        self.0[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }
}

/// A PDU of an initiator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pdu<'a> {
    /// The basic header segment.
    pub header: Header,
    /// The additional header segments.
    pub ahs: &'a [u8],
    /// The data segment, without padding.
    pub data: &'a [u8],
}

/// The digests that a connection has negotiated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digests {
    /// HeaderDigest=CRC32C.
    pub header: bool,
    /// DataDigest=CRC32C.
    pub data: bool,
}

/// The reason why the bytes of a peer are no PDU: the connection cannot go on.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PduError {
    /// The data segment is longer than this side has declared.
    #[error("a data segment of {length} bytes, more than the {limit} that were declared")]
    DataTooLong {
        /// In bytes.
        length: usize,
        /// In bytes.
        limit: usize,
    },
    /// The header digest is wrong.
    #[error("the header digest is wrong")]
    HeaderDigest,
    /// The data digest is wrong.
    #[error("the data digest is wrong")]
    DataDigest,
}

const DIGEST_LENGTH: usize = 4;

/// Bytes that come in pieces, and the PDUs in them. It holds one PDU of the longest kind at most.
#[derive(Debug)]
pub struct Decoder {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// The limit of a data segment in bytes.
    pub limit: usize,
    /// The digests that a PDU has.
    pub digests: Digests,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { buffer: Vec::new(), start: 0, end: 0, limit: MAX_LOGIN_DATA_SEGMENT, digests: Digests::default() }
    }
}

/// The room that a connection begins with: a few commands without data.
const LEAST_ROOM: usize = 512;

/// The room for many commands at a time, once a connection is busy.
const BUSY_ROOM: usize = 64 << 10;

impl Decoder {
    /// Whether a whole PDU, or the beginning of one, is there.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Room for more bytes; never empty after [`next_pdu`](Self::next_pdu) has returned `None`.
    pub fn room(&mut self) -> &mut [u8] {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        // The header, once it is there, has been checked.
        let wanted = self.header().map_or(LEAST_ROOM, |header| self.pdu_length(&header));
        let full = self.end == self.buffer.len() && !self.buffer.is_empty();
        let least = if full { wanted.max(BUSY_ROOM) } else { wanted.max(LEAST_ROOM) };
        if self.buffer.len() < least {
            self.buffer.resize(least, 0);
        }
        &mut self.buffer[self.end..]
    }

    /// The number of bytes that were put into [`room`](Self::room).
    pub fn filled(&mut self, length: usize) {
        self.end += length;
    }

    /// Gives memory back that an idle connection does not need.
    pub fn shrink(&mut self) {
        if self.is_empty() {
            *self = Self { limit: self.limit, digests: self.digests, ..Self::default() };
        }
    }

    fn header(&self) -> Option<Header> {
        let bytes = self.buffer[self.start..self.end].get(..BHS_LENGTH)?;
        Some(Header(bytes.try_into().expect("48 bytes")))
    }

    fn pdu_length(&self, header: &Header) -> usize {
        let data = header.data_length();
        BHS_LENGTH
            + header.ahs_length()
            + if self.digests.header { DIGEST_LENGTH } else { 0 }
            + data.next_multiple_of(4)
            + if self.digests.data && data > 0 { DIGEST_LENGTH } else { 0 }
    }

    /// The next PDU; `None` when more bytes are needed.
    ///
    /// # Errors
    ///
    /// [`PduError`].
    pub fn next_pdu(&mut self) -> Result<Option<Pdu<'_>>, PduError> {
        let Some(header) = self.header() else { return Ok(None) };
        let length = header.data_length();
        if length > self.limit {
            return Err(PduError::DataTooLong { length, limit: self.limit });
        }
        let total = self.pdu_length(&header);
        if self.end - self.start < total {
            return Ok(None);
        }
        let pdu = &self.buffer[self.start..self.start + total];
        self.start += total;
        let (headers, rest) = pdu.split_at(BHS_LENGTH + header.ahs_length());
        let rest = if self.digests.header {
            let (digest, rest) = rest.split_at(DIGEST_LENGTH);
            if digest != crc32c::crc32c(headers).to_le_bytes() {
                return Err(PduError::HeaderDigest);
            }
            rest
        } else {
            rest
        };
        if self.digests.data && length > 0 {
            let (data, digest) = rest.split_at(length.next_multiple_of(4));
            if digest != crc32c::crc32c(data).to_le_bytes() {
                return Err(PduError::DataDigest);
            }
        }
        Ok(Some(Pdu { header, ahs: &headers[BHS_LENGTH..], data: &rest[..length] }))
    }
}

/// Appends the PDU to `out`, with its padding and its digests.
pub fn encode(out: &mut Vec<u8>, header: &Header, data: &[u8], digests: Digests) {
    encode_header(out, header, data.len(), digests);
    out.extend_from_slice(data);
    let (trailer, length) = trailer(data, digests);
    out.extend_from_slice(&trailer[..length]);
}

/// Appends the header, with its digest, of a PDU with so many bytes of data.
fn encode_header(out: &mut Vec<u8>, header: &Header, data_length: usize, digests: Digests) {
    let mut header = *header;
    header.set_data_length(data_length);
    out.extend_from_slice(&header.0);
    if digests.header {
        out.extend_from_slice(&crc32c::crc32c(&header.0).to_le_bytes());
    }
}

/// The padding and the digest that follow `data`, and their length.
fn trailer(data: &[u8], digests: Digests) -> ([u8; 8], usize) {
    let mut trailer = [0; 8];
    let padding = data.len().next_multiple_of(4) - data.len();
    if !digests.data || data.is_empty() {
        return (trailer, padding);
    }
    let digest = crc32c::crc32c_append(crc32c::crc32c(data), &[0; 4][..padding]);
    trailer[padding..padding + 4].copy_from_slice(&digest.to_le_bytes());
    (trailer, padding + 4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn feed(decoder: &mut Decoder, mut bytes: &[u8], pieces: usize) -> Result<Vec<(Header, Vec<u8>)>, PduError> {
        let mut pdus = Vec::new();
        loop {
            while let Some(pdu) = decoder.next_pdu()? {
                pdus.push((pdu.header, pdu.data.to_vec()));
            }
            if bytes.is_empty() {
                return Ok(pdus);
            }
            let room = decoder.room();
            let length = room.len().min(pieces).min(bytes.len());
            assert!(length > 0, "there is room whenever more bytes are needed");
            room[..length].copy_from_slice(&bytes[..length]);
            decoder.filled(length);
            bytes = &bytes[length..];
        }
    }

    proptest! {
        #[test]
        fn encoded_pdus_are_decoded_however_they_are_cut(
            data in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..6),
            pieces in 1usize..200,
            header in any::<bool>(),
            data_digest in any::<bool>(),
        ) {
            let digests = Digests { header, data: data_digest };
            let mut bytes = Vec::new();
            let mut expected = Vec::new();
            for data in data {
                let mut header = Header::new(Answer::NopIn, FINAL);
                header.set_data_length(data.len());
                encode(&mut bytes, &header, &data, digests);
                expected.push((header, data));
            }
            let mut decoder = Decoder { digests, ..Decoder::default() };
            prop_assert_eq!(feed(&mut decoder, &bytes, pieces).unwrap(), expected);
            prop_assert!(decoder.is_empty());
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..2000), pieces in 1usize..100) {
            let _ = feed(&mut Decoder::default(), &bytes, pieces);
        }

        #[test]
        fn a_flipped_bit_under_a_digest_is_found(data in prop::collection::vec(any::<u8>(), 1..64), bit in 0usize..8, at in 0usize..200) {
            let digests = Digests { header: true, data: true };
            let mut bytes = Vec::new();
            encode(&mut bytes, &Header::new(Answer::NopIn, FINAL), &data, digests);
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            let mut decoder = Decoder { digests, ..Decoder::default() };
            // A length that is longer now makes the PDU incomplete.
            prop_assert!(!matches!(feed(&mut decoder, &bytes, 64), Ok(pdus) if !pdus.is_empty()));
        }
    }

    #[test]
    fn a_claimed_length_allocates_nothing() {
        let mut header = Header::new(Answer::NopIn, FINAL);
        header.set_data_length(0xff_ffff);
        let mut decoder = Decoder::default();
        let result = feed(&mut decoder, &header.0, 48);
        assert_eq!(result, Err(PduError::DataTooLong { length: 0xff_ffff, limit: MAX_LOGIN_DATA_SEGMENT }));
        assert!(decoder.buffer.len() <= LEAST_ROOM);
    }
}
