//! The bytes of the helper protocol: handshake, request, response. No I/O.
//!
//! All integers are big endian and nothing is framed, so each side must read exactly what comes next: a helper that
//! reads on loses the descriptor of the next request. A decoder therefore gives the buffer to
//! fill ([`RequestDecoder::wanted`]), and the caller passes the number of bytes that came ([`RequestDecoder::advance`]).
//!
//! ```text
//! helper                          client
//!    ── features offered (4) ──▶
//!    ◀── features wanted (4) ───
//!    ◀── CDB (16) + descriptor ─   ◀── parameter list (OUT only) ──
//!    ── status (4), size (4), sense (96) ──▶   ── data (IN and GOOD only) ──▶
//! ```

use scsi_pr::{Cdb, CommandBuf, Completion, InvalidCommand, Sense, Status};
use zerocopy::byteorder::big_endian::{I32, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The most bytes that one command moves, each way (QEMU's `PR_HELPER_DATA_SIZE`).
pub const MAX_TRANSFER: usize = 8192;

/// Feature bit 0: the helper runs CLEANUP (FFh). QEMU after 11.1.
pub const FEATURE_CLEANUP: u32 = 1;

/// How many bytes a response has before its data.
pub const RESPONSE_HEADER_LENGTH: usize = size_of::<ResponseHeader>();

/// A feature word as it goes over the wire, either way.
pub const fn feature_word(features: u32) -> [u8; 4] {
    features.to_be_bytes()
}

/// A client's violation of the protocol. The connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestViolation {
    /// It wants features that the helper does not know.
    #[error("unknown features {0:#010x} were requested")]
    Features(u32),
    /// Its CDB is none.
    #[error("{0}")]
    Command(InvalidCommand),
}

/// A message that the received bytes complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The handshake is over; the features that the client wants.
    Negotiated(u32),
    /// A whole request; its descriptor came with the bytes of its CDB.
    Request(CommandBuf),
}

/// The helper's side: what a client sends, from the handshake on.
#[derive(Debug)]
pub struct RequestDecoder {
    phase: Phase,
    /// How many bytes of the phase have come.
    have: usize,
    /// Handshake and CDB, whichever is being read.
    head: [u8; 16],
    list: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Features,
    Cdb,
    ParameterList(Cdb),
}

impl Default for RequestDecoder {
    fn default() -> Self {
        Self::new()
    }
}

impl RequestDecoder {
    /// A connection whose client has sent nothing.
    pub const fn new() -> Self {
        Self { phase: Phase::Features, have: 0, head: [0; 16], list: Vec::new() }
    }

    /// The room for what comes next: never empty, and no byte of what follows fits.
    pub fn wanted(&mut self) -> &mut [u8] {
        let whole = match self.phase {
            Phase::Features => &mut self.head[..4],
            Phase::Cdb => &mut self.head[..],
            Phase::ParameterList(_) => &mut self.list[..],
        };
        &mut whole[self.have..]
    }

    /// Whether a descriptor that comes with the wanted bytes belongs to the request. Others are dropped: the C helper
    /// reads the handshake and the parameter list without room for one.
    pub fn takes_descriptor(&self) -> bool {
        self.phase == Phase::Cdb
    }

    /// Whether nothing is half sent: no byte has come of the handshake, or of the next request.
    pub fn is_idle(&self) -> bool {
        self.have == 0 && !self.is_in_parameter_list()
    }

    /// Whether a CDB has come and the parameter list that it announces is awaited.
    pub fn is_in_parameter_list(&self) -> bool {
        matches!(self.phase, Phase::ParameterList(_))
    }

    /// Takes note that the first `count` of the wanted bytes have been filled in.
    ///
    /// # Errors
    ///
    /// The client's violation of the protocol. The decoder must not be used any more.
    ///
    /// # Panics
    ///
    /// When `count` is more than was wanted.
    pub fn advance(&mut self, count: usize) -> Result<Option<Event>, RequestViolation> {
        let missing = self.wanted().len();
        assert!(count <= missing, "{count} bytes read where {missing} were wanted");
        if count < missing {
            self.have += count;
            return Ok(None);
        }
        self.have = 0;
        match self.phase {
            Phase::Features => {
                let [a, b, c, d, ..] = self.head;
                let features = u32::from_be_bytes([a, b, c, d]);
                if features & !FEATURE_CLEANUP != 0 {
                    return Err(RequestViolation::Features(features));
                }
                self.phase = Phase::Cdb;
                Ok(Some(Event::Negotiated(features)))
            }
            Phase::Cdb => {
                let cdb = Cdb::new(self.head).map_err(RequestViolation::Command)?;
                cdb.check_transfer_length(MAX_TRANSFER).map_err(RequestViolation::Command)?;
                match cdb.parameter_list_length() {
                    0 => Ok(Some(request(cdb, Vec::new()))),
                    length => {
                        self.list = vec![0; length];
                        self.phase = Phase::ParameterList(cdb);
                        Ok(None)
                    }
                }
            }
            Phase::ParameterList(cdb) => {
                self.phase = Phase::Cdb;
                Ok(Some(request(cdb, std::mem::take(&mut self.list))))
            }
        }
    }
}

fn request(cdb: Cdb, parameter_list: Vec<u8>) -> Event {
    Event::Request(CommandBuf::new(cdb, parameter_list).expect("as many bytes were read as the CDB announced"))
}

/// `PRHelperResponse` of QEMU's `scsi/pr-helper.h`.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct ResponseHeader {
    /// SCSI status.
    result: I32,
    /// How many bytes of data follow.
    size: I32,
    sense: [u8; Sense::LENGTH],
}

/// A response as it goes over the wire: its header, and the data that follow, at most `allocation_length` bytes.
pub fn encode_response(completion: &Completion, allocation_length: usize) -> ([u8; RESPONSE_HEADER_LENGTH], &[u8]) {
    let (status, data, sense) = match completion {
        Completion::Good(data) => (0x00, &data[..data.len().min(allocation_length)], None),
        Completion::CheckCondition(sense) => (0x02, &[][..], Some(sense)),
        Completion::Status(status) => (status.byte(), &[][..], None),
    };
    let header = ResponseHeader {
        result: I32::new(status.into()),
        size: I32::new(i32::try_from(data.len()).expect("the CDB's length field has 16 bits")),
        sense: sense.map_or([0; Sense::LENGTH], |sense| *sense.bytes()),
    };
    (zerocopy::transmute!(header), data)
}

/// A helper's violation of the protocol. The connection cannot go on, and the command has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ResponseViolation {
    /// A status that is no SCSI status: not 0 to 255.
    #[error("the helper answered with status {0}, which is no SCSI status")]
    Status(i32),
    /// A size that is negative, over the allocation length, or not zero although there can be no data.
    #[error("the helper announced {size} bytes of data where at most {limit} may come")]
    Size {
        /// The size that was announced.
        size: i32,
        /// The most that it may be.
        limit: usize,
    },
}

/// The client's side of the handshake: the feature word that a helper offers.
pub fn decode_features(bytes: [u8; 4]) -> u32 {
    U32::from_bytes(bytes).get()
}

/// The client's side: one response.
#[derive(Debug)]
pub struct ResponseDecoder {
    allocation_length: usize,
    have: usize,
    header: [u8; RESPONSE_HEADER_LENGTH],
    /// The data of a GOOD response whose header is complete.
    data: Option<Vec<u8>>,
}

impl ResponseDecoder {
    /// Expects the response to `cdb`.
    pub const fn new(cdb: &Cdb) -> Self {
        Self { allocation_length: cdb.allocation_length(), have: 0, header: [0; RESPONSE_HEADER_LENGTH], data: None }
    }

    /// The room for what comes next: never empty, and nothing that follows the response fits.
    pub fn wanted(&mut self) -> &mut [u8] {
        match &mut self.data {
            None => &mut self.header[self.have..],
            Some(data) => &mut data[self.have..],
        }
    }

    /// Takes note that the first `count` of the wanted bytes have been filled in; the answer, once it is whole.
    ///
    /// # Errors
    ///
    /// The helper's violation of the protocol. The connection must be given up.
    ///
    /// # Panics
    ///
    /// When `count` is more than was wanted.
    pub fn advance(&mut self, count: usize) -> Result<Option<Completion>, ResponseViolation> {
        let missing = self.wanted().len();
        assert!(count <= missing, "{count} bytes read where {missing} were wanted");
        self.have += count;
        if count < missing {
            return Ok(None);
        }
        if let Some(data) = self.data.take() {
            return Ok(Some(Completion::Good(data)));
        }
        let header: ResponseHeader = zerocopy::transmute!(self.header);
        let result = header.result.get();
        let status = u8::try_from(result).map_err(|_| ResponseViolation::Status(result))?;
        let limit = if status == 0x00 { self.allocation_length } else { 0 };
        let size = usize::try_from(header.size.get())
            .ok()
            .filter(|size| *size <= limit)
            .ok_or(ResponseViolation::Size { size: header.size.get(), limit })?;
        match Status::from_byte(status) {
            Some(status) => Ok(Some(Completion::Status(status))),
            None if status == 0x02 => Ok(Some(Completion::CheckCondition(Sense::from_bytes(&header.sense)))),
            None if size == 0 => Ok(Some(Completion::Good(Vec::new()))),
            None => {
                self.have = 0;
                self.data = Some(vec![0; size]);
                Ok(None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use scsi_pr::SenseCode;

    fn out(length: u16) -> [u8; 16] {
        let mut cdb = [0; 16];
        cdb[0] = 0x5f;
        cdb[7..9].copy_from_slice(&length.to_be_bytes());
        cdb
    }

    /// Feeds `bytes` in pieces of the sizes that `pieces` says, over and over.
    fn decode(mut bytes: &[u8], pieces: &[usize]) -> Result<Vec<Event>, RequestViolation> {
        let mut decoder = RequestDecoder::new();
        let mut events = Vec::new();
        for piece in pieces.iter().cycle() {
            let room = decoder.wanted();
            assert!(!room.is_empty());
            let count = room.len().min(*piece).min(bytes.len());
            if count == 0 {
                break;
            }
            room[..count].copy_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
            events.extend(decoder.advance(count)?);
        }
        Ok(events)
    }

    #[test]
    fn a_conversation_is_decoded() {
        let mut bytes = vec![0, 0, 0, 1];
        bytes.extend(out(3));
        bytes.extend([7, 8, 9]);
        bytes.extend(out(0));
        let events = decode(&bytes, &[usize::MAX]).unwrap();
        assert_eq!(events.len(), 3);
        assert_eq!(events[0], Event::Negotiated(FEATURE_CLEANUP));
        let Event::Request(request) = &events[1] else { panic!("{events:?}") };
        assert_eq!(request.command().parameter_list(), [7, 8, 9]);
    }

    #[test]
    fn unknown_features_are_a_violation() {
        for word in [0x8000_0000_u32, 0x0100_0000, 2, u32::MAX] {
            assert_eq!(decode(&feature_word(word), &[4]), Err(RequestViolation::Features(word)));
        }
    }

    #[test]
    fn data_over_the_allocation_length_are_cut() {
        let completion = Completion::Good(vec![1; 20]);
        let (header, data) = encode_response(&completion, 8);
        assert_eq!((&header[4..8], data.len()), (&[0, 0, 0, 8][..], 8));
    }

    fn response(result: i32, size: i32) -> Result<Option<Completion>, ResponseViolation> {
        let mut cdb = [0; 16];
        (cdb[0], cdb[8]) = (0x5e, 24);
        let mut decoder = ResponseDecoder::new(&Cdb::new(cdb).unwrap());
        decoder.wanted()[..4].copy_from_slice(&result.to_be_bytes());
        decoder.wanted()[4..8].copy_from_slice(&size.to_be_bytes());
        decoder.advance(RESPONSE_HEADER_LENGTH)
    }

    #[test]
    fn a_helper_that_lies_about_sizes_is_found_out() {
        for (result, size) in [(0, 25), (0, -1), (0, i32::MIN), (2, 1), (0x18, 8)] {
            assert!(matches!(response(result, size), Err(ResponseViolation::Size { .. })), "{result} {size}");
        }
        assert_eq!(response(0, 24), Ok(None));
    }

    #[test]
    fn a_status_that_does_not_fit_a_byte_is_not_good() {
        for result in [0x100, -1, i32::MIN] {
            assert_eq!(response(result, 0), Err(ResponseViolation::Status(result)));
        }
    }

    fn completions() -> impl Strategy<Value = Completion> {
        prop_oneof![
            prop::collection::vec(any::<u8>(), 0..100).prop_map(Completion::Good),
            prop::collection::vec(any::<u8>(), 0..100).prop_map(|b| Completion::CheckCondition(Sense::from_bytes(&b))),
            any::<u8>().prop_map(|byte| {
                Status::from_byte(byte).map_or(Completion::check(SenseCode::NO_SENSE), Completion::Status)
            }),
        ]
    }

    proptest! {
        #[test]
        fn how_the_bytes_are_cut_does_not_matter(
            bytes in prop::collection::vec(any::<u8>(), 0..64),
            pieces in prop::collection::vec(1usize..20, 1..5),
        ) {
            let mut stream = vec![0, 0, 0, 0];
            stream.extend(out(bytes.len() as u16));
            stream.extend(&bytes);
            stream.extend(&bytes);
            prop_assert_eq!(decode(&stream, &pieces), decode(&stream, &[usize::MAX]));
        }

        #[test]
        fn a_response_survives_the_wire(completion in completions(), piece in 1usize..200) {
            let mut cdb = [0; 16];
            (cdb[0], cdb[8]) = (0x5e, 200);
            let (header, data) = encode_response(&completion, 200);
            let stream = [&header[..], data].concat();
            let mut decoder = ResponseDecoder::new(&Cdb::new(cdb).unwrap());
            let mut rest = &stream[..];
            let answer = loop {
                let room = decoder.wanted();
                let count = room.len().min(piece).min(rest.len());
                room[..count].copy_from_slice(&rest[..count]);
                rest = &rest[count..];
                if let Some(answer) = decoder.advance(count).unwrap() {
                    break answer;
                }
                prop_assert!(!rest.is_empty());
            };
            prop_assert_eq!(answer, completion);
            prop_assert!(rest.is_empty());
        }
    }
}
