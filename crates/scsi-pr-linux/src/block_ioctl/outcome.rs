//! The results of IOC_PR ioctls other than 0, as a [`Completion`]. No I/O.

use rustix::io::Errno;
use scsi_pr::{Completion, SenseCode, Status};

use crate::sg_io::outcome::{Report, of_host_status};
use crate::{NotPermitted, command_error};

/// An ioctl that did not return 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// It failed.
    Errno(Errno),
    /// It returned a positive number: the status of the device, or the driver's code for a broken path. Never 0.
    Status(u32),
}

/// The completion of a failed ioctl. `refusal` is the sense code for EINVAL. `nvme` tells whose status codes they are.
pub(super) fn of_failure(failure: Failure, refusal: SenseCode, nvme: bool) -> Result<Completion, NotPermitted> {
    match failure {
        Failure::Errno(errno) => of_errno(errno, refusal),
        Failure::Status(status) => Ok(of_status(status, refusal, nvme)),
    }
}

/// The completion for an errno.
pub(super) fn of_errno(errno: Errno, refusal: SenseCode) -> Result<Completion, NotPermitted> {
    match errno {
        Errno::INVAL => Ok(Completion::check(refusal)),
        errno => command_error::of_errno(errno),
    }
}

/// The completion for a positive result: `PR_STS_…` of Linux `linux/pr.h` (kernel side).
///
/// For SCSI disks it has the unit's status byte, and the host adapter's code in the third byte. Older kernels (6.1) return
/// any of these, not only those with a name, and a code of the SCSI layer in the second byte. For NVMe they return the NVMe
/// status.
fn of_status(status: u32, refusal: SenseCode, nvme: bool) -> Completion {
    /// Reservation Conflict (SCT 0h, SC 83h) by the NVMe driver of older kernels, without the bits above.
    const NVME_CONFLICT: u32 = 0x083;
    const NVME_STATUS: u32 = 0x7ff;
    /// `SCSIML_STAT_TGT_FAILURE`: ILLEGAL REQUEST, because of the CDB or the parameter list.
    const TARGET_FAILURE: u8 = 0x04;

    let [_, host_status, layer, unit_status] = status.to_be_bytes();
    if host_status != 0 {
        return of_host_status(Report { host_status: host_status.into(), ..Report::default() }, None);
    }
    let conflict = Completion::Status(Status::RESERVATION_CONFLICT);
    if nvme && (status == 0x18 || status & NVME_STATUS == NVME_CONFLICT) {
        return conflict;
    }
    match unit_status {
        0x18 if !nvme => conflict,
        0x08 | 0x28 | 0x40 if !nvme => Status::from_byte(unit_status).map_or(conflict, Completion::Status),
        0x02 if !nvme && layer == TARGET_FAILURE => Completion::check(refusal),
        // PR_STS_IOERR: CHECK CONDITION with lost sense data; and unknown results.
        _ => Completion::check(SenseCode::LUN_COMMUNICATION_FAILURE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command_error::check_every_errno;
    use scsi_pr::SenseKey;

    fn check(key: u8, asc: u8, ascq: u8) -> Completion {
        Completion::check(SenseCode { key: SenseKey::from_byte(key), asc, ascq })
    }

    const REFUSAL: SenseCode = SenseCode::INVALID_RELEASE;

    #[test]
    fn errno_is_that_of_any_reservation_ioctl_but_for_einval() {
        for nvme in [false, true] {
            check_every_errno(|errno| match errno {
                Errno::INVAL => {
                    assert_eq!(of_failure(Failure::Errno(errno), REFUSAL, nvme), Ok(check(0x5, 0x26, 0x04)));
                    None
                }
                errno => Some(of_failure(Failure::Errno(errno), REFUSAL, nvme)),
            });
        }
    }

    #[test]
    fn the_statuses_that_linux_has_a_name_for() {
        for nvme in [false, true] {
            for (status, expected) in [
                (0x2, check(0xb, 0x08, 0x00)),                            // IOERR
                (0x18, Completion::Status(Status::RESERVATION_CONFLICT)), // RESERVATION_CONFLICT
                (0xe_0000, check(0xb, 0x29, 0x07)),                       // RETRY_PATH_FAILURE
                (0xf_0000, check(0xb, 0x08, 0x00)),                       // PATH_FAST_FAILED
                (0x1_0000, check(0xb, 0x05, 0x00)),                       // PATH_FAILED
            ] {
                assert_eq!(of_status(status, REFUSAL, nvme), expected, "{status:#x}");
            }
        }
    }

    #[test]
    fn the_statuses_of_older_kernels() {
        for (status, scsi, nvme) in [
            (0x08, Completion::Status(Status::BUSY), check(0xb, 0x08, 0x00)),
            (0x28, Completion::Status(Status::TASK_SET_FULL), check(0xb, 0x08, 0x00)),
            (0x40, Completion::Status(Status::TASK_ABORTED), check(0xb, 0x08, 0x00)),
            // CONDITION MET must not pass for a success.
            (0x04, check(0xb, 0x08, 0x00), check(0xb, 0x08, 0x00)),
            (0x2_0000, Completion::Status(Status::BUSY), Completion::Status(Status::BUSY)),
            (0x0800_0002, check(0xb, 0x08, 0x00), check(0xb, 0x08, 0x00)),
            // Seen of Linux 6.1: a conflict; ILLEGAL REQUEST.
            (0x118, Completion::Status(Status::RESERVATION_CONFLICT), check(0xb, 0x08, 0x00)),
            (0x402, check(0x5, 0x26, 0x04), check(0xb, 0x08, 0x00)),
            (0x83, check(0xb, 0x08, 0x00), Completion::Status(Status::RESERVATION_CONFLICT)),
            (0x4083, check(0xb, 0x08, 0x00), Completion::Status(Status::RESERVATION_CONFLICT)),
            (0x4001, check(0xb, 0x08, 0x00), check(0xb, 0x08, 0x00)),
            (0x4018, Completion::Status(Status::RESERVATION_CONFLICT), check(0xb, 0x08, 0x00)),
        ] {
            assert_eq!(of_status(status, REFUSAL, false), scsi, "{status:#x}");
            assert_eq!(of_status(status, REFUSAL, true), nvme, "{status:#x}");
        }
    }

    #[test]
    fn no_status_but_zero_is_good() {
        let samples =
            (1..=0xffff).chain((0..=0xffff).map(|high| high << 16 | 1)).chain((1..=0xffff).map(|high| high << 16));
        for status in samples {
            for nvme in [false, true] {
                match of_status(status, REFUSAL, nvme) {
                    Completion::Good(_) => panic!("{status:#x}"),
                    Completion::Status(reported) => assert_ne!(reported, Status::CONDITION_MET, "{status:#x}"),
                    Completion::CheckCondition(_) => {}
                }
            }
        }
    }
}
