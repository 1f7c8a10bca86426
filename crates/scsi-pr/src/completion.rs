//! Completions: the answers of a logical unit.
//!
//! The three cases are variants, so that only code that names [`Completion::Good`] makes GOOD: no status byte turns into it by
//! accident.

use std::fmt;

use crate::{Sense, SenseCode};

/// The answer of a logical unit to a command. A refusal is an answer too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Completion {
    /// GOOD: the command was done. The data of PERSISTENT RESERVE IN, at most its allocation length; else empty.
    Good(Vec<u8>),
    /// CHECK CONDITION, with the sense data that says why.
    CheckCondition(Sense),
    /// Any other status: RESERVATION CONFLICT, BUSY, TASK SET FULL …
    Status(Status),
}

impl Completion {
    /// CHECK CONDITION with fixed-format sense data for `code`.
    pub fn check(code: SenseCode) -> Self {
        Self::CheckCondition(Sense::fixed(code))
    }
}

impl fmt::Display for Completion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Good(data) if data.is_empty() => f.write_str("GOOD"),
            Self::Good(data) => write!(f, "GOOD, {} bytes", data.len()),
            Self::CheckCondition(sense) => write!(f, "CHECK CONDITION, {sense}"),
            Self::Status(status) => status.fmt(f),
        }
    }
}

/// A SCSI status other than GOOD and CHECK CONDITION (SAM-5 5.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Status(u8);

impl Status {
    /// CONDITION MET, 04h.
    pub const CONDITION_MET: Self = Self(0x04);
    /// BUSY, 08h: try again later.
    pub const BUSY: Self = Self(0x08);
    /// RESERVATION CONFLICT, 18h.
    pub const RESERVATION_CONFLICT: Self = Self(0x18);
    /// TASK SET FULL, 28h.
    pub const TASK_SET_FULL: Self = Self(0x28);
    /// ACA ACTIVE, 30h.
    pub const ACA_ACTIVE: Self = Self(0x30);
    /// TASK ABORTED, 40h.
    pub const TASK_ABORTED: Self = Self(0x40);

    /// The status of this byte; `None` for GOOD (00h) and CHECK CONDITION (02h), which are completions of their own.
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0x00 | 0x02 => None,
            byte => Some(Self(byte)),
        }
    }

    /// The byte on the wire; never 00h or 02h.
    pub const fn byte(self) -> u8 {
        self.0
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::CONDITION_MET => f.write_str("CONDITION MET"),
            Self::BUSY => f.write_str("BUSY"),
            Self::RESERVATION_CONFLICT => f.write_str("RESERVATION CONFLICT"),
            Self::TASK_SET_FULL => f.write_str("TASK SET FULL"),
            Self::ACA_ACTIVE => f.write_str("ACA ACTIVE"),
            Self::TASK_ABORTED => f.write_str("TASK ABORTED"),
            Self(byte) => write!(f, "status {byte:#04x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_status_is_good_or_check_condition() {
        for byte in 0..=255 {
            match Status::from_byte(byte) {
                Some(status) => assert_eq!(status.byte(), byte),
                None => assert!(byte == 0 || byte == 2),
            }
        }
    }
}
