//! [`ByDevice`].

mod cache;
mod route;

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use scsi_pr::{Command, Completion, Error, PrManager};

use super::refusals::{Refusals, SEND_IT_ALL_THE_SAME};
use crate::device::{BlockDevice, Device, Number, Sysfs};
use cache::Cache;
use route::{Decision, Manager, Route};

/// Hands each command to the manager for the device that it is for.
///
/// | device | manager |
/// | --- | --- |
/// | SCSI disk, CD-ROM drive | [`sg_io`](Routes::sg_io) |
/// | dm-multipath map | [`multipath`](Routes::multipath) |
/// | NVMe namespace | [`nvme`](Routes::nvme) |
/// | another block device with nothing beneath it: virtio-blk, loop, zram … | [`block`](Routes::block) |
/// | partition, logical volume, crypt device, any other device over devices | IN: [`nvme`](Routes::nvme) if there is NVMe beneath, else [`sg_io`](Routes::sg_io); OUT: nobody; CLEANUP: nobody, and it is GOOD |
/// | block device that sysfs does not explain | IN: [`sg_io`](Routes::sg_io); OUT, CLEANUP: nobody |
/// | anything else: SCSI generic device and other character devices, file, pipe, socket … | [`sg_io`](Routes::sg_io) |
///
/// A part of a unit gets no PERSISTENT RESERVE OUT, whatever the managers are: it would take the whole unit from whoever
/// uses the other parts. The answer is CHECK CONDITION 05/20/00, as from a disk without persistent reservations, and the
/// log says which device, why, and what to do, once a minute for each device. What is there to be read of the unit beneath
/// is read all the same. Managers may rely on it: [`multipath`](Routes::multipath), [`nvme`](Routes::nvme) and
/// [`block`](Routes::block) get what they are for and nothing else, but for a PERSISTENT RESERVE IN through a part of a
/// namespace. So there is no need for a [`WholeUnit`](super::WholeUnit) inside.
///
/// What a device is, is looked up in sysfs when it is first seen, and remembered where it cannot change: by device number
/// *and* the sequence number of the disk (BLKGETDISKSEQ, Linux 5.15), as device numbers are used again. Of a device-mapper
/// device only what its UUID says is remembered, as tables are swapped: what an LV is over is looked up for each IN. Nothing
/// is remembered of a device-mapper device without UUID, of md and its like, of a block device that has no other device
/// behind it (loop, zram; an md array that is not running looks like one), and of one that sysfs does not explain. For what
/// is remembered, finding the manager costs one fstat(2) and one ioctl(2); for what is no block device, one fstat(2).
///
/// While no file of sysfs can be opened, because this process or the machine has too many open, the answer is BUSY: that
/// passes.
pub struct ByDevice {
    routes: Routes,
    sysfs: Sysfs,
    cache: Cache,
    refusals: Refusals,
}

/// The managers of [`ByDevice`].
#[derive(Clone)]
pub struct Routes {
    /// For SCSI devices; and for whatever has no other manager, to be told by the kernel that it is none.
    pub sg_io: Arc<dyn PrManager>,
    /// For dm-multipath maps.
    pub multipath: Arc<dyn PrManager>,
    /// For NVMe namespaces, and to read the reservations of those beneath partitions and device-mapper devices.
    pub nvme: Arc<dyn PrManager>,
    /// For other block devices: a [`ScsiFirst`](super::ScsiFirst) with a [`BlockIoctl`](crate::BlockIoctl) has them as
    /// they are.
    pub block: Arc<dyn PrManager>,
}

impl Routes {
    fn manager(&self, manager: Manager) -> &dyn PrManager {
        match manager {
            Manager::SgIo => &*self.sg_io,
            Manager::Multipath => &*self.multipath,
            Manager::Nvme => &*self.nvme,
            Manager::Block => &*self.block,
        }
    }
}

impl fmt::Debug for ByDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ByDevice").field("sysfs", &self.sysfs).finish_non_exhaustive()
    }
}

/// What was found out about a block device.
struct Found {
    route: Route,
    /// What sysfs tells of it, if it was asked.
    device: Option<Device>,
}

impl ByDevice {
    /// With these managers; `sysfs` tells what the devices are.
    pub fn new(routes: Routes, sysfs: Sysfs) -> Self {
        Self { routes, sysfs, cache: Cache::default(), refusals: Refusals::new(SEND_IT_ALL_THE_SAME) }
    }

    fn find(&self, number: Number, sequence_number: Option<u64>) -> io::Result<Found> {
        let known = sequence_number.and_then(|sequence_number| self.cache.get(number, sequence_number));
        if let Some(route) = known {
            return Ok(Found { route, device: None });
        }
        let device = self.sysfs.block(number)?;
        let route = Route::of(&device, || self.sysfs.reaches_nvme(number))?;
        if let (true, Some(sequence_number)) = (device.lasts(), sequence_number) {
            self.cache.keep(number, sequence_number, route);
        }
        Ok(Found { route, device: Some(device) })
    }

    /// The manager that gets the command; or its answer.
    fn choose(
        &self,
        number: Number,
        sequence_number: Option<u64>,
        command: Command<'_>,
    ) -> io::Result<Result<Manager, Completion>> {
        let found = self.find(number, sequence_number)?;
        Ok(match found.route.decide(command.opcode()) {
            Decision::Pass(manager) => Ok(manager),
            Decision::PassBeneath => Ok(Manager::reading(self.sysfs.reaches_nvme(number)?)),
            Decision::Refuse(why) => {
                // Known devices are described for the log alone, which is told now and then.
                let describe = || match found.device.or_else(|| self.sysfs.block(number).ok()) {
                    Some(device) => device.to_string(),
                    None => number.to_string(),
                };
                Err(self.refusals.refuse(command, Some(number), describe, why))
            }
            Decision::Done => Err(Completion::Good(Vec::new())),
        })
    }
}

impl PrManager for ByDevice {
    fn execute(&self, descriptor: BorrowedFd<'_>, command: Command<'_>) -> Result<Completion, Error> {
        let choice = BlockDevice::of(descriptor).and_then(|device| match device {
            Some(device) => self.choose(device.number(), device.sequence_number(), command),
            None => Ok(Ok(Manager::SgIo)),
        });
        match choice {
            Ok(Ok(manager)) => self.routes.manager(manager).execute(descriptor, command),
            Ok(Err(completion)) => Ok(completion),
            Err(error) => Ok(self.refusals.put_off(command, &error)),
        }
    }

    /// Whether all of the managers are.
    fn is_connected(&self) -> bool {
        let Routes { sg_io, multipath, nvme, block } = &self.routes;
        [sg_io, multipath, nvme, block].into_iter().all(|manager| manager.is_connected())
    }
}

#[cfg(test)]
mod tests;
