//! The list of scenarios.

mod administration;
mod answers;
mod blocks;
mod deadlock;
mod disk;
mod histories;
mod hosts;
mod identity;
mod killed;
mod libvirt;
mod lost;
mod machine;
mod multipath;
mod neighbours;
mod packages;
mod parts;
mod power;
mod routing;
mod service;
mod stamps;

use crate::scenario::Scenario;

/// Every scenario, in the order in which they run.
pub(crate) const ALL: &[Scenario] = &[
    administration::SCSI,
    answers::DIRECT,
    answers::SCSI_PR,
    answers::UNPRIVILEGED,
    answers::QEMU,
    parts::PARTS,
    parts::MULTIPATH,
    identity::SCSI,
    administration::MULTIPATH,
    multipath::ACTIONS,
    multipath::FOUR,
    multipath::SHARED_KEY,
    multipath::PATHS,
    killed::KILLED,
    lost::LOST,
    lost::FAILOVER,
    lost::FLAPPING,
    multipath::DIAGNOSIS,
    multipath::PORTS,
    neighbours::HANGING,
    neighbours::SWAPPED,
    machine::GUEST,
    machine::RESTART,
    machine::MAP,
    libvirt::MANAGED,
    libvirt::UNMANAGED,
    packages::APP_ARMOR,
    packages::HELPER,
    packages::SCSI_PR,
    service::MULTIPATH,
    service::MONITORING,
    deadlock::DEADLOCK,
    disk::MULTIPATH,
    stamps::STAMPS,
    power::POWER_CUT,
    hosts::TAKEOVER,
    blocks::SCSI,
    blocks::SCSI_BY_HELPER,
    administration::NVME,
    blocks::NVME,
    blocks::NVME_BY_HELPER,
    blocks::NVME_BY_IOCTL,
    identity::NVME,
    routing::DEVICES,
    blocks::SCSI_ON_A_NEWER_KERNEL,
    blocks::NVME_WITH_PATHS,
    histories::HISTORIES,
];
