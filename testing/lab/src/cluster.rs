//! [`Cluster`]: a virtual machine with a disk behind each helper and one on a multipath map.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::helper::Helper;
use crate::machine::{Disk, Machine};
use crate::report::Report;
use crate::target::{Target, Unit};

/// The names of the helpers, and of QEMU's objects for them.
const SCSI_PR: &str = "scsi-pr";
const QEMU: &str = "qemu";
const MAP: &str = "map";

/// A virtual machine and its helpers.
pub(crate) struct Cluster {
    pub(crate) machine: Machine,
    /// The units of /dev/sda and /dev/sdb. The second initiator of the target reaches them too.
    pub(crate) units: [Unit; 2],
    /// This project's helper, which serves /dev/sda, while it runs.
    helper: Option<Helper>,
    program: PathBuf,
    /// QEMU's helper, which serves /dev/sdb.
    _qemu: Helper,
    /// This project's helper for /dev/sdc, which is a multipath map.
    _map: Helper,
}

impl Cluster {
    /// Starts the helpers, `program` among them, and resumes the machine that was saved in `machine`.
    pub(crate) fn start(program: &Path, target: &Target, map: &Path, machine: &Path) -> Result<Self> {
        let helper = Helper::start(program, SCSI_PR, &[])?;
        let qemu = Helper::start(Path::new("/usr/bin/qemu-pr-helper"), QEMU, &[])?;
        let units = [target.unit()?, target.unit()?];
        let map_helper = Helper::start(program, MAP, &["-u", "nobody"])?;
        let disks = [
            Disk { manager: SCSI_PR, socket: helper.socket(), device: &units[0].disks[0] },
            Disk { manager: QEMU, socket: qemu.socket(), device: &units[1].disks[0] },
            Disk { manager: MAP, socket: map_helper.socket(), device: map },
        ];
        let machine = Machine::resume(machine, &disks)?;
        Ok(Self { machine, units, helper: Some(helper), program: program.to_owned(), _qemu: qemu, _map: map_helper })
    }

    /// Kills this project's helper.
    pub(crate) fn stop(&mut self) -> Result<()> {
        self.helper.take().map_or(Ok(()), Helper::kill)
    }

    /// Starts this project's helper at the same socket.
    pub(crate) fn start_again(&mut self) -> Result<()> {
        self.helper = Some(Helper::start(&self.program, SCSI_PR, &[])?);
        Ok(())
    }

    /// QEMU's events about the connection to this project's helper since the last call: "made" or "lost".
    pub(crate) fn changes(&self) -> String {
        let changes =
            self.machine.connections(SCSI_PR).into_iter().map(|connected| if connected { "made" } else { "lost" });
        changes.collect::<Vec<_>>().join(", ")
    }

    /// Runs `sg_persist OPTIONS` on the disks of both helpers, as [`both`](Self::both) does.
    pub(crate) fn sg_persist(
        &mut self,
        report: &mut Report,
        options: &str,
        status: i32,
        containing: &str,
    ) -> Result<()> {
        self.both(report, &format!("sg_persist --no-inquiry {options} $DISK"), status, containing)
    }

    /// Runs a command on the disks of both helpers. Checks that both end with `status` and print the same, with
    /// `containing` in it.
    pub(crate) fn both(&mut self, report: &mut Report, command: &str, status: i32, containing: &str) -> Result<()> {
        let scsi_pr = self.machine.run(&format!("DISK=/dev/sda; {command}"))?;
        let qemu = self.machine.run(&format!("DISK=/dev/sdb; {command}"))?;
        let outcome = if scsi_pr != qemu {
            Err(format!("expected, as with QEMU's helper,\n{qemu}\ngot\n{scsi_pr}"))
        } else if scsi_pr.status != status || !scsi_pr.output.contains(containing) {
            Err(format!("expected exit status {status} and {containing:?}, got\n{scsi_pr}"))
        } else {
            Ok(())
        };
        let with = if containing.is_empty() { String::new() } else { format!(", {containing}") };
        report.check(format!("{command}: exit status {status}{with}"), outcome);
        Ok(())
    }
}
