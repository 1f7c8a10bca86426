//! The table of routes: which mechanisms run a command, by class of device and opcode. No I/O.

use scsi_pr::Opcode;

use crate::device::{Device, DeviceClass};

/// A way to run a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Mechanism {
    /// [`SgIo`](crate::SgIo).
    SgIo,
    /// The same, on a device whose driver may not know SG_IO. Such a driver sends nothing.
    SgIoWhereSupported,
    /// [`Nvme`](crate::Nvme), in this process. The kernel may not permit it; then it has sent nothing.
    Nvme,
    /// [`Nvme`](crate::Nvme), in a worker.
    NvmeWorker,
    /// [`BlockIoctl`](crate::BlockIoctl), in this process. The kernel may not permit it; then it has sent nothing.
    BlockIoctl,
    /// [`BlockIoctl`](crate::BlockIoctl), in a worker.
    BlockIoctlWorker,
    /// [`MultipathReader`](crate::MultipathReader).
    MultipathReader,
    /// [`Multipath`](crate::Multipath), in a worker.
    MultipathWorker,
}

use Mechanism::{
    BlockIoctl, BlockIoctlWorker, MultipathReader, MultipathWorker, Nvme, NvmeWorker, SgIo, SgIoWhereSupported,
};

/// The route of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// These mechanisms run it. The next one gets it only where the one before has done nothing.
    Run(&'static [Mechanism]),
    /// The route of a [`PartOfNvme`](Target::PartOfNvme) or a [`Part`](Target::Part): sysfs tells which.
    RunBeneath,
    /// CHECK CONDITION 05/20/00, and a log line with this reason.
    Refuse(&'static str),
    /// GOOD: there is nothing to do.
    Nothing,
}

/// The rows of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// A SCSI logical unit as a block device.
    ScsiUnit,
    /// A dm-multipath map.
    MultipathMap,
    /// An NVMe namespace.
    NvmeNamespace,
    /// Another block device with no block device beneath it.
    OtherDisk,
    /// A part of a SCSI logical unit, or of a disk that is not known.
    Part,
    /// A part of an NVMe namespace.
    PartOfNvme,
    /// A device over devices that may be exchanged while it is open.
    Stack,
    /// A block device that sysfs does not explain.
    Unexplained,
    /// A SCSI generic device, or a descriptor that is not of a disk. The kernel tells which.
    NotABlockDevice,
}

const SG_IO: Route = Route::Run(&[SgIo]);
const NVME: Route = Route::Run(&[Nvme, NvmeWorker]);
const OTHER: Route = Route::Run(&[SgIoWhereSupported, BlockIoctl, BlockIoctlWorker]);
const MAP_READ: Route = Route::Run(&[MultipathReader]);
const MAP_CHANGE: Route = Route::Run(&[MultipathWorker]);
const NOT_THE_WHOLE: Route = Route::Refuse("the whole of what is beneath would be reserved, not this part");
const NOT_EXPLAINED: Route = Route::Refuse("it may be a part of a logical unit, or one of several paths to it");

impl Target {
    /// Every row, in the order of its number.
    pub(crate) const ALL: [Self; 9] = [
        Self::ScsiUnit,
        Self::MultipathMap,
        Self::NvmeNamespace,
        Self::OtherDisk,
        Self::Part,
        Self::PartOfNvme,
        Self::Stack,
        Self::Unexplained,
        Self::NotABlockDevice,
    ];

    /// Its name in metrics.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::ScsiUnit => "scsi-disk",
            Self::MultipathMap => "multipath",
            Self::NvmeNamespace => "nvme",
            Self::OtherDisk => "other-disk",
            Self::Part => "part",
            Self::PartOfNvme => "part-of-nvme",
            Self::Stack => "stack",
            Self::Unexplained => "unexplained",
            Self::NotABlockDevice => "not-a-block-device",
        }
    }

    /// The table.
    #[rustfmt::skip]
    const fn routes(self) -> [Route; 3] {
        match self {
            //                        PERSISTENT RESERVE IN   PERSISTENT RESERVE OUT   CLEANUP
            Self::ScsiUnit        => [SG_IO,                  SG_IO,                   SG_IO],
            Self::MultipathMap    => [MAP_READ,               MAP_CHANGE,              MAP_CHANGE],
            Self::NvmeNamespace   => [NVME,                   NVME,                    NVME],
            Self::OtherDisk       => [OTHER,                  OTHER,                   OTHER],
            // Nothing is registered through a part, so there is nothing to clean up.
            Self::Part            => [SG_IO,                  NOT_THE_WHOLE,           Route::Nothing],
            Self::PartOfNvme      => [NVME,                   NOT_THE_WHOLE,           Route::Nothing],
            Self::Stack           => [Route::RunBeneath,      NOT_THE_WHOLE,           Route::Nothing],
            Self::Unexplained     => [SG_IO,                  NOT_EXPLAINED,           NOT_EXPLAINED],
            Self::NotABlockDevice => [SG_IO,                  SG_IO,                   SG_IO],
        }
    }

    /// The row of a block device. `reaches_nvme` tells whether the device is over NVMe. It is called for partitions only.
    pub(super) fn of<E>(device: &Device, reaches_nvme: impl FnOnce() -> Result<Option<bool>, E>) -> Result<Self, E> {
        Ok(match device.class() {
            DeviceClass::ScsiBlock => Self::ScsiUnit,
            DeviceClass::Multipath { .. } => Self::MultipathMap,
            DeviceClass::NvmeNamespace => Self::NvmeNamespace,
            DeviceClass::OtherBlock => Self::OtherDisk,
            DeviceClass::Partition { .. } => Self::part(reaches_nvme()?),
            DeviceClass::DeviceMapper { .. } | DeviceClass::Stacked { .. } => Self::Stack,
            DeviceClass::Unexplained { .. } => Self::Unexplained,
            DeviceClass::ScsiGeneric | DeviceClass::OtherCharacter | DeviceClass::NotADevice(_) => {
                Self::NotABlockDevice
            }
        })
    }

    /// The row of a part. A part of an unknown disk (`None`) is read as QEMU's helper would read it.
    pub(super) const fn part(reaches_nvme: Option<bool>) -> Self {
        match reaches_nvme {
            Some(true) => Self::PartOfNvme,
            Some(false) | None => Self::Part,
        }
    }

    /// The route of a command with this opcode. A descriptor that is not open for writing has been refused before.
    pub(super) const fn route(self, opcode: Opcode) -> Route {
        let [reserve_in, reserve_out, cleanup] = self.routes();
        match opcode {
            Opcode::ReserveIn => reserve_in,
            Opcode::ReserveOut => reserve_out,
            Opcode::Cleanup => cleanup,
        }
    }
}

/// Whether a command needs a descriptor that is open for writing, whatever its device is. QEMU's helper wants one too. The
/// kernel does not: with CAP_SYS_RAWIO, SG_IO takes any descriptor.
pub(super) const fn requires_write(opcode: Opcode) -> bool {
    matches!(opcode, Opcode::ReserveOut | Opcode::Cleanup)
}

/// The mechanism that an administrator has chosen for all devices (`--manager=`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Choice {
    /// SG_IO alone.
    SgIo,
    /// Multipath maps alone.
    Multipath,
    /// NVMe commands alone.
    Nvme,
    /// IOC_PR ioctls alone.
    BlockIoctl,
}

impl Choice {
    /// The route of a command with this opcode, for every device.
    pub(super) const fn route(self, opcode: Opcode) -> Route {
        match self {
            Self::SgIo => SG_IO,
            Self::Multipath => Target::MultipathMap.route(opcode),
            Self::Nvme => NVME,
            Self::BlockIoctl => Route::Run(&[BlockIoctl, BlockIoctlWorker]),
        }
    }
}

/// Where the reservations of a device are, for a manager of shared reservations that must not duplicate them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReservationOwner {
    /// The device has persistent reservations. Other hosts may use them.
    Device,
    /// The device has none: a store can keep them.
    None,
    /// A loop device has those of the disk beneath it; the loop driver itself has none.
    Backing,
    /// sysfs does not explain the device, which may have persistent reservations.
    Unknown,
}

/// Where the reservations of a device of this class are.
pub const fn reservation_owner(class: &DeviceClass) -> ReservationOwner {
    match class {
        DeviceClass::ScsiBlock
        | DeviceClass::ScsiGeneric
        | DeviceClass::Multipath { .. }
        | DeviceClass::NvmeNamespace => ReservationOwner::Device,
        DeviceClass::OtherBlock => ReservationOwner::Backing,
        DeviceClass::Unexplained { .. } => ReservationOwner::Unknown,
        DeviceClass::Partition { .. }
        | DeviceClass::DeviceMapper { .. }
        | DeviceClass::Stacked { .. }
        | DeviceClass::OtherCharacter
        | DeviceClass::NotADevice(_) => ReservationOwner::None,
    }
}
