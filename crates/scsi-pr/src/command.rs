//! Commands: what a guest asks for, checked once and then passed on byte for byte.
//!
//! A [`Cdb`] knows its opcode and how many bytes go which way; a [`Command`] is a CDB with the parameter list that
//! belongs to it. Nothing behind this module needs to check a length again.

use std::fmt;

/// The commands that a [`PrManager`](crate::PrManager) runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Opcode {
    /// PERSISTENT RESERVE IN, 5Eh (SPC-4 6.15).
    ReserveIn,
    /// PERSISTENT RESERVE OUT, 5Fh (SPC-4 6.16).
    ReserveOut,
    /// CLEANUP, FFh: QEMU's own request, after 11.1, to forget this host's registration once a migration is over.
    /// It has no parameter list and returns no data.
    Cleanup,
}

impl Opcode {
    /// The first byte of the CDB.
    pub const fn byte(self) -> u8 {
        match self {
            Self::ReserveIn => 0x5e,
            Self::ReserveOut => 0x5f,
            Self::Cleanup => 0xff,
        }
    }

    const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0x5e => Some(Self::ReserveIn),
            0x5f => Some(Self::ReserveOut),
            0xff => Some(Self::Cleanup),
            _ => None,
        }
    }
}

impl fmt::Display for Opcode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ReserveIn => "PERSISTENT RESERVE IN",
            Self::ReserveOut => "PERSISTENT RESERVE OUT",
            Self::Cleanup => "CLEANUP",
        })
    }
}

/// A command descriptor block whose opcode and transfer length have been checked; 16 bytes, zero-padded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cdb {
    bytes: [u8; 16],
    opcode: Opcode,
}

impl Cdb {
    /// Checks the opcode of 16 bytes.
    ///
    /// The transfer length is bytes 7–8, big endian, for IN and OUT alike. For OUT, SPC-4 has a 32-bit length in bytes 5–8, of
    /// which QEMU and its helper use the low half. The other bytes are ignored, reserved ones included.
    ///
    /// # Errors
    ///
    /// [`InvalidCommand::Opcode`].
    pub fn new(bytes: [u8; 16]) -> Result<Self, InvalidCommand> {
        let opcode = Opcode::from_byte(bytes[0]).ok_or(InvalidCommand::Opcode(bytes[0]))?;
        Ok(Self { bytes, opcode })
    }

    /// Checks that the command moves at most `max` bytes each way: the limit of a transport.
    ///
    /// # Errors
    ///
    /// [`InvalidCommand::TransferLength`].
    pub fn check_transfer_length(&self, max: usize) -> Result<(), InvalidCommand> {
        match self.transfer_length() {
            length if length <= max => Ok(()),
            length => Err(InvalidCommand::TransferLength { opcode: self.opcode, length, max }),
        }
    }

    /// Checks a CDB of 10 to 16 bytes, as a guest sends it, and pads it with zeros.
    ///
    /// # Errors
    ///
    /// Those of [`Cdb::new`], and [`InvalidCommand::CdbLength`].
    pub fn from_slice(bytes: &[u8]) -> Result<Self, InvalidCommand> {
        if !(10..=16).contains(&bytes.len()) {
            return Err(InvalidCommand::CdbLength(bytes.len()));
        }
        let mut padded = [0; 16];
        padded[..bytes.len()].copy_from_slice(bytes);
        Self::new(padded)
    }

    /// The bytes as they go to the device.
    pub const fn bytes(&self) -> &[u8; 16] {
        &self.bytes
    }

    /// Which command this is.
    pub const fn opcode(&self) -> Opcode {
        self.opcode
    }

    /// The service action, bits 4–0 of byte 1 (0 for CLEANUP).
    pub const fn service_action(&self) -> u8 {
        match self.opcode {
            Opcode::ReserveIn | Opcode::ReserveOut => self.bytes[1] & 0x1f,
            Opcode::Cleanup => 0,
        }
    }

    /// The most bytes that the answer may carry: the ALLOCATION LENGTH of IN, else 0.
    pub const fn allocation_length(&self) -> usize {
        match self.opcode {
            Opcode::ReserveIn => self.transfer_length(),
            Opcode::ReserveOut | Opcode::Cleanup => 0,
        }
    }

    /// How many bytes of parameter list follow: the PARAMETER LIST LENGTH of OUT, else 0.
    pub const fn parameter_list_length(&self) -> usize {
        match self.opcode {
            Opcode::ReserveOut => self.transfer_length(),
            Opcode::ReserveIn | Opcode::Cleanup => 0,
        }
    }

    const fn transfer_length(&self) -> usize {
        match self.opcode {
            Opcode::ReserveIn | Opcode::ReserveOut => u16::from_be_bytes([self.bytes[7], self.bytes[8]]) as usize,
            Opcode::Cleanup => 0,
        }
    }
}

/// A CDB with the parameter list that it announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command<'a> {
    cdb: Cdb,
    parameter_list: &'a [u8],
}

impl<'a> Command<'a> {
    /// Joins a CDB and its parameter list (empty unless the CDB is a PERSISTENT RESERVE OUT).
    ///
    /// # Errors
    ///
    /// [`InvalidCommand::ParameterList`] when the list is not as long as the CDB says.
    pub fn new(cdb: Cdb, parameter_list: &'a [u8]) -> Result<Self, InvalidCommand> {
        if parameter_list.len() == cdb.parameter_list_length() {
            Ok(Self { cdb, parameter_list })
        } else {
            let expected = cdb.parameter_list_length();
            Err(InvalidCommand::ParameterList { expected, actual: parameter_list.len() })
        }
    }

    /// QEMU's CLEANUP request.
    pub fn cleanup() -> Command<'static> {
        let mut bytes = [0; 16];
        bytes[0] = Opcode::Cleanup.byte();
        Command { cdb: Cdb { bytes, opcode: Opcode::Cleanup }, parameter_list: &[] }
    }

    /// The checked CDB.
    pub const fn cdb(&self) -> &Cdb {
        &self.cdb
    }

    /// Which command this is.
    pub const fn opcode(&self) -> Opcode {
        self.cdb.opcode()
    }

    /// The parameter list, exactly as long as the CDB says.
    pub const fn parameter_list(&self) -> &'a [u8] {
        self.parameter_list
    }
}

/// A [`Command`] that owns its parameter list: what a client makes to have it run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandBuf {
    cdb: Cdb,
    parameter_list: Vec<u8>,
}

impl CommandBuf {
    /// Joins a CDB and its parameter list.
    ///
    /// # Errors
    ///
    /// As [`Command::new`].
    pub fn new(cdb: Cdb, parameter_list: Vec<u8>) -> Result<Self, InvalidCommand> {
        Command::new(cdb, &parameter_list)?;
        Ok(Self { cdb, parameter_list })
    }

    /// The checked CDB.
    pub const fn cdb(&self) -> &Cdb {
        &self.cdb
    }

    /// The command, to be run.
    pub fn command(&self) -> Command<'_> {
        Command { cdb: self.cdb, parameter_list: &self.parameter_list }
    }
}

/// Why bytes are not a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidCommand {
    /// The first byte of the CDB is none of the three opcodes.
    #[error("opcode {0:#04x} is not PERSISTENT RESERVE IN (0x5e), OUT (0x5f) or CLEANUP (0xff)")]
    Opcode(u8),
    /// A CDB of fewer than 10 or more than 16 bytes.
    #[error("a CDB has 10 to 16 bytes, not {0}")]
    CdbLength(usize),
    /// More bytes to move than one command may.
    #[error("{opcode} of {length} bytes, more than the {max} that one command may move")]
    TransferLength {
        /// The command.
        opcode: Opcode,
        /// The length in its CDB.
        length: usize,
        /// The most bytes that one command may move.
        max: usize,
    },
    /// A parameter list of another length than the CDB says.
    #[error("the CDB announces a parameter list of {expected} bytes, not {actual}")]
    ParameterList {
        /// The length in the CDB.
        expected: usize,
        /// The length of the list.
        actual: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cdb(opcode: u8, length: u16) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[0] = opcode;
        bytes[7..9].copy_from_slice(&length.to_be_bytes());
        bytes
    }

    #[test]
    fn transfer_length_beyond_the_limit_is_refused_each_way() {
        for opcode in [Opcode::ReserveIn, Opcode::ReserveOut] {
            let check = |length| Cdb::new(cdb(opcode.byte(), length)).unwrap().check_transfer_length(8192);
            assert_eq!(check(8192), Ok(()));
            assert_eq!(check(8193), Err(InvalidCommand::TransferLength { opcode, length: 8193, max: 8192 }));
        }
        assert_eq!(Command::cleanup().cdb().check_transfer_length(0), Ok(()));
    }

    #[test]
    fn cleanup_moves_nothing_whatever_its_bytes_say() {
        let cleanup = Cdb::new(cdb(0xff, 0xffff)).unwrap();
        assert_eq!((cleanup.allocation_length(), cleanup.parameter_list_length()), (0, 0));
        assert_eq!(Command::cleanup().opcode(), Opcode::Cleanup);
    }

    #[test]
    fn a_list_of_another_length_is_refused() {
        let out = Cdb::new(cdb(0x5f, 24)).unwrap();
        assert!(Command::new(out, &[0; 24]).is_ok());
        assert_eq!(Command::new(out, &[0; 23]), Err(InvalidCommand::ParameterList { expected: 24, actual: 23 }));
    }

    proptest! {
        #[test]
        fn any_bytes_are_kept_or_refused(bytes: [u8; 16]) {
            match Cdb::new(bytes) {
                Ok(cdb) => prop_assert_eq!(cdb.bytes(), &bytes),
                Err(error) => {
                    prop_assert_eq!(error, InvalidCommand::Opcode(bytes[0]));
                    prop_assert!(![0x5e, 0x5f, 0xff].contains(&bytes[0]));
                }
            }
        }

        #[test]
        fn slices_are_padded(bytes in prop::collection::vec(any::<u8>(), 0..20)) {
            if let Ok(cdb) = Cdb::from_slice(&bytes) {
                prop_assert_eq!(&cdb.bytes()[..bytes.len()], &bytes[..]);
                prop_assert!(cdb.bytes()[bytes.len()..].iter().all(|b| *b == 0));
            }
        }
    }
}
