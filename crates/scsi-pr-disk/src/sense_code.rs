//! The sense codes of a disk that `scsi_pr::SenseCode` does not name (SPC-4 annex E.2).

use scsi_pr::{SenseCode, SenseKey};

const fn code(key: u8, asc: u8, ascq: u8) -> SenseCode {
    SenseCode { key: SenseKey::from_byte(key), asc, ascq }
}

const MEDIUM_ERROR: u8 = 0x3;
const ILLEGAL_REQUEST: u8 = 0x5;
const UNIT_ATTENTION: u8 = 0x6;
const DATA_PROTECT: u8 = 0x7;
const MISCOMPARE: u8 = 0xe;

/// 03/0C/00, WRITE ERROR.
pub const WRITE_ERROR: SenseCode = code(MEDIUM_ERROR, 0x0c, 0x00);
/// 05/21/00, LOGICAL BLOCK ADDRESS OUT OF RANGE.
pub const LBA_OUT_OF_RANGE: SenseCode = code(ILLEGAL_REQUEST, 0x21, 0x00);
/// 05/25/00, LOGICAL UNIT NOT SUPPORTED.
pub const LOGICAL_UNIT_NOT_SUPPORTED: SenseCode = code(ILLEGAL_REQUEST, 0x25, 0x00);
/// 05/53/02, MEDIUM REMOVAL PREVENTED.
pub const MEDIUM_REMOVAL_PREVENTED: SenseCode = code(ILLEGAL_REQUEST, 0x53, 0x02);
/// 06/29/03, BUS DEVICE RESET FUNCTION OCCURRED.
pub const DEVICE_RESET: SenseCode = code(UNIT_ATTENTION, 0x29, 0x03);
/// 06/2A/01, MODE PARAMETERS CHANGED.
pub const MODE_PARAMETERS_CHANGED: SenseCode = code(UNIT_ATTENTION, 0x2a, 0x01);
/// 06/2A/09, CAPACITY DATA HAS CHANGED.
pub const CAPACITY_CHANGED: SenseCode = code(UNIT_ATTENTION, 0x2a, 0x09);
/// 06/2F/00, COMMANDS CLEARED BY ANOTHER INITIATOR.
pub const COMMANDS_CLEARED: SenseCode = code(UNIT_ATTENTION, 0x2f, 0x00);
/// 06/3F/0E, REPORTED LUNS DATA HAS CHANGED.
pub const REPORTED_LUNS_CHANGED: SenseCode = code(UNIT_ATTENTION, 0x3f, 0x0e);
/// 07/27/00, WRITE PROTECTED.
pub const WRITE_PROTECTED: SenseCode = code(DATA_PROTECT, 0x27, 0x00);
/// 0E/1D/00, MISCOMPARE DURING VERIFY OPERATION.
pub const MISCOMPARE_DURING_VERIFY: SenseCode = code(MISCOMPARE, 0x1d, 0x00);
/// 05/39/00, SAVING PARAMETERS NOT SUPPORTED.
pub const SAVING_NOT_SUPPORTED: SenseCode = code(ILLEGAL_REQUEST, 0x39, 0x00);
