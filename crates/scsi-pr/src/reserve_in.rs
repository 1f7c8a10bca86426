//! PERSISTENT RESERVE IN as a value, and the data that it returns (SPC-4 6.15).
//!
//! A manager that makes the data itself encodes [`Keys`], [`Reservation`], [`Capabilities`] or [`FullStatus`] and lets
//! [`ReserveIn::answer`] cut them to the allocation length; a client parses what came, which may be cut: [`Parsed`].

mod capabilities;
pub(crate) mod full_status;
pub(crate) mod keys;
mod reservation;

use std::fmt;

use zerocopy::byteorder::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub use capabilities::{AllowCommands, Capabilities, TypeMask};
pub use full_status::{FullStatus, FullStatusDescriptor};
pub use keys::Keys;
pub use reservation::{Held, Reservation};

use crate::{Cdb, Command, CommandBuf, Completion, Generation, Opcode, SenseCode};

/// The service actions of PERSISTENT RESERVE IN (SPC-4 6.15.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum ReserveInAction {
    /// 00h: [`Keys`].
    ReadKeys = 0x00,
    /// 01h: [`Reservation`].
    ReadReservation = 0x01,
    /// 02h: [`Capabilities`].
    ReportCapabilities = 0x02,
    /// 03h: [`FullStatus`].
    ReadFullStatus = 0x03,
}

impl ReserveInAction {
    /// Every service action there is, in the order of their codes.
    pub const ALL: [Self; 4] = [Self::ReadKeys, Self::ReadReservation, Self::ReportCapabilities, Self::ReadFullStatus];

    /// The service action with this code; `None` for a reserved one.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }

    /// The code in the CDB.
    pub const fn code(self) -> u8 {
        self as u8
    }
}

impl fmt::Display for ReserveInAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ReadKeys => "READ KEYS",
            Self::ReadReservation => "READ RESERVATION",
            Self::ReportCapabilities => "REPORT CAPABILITIES",
            Self::ReadFullStatus => "READ FULL STATUS",
        })
    }
}

/// The meaning of a PERSISTENT RESERVE IN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReserveIn {
    action: ReserveInAction,
    allocation_length: u16,
}

/// The CDB, padded to 16 bytes.
#[derive(Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct CdbLayout {
    opcode: u8,
    service_action: u8,
    reserved: [u8; 5],
    allocation_length: U16,
    control: u8,
    padding: [u8; 6],
}

impl ReserveIn {
    /// Asks for `action`, with room for `allocation_length` bytes, at most 65,535.
    pub fn new(action: ReserveInAction, allocation_length: usize) -> Self {
        Self { action, allocation_length: u16::try_from(allocation_length).unwrap_or(u16::MAX) }
    }

    /// Reads what `command` asks for. Reserved bits are not looked at, except those beside the service action.
    ///
    /// # Errors
    ///
    /// The sense that refuses the command: [`INVALID_OPCODE`](SenseCode::INVALID_OPCODE) when it is no PERSISTENT
    /// RESERVE IN, [`INVALID_FIELD_IN_CDB`](SenseCode::INVALID_FIELD_IN_CDB) when its service action is unknown.
    pub fn parse(command: Command<'_>) -> Result<Self, SenseCode> {
        if command.opcode() != Opcode::ReserveIn {
            return Err(SenseCode::INVALID_OPCODE);
        }
        let cdb: &CdbLayout = zerocopy::transmute_ref!(command.cdb().bytes());
        let action = ReserveInAction::from_code(cdb.service_action).ok_or(SenseCode::INVALID_FIELD_IN_CDB)?;
        Ok(Self::new(action, cdb.allocation_length.get().into()))
    }

    /// The service action.
    pub const fn action(&self) -> ReserveInAction {
        self.action
    }

    /// The most bytes that may be returned.
    pub fn allocation_length(&self) -> usize {
        self.allocation_length.into()
    }

    /// The command that asks for this.
    pub fn encode(&self) -> CommandBuf {
        let cdb = CdbLayout {
            opcode: Opcode::ReserveIn.byte(),
            service_action: self.action.code(),
            allocation_length: self.allocation_length.into(),
            ..CdbLayout::default()
        };
        let cdb = Cdb::new(zerocopy::transmute!(cdb)).expect("the opcode is known");
        CommandBuf::new(cdb, Vec::new()).expect("it has no parameter list")
    }

    /// GOOD with `data`, cut to the allocation length. The length fields in the data stay as they are and tell how much
    /// there is (SPC-4 4.2.5.6).
    pub fn answer(&self, mut data: Vec<u8>) -> Completion {
        if data.len() > self.allocation_length() {
            data.truncate(self.allocation_length());
            // An answer waits for a client that takes its time to read; of many registrants, most of it is what was cut.
            data.shrink_to_fit();
        }
        Completion::Good(data)
    }
}

impl fmt::Display for ReserveIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, up to {} bytes", self.action, self.allocation_length)
    }
}

/// The readable part of returned data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed<T> {
    /// The value. A list has the entries that are complete.
    pub value: T,
    /// The number of bytes of the whole data: an allocation length of so much cuts nothing.
    pub length: usize,
    /// Whether the data were cut.
    pub truncated: bool,
}

impl<T: fmt::Display> fmt::Display for Parsed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value.fmt(f)?;
        if self.truncated { write!(f, " (cut: there are {} bytes)", self.length) } else { Ok(()) }
    }
}

/// The cause for which bytes cannot be read as data of PERSISTENT RESERVE IN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidData {
    /// The data are too short.
    #[error("{actual} bytes of data came where at least {needed} are needed")]
    Short {
        /// The least number of bytes.
        needed: usize,
        /// The number of bytes.
        actual: usize,
    },
    /// An impossible length field: no multiple of an entry, or beyond the data around it.
    #[error("a length of {0} in the data cannot be")]
    Length(u32),
    /// A reservation of another scope than LU_SCOPE, or of an obsolete or reserved type: this byte.
    #[error("a reservation of the unknown scope and type {0:#04x}")]
    ScopeType(u8),
}

/// The header of READ KEYS, READ RESERVATION and READ FULL STATUS.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Header {
    generation: U32,
    additional_length: U32,
}

/// A [`Header`] and the bytes that it announces, as far as they were returned.
struct Body<'a> {
    generation: Generation,
    additional_length: u32,
    bytes: &'a [u8],
    /// The whole data, header included.
    length: usize,
    truncated: bool,
}

impl<'a> Body<'a> {
    /// Bytes beyond the announced ones are no data: some managers pad with zeros to the allocation length.
    fn parse(data: &'a [u8]) -> Result<Self, InvalidData> {
        let (header, body) = prefix::<Header>(data)?;
        let additional_length = header.additional_length.get();
        let announced = usize::try_from(additional_length).unwrap_or(usize::MAX);
        Ok(Self {
            generation: Generation(header.generation.get()),
            additional_length,
            bytes: &body[..body.len().min(announced)],
            length: size_of::<Header>().saturating_add(announced),
            truncated: body.len() < announced,
        })
    }

    fn parsed<T>(&self, value: T) -> Parsed<T> {
        Parsed { value, length: self.length, truncated: self.truncated }
    }
}

/// Data that begin with a [`Header`], cut to a limit while they are encoded. The rest takes neither time nor memory.
pub(crate) struct Encoder {
    data: Vec<u8>,
    limit: usize,
}

impl Encoder {
    /// A header that announces `additional_length` bytes. The data have at most `limit` bytes, the header included.
    pub(crate) fn new(generation: Generation, additional_length: usize, limit: usize) -> Self {
        let whole = size_of::<Header>().saturating_add(additional_length);
        let mut encoder = Self { data: Vec::with_capacity(whole.min(limit)), limit };
        // Over 32 bits, the data are cut in any case.
        let additional_length = u32::try_from(additional_length).unwrap_or(u32::MAX).into();
        encoder.push(Header { generation: generation.0.into(), additional_length }.as_bytes());
        encoder
    }

    /// Appends as much of `bytes` as fits.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let room = self.limit - self.data.len();
        self.data.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    pub(crate) fn is_full(&self) -> bool {
        self.data.len() == self.limit
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.data
    }
}

/// The layout at the beginning of `bytes`, and the bytes after it.
fn prefix<T: FromBytes + KnownLayout + Immutable + Unaligned>(bytes: &[u8]) -> Result<(&T, &[u8]), InvalidData> {
    T::ref_from_prefix(bytes).map_err(|_| InvalidData::Short { needed: size_of::<T>(), actual: bytes.len() })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Reads `data` as what each service action returns. `None` where it is refused; else the same, encoded again, and
    /// whether it was cut.
    fn again(action: ReserveInAction, data: &[u8]) -> Option<(Vec<u8>, usize, bool)> {
        fn parts<T>(
            parsed: Result<Parsed<T>, InvalidData>,
            encode: fn(&T) -> Vec<u8>,
        ) -> Option<(Vec<u8>, usize, bool)> {
            parsed.ok().map(|Parsed { value, length, truncated }| (encode(&value), length, truncated))
        }
        match action {
            ReserveInAction::ReadKeys => parts(Keys::parse(data), Keys::encode),
            ReserveInAction::ReadReservation => parts(Reservation::parse(data), Reservation::encode),
            ReserveInAction::ReportCapabilities => parts(Capabilities::parse(data), Capabilities::encode),
            ReserveInAction::ReadFullStatus => parts(FullStatus::parse(data), FullStatus::encode),
        }
    }

    fn returned() -> impl Strategy<Value = (ReserveInAction, Vec<u8>)> {
        prop_oneof![
            keys::tests::values().prop_map(|value| (ReserveInAction::ReadKeys, value.encode())),
            reservation::tests::values().prop_map(|value| (ReserveInAction::ReadReservation, value.encode())),
            capabilities::tests::values().prop_map(|value| (ReserveInAction::ReportCapabilities, value.encode())),
            full_status::tests::values().prop_map(|value| (ReserveInAction::ReadFullStatus, value.encode())),
        ]
    }

    #[test]
    fn each_service_action_has_its_cdb() {
        for (code, action) in (0..).zip(ReserveInAction::ALL) {
            let value = ReserveIn::new(action, 0x1234);
            let encoded = value.encode();
            let mut cdb = [0; 16];
            (cdb[0], cdb[1], cdb[7], cdb[8]) = (0x5e, code, 0x12, 0x34);
            assert_eq!(encoded.cdb().bytes(), &cdb);
            assert_eq!(ReserveIn::parse(encoded.command()), Ok(value));
        }
    }

    #[test]
    fn what_is_no_known_in_is_refused() {
        for code in 4..=u8::MAX {
            let mut cdb = [0; 16];
            (cdb[0], cdb[1]) = (0x5e, code);
            let command = CommandBuf::new(Cdb::new(cdb).unwrap(), Vec::new()).unwrap();
            assert_eq!(ReserveIn::parse(command.command()), Err(SenseCode::INVALID_FIELD_IN_CDB), "{code:#x}");
        }
        assert_eq!(ReserveIn::parse(Command::cleanup()), Err(SenseCode::INVALID_OPCODE));
    }

    #[test]
    fn an_answer_is_cut_and_its_lengths_are_not() {
        let data = Keys { generation: Generation(1), keys: vec![crate::Key(7); 3] }.encode();
        for (allocation_length, expected) in [(0, 0), (4, 4), (12, 12), (32, 32), (8192, 32), (100_000, 32)] {
            let answer = ReserveIn::new(ReserveInAction::ReadKeys, allocation_length).answer(data.clone());
            assert_eq!(answer, Completion::Good(data[..expected].to_vec()));
        }
    }

    proptest! {
        #[test]
        fn any_in_is_a_value_or_refused(mut cdb: [u8; 16]) {
            cdb[0] = 0x5e;
            if let Ok(cdb) = Cdb::new(cdb) {
                match ReserveIn::parse(Command::new(cdb, &[]).unwrap()) {
                    Ok(value) => {
                        prop_assert_eq!(value.allocation_length(), cdb.allocation_length());
                        prop_assert_eq!(value.action().code(), cdb.bytes()[1]);
                        prop_assert_eq!(ReserveIn::parse(value.encode().command()), Ok(value));
                    }
                    Err(code) => {
                        prop_assert!(cdb.bytes()[1] > 3);
                        prop_assert_eq!(code, SenseCode::INVALID_FIELD_IN_CDB);
                    }
                }
            }
        }

        #[test]
        fn whole_data_survive_and_padding_is_ignored((action, data) in returned(), padding in 0usize..40) {
            let padded = [&data[..], &vec![0; padding][..]].concat();
            prop_assert_eq!(again(action, &padded), Some((data.clone(), data.len(), false)));
        }

        #[test]
        fn cut_data_are_known_to_be_cut((action, data) in returned(), cut: prop::sample::Index) {
            let cut = cut.index(data.len());
            if let Some((part, length, truncated)) = again(action, &data[..cut]) {
                prop_assert!(truncated);
                prop_assert_eq!(length, data.len());
                // The value is right, except the length fields, which now announce less.
                prop_assert!(part.len() <= data.len());
                if part.len() > 8 && action != ReserveInAction::ReportCapabilities {
                    prop_assert_eq!(&part[8..], &data[8..part.len()]);
                }
            }
        }

        #[test]
        fn text_of_data_has_no_control_characters((action, data) in returned(), cut: prop::sample::Index) {
            fn lines<T: fmt::Display>(parsed: Result<Parsed<T>, InvalidData>) -> String {
                parsed.map_or_else(|error| error.to_string(), |parsed| format!("{parsed}{parsed:#}").replace('\n', ""))
            }
            let data = &data[..cut.index(data.len() + 1)];
            let text = match action {
                ReserveInAction::ReadKeys => lines(Keys::parse(data)),
                ReserveInAction::ReadReservation => lines(Reservation::parse(data)),
                ReserveInAction::ReportCapabilities => lines(Capabilities::parse(data)),
                ReserveInAction::ReadFullStatus => lines(FullStatus::parse(data)),
            };
            prop_assert!(!text.is_empty() && !text.contains(char::is_control), "{:?}", text);
        }

        #[test]
        fn noise_is_read_without_panic(
            (_, data) in returned(),
            noise in prop::collection::vec(any::<u8>(), 0..100),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        ) {
            let mut changed = data;
            for (index, byte) in changes {
                *index.get_mut(&mut changed) = byte;
            }
            for (bytes, action) in [noise, changed].iter().flat_map(|b| ReserveInAction::ALL.map(|a| (b, a))) {
                if let Some((once, length, truncated)) = again(action, bytes) {
                    prop_assert_eq!(truncated, bytes.len() < length);
                    // Reserved fields are ignored and not kept.
                    prop_assert_eq!(again(action, &once), Some((once.clone(), once.len(), false)));
                }
            }
        }
    }
}
