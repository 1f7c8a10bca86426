//! The report of SG_IO, as a [`Completion`]. No I/O.
//!
//! Four parties may report an error: the kernel (errno), the host adapter, the driver and the unit. They are checked in this
//! order, as in QEMU's helper, with the same answers. There is one exception: QEMU's helper takes an unknown report for
//! GOOD. Here a command is GOOD only when all four report success.

use rustix::io::Errno;
use scsi_pr::{Completion, Sense, SenseCode, Status};

/// The fields that the kernel has written (`struct sg_io_hdr`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    /// The unit's status byte.
    pub(crate) status: u8,
    /// The host adapter's code, `DID_…`.
    pub(crate) host_status: u16,
    /// The driver's code, `DRIVER_…`; before Linux 5.14 with a suggestion in the high nibble.
    pub(crate) driver_status: u16,
    /// How many bytes of sense data were written.
    pub(crate) sense_length: u8,
    /// The bytes that were not transferred; negative when the unit had more.
    pub(crate) residual: i32,
}

/// Where a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reached {
    /// At the unit, or in a part of the kernel that has the same answer for every path.
    Unit,
    /// On a path that lost the command or its answer. Another path may work.
    Path,
    /// At a suspended device-mapper device, as during a swap of its table. Nothing was sent (`EAGAIN`).
    Suspended,
}

/// One SG_IO, once it has returned.
pub(super) struct Answer {
    pub(super) report: Result<Report, Errno>,
    pub(super) sense: [u8; Sense::LENGTH],
}

impl Answer {
    /// The completion of the command, with at most `allocation_length` bytes of data. `data` is the whole buffer for the
    /// unit.
    pub(super) fn completion(&self, data: &[u8], allocation_length: usize) -> Completion {
        let report = match self.report {
            Ok(report) => report,
            Err(errno) => return of_errno(errno),
        };
        let sense = self.sense_data(report.sense_length);
        if report.host_status != 0 {
            return of_host_status(report, sense);
        }
        if report.driver_status & DRIVER_TIMEOUT != 0 {
            return Completion::Status(Status::BUSY);
        }
        match Status::from_byte(report.status) {
            Some(status) => Completion::Status(status),
            None if report.status == CHECK_CONDITION => check_condition(sense),
            None if !matches!(report.driver_status, DRIVER_OK | DRIVER_SENSE) => match report.driver_status & 0xf {
                DRIVER_BUSY => Completion::Status(Status::BUSY),
                _ => Completion::check(SenseCode::LUN_COMMUNICATION_FAILURE),
            },
            None => match sense {
                Some(sense) if tells_failure(&sense) => Completion::CheckCondition(sense),
                _ => Completion::Good(transferred(data, report.residual, allocation_length).to_vec()),
            },
        }
    }

    /// Where the command ended.
    pub(super) fn reached(&self) -> Reached {
        match self.report {
            Err(Errno::AGAIN) => Reached::Suspended,
            // A device that is offline, deleted or without a path; the others are those of `blk_status_to_errno`.
            Err(Errno::NODEV | Errno::NXIO | Errno::IO | Errno::NOLINK | Errno::TIMEDOUT) => Reached::Path,
            Err(_) => Reached::Unit,
            // 0 is no error. The kernel derives the others from the unit's answer.
            Ok(Report { host_status: 0x00 | 0x10..=0x13, driver_status, .. })
                if driver_status & DRIVER_TIMEOUT == 0 =>
            {
                Reached::Unit
            }
            Ok(_) => Reached::Path,
        }
    }

    /// The sense data, unless they are all zero.
    fn sense_data(&self, length: u8) -> Option<Sense> {
        let written = &self.sense[..usize::from(length).min(Sense::LENGTH)];
        written.iter().any(|byte| *byte != 0).then(|| Sense::from_bytes(written))
    }
}

/// CHECK CONDITION (SAM-5 5.3.1).
const CHECK_CONDITION: u8 = 0x02;

// Linux `scsi/scsi.h` until 5.13. Since then the driver's code is 0, or 8 when there is sense data.
const DRIVER_OK: u16 = 0x00;
const DRIVER_BUSY: u16 = 0x01;
/// QEMU's helper checks these two bits, and so answers BUSY to SOFT (2), MEDIA (3), ERROR (4), INVALID (5), TIMEOUT (6) and
/// HARD (7). That is not their meaning, but it is not GOOD, and guests can handle it.
const DRIVER_TIMEOUT: u16 = 0x06;
const DRIVER_SENSE: u16 = 0x08;

/// The ioctl failed. The kernel has an errno for some conditions of the unit, too (`blk_status_to_errno`).
pub(crate) fn of_errno(errno: Errno) -> Completion {
    Completion::check(match errno {
        Errno::DOM => return Completion::Status(Status::TASK_SET_FULL),
        Errno::BADE => return Completion::Status(Status::RESERVATION_CONFLICT),
        Errno::NODATA => SenseCode::READ_ERROR,
        Errno::REMOTEIO | Errno::NOMEM | Errno::NODEV => SenseCode::TARGET_FAILURE,
        Errno::NOMEDIUM => SenseCode::NO_MEDIUM,
        Errno::INVAL => SenseCode::INVALID_FIELD_IN_CDB,
        Errno::NOSPC => SenseCode::SPACE_ALLOCATION_FAILED,
        _ => SenseCode::IO_PROCESS_TERMINATED,
    })
}

/// The host adapter reports an error (`DID_…` of Linux `scsi/scsi_status.h`).
pub(crate) fn of_host_status(report: Report, sense: Option<Sense>) -> Completion {
    Completion::check(match report.host_status {
        0x01 => SenseCode::LUN_NOT_RESPONDING,                           // NO_CONNECT
        0x02 => return Completion::Status(Status::BUSY),                 // BUS_BUSY
        0x03 => SenseCode::COMMAND_TIMEOUT,                              // TIME_OUT
        0x04 => SenseCode::LUN_COMMUNICATION_FAILURE,                    // BAD_TARGET
        0x05 => SenseCode::COMMAND_ABORTED,                              // ABORT
        0x08 => SenseCode::RESET,                                        // RESET
        0x0e => SenseCode::NEXUS_LOSS,                                   // TRANSPORT_DISRUPTED
        0x10 => SenseCode::TARGET_FAILURE,                               // TARGET_FAILURE
        0x11 => return Completion::Status(Status::RESERVATION_CONFLICT), // NEXUS_FAILURE
        0x12 => SenseCode::SPACE_ALLOCATION_FAILED,                      // ALLOC_FAILURE
        0x13 => SenseCode::READ_ERROR,                                   // MEDIUM_ERROR
        // DID_ERROR and others, those of kernels to come included: the unit may have said why.
        _ => match sense {
            Some(sense) if report.status == CHECK_CONDITION && tells_failure(&sense) => {
                return Completion::CheckCondition(sense);
            }
            _ => SenseCode::LUN_COMMUNICATION_FAILURE,
        },
    })
}

/// The unit's CHECK CONDITION. Sense data that were lost, or are all zero, are replaced. Without a sense key a guest cannot
/// tell the failure from a success.
fn check_condition(sense: Option<Sense>) -> Completion {
    Completion::CheckCondition(sense.unwrap_or(Sense::fixed(SenseCode::LUN_COMMUNICATION_FAILURE)))
}

/// Whether these sense data mean a failure: any sense key but NO SENSE (0h), RECOVERED ERROR (1h) and COMPLETED (Fh). Those
/// may come with GOOD (SPC-4 4.5.1).
fn tells_failure(sense: &Sense) -> bool {
    sense.code().is_some_and(|code| !matches!(code.key.byte(), 0x0 | 0x1 | 0xf))
}

/// The part of the buffer that the unit has written. Some drivers report a residual above the length, or below zero.
fn transferred(data: &[u8], residual: i32, allocation_length: usize) -> &[u8] {
    let missing = usize::try_from(residual).unwrap_or(0).min(data.len());
    &data[..(data.len() - missing).min(allocation_length)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use scsi_pr::SenseKey;

    fn answer(report: Result<Report, Errno>, sense: &[u8]) -> Answer {
        Answer { report, sense: *Sense::from_bytes(sense).bytes() }
    }

    fn completion(report: Report, sense: Sense) -> Completion {
        answer(Ok(report), sense.bytes()).completion(&[], 0)
    }

    /// CHECK CONDITION with the sense key, ASC and ASCQ of these numbers.
    fn check(key: u8, asc: u8, ascq: u8) -> Completion {
        Completion::check(SenseCode { key: SenseKey::from_byte(key), asc, ascq })
    }

    const RESERVATION_CONFLICT: Completion = Completion::Status(Status::RESERVATION_CONFLICT);
    const BUSY: Completion = Completion::Status(Status::BUSY);
    const GOOD: Completion = Completion::Good(Vec::new());

    /// 5/26/00, as a unit would send it.
    const REFUSAL: Sense = Sense::fixed(SenseCode::INVALID_FIELD_IN_PARAMETER_LIST);

    #[test]
    fn errno() {
        let special = [
            (Errno::DOM, Completion::Status(Status::TASK_SET_FULL)),
            (Errno::BADE, RESERVATION_CONFLICT),
            (Errno::NODATA, check(0x3, 0x11, 0x00)),
            (Errno::REMOTEIO, check(0x4, 0x44, 0x00)),
            (Errno::NOMEM, check(0x4, 0x44, 0x00)),
            (Errno::NODEV, check(0x4, 0x44, 0x00)),
            (Errno::NOMEDIUM, check(0x2, 0x3a, 0x00)),
            (Errno::INVAL, check(0x5, 0x24, 0x00)),
            (Errno::NOSPC, check(0x7, 0x27, 0x07)),
        ];
        for raw in 1..=4095 {
            let errno = Errno::from_raw_os_error(raw);
            let row = special.iter().find(|(special, _)| *special == errno);
            let expected = row.map_or(check(0xb, 0x00, 0x06), |(_, completion)| completion.clone());
            // The content of the buffers is ignored.
            assert_eq!(answer(Err(errno), REFUSAL.bytes()).completion(&[1; 24], 24), expected, "{errno:?}");
        }
    }

    #[test]
    fn host_status() {
        let special = [
            (0x01, check(0xb, 0x05, 0x00)),
            (0x02, BUSY),
            (0x03, check(0xb, 0x2e, 0x02)),
            (0x04, check(0xb, 0x08, 0x00)),
            (0x05, check(0xb, 0x2f, 0x02)),
            (0x08, check(0x6, 0x29, 0x00)),
            (0x0e, check(0xb, 0x29, 0x07)),
            (0x10, check(0x4, 0x44, 0x00)),
            (0x11, RESERVATION_CONFLICT),
            (0x12, check(0x7, 0x27, 0x07)),
            (0x13, check(0x3, 0x11, 0x00)),
        ];
        for host_status in 1..=u16::MAX {
            let report = Report { host_status, ..Report::default() };
            let reported = Report { status: 0x02, driver_status: 0x08, sense_length: 18, ..report };
            let row = special.iter().find(|(special, _)| *special == host_status);
            let (plain, with_sense) = match row {
                Some((_, completion)) => (completion.clone(), completion.clone()),
                // The C helper answers GOOD to both.
                None => (check(0xb, 0x08, 0x00), Completion::CheckCondition(REFUSAL)),
            };
            assert_eq!(completion(report, REFUSAL), plain, "{host_status:#x}");
            assert_eq!(completion(reported, REFUSAL), with_sense, "{host_status:#x} with sense");
        }
    }

    #[test]
    fn an_unknown_host_status_is_not_excused_by_sense_that_tells_no_failure() {
        for key in [0x0, 0x1, 0xf] {
            let sense = Sense::fixed(SenseCode { key: SenseKey::from_byte(key), asc: 0, ascq: 0 });
            let report = Report { host_status: 0x07, status: 0x02, sense_length: 18, ..Report::default() };
            assert_eq!(completion(report, sense), check(0xb, 0x08, 0x00));
        }
        // Nor by sense data of no known format, nor by those of a command that was not reported to have any.
        let report = Report { host_status: 0x07, status: 0x02, sense_length: 18, ..Report::default() };
        assert_eq!(completion(report, Sense::from_bytes(&[0x7f; 18])), check(0xb, 0x08, 0x00));
        assert_eq!(completion(Report { status: 0, ..report }, REFUSAL), check(0xb, 0x08, 0x00));
    }

    #[test]
    fn what_another_path_may_carry() {
        for raw in 1..=4095 {
            let errno = Errno::from_raw_os_error(raw);
            let expected = match errno {
                Errno::AGAIN => Reached::Suspended,
                Errno::NODEV | Errno::NXIO | Errno::IO | Errno::NOLINK | Errno::TIMEDOUT => Reached::Path,
                _ => Reached::Unit,
            };
            assert_eq!(answer(Err(errno), &[]).reached(), expected, "{errno:?}");
        }
        for host_status in 0..=u16::MAX {
            let expected = match host_status {
                0 | 0x10 | 0x11 | 0x12 | 0x13 => Reached::Unit,
                _ => Reached::Path,
            };
            for status in [0x00, 0x02, 0x18] {
                let report = Report { status, host_status, ..Report::default() };
                assert_eq!(answer(Ok(report), &[]).reached(), expected, "{host_status:#x}");
            }
        }
        let timed_out = Report { driver_status: 0x06, ..Report::default() };
        assert_eq!(answer(Ok(timed_out), &[]).reached(), Reached::Path);
    }

    #[test]
    fn driver_status() {
        for driver_status in 0..=u16::MAX {
            let report = Report { driver_status, ..Report::default() };
            let low = driver_status & 0xf;
            let expected = match driver_status {
                0x00 | 0x08 => GOOD,
                _ if low & 0x06 != 0 || low == 0x01 => BUSY,
                _ => check(0xb, 0x08, 0x00),
            };
            assert_eq!(completion(report, REFUSAL), expected, "{driver_status:#x}");
            // The unit's own answer counts, unless the driver's timeout bits are set.
            let conflict = Report { status: 0x18, ..report };
            let expected = if driver_status & 0x06 != 0 { BUSY } else { RESERVATION_CONFLICT };
            assert_eq!(completion(conflict, REFUSAL), expected, "{driver_status:#x}");
        }
    }

    #[test]
    fn the_status_of_the_unit_is_passed_on() {
        for status in 0..=u8::MAX {
            let expected = match Status::from_byte(status) {
                Some(status) => Completion::Status(status),
                None if status == 0 => GOOD,
                None => Completion::CheckCondition(REFUSAL),
            };
            let report = Report { status, sense_length: if status == 0 { 0 } else { 18 }, ..Report::default() };
            assert_eq!(completion(report, REFUSAL), expected, "{status:#x}");
        }
    }

    #[test]
    fn sense_is_as_long_as_the_device_made_it() {
        let noise = [0x70; Sense::LENGTH];
        for length in 1..=u8::MAX {
            let report = Report { status: 0x02, driver_status: 0x08, sense_length: length, ..Report::default() };
            let written = usize::from(length).min(Sense::LENGTH);
            let expected = Completion::CheckCondition(Sense::from_bytes(&noise[..written]));
            assert_eq!(answer(Ok(report), &noise).completion(&[], 0), expected);
        }
    }

    #[test]
    fn lost_sense_is_a_communication_failure() {
        let report = Report { status: 0x02, ..Report::default() };
        assert_eq!(completion(report, REFUSAL), check(0xb, 0x08, 0x00));
        let zeros = Report { sense_length: 18, ..report };
        assert_eq!(completion(zeros, Sense::from_bytes(&[])), check(0xb, 0x08, 0x00));
    }

    #[test]
    fn good_with_sense_is_good_only_if_the_sense_tells_no_failure() {
        for key in 0..=0xf {
            let code = SenseCode { key: SenseKey::from_byte(key), asc: 0x5d, ascq: 0 };
            for sense in [Sense::fixed(code), Sense::descriptor(code)] {
                for driver_status in [0x00, 0x08] {
                    let report = Report { driver_status, sense_length: 18, ..Report::default() };
                    let expected = match key {
                        0x0 | 0x1 | 0xf => GOOD,
                        _ => Completion::CheckCondition(sense),
                    };
                    assert_eq!(completion(report, sense), expected, "{sense}");
                }
            }
        }
    }

    #[test]
    fn data_end_where_the_unit_ended_or_the_guest_has_no_more_room() {
        let data: Vec<u8> = (0..8192).map(|index| (index % 251) as u8).collect();
        let lengths = [
            // residual, allocation length, length of the data
            (0, 8192, 8192),
            (0, 24, 24),
            (0, 0, 0),
            (8184, 8192, 8),
            (8184, 4, 4),
            (8192, 8192, 0),
            (8193, 8192, 0),
            (9000, 24, 0),
            (i32::MAX, 8192, 0),
            (-1, 8192, 8192),
            (i32::MIN, 24, 24),
        ];
        for (residual, allocation_length, length) in lengths {
            let report = Report { residual, ..Report::default() };
            let completion = answer(Ok(report), &[]).completion(&data, allocation_length);
            assert_eq!(completion, Completion::Good(data[..length].to_vec()), "{residual} of {allocation_length}");
        }
    }

    fn reports() -> impl Strategy<Value = Report> {
        let code = |known: &'static [u16]| prop_oneof![3 => prop::sample::select(known), 1 => any::<u16>()];
        let status = prop_oneof![prop::sample::select(&[0x00, 0x02, 0x18][..]), any::<u8>()];
        (status, code(&[0, 0, 0x07]), code(&[0, 0x08, 0x06]), any::<u8>(), any::<i32>()).prop_map(
            |(status, host_status, driver_status, sense_length, residual)| Report {
                status,
                host_status,
                driver_status,
                sense_length,
                residual,
            },
        )
    }

    proptest! {
        #[test]
        fn good_only_when_all_four_say_so(
            report in reports(),
            errno in prop::option::weighted(0.2, 1..4096),
            sense in prop::collection::vec(any::<u8>(), Sense::LENGTH),
            allocation_length in 0_usize..=8192,
        ) {
            let result = errno.map_or(Ok(report), |raw| Err(Errno::from_raw_os_error(raw)));
            match answer(result, &sense).completion(&[7; 8192], allocation_length) {
                Completion::Good(data) => {
                    prop_assert!(errno.is_none());
                    prop_assert_eq!((report.status, report.host_status, report.driver_status & !0x08), (0, 0, 0));
                    prop_assert!(data.len() <= allocation_length);
                }
                Completion::CheckCondition(reported) => prop_assert!(reported.bytes().iter().any(|byte| *byte != 0)),
                Completion::Status(_) => {}
            }
        }
    }
}
