//! A real NVMe target with reservations (nvmet of Linux 6.13 or later), and two hosts in the same kernel (nvme-loop).

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::system::{make, run, wait_for, write};
use crate::target::Unit;

const NVMET: &str = "/sys/kernel/config/nvmet";
const NAMESPACE_BYTES: u64 = 16 << 20;

/// The HOSTIDs of the hosts.
pub(crate) const HOSTS: [u128; 2] = [0xa0000000_0000_4000_8000_0000000000a1, 0xb0000000_0000_4000_8000_0000000000b2];

/// The target.
pub(crate) struct Nvmet {
    subsystems: usize,
}

impl Nvmet {
    /// Sets up an empty target for two hosts.
    pub(crate) fn start() -> Result<Self> {
        Self::with("multipath=N")
    }

    /// Sets up an empty target for one host. All controllers of a subsystem are paths of that host, as the kernel has it by
    /// default.
    pub(crate) fn start_with_multipath() -> Result<Self> {
        Self::with("multipath=Y")
    }

    fn with(parameter: &str) -> Result<Self> {
        run("modprobe", &["nvme-core", parameter])?;
        run("modprobe", &["--all", "nvmet", "nvme-loop"])?;
        make(format!("{NVMET}/ports/1"))?;
        write(format!("{NVMET}/ports/1/addr_trtype"), "loop")?;
        Ok(Self { subsystems: 0 })
    }

    /// Creates a namespace without reservations, and connects both hosts to it.
    pub(crate) fn namespace(&mut self) -> Result<Unit> {
        let serial = self.add_subsystem()?;
        let disks = [disk_of(connect(&serial, HOSTS[0])?)?, disk_of(connect(&serial, HOSTS[1])?)?];
        Ok(Unit { serial, disks })
    }

    /// Creates a namespace without reservations, and connects the first host to it by two controllers. Both disks of the
    /// unit are the same device, with both paths.
    pub(crate) fn namespace_with_paths(&mut self) -> Result<(Unit, [Controller; 2])> {
        let serial = self.add_subsystem()?;
        let controllers = [connect(&serial, HOSTS[0])?, connect(&serial, HOSTS[0])?];
        // The device has the number of its first controller.
        let disk = disk_of(controllers[0])?;
        Ok((Unit { serial, disks: [disk.clone(), disk] }, controllers))
    }

    /// A new subsystem with one namespace.
    fn add_subsystem(&mut self) -> Result<String> {
        let name = format!("lab{}", self.subsystems);
        self.subsystems += 1;
        let file = format!("/dev/shm/nvme-{name}");
        File::create(&file).and_then(|file| file.set_len(NAMESPACE_BYTES)).with_context(|| format!("make {file}"))?;
        let subsystem = format!("{NVMET}/subsystems/{name}");
        let namespace = format!("{subsystem}/namespaces/1");
        make(&namespace)?;
        write(format!("{subsystem}/attr_allow_any_host"), "1")?;
        for (attribute, value) in
            [("device_path", file.as_str()), ("buffered_io", "1"), ("resv_enable", "1"), ("enable", "1")]
        {
            write(format!("{namespace}/{attribute}"), value)?;
        }
        let link = format!("{NVMET}/ports/1/subsystems/{name}");
        symlink(&subsystem, &link).with_context(|| format!("link {link} to {subsystem}"))?;
        Ok(name)
    }
}

/// A controller, by the number of its instance.
#[derive(Clone, Copy)]
pub(crate) struct Controller(u32);

impl Controller {
    /// Disconnects the controller.
    pub(crate) fn disconnect(self) -> Result<()> {
        write(format!("/sys/class/nvme/nvme{}/delete_controller", self.0), "1")
    }
}

/// Connects a host to a subsystem.
fn connect(subsystem: &str, host: u128) -> Result<Controller> {
    let digits = format!("{host:032x}");
    let parts: Vec<_> = [0..8, 8..12, 12..16, 16..20, 20..32].into_iter().map(|range| &digits[range]).collect();
    let uuid = parts.join("-");
    let mut fabrics =
        OpenOptions::new().read(true).write(true).open("/dev/nvme-fabrics").context("open nvme-fabrics")?;
    let options = format!(
        "transport=loop,nqn={subsystem},hostnqn=nqn.2014-08.org.nvmexpress:uuid:{uuid},hostid={uuid},duplicate_connect"
    );
    fabrics.write_all(options.as_bytes()).with_context(|| format!("connect by {options}"))?;
    let mut answer = String::new();
    fabrics.read_to_string(&mut answer)?;
    let Some((_, instance)) = answer.split_once("instance=") else { bail!("nvme-fabrics answered {answer:?}") };
    let instance = instance.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    Ok(Controller(instance.parse().with_context(|| format!("nvme-fabrics answered {answer:?}"))?))
}

/// The device of a controller's only namespace.
fn disk_of(Controller(instance): Controller) -> Result<PathBuf> {
    let disk = PathBuf::from(format!("/dev/nvme{instance}n1"));
    wait_for(&format!("{}", disk.display()), || is_block_device(&disk))?;
    Ok(disk)
}

fn is_block_device(path: &Path) -> std::io::Result<()> {
    match std::fs::metadata(path)?.file_type().is_block_device() {
        true => Ok(()),
        false => Err(std::io::ErrorKind::NotFound.into()),
    }
}
