//! The kernel's persistent reservation ioctls, IOC_PR (Linux `linux/pr.h`, `Documentation/block/pr.rst`).
//!
//! They exist where the driver of a block device has them. In Linux 7.2 these are SCSI disks, NVMe namespaces, and
//! device-mapper devices over them.
//!
//! `translate` translates commands, `outcome` the errors, and `sys` has the system calls.

mod outcome;
mod sys;
mod translate;

use std::os::fd::BorrowedFd;

use scsi_pr::{
    Command, Completion, Error, Opcode, PrManager, ReserveIn, ReserveInAction, ReserveOut, SenseCode, Status,
};

use crate::NotPermitted;
use crate::command_error::{CommandError, CommandErrorLog};
use crate::device::{DeviceClass, Sysfs, is_block_device};
use translate::DriverQuirks;

/// Translates every command to the IOC_PR ioctls, made on the descriptor as it is.
///
/// | command | ioctl | refusals |
/// | --- | --- | --- |
/// | READ KEYS | IOC_PR_READ_KEYS | 05/24/00 before Linux 6.19 |
/// | READ RESERVATION | IOC_PR_READ_RESERVATION; the generation of a unit that is not reserved is READ_KEYS' | 05/24/00 before Linux 6.19 |
/// | REPORT CAPABILITIES | none: PTPL_C (not on NVMe), no SIP_C, no ATP_C, no types stated | |
/// | READ FULL STATUS | none | 05/24/00 |
/// | REGISTER | IOC_PR_REGISTER | SPEC_I_PT, ALL_TG_PT: 05/26/00. On NVMe also APTPL and a new key of zero |
/// | REGISTER AND IGNORE EXISTING KEY | the same with PR_FL_IGNORE_KEY; on NVMe, after a conflict, once more as a replacement | as REGISTER |
/// | RESERVE, RELEASE, CLEAR | IOC_PR_RESERVE, IOC_PR_RELEASE, IOC_PR_CLEAR | |
/// | PREEMPT | IOC_PR_PREEMPT; on NVMe, IOC_PR_READ_KEYS must then show that the victim's key is gone | an invalid TYPE, even where it is ignored: 05/24/00 |
/// | PREEMPT AND ABORT | IOC_PR_PREEMPT_ABORT | as PREEMPT; on device mapper, which loses the abort: 05/24/00 |
/// | REGISTER AND MOVE, REPLACE LOST RESERVATION | none | 05/24/00 |
///
/// * The answer is 05/20/00 for a device whose driver has no reservations, a partition, and a descriptor of another type.
/// * **Persistence.** These ioctls always request it, as if APTPL were one. With APTPL 0, registrations and reservation
///   therefore survive a loss of power, until they are released or cleared. No initiator gains access by that. A SCSI unit
///   without persistence refuses each REGISTER (05/26/00). The ioctls do not tell whether an NVMe namespace has it, so
///   APTPL 1 is refused there.
/// * **Sense data** do not pass through these ioctls. ILLEGAL REQUEST becomes the one sense code that is possible for the
///   service action. Any other CHECK CONDITION is 0B/08/00. The kernel consumes unit attentions.
/// * **Permission.** Linux 6.1 wants CAP_SYS_ADMIN. Linux 7.2 takes a descriptor open for writing instead, and one for
///   reading to read keys and reservation. [`try_execute`](Self::try_execute) reports a missing permission.
/// * All controllers and virtual machines of an NVMe host share one registration. [`Nvme`](crate::Nvme) supports what is
///   refused here on NVMe.
/// * A device-mapper device passes everything on to the device beneath. Use a [`DeviceRouter`](crate::DeviceRouter), unless
///   the descriptor is of a whole disk.
/// * CLEANUP is GOOD: there is no state to clean up.
#[derive(Debug)]
pub struct BlockIoctl {
    sysfs: Sysfs,
    error_log: CommandErrorLog,
}

impl BlockIoctl {
    /// `sysfs` tells whether device mapper or NVMe answers.
    pub const fn new(sysfs: Sysfs) -> Self {
        Self { sysfs, error_log: CommandErrorLog::new() }
    }

    fn run(&self, device: BorrowedFd<'_>, command: Command<'_>) -> Result<Completion, CommandError> {
        // For a character device the numbers of these ioctls may mean something else.
        match is_block_device(device) {
            Ok(true) => {}
            _ => return Ok(Completion::check(SenseCode::INVALID_OPCODE)),
        }
        let ioctls = sys::Device(device);
        let refused = |code| CommandError::Answer(Completion::check(code));
        match command.opcode() {
            Opcode::ReserveOut => {
                let command = ReserveOut::parse(command).map_err(refused)?;
                translate::write(&ioctls, &command, self.quirks(device)?)
            }
            _ => {
                let command = ReserveIn::parse(command).map_err(refused)?;
                let quirks = match command.action() {
                    ReserveInAction::ReportCapabilities => self.quirks(device)?,
                    _ => DriverQuirks { device_mapper: true, nvme: true },
                };
                translate::read(&ioctls, &command, quirks)
            }
        }
    }

    fn quirks(&self, descriptor: BorrowedFd<'_>) -> Result<DriverQuirks, CommandError> {
        // Too many open files.
        let busy = |_| CommandError::Answer(Completion::Status(Status::BUSY));
        let device = self.sysfs.device(descriptor).map_err(busy)?;
        let device_mapper = match device.class() {
            // Newer kernels refuse this; 6.1 does not.
            DeviceClass::Partition { .. } => {
                return Err(CommandError::Refused(
                    SenseCode::INVALID_OPCODE,
                    "a partition: the whole disk would be reserved",
                ));
            }
            kind => matches!(
                kind,
                DeviceClass::DeviceMapper { .. } | DeviceClass::Multipath { .. } | DeviceClass::Unexplained { .. }
            ),
        };
        let nvme = match (device.class(), device.number()) {
            (DeviceClass::ScsiBlock | DeviceClass::OtherBlock, _) => false,
            (_, None) => true,
            (_, Some(number)) => self.sysfs.reaches_nvme(number).map_err(busy)?.unwrap_or(true),
        };
        Ok(DriverQuirks { device_mapper, nvme })
    }
}

impl Default for BlockIoctl {
    /// With `/sys`.
    #[inline]
    fn default() -> Self {
        Self::new(Sysfs::default())
    }
}

impl BlockIoctl {
    /// As [`execute`](PrManager::execute), but reports where the kernel does not permit the command to this process.
    ///
    /// # Errors
    ///
    /// [`NotPermitted`]: nothing was changed, and another process may run the command.
    pub fn try_execute(&self, device: BorrowedFd<'_>, command: Command<'_>) -> Result<Completion, NotPermitted> {
        if command.opcode() == Opcode::Cleanup {
            return Ok(Completion::Good(Vec::new()));
        }
        self.error_log.resolve(command, self.run(device, command))
    }
}

impl PrManager for BlockIoctl {
    /// Never `Err`. Without permission the answer is CHECK CONDITION 0B/00/06, and the log says why, once a minute.
    fn execute(&self, device: BorrowedFd<'_>, command: Command<'_>) -> Result<Completion, Error> {
        let answer = self.try_execute(device, command);
        Ok(answer.unwrap_or_else(|not_permitted| self.error_log.not_permitted(command, not_permitted)))
    }
}

#[cfg(test)]
mod tests;
