//! [`Guests`]: two QEMU guests on one unit of `scsi-pr disk`, each an iSCSI initiator with a name of its own.
//!
//! QEMU's own iSCSI driver connects to the server, and `scsi-block` passes the disk through to the guest. Each guest has
//! this machine's programs, and a shell.

pub(crate) mod checks;
pub(crate) mod demo;
pub(crate) mod figures;
mod migration;
mod outcomes;

use std::fs::{self, File};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::disk_server::{DiskServer, TARGET};
use crate::kernel::Kernel;
use crate::lab::lock;
use crate::qemu::QemuSource;
use crate::shell::{Ending, Shell};
use crate::workspace::Workspace;
use crate::{cargo, packages};

/// The size of the disk in bytes.
const SIZE: u64 = 128 << 20;

/// The memory of a guest in MiB.
const MEMORY: &str = "512";

/// Loads the drivers of the disk, and waits until it is there.
const FIND_DISK: &str = "modprobe -a virtio_scsi sd_mod sg && until test -b /dev/sda; do sleep 0.2; done";

/// Two running guests, and the server of their disk `/dev/sda`.
pub(crate) struct Guests {
    pub(crate) guests: [Shell; 2],
    pub(crate) server: DiskServer,
    /// The program of QEMU.
    qemu: PathBuf,
    kernel: Kernel,
    /// Files of the server and of guests.
    directory: TempDir,
    /// Other runs of this program wait for it.
    _lock: File,
}

impl Guests {
    /// Installs and builds the missing parts, then starts the server and both guests. The guests may still be booting.
    pub(crate) fn start(workspace: &Workspace, qemu: &QemuSource) -> Result<Self> {
        packages::ensure_guests()?;
        let lock = lock(&workspace.lab)?;
        let kernel = Kernel::fetch(&workspace.lab)?;
        let qemu = qemu.fetch(&workspace.lab)?;
        cargo::build(workspace, &["scsi-pr-cli"])?;
        fs::create_dir_all(&workspace.lab)?;
        let directory = tempfile::Builder::new().prefix("guests-").tempdir_in(&workspace.lab)?;
        let server = DiskServer::start(&workspace.program("scsi-pr"), directory.path(), SIZE)?;
        let start = |name| Shell::start(&qemu, &kernel, &workspace.lab, name, &devices(&server, name));
        Ok(Self { guests: [start("vm1")?, start("vm2")?], server, qemu, kernel, directory, _lock: lock })
    }

    /// Waits until both guests have found the disk.
    pub(crate) fn wait_for_disks(&mut self) -> Result<()> {
        for guest in &mut self.guests {
            guest.wait_until_ready()?;
            guest.start_line(FIND_DISK)?;
        }
        for guest in &mut self.guests {
            let ending = guest.ending()?;
            if ending.status != 0 {
                bail!("a guest does not find its disk: {ending}");
            }
        }
        Ok(())
    }

    /// Runs a line of shell in both guests at the same time.
    pub(crate) fn run_in_both(&mut self, lines: [&str; 2]) -> Result<[Ending; 2]> {
        for (guest, line) in self.guests.iter_mut().zip(lines) {
            guest.start_line(line)?;
        }
        let [vm1, vm2] = &mut self.guests;
        Ok([vm1.ending().context("in vm1")?, vm2.ending().context("in vm2")?])
    }
}

/// QEMU's arguments for a guest with the disk.
fn devices(server: &DiskServer, name: &str) -> Vec<String> {
    let disk = disk_options(server, name);
    let devices = ["-m", MEMORY, "-blockdev", &disk, "-device", "virtio-scsi-pci", "-device", SCSI_BLOCK];
    devices.map(str::to_owned).to_vec()
}

/// The disk as the guest sees it. The guest gets each error.
pub(crate) const SCSI_BLOCK: &str = "scsi-block,drive=disk,rerror=report,werror=report";

/// The option `-blockdev` of the guest of this name.
pub(crate) fn disk_options(server: &DiskServer, name: &str) -> String {
    format!(
        "driver=iscsi,node-name=disk,transport=tcp,portal={},target={TARGET},lun=0,initiator-name=iqn.2026-11.example:{name}",
        server.address
    )
}
