//! Errors of the kernel and of a namespace, as a [`Completion`]. No I/O.

use rustix::io::Errno;
use scsi_pr::{Completion, SenseCode, Status};

use crate::NotPermitted;
use crate::command_error::of_errno;

/// A command that was not a success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The kernel failed it.
    Errno(Errno),
    /// The status of the command. Never 0.
    Status(u32),
}

/// Status Code Type and Status Code (NVM Express Base Specification 2.0, 3.3.3.2.1), without the bits above that say
/// whether to try again and whether there is more to know.
pub(super) const fn code_of(status: u32) -> u32 {
    status & 0x7ff
}

/// Reservation Conflict.
const RESERVATION_CONFLICT: u32 = 0x083;
/// Host Identifier Inconsistent Format: the namespace uses the other length.
pub(super) const HOST_ID_INCONSISTENT: u32 = 0x018;

/// The completion of a failed command. `refusal` is the sense code for Invalid Field in Command.
pub(super) fn of_failure(failure: Failure, refusal: SenseCode) -> Result<Completion, NotPermitted> {
    match failure {
        Failure::Errno(errno) => of_errno(errno),
        Failure::Status(status) => Ok(of_status(status, refusal)),
    }
}

fn of_status(status: u32, refusal: SenseCode) -> Completion {
    Completion::check(match code_of(status) {
        RESERVATION_CONFLICT => return Completion::Status(Status::RESERVATION_CONFLICT),
        0x001 => SenseCode::INVALID_OPCODE,
        // Invalid Field in Command; Conflicting Attributes.
        0x002 | 0x180 => refusal,
        // Commands aborted by request, by deletion of their queue, with their fused command, by Preempt and Abort.
        0x007..=0x00a | 0x01b => SenseCode::COMMAND_ABORTED,
        // Command Interrupted: it was not done and may be tried again.
        0x021 => return Completion::Status(Status::BUSY),
        // Namespace Not Ready; Format in Progress; Asymmetric Access Persistent Loss, Inaccessible, Transition.
        0x082 | 0x084 | 0x301..=0x303 => SenseCode::NOT_READY,
        // Data Transfer Error; Transient Transport Error; other errors of the path.
        0x004 | 0x022 | 0x300 | 0x304..=0x3ff => SenseCode::LUN_COMMUNICATION_FAILURE,
        _ => SenseCode::TARGET_FAILURE,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command_error::check_every_errno;
    use scsi_pr::SenseKey;

    fn check(key: u8, asc: u8, ascq: u8) -> Completion {
        Completion::check(SenseCode { key: SenseKey::from_byte(key), asc, ascq })
    }

    #[test]
    fn errno_is_that_of_any_reservation_ioctl() {
        check_every_errno(|errno| Some(of_failure(Failure::Errno(errno), SenseCode::INVALID_RELEASE)));
    }

    #[test]
    fn every_status() {
        let not_ready = check(0x2, 0x04, 0x00);
        let communication = check(0xb, 0x08, 0x00);
        let aborted = check(0xb, 0x2f, 0x02);
        let special = [
            (0x001, check(0x5, 0x20, 0x00)),
            (0x002, check(0x5, 0x26, 0x04)),
            (0x004, communication.clone()),
            (0x007, aborted.clone()),
            (0x008, aborted.clone()),
            (0x009, aborted.clone()),
            (0x00a, aborted.clone()),
            (0x01b, aborted),
            (0x021, Completion::Status(Status::BUSY)),
            (0x022, communication.clone()),
            (0x082, not_ready.clone()),
            (0x083, Completion::Status(Status::RESERVATION_CONFLICT)),
            (0x084, not_ready.clone()),
            (0x180, check(0x5, 0x26, 0x04)),
            (0x301, not_ready.clone()),
            (0x302, not_ready.clone()),
            (0x303, not_ready),
        ];
        for code in 1..=0x7ff {
            let row = special.iter().find(|row| row.0 == code);
            let expected = match row {
                Some((_, completion)) => completion.clone(),
                None if code >> 8 == 3 => communication.clone(),
                None => check(0x4, 0x44, 0x00),
            };
            // With "do not retry", "more" and a command retry delay, or without.
            for high in [0x0000, 0x4000, 0x2000, 0x1800, 0x7800] {
                let failure = Failure::Status(code | high);
                assert_eq!(of_failure(failure, SenseCode::INVALID_RELEASE), Ok(expected.clone()), "{code:#x}");
            }
        }
    }

    #[test]
    fn no_status_is_good() {
        for status in (1..=0xffff).chain((1..32).map(|bit| 1 << bit)) {
            let completion = of_status(status, SenseCode::INVALID_FIELD_IN_CDB);
            assert!(!matches!(completion, Completion::Good(_)), "{status:#x}");
        }
    }
}
