//! [`Lab`]: the devices and programs that the scenarios of one boot share.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Result};

use crate::cluster::Cluster;
use crate::libvirt::Libvirt;
use crate::map::{self, Multipath};
use crate::nvmet::Nvmet;
use crate::script::Entry;
use crate::scripts;
use crate::sg_raw::SgRaw;
use crate::target::Target;

/// The seed without `--seed`. With it, every deviation of LIO occurs in the random histories.
pub(crate) const DEFAULT_SEED: u64 = 29;

/// Each part is set up when a scenario first uses it.
pub(crate) struct Lab {
    /// The directory of this project's programs.
    pub(crate) programs: PathBuf,
    /// The seed of the random histories.
    pub(crate) seed: u64,
    /// Multiplies the number of the random histories.
    pub(crate) factor: u32,
    /// The directory with the files of a virtual machine.
    machine: Option<PathBuf>,
    /// The directory with the Debian packages of this project.
    packages: Option<PathBuf>,
    target: Option<Rc<Target>>,
    multipath: Option<Multipath>,
    nvmet: Option<Nvmet>,
    cluster: Option<Cluster>,
    libvirt: Option<Libvirt>,
    reference: Option<Vec<Entry>>,
}

impl Lab {
    /// Sets up nothing yet.
    pub(crate) fn new(programs: PathBuf, machine: Option<PathBuf>, packages: Option<PathBuf>) -> Self {
        Self {
            programs,
            seed: DEFAULT_SEED,
            factor: 1,
            machine,
            packages,
            target: None,
            multipath: None,
            nvmet: None,
            cluster: None,
            libvirt: None,
            reference: None,
        }
    }

    /// The path of this project's helper.
    pub(crate) fn helper(&self) -> PathBuf {
        self.programs.join("qemu-pr-helper")
    }

    /// The path of the program `scsi-pr`.
    pub(crate) fn scsi_pr(&self) -> PathBuf {
        self.programs.join("scsi-pr")
    }

    /// The SCSI target.
    pub(crate) fn target(&mut self) -> Result<Rc<Target>> {
        if self.target.is_none() {
            self.target = Some(Rc::new(Target::start()?));
        }
        Ok(Rc::clone(self.target.as_ref().expect("the target was started above")))
    }

    /// The multipath maps.
    pub(crate) fn multipath(&mut self) -> Result<&mut Multipath> {
        let target = self.target()?;
        if self.multipath.is_none() {
            self.multipath = Some(Multipath::start(target, map::UNITS)?);
        }
        Ok(self.multipath.as_mut().expect("multipathd was started above"))
    }

    /// The NVMe target.
    pub(crate) fn nvmet(&mut self) -> Result<&mut Nvmet> {
        if self.nvmet.is_none() {
            self.nvmet = Some(Nvmet::start()?);
        }
        Ok(self.nvmet.as_mut().expect("the NVMe target was started above"))
    }

    /// The virtual machine, its helpers and its disks.
    pub(crate) fn cluster(&mut self) -> Result<&mut Cluster> {
        if self.cluster.is_none() {
            let target = self.target()?;
            let map = self.multipath()?.map(2, 0)?.device.clone();
            self.cluster = Some(Cluster::start(&self.helper(), &target, &map, self.machine()?)?);
        }
        Ok(self.cluster.as_mut().expect("the virtual machine was started above"))
    }

    /// libvirtd.
    pub(crate) fn libvirt(&mut self) -> Result<&Libvirt> {
        if self.libvirt.is_none() {
            self.libvirt = Some(Libvirt::start(self.packages()?, self.machine()?)?);
        }
        Ok(self.libvirt.as_ref().expect("libvirtd was started above"))
    }

    /// The transcript of the scripts without a helper.
    pub(crate) fn reference(&mut self) -> Result<Vec<Entry>> {
        if self.reference.is_none() {
            self.reference = Some(scripts::run(&SgRaw, &*self.target()?)?);
        }
        Ok(self.reference.clone().expect("the scripts were run above"))
    }

    /// The directory with the Debian packages of this project.
    pub(crate) fn packages(&self) -> Result<&Path> {
        self.packages.as_deref().context("--packages is missing")
    }

    fn machine(&self) -> Result<&Path> {
        self.machine.as_deref().context("--machine is missing")
    }
}
