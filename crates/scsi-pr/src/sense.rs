//! Sense data: why a command ended in CHECK CONDITION (SPC-4 4.5).

use std::fmt;

/// A sense key (SPC-4 table 41), four bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SenseKey(u8);

/// The code of an error: sense key, additional sense code and its qualifier (SPC-4 annex E.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SenseCode {
    /// The sense key.
    pub key: SenseKey,
    /// ADDITIONAL SENSE CODE.
    pub asc: u8,
    /// ADDITIONAL SENSE CODE QUALIFIER.
    pub ascq: u8,
}

/// Sense data, fixed or descriptor format, byte for byte; as long as SG_IO and the helper protocol carry it and
/// zero-padded.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sense([u8; Sense::LENGTH]);

impl SenseKey {
    /// 0h.
    pub const NO_SENSE: Self = Self(0x0);
    /// 2h.
    pub const NOT_READY: Self = Self(0x2);
    /// 3h.
    pub const MEDIUM_ERROR: Self = Self(0x3);
    /// 4h.
    pub const HARDWARE_ERROR: Self = Self(0x4);
    /// 5h.
    pub const ILLEGAL_REQUEST: Self = Self(0x5);
    /// 6h.
    pub const UNIT_ATTENTION: Self = Self(0x6);
    /// 7h.
    pub const DATA_PROTECT: Self = Self(0x7);
    /// Bh.
    pub const ABORTED_COMMAND: Self = Self(0xb);

    /// The key in the low four bits of `byte`.
    pub const fn from_byte(byte: u8) -> Self {
        Self(byte & 0xf)
    }

    /// The key, 0h to Fh.
    pub const fn byte(self) -> u8 {
        self.0
    }
}

macro_rules! codes {
    ($($name:ident = $key:ident, $asc:literal, $ascq:literal, $text:literal;)*) => {
        impl SenseCode {
            $(
                #[doc = concat!("[`SenseKey::", stringify!($key), "`], ", stringify!($asc), "/", stringify!($ascq), ": ", $text, ".")]
                pub const $name: Self = Self { key: SenseKey::$key, asc: $asc, ascq: $ascq };
            )*

            /// The codes that have a name here.
            const NAMED: &[(Self, &'static str)] = &[$((Self::$name, $text)),*];
        }
    };
}

codes! {
    NO_SENSE = NO_SENSE, 0x00, 0x00, "NO ADDITIONAL SENSE INFORMATION";
    NOT_READY = NOT_READY, 0x04, 0x00, "LOGICAL UNIT NOT READY, CAUSE NOT REPORTABLE";
    MANUAL_INTERVENTION_REQUIRED = NOT_READY, 0x04, 0x03, "LOGICAL UNIT NOT READY, MANUAL INTERVENTION REQUIRED";
    NO_MEDIUM = NOT_READY, 0x3a, 0x00, "MEDIUM NOT PRESENT";
    READ_ERROR = MEDIUM_ERROR, 0x11, 0x00, "UNRECOVERED READ ERROR";
    TARGET_FAILURE = HARDWARE_ERROR, 0x44, 0x00, "INTERNAL TARGET FAILURE";
    PARAMETER_LIST_LENGTH_ERROR = ILLEGAL_REQUEST, 0x1a, 0x00, "PARAMETER LIST LENGTH ERROR";
    INVALID_OPCODE = ILLEGAL_REQUEST, 0x20, 0x00, "INVALID COMMAND OPERATION CODE";
    INVALID_FIELD_IN_CDB = ILLEGAL_REQUEST, 0x24, 0x00, "INVALID FIELD IN CDB";
    INVALID_FIELD_IN_PARAMETER_LIST = ILLEGAL_REQUEST, 0x26, 0x00, "INVALID FIELD IN PARAMETER LIST";
    INVALID_RELEASE = ILLEGAL_REQUEST, 0x26, 0x04, "INVALID RELEASE OF PERSISTENT RESERVATION";
    INSUFFICIENT_REGISTRATION_RESOURCES = ILLEGAL_REQUEST, 0x55, 0x04, "INSUFFICIENT REGISTRATION RESOURCES";
    RESET = UNIT_ATTENTION, 0x29, 0x00, "POWER ON, RESET, OR BUS DEVICE RESET OCCURRED";
    BUS_RESET = UNIT_ATTENTION, 0x29, 0x02, "SCSI BUS RESET OCCURRED";
    RESERVATIONS_PREEMPTED = UNIT_ATTENTION, 0x2a, 0x03, "RESERVATIONS PREEMPTED";
    RESERVATIONS_RELEASED = UNIT_ATTENTION, 0x2a, 0x04, "RESERVATIONS RELEASED";
    REGISTRATIONS_PREEMPTED = UNIT_ATTENTION, 0x2a, 0x05, "REGISTRATIONS PREEMPTED";
    SPACE_ALLOCATION_FAILED = DATA_PROTECT, 0x27, 0x07, "SPACE ALLOCATION FAILED WRITE PROTECT";
    IO_PROCESS_TERMINATED = ABORTED_COMMAND, 0x00, 0x06, "I/O PROCESS TERMINATED";
    LUN_NOT_RESPONDING = ABORTED_COMMAND, 0x05, 0x00, "LOGICAL UNIT DOES NOT RESPOND TO SELECTION";
    LUN_COMMUNICATION_FAILURE = ABORTED_COMMAND, 0x08, 0x00, "LOGICAL UNIT COMMUNICATION FAILURE";
    LUN_COMMUNICATION_TIMEOUT = ABORTED_COMMAND, 0x08, 0x01, "LOGICAL UNIT COMMUNICATION TIME-OUT";
    NEXUS_LOSS = ABORTED_COMMAND, 0x29, 0x07, "I_T NEXUS LOSS OCCURRED";
    COMMAND_TIMEOUT = ABORTED_COMMAND, 0x2e, 0x02, "COMMAND TIMEOUT DURING PROCESSING";
    COMMAND_ABORTED = ABORTED_COMMAND, 0x2f, 0x02, "COMMANDS CLEARED BY DEVICE SERVER";
}

impl SenseCode {
    /// The standard's name of the additional sense code and qualifier. `None` for those that do not concern reservations.
    pub fn name(self) -> Option<&'static str> {
        let same = |code: SenseCode| (code.asc, code.ascq) == (self.asc, self.ascq);
        Self::NAMED.iter().find(|(code, _)| same(*code)).map(|(_, name)| *name)
    }
}

impl fmt::Display for SenseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}/{:02x}/{:02x}", self.key.byte(), self.asc, self.ascq)?;
        self.name().map_or(Ok(()), |name| write!(f, " ({name})"))
    }
}

impl Sense {
    /// How many bytes are kept: what SG_IO is asked for and the helper protocol has room for.
    pub const LENGTH: usize = 96;

    /// Fixed format, current error, 18 bytes (SPC-4 4.5.3): what QEMU's tools make of their own errors.
    pub const fn fixed(code: SenseCode) -> Self {
        let mut bytes = [0; Self::LENGTH];
        bytes[0] = 0x70;
        bytes[2] = code.key.byte();
        bytes[7] = 10;
        bytes[12] = code.asc;
        bytes[13] = code.ascq;
        Self(bytes)
    }

    /// Descriptor format, current error, without descriptors, 8 bytes (SPC-4 4.5.2).
    pub const fn descriptor(code: SenseCode) -> Self {
        let mut bytes = [0; Self::LENGTH];
        bytes[0] = 0x72;
        bytes[1] = code.key.byte();
        bytes[2] = code.asc;
        bytes[3] = code.ascq;
        Self(bytes)
    }

    /// Sense data as a device returned it; what is over 96 bytes is cut, what is missing is zero.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut padded = [0; Self::LENGTH];
        let length = bytes.len().min(Self::LENGTH);
        padded[..length].copy_from_slice(&bytes[..length]);
        Self(padded)
    }

    /// The bytes, zero-padded.
    pub const fn bytes(&self) -> &[u8; Self::LENGTH] {
        &self.0
    }

    /// How many of the bytes are sense data: what their ADDITIONAL SENSE LENGTH says, at most all; 0 when they are of
    /// neither format.
    pub const fn length(&self) -> usize {
        if self.format().is_none() {
            return 0;
        }
        let length = 8 + self.0[7] as usize;
        if length < Self::LENGTH { length } else { Self::LENGTH }
    }

    /// The code in the sense data; `None` if it is of neither format. Bytes that ADDITIONAL SENSE LENGTH leaves out are zero.
    pub const fn code(&self) -> Option<SenseCode> {
        let b = &self.0;
        match self.format() {
            Some((Format::Fixed, _)) => Some(SenseCode {
                key: SenseKey::from_byte(b[2]),
                asc: if self.length() > 12 { b[12] } else { 0 },
                ascq: if self.length() > 13 { b[13] } else { 0 },
            }),
            Some((Format::Descriptor, _)) => Some(SenseCode { key: SenseKey::from_byte(b[1]), asc: b[2], ascq: b[3] }),
            None => None,
        }
    }

    /// Whether this is a deferred error (response code 71h or 73h): it tells of an earlier command, and this one has
    /// not been run (SPC-4 4.5.7).
    pub const fn is_deferred(&self) -> bool {
        matches!(self.format(), Some((_, true)))
    }

    /// The format, and whether the error is a deferred one, by the RESPONSE CODE. Its high bit is VALID, of a field that
    /// is not looked at.
    const fn format(&self) -> Option<(Format, bool)> {
        match self.0[0] & 0x7f {
            0x70 => Some((Format::Fixed, false)),
            0x71 => Some((Format::Fixed, true)),
            0x72 => Some((Format::Descriptor, false)),
            0x73 => Some((Format::Descriptor, true)),
            _ => None,
        }
    }
}

/// How sense data is laid out.
#[derive(Clone, Copy)]
enum Format {
    Fixed,
    Descriptor,
}

impl fmt::Debug for Sense {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let used = self.0.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
        write!(f, "Sense({:02x?})", &self.0[..used])
    }
}

impl fmt::Display for Sense {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code() {
            Some(code) if self.is_deferred() => write!(f, "deferred sense {code}"),
            Some(code) => write!(f, "sense {code}"),
            None => write!(f, "sense of unknown format {:#04x}", self.0[0]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn codes() -> impl Strategy<Value = SenseCode> {
        any::<(u8, u8, u8)>().prop_map(|(key, asc, ascq)| SenseCode { key: SenseKey::from_byte(key), asc, ascq })
    }

    #[test]
    fn both_formats_have_their_bytes() {
        let fixed = Sense::fixed(SenseCode::RESERVATIONS_PREEMPTED);
        assert_eq!(fixed.bytes()[..18], [0x70, 0, 6, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x2a, 3, 0, 0, 0, 0]);
        assert_eq!(fixed.length(), 18);
        let descriptor = Sense::descriptor(SenseCode::RESERVATIONS_PREEMPTED);
        assert_eq!(descriptor.bytes()[..8], [0x72, 6, 0x2a, 3, 0, 0, 0, 0]);
        assert_eq!(descriptor.length(), 8);
    }

    #[test]
    fn a_length_that_leaves_the_code_out_is_obeyed() {
        let mut bytes = *Sense::fixed(SenseCode::INVALID_FIELD_IN_CDB).bytes();
        bytes[13] = 0x09;
        for (additional, asc, ascq) in [(0, 0, 0), (4, 0, 0), (5, 0x24, 0), (6, 0x24, 0x09), (0xff, 0x24, 0x09)] {
            bytes[7] = additional;
            let code = Sense::from_bytes(&bytes).code().unwrap();
            assert_eq!(code, SenseCode { key: SenseKey::ILLEGAL_REQUEST, asc, ascq }, "{additional}");
        }
        assert_eq!(Sense::from_bytes(&bytes).length(), 96);
    }

    #[test]
    fn codes_are_called_by_their_names() {
        assert_eq!(SenseCode::INVALID_FIELD_IN_CDB.to_string(), "05/24/00 (INVALID FIELD IN CDB)");
        let elsewhere = SenseCode { key: SenseKey::NOT_READY, ..SenseCode::LUN_COMMUNICATION_FAILURE };
        assert_eq!(elsewhere.to_string(), "02/08/00 (LOGICAL UNIT COMMUNICATION FAILURE)");
        let unknown = SenseCode { key: SenseKey::from_byte(0x9), asc: 0x80, ascq: 0xff };
        assert_eq!(unknown.to_string(), "09/80/ff");
        for (code, name) in SenseCode::NAMED {
            assert_eq!(code.name(), Some(*name));
        }
    }

    #[test]
    fn deferred_errors_are_recognized() {
        for (response_code, text) in [
            (0x70, "sense 06/29/00 (POWER ON, RESET, OR BUS DEVICE RESET OCCURRED)"),
            (0xf1, "deferred sense 06/29/00 (POWER ON, RESET, OR BUS DEVICE RESET OCCURRED)"),
            (0x7f, "sense of unknown format 0x7f"),
        ] {
            let mut bytes = *Sense::fixed(SenseCode::RESET).bytes();
            bytes[0] = response_code;
            let sense = Sense::from_bytes(&bytes);
            assert_eq!(sense.to_string(), text);
            assert_eq!(sense.is_deferred(), text.starts_with("deferred"));
        }
    }

    proptest! {
        #[test]
        fn a_code_survives_both_formats(code in codes()) {
            for sense in [Sense::fixed(code), Sense::descriptor(code)] {
                prop_assert_eq!(sense.code(), Some(code));
                prop_assert!(!sense.is_deferred());
                prop_assert_eq!(Sense::from_bytes(&sense.bytes()[..sense.length()]), sense);
            }
        }

        #[test]
        fn any_bytes_are_kept_and_read(bytes in prop::collection::vec(any::<u8>(), 0..120), first in 0x6eu8..0x76) {
            let mut bytes = bytes;
            bytes.iter_mut().take(1).for_each(|byte| *byte = *byte & 0x80 | first);
            let sense = Sense::from_bytes(&bytes);
            let kept = bytes.len().min(Sense::LENGTH);
            prop_assert_eq!(&sense.bytes()[..kept], &bytes[..kept]);
            prop_assert!(sense.bytes()[kept..].iter().all(|byte| *byte == 0));
            let known = !bytes.is_empty() && (0x70..=0x73).contains(&first);
            prop_assert_eq!(sense.code().is_some(), known);
            prop_assert_eq!(sense.length() >= 8, known);
            prop_assert_eq!(sense.is_deferred(), known && first % 2 == 1);
            let _ = (sense.to_string(), format!("{sense:?}"));
        }
    }
}
