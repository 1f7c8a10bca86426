//! The scenarios: small stories with one purpose each.

mod answers;
mod blocks;
mod deadlock;
mod histories;
mod identity;
mod killed;
mod lost;
mod machine;
mod multipath;
mod neighbours;
mod parts;
mod routing;

use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Result};

pub(crate) use histories::DEFAULT_SEED;

use crate::map::{self, Multipath};
use crate::nvmet::Nvmet;
use crate::report::Report;
use crate::script::Entry;
use crate::target::Target;

/// What the scenarios of one boot share.
pub(crate) struct Lab {
    /// The directory of our programs.
    pub(crate) programs: PathBuf,
    target: Option<Rc<Target>>,
    reference: Option<Vec<Entry>>,
    multipath: Option<Multipath>,
    nvmet: Option<Nvmet>,
    /// Where a virtual machine was put aside.
    machine: Option<PathBuf>,
    /// What the random histories begin with.
    seed: u64,
    cluster: Option<machine::Cluster>,
}

impl Lab {
    /// Nothing is set up until a scenario asks for it.
    pub(crate) fn new(programs: PathBuf, machine: Option<PathBuf>, seed: u64) -> Self {
        Self { programs, target: None, reference: None, multipath: None, nvmet: None, machine, seed, cluster: None }
    }

    /// The directory of the virtual machine to go on with.
    fn machine(&self) -> Result<&Path> {
        self.machine.as_deref().context("--machine is missing")
    }

    /// The virtual machine and its disks.
    fn cluster(&mut self) -> Result<&mut machine::Cluster> {
        if self.cluster.is_none() {
            self.cluster = Some(machine::Cluster::start(self)?);
        }
        Ok(self.cluster.as_mut().expect("it was just started"))
    }

    /// Multipath maps.
    pub(crate) fn multipath(&mut self) -> Result<&mut Multipath> {
        let target = self.target()?;
        if self.multipath.is_none() {
            self.multipath = Some(Multipath::start(target, map::UNITS)?);
        }
        Ok(self.multipath.as_mut().expect("it was just started"))
    }

    /// The SCSI target.
    pub(crate) fn target(&mut self) -> Result<Rc<Target>> {
        if self.target.is_none() {
            self.target = Some(Rc::new(Target::start()?));
        }
        Ok(Rc::clone(self.target.as_ref().expect("it was just started")))
    }
}

/// A scenario.
pub(crate) struct Scenario {
    /// What to call it on the command line.
    pub(crate) name: &'static str,
    /// Scenarios of one boot share a guest, one after the other.
    pub(crate) boot: &'static str,
    /// What it shows.
    pub(crate) purpose: &'static str,
    /// Makes its checks; an error counts as one that failed.
    pub(crate) run: fn(&mut Lab, &mut Report) -> Result<()>,
}

/// All of them, in the order in which they run.
pub(crate) const ALL: &[Scenario] = &[
    answers::DIRECT,
    answers::OURS,
    answers::NOBODY,
    answers::QEMU,
    parts::PARTS,
    parts::MULTIPATH,
    identity::SCSI,
    multipath::ACTIONS,
    multipath::FOUR,
    multipath::PATHS,
    killed::KILLED,
    lost::LOST,
    lost::FAILOVER,
    multipath::DIAGNOSIS,
    multipath::PORTS,
    neighbours::HANGING,
    neighbours::SWAPPED,
    machine::GUEST,
    machine::RESTART,
    machine::MAP,
    deadlock::DEADLOCK,
    blocks::SCSI,
    blocks::SCSI_BY_HELPER,
    blocks::NVME,
    blocks::NVME_BY_HELPER,
    blocks::NVME_BY_IOCTL,
    identity::NVME,
    routing::DEVICES,
    blocks::SCSI_ON_A_NEWER_KERNEL,
    blocks::NVME_WITH_PATHS,
    histories::HISTORIES,
];
