//! The scenarios: small stories with one purpose each.

mod answers;
mod blocks;

use std::path::PathBuf;

use anyhow::Result;

use crate::nvmet::Nvmet;
use crate::report::Report;
use crate::script::Entry;
use crate::target::Target;

/// What the scenarios of one boot share.
pub(crate) struct Lab {
    /// The directory of our programs.
    pub(crate) programs: PathBuf,
    target: Option<Target>,
    reference: Option<Vec<Entry>>,
    nvmet: Option<Nvmet>,
}

impl Lab {
    /// Nothing is set up until a scenario asks for it.
    pub(crate) fn new(programs: PathBuf) -> Self {
        Self { programs, target: None, reference: None, nvmet: None }
    }

    /// The SCSI target.
    pub(crate) fn target(&mut self) -> Result<&mut Target> {
        if self.target.is_none() {
            self.target = Some(Target::start()?);
        }
        Ok(self.target.as_mut().expect("it was just started"))
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
    blocks::SCSI,
    blocks::NVME,
    blocks::NVME_BY_IOCTL,
    blocks::SCSI_ON_A_NEWER_KERNEL,
    blocks::NVME_WITH_PATHS,
];
