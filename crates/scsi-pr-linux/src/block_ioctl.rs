//! The kernel's own persistent reservation ioctls, IOC_PR (Linux `linux/pr.h`, `Documentation/block/pr.rst`): for any
//! block device whose driver has them. In Linux 7.2 these are SCSI disks, NVMe namespaces, and device-mapper devices over
//! them.
//!
//! What a command becomes and what the answers mean is in `translate` and `outcome`; the system calls are in `sys`.

mod outcome;
mod sys;
mod translate;

use std::os::fd::BorrowedFd;

use scsi_pr::{
    Command, Completion, Error, Opcode, PrManager, ReserveIn, ReserveInAction, ReserveOut, SenseCode, Status,
};

use crate::NotPermitted;
use crate::device::{DeviceClass, Sysfs, is_block_device};
use crate::permission::{Complaints, Stop};
use translate::Nature;

/// Translates every command to the IOC_PR ioctls, made on the descriptor as it is.
///
/// | command | ioctl | what is refused, and how |
/// | --- | --- | --- |
/// | READ KEYS | IOC_PR_READ_KEYS | 05/24/00 before Linux 6.19 |
/// | READ RESERVATION | IOC_PR_READ_RESERVATION; the generation of a unit that is not reserved is READ_KEYS' | 05/24/00 before Linux 6.19 |
/// | REPORT CAPABILITIES | none: PTPL_C (not on NVMe), no SIP_C, no ATP_C, no types stated | |
/// | READ FULL STATUS | none | 05/24/00 |
/// | REGISTER | IOC_PR_REGISTER | SPEC_I_PT, ALL_TG_PT: 05/26/00. On NVMe also APTPL and a new key of zero |
/// | REGISTER AND IGNORE EXISTING KEY | the same with PR_FL_IGNORE_KEY; on NVMe, after a conflict, once more as a replacement | as REGISTER |
/// | RESERVE, RELEASE, CLEAR | IOC_PR_RESERVE, IOC_PR_RELEASE, IOC_PR_CLEAR | |
/// | PREEMPT | IOC_PR_PREEMPT; on NVMe, IOC_PR_READ_KEYS must then show that the victim's key is gone | a TYPE that is none, even where it does not count: 05/24/00 |
/// | PREEMPT AND ABORT | IOC_PR_PREEMPT_ABORT | as PREEMPT; on device mapper, which loses the abort: 05/24/00 |
/// | REGISTER AND MOVE, REPLACE LOST RESERVATION | none | 05/24/00 |
///
/// * A device whose driver has no reservations, a partition, and what is no block device, answer 05/20/00.
/// * **Persistence.** These ioctls always ask for it, as if APTPL were one. Who asks for APTPL 0 gets more than that: the
///   registrations and the reservation outlast a loss of power, and go on shutting others out, until they are released or
///   cleared. Nobody who is shut out gains access by it. A SCSI unit that keeps nothing over a loss of power refuses each
///   REGISTER (05/26/00). An NVMe namespace is not known to keep anything, so APTPL 1 is refused there.
/// * **Sense data** do not come through these ioctls. What the kernel tells to be ILLEGAL REQUEST becomes the one that
///   there can be for the service action; any other CHECK CONDITION is 0B/08/00. Unit attentions are consumed by the kernel.
/// * **Permission.** Linux 6.1 wants CAP_SYS_ADMIN; 7.2 takes a descriptor open for writing instead, and one for reading
///   to read keys and reservation. [`try_execute`](Self::try_execute) tells this apart.
/// * One NVMe host has one registration, whatever its controllers and virtual machines: all of them share it.
///   [`Nvme`](crate::Nvme) does on NVMe what is refused here.
/// * A device-mapper device passes everything on to what is beneath: put a [`DeviceRouter`](crate::DeviceRouter) around
///   this, unless it is known that the whole of it is meant.
/// * CLEANUP is good: nothing is kept here that would need cleaning.
#[derive(Debug)]
pub struct BlockIoctl {
    sysfs: Sysfs,
    complaints: Complaints,
}

impl BlockIoctl {
    /// `sysfs` tells whether device mapper or NVMe is what answers.
    pub const fn new(sysfs: Sysfs) -> Self {
        Self { sysfs, complaints: Complaints::new() }
    }

    fn run(&self, device: BorrowedFd<'_>, command: Command<'_>) -> Result<Completion, Stop> {
        // The numbers of these ioctls may mean something else to a character device.
        match is_block_device(device) {
            Ok(true) => {}
            _ => return Ok(Completion::check(SenseCode::INVALID_OPCODE)),
        }
        let ioctls = sys::Device(device);
        let refused = |code| Stop::With(Completion::check(code));
        match command.opcode() {
            Opcode::ReserveOut => {
                let command = ReserveOut::parse(command).map_err(refused)?;
                translate::write(&ioctls, &command, self.nature(device)?)
            }
            _ => {
                let command = ReserveIn::parse(command).map_err(refused)?;
                let nature = match command.action() {
                    ReserveInAction::ReportCapabilities => self.nature(device)?,
                    _ => Nature { device_mapper: true, nvme: true },
                };
                translate::read(&ioctls, &command, nature)
            }
        }
    }

    fn nature(&self, descriptor: BorrowedFd<'_>) -> Result<Nature, Stop> {
        // This process may open no more files now.
        let busy = |_| Stop::With(Completion::Status(Status::BUSY));
        let device = self.sysfs.device(descriptor).map_err(busy)?;
        let device_mapper = match device.class() {
            // Newer kernels refuse this themselves; 6.1 does not.
            DeviceClass::Partition { .. } => {
                return Err(Stop::Because(SenseCode::INVALID_OPCODE, "a partition: the whole disk would be reserved"));
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
        Ok(Nature { device_mapper, nvme })
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
    /// As [`execute`](PrManager::execute), but tells apart what the kernel does not permit to this process.
    ///
    /// # Errors
    ///
    /// [`NotPermitted`]: nothing was changed, and another process may run the command.
    pub fn try_execute(&self, device: BorrowedFd<'_>, command: Command<'_>) -> Result<Completion, NotPermitted> {
        if command.opcode() == Opcode::Cleanup {
            return Ok(Completion::Good(Vec::new()));
        }
        self.complaints.settle(command, self.run(device, command))
    }
}

impl PrManager for BlockIoctl {
    /// Never `Err`. What the kernel does not permit is CHECK CONDITION 0B/00/06, and the log says why, once a minute.
    fn execute(&self, device: BorrowedFd<'_>, command: Command<'_>) -> Result<Completion, Error> {
        let answer = self.try_execute(device, command);
        Ok(answer.unwrap_or_else(|not_permitted| self.complaints.give_up(command, not_permitted)))
    }
}

#[cfg(test)]
mod tests;
