//! Sense data: why a command ended in CHECK CONDITION (SPC-4 4.5).

use std::fmt;

/// A sense key (SPC-4 table 41), four bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SenseKey(u8);

/// What went wrong: sense key, additional sense code and its qualifier (SPC-4 annex E.2).
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
    ($($(#[$doc:meta])* $name:ident = $key:ident, $asc:literal, $ascq:literal;)*) => {
        impl SenseCode {
            $($(#[$doc])* pub const $name: Self = Self { key: SenseKey::$key, asc: $asc, ascq: $ascq };)*
        }
    };
}

codes! {
    /// 0/00/00 NO ADDITIONAL SENSE INFORMATION.
    NO_SENSE = NO_SENSE, 0x00, 0x00;
    /// 2/04/00 LOGICAL UNIT NOT READY, CAUSE NOT REPORTABLE.
    NOT_READY = NOT_READY, 0x04, 0x00;
    /// 2/3A/00 MEDIUM NOT PRESENT.
    NO_MEDIUM = NOT_READY, 0x3a, 0x00;
    /// 3/11/00 UNRECOVERED READ ERROR.
    READ_ERROR = MEDIUM_ERROR, 0x11, 0x00;
    /// 4/44/00 INTERNAL TARGET FAILURE.
    TARGET_FAILURE = HARDWARE_ERROR, 0x44, 0x00;
    /// 5/1A/00 PARAMETER LIST LENGTH ERROR.
    PARAMETER_LIST_LENGTH_ERROR = ILLEGAL_REQUEST, 0x1a, 0x00;
    /// 5/20/00 INVALID COMMAND OPERATION CODE.
    INVALID_OPCODE = ILLEGAL_REQUEST, 0x20, 0x00;
    /// 5/24/00 INVALID FIELD IN CDB.
    INVALID_FIELD_IN_CDB = ILLEGAL_REQUEST, 0x24, 0x00;
    /// 5/26/00 INVALID FIELD IN PARAMETER LIST.
    INVALID_FIELD_IN_PARAMETER_LIST = ILLEGAL_REQUEST, 0x26, 0x00;
    /// 5/26/04 INVALID RELEASE OF PERSISTENT RESERVATION.
    INVALID_RELEASE = ILLEGAL_REQUEST, 0x26, 0x04;
    /// 5/55/04 INSUFFICIENT REGISTRATION RESOURCES.
    INSUFFICIENT_REGISTRATION_RESOURCES = ILLEGAL_REQUEST, 0x55, 0x04;
    /// 6/29/00 POWER ON, RESET, OR BUS DEVICE RESET OCCURRED.
    RESET = UNIT_ATTENTION, 0x29, 0x00;
    /// 6/29/02 SCSI BUS RESET OCCURRED.
    BUS_RESET = UNIT_ATTENTION, 0x29, 0x02;
    /// 6/2A/03 RESERVATIONS PREEMPTED.
    RESERVATIONS_PREEMPTED = UNIT_ATTENTION, 0x2a, 0x03;
    /// 6/2A/04 RESERVATIONS RELEASED.
    RESERVATIONS_RELEASED = UNIT_ATTENTION, 0x2a, 0x04;
    /// 6/2A/05 REGISTRATIONS PREEMPTED.
    REGISTRATIONS_PREEMPTED = UNIT_ATTENTION, 0x2a, 0x05;
    /// 7/27/07 SPACE ALLOCATION FAILED WRITE PROTECT.
    SPACE_ALLOCATION_FAILED = DATA_PROTECT, 0x27, 0x07;
    /// B/00/06 I/O PROCESS TERMINATED.
    IO_PROCESS_TERMINATED = ABORTED_COMMAND, 0x00, 0x06;
    /// B/05/00 LOGICAL UNIT DOES NOT RESPOND TO SELECTION.
    LUN_NOT_RESPONDING = ABORTED_COMMAND, 0x05, 0x00;
    /// B/08/00 LOGICAL UNIT COMMUNICATION FAILURE.
    LUN_COMMUNICATION_FAILURE = ABORTED_COMMAND, 0x08, 0x00;
    /// B/08/01 LOGICAL UNIT COMMUNICATION TIME-OUT.
    LUN_COMMUNICATION_TIMEOUT = ABORTED_COMMAND, 0x08, 0x01;
    /// B/29/07 I_T NEXUS LOSS OCCURRED.
    NEXUS_LOSS = ABORTED_COMMAND, 0x29, 0x07;
    /// B/2E/02 COMMAND TIMEOUT DURING PROCESSING.
    COMMAND_TIMEOUT = ABORTED_COMMAND, 0x2e, 0x02;
    /// B/2F/02 COMMANDS CLEARED BY DEVICE SERVER.
    COMMAND_ABORTED = ABORTED_COMMAND, 0x2f, 0x02;
}

impl fmt::Display for SenseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}/{:02x}/{:02x}", self.key.byte(), self.asc, self.ascq)
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

    /// What the sense data says; `None` when it is of neither format.
    pub const fn code(&self) -> Option<SenseCode> {
        let b = &self.0;
        match b[0] & 0x7f {
            0x70 | 0x71 => Some(SenseCode { key: SenseKey::from_byte(b[2]), asc: b[12], ascq: b[13] }),
            0x72 | 0x73 => Some(SenseCode { key: SenseKey::from_byte(b[1]), asc: b[2], ascq: b[3] }),
            _ => None,
        }
    }
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
            Some(code) => write!(f, "sense {code}"),
            None => write!(f, "sense of unknown format {:#04x}", self.0[0]),
        }
    }
}
