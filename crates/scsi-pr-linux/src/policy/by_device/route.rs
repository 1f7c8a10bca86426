//! Which way commands go, after what a device is. No I/O.

use scsi_pr::Opcode;

use super::super::refusals::{NOT_EXPLAINED, NOT_THE_WHOLE};
use crate::device::{Device, Kind};

/// What a block device is, as far as it decides who gets its commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// A whole logical unit, or namespace, or another device with nothing beneath it.
    Whole(Manager),
    /// A part of a whole, or made of several. `None`: what is beneath must be looked at for each command.
    Part(Option<Manager>),
    /// Nobody knows.
    Unexplained,
}

/// One of the managers of [`Routes`](super::Routes).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manager {
    SgIo,
    Multipath,
    Nvme,
    Block,
}

/// What becomes of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// This manager gets it.
    Pass(Manager),
    /// The one that reads what is beneath now gets it.
    PassBeneath,
    /// It is refused, for this reason.
    Refuse(&'static str),
    /// It is done: there is nothing to do.
    Done,
}

impl Route {
    /// The route of a block device. `over_nvme` tells whether the device is over NVMe, and is asked only of partitions: what
    /// other devices are over is subject to change.
    pub(super) fn of<E>(device: &Device, over_nvme: impl FnOnce() -> Result<Option<bool>, E>) -> Result<Self, E> {
        Ok(match device.kind() {
            Kind::ScsiBlock => Self::Whole(Manager::SgIo),
            Kind::Multipath { .. } => Self::Whole(Manager::Multipath),
            Kind::NvmeNamespace => Self::Whole(Manager::Nvme),
            Kind::OtherBlock => Self::Whole(Manager::Block),
            Kind::Partition { .. } => Self::Part(Some(Manager::reading(over_nvme()?))),
            Kind::DeviceMapper { .. } | Kind::Stacked { .. } => Self::Part(None),
            Kind::Unexplained { .. } | Kind::ScsiGeneric | Kind::OtherCharacter | Kind::NotADevice(_) => {
                Self::Unexplained
            }
        })
    }

    /// What becomes of a command with this opcode.
    pub(super) const fn decide(self, opcode: Opcode) -> Decision {
        match (self, opcode) {
            (Self::Whole(manager), _) => Decision::Pass(manager),
            (Self::Part(Some(manager)), Opcode::ReserveIn) => Decision::Pass(manager),
            (Self::Part(None), Opcode::ReserveIn) => Decision::PassBeneath,
            (Self::Part(_), Opcode::ReserveOut) => Decision::Refuse(NOT_THE_WHOLE),
            // Nothing is registered through these, so there is nothing to clean up.
            (Self::Part(_), Opcode::Cleanup) => Decision::Done,
            (Self::Unexplained, Opcode::ReserveIn) => Decision::Pass(Manager::SgIo),
            (Self::Unexplained, _) => Decision::Refuse(NOT_EXPLAINED),
        }
    }
}

impl Manager {
    /// Who reads reservations through a part. `None`, where nobody knows what it is over, is asked as QEMU's helper would.
    pub(super) const fn reading(over_nvme: Option<bool>) -> Self {
        match over_nvme {
            Some(true) => Self::Nvme,
            Some(false) | None => Self::SgIo,
        }
    }
}
