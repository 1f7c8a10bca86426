//! A real NVMe target with reservations, nvmet of Linux 6.13 or later, and two hosts of it, all in this kernel: nvme-loop.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::system::{make, run, wait_for, write};
use crate::target::Unit;

const NVMET: &str = "/sys/kernel/config/nvmet";
const NAMESPACE_BYTES: u64 = 16 << 20;

/// Who the hosts are: their HOSTIDs.
pub(crate) const HOSTS: [u128; 2] = [0xa0000000_0000_4000_8000_0000000000a1, 0xb0000000_0000_4000_8000_0000000000b2];

/// The target.
pub(crate) struct Nvmet {
    subsystems: usize,
}

impl Nvmet {
    /// Sets up the target, without anything in it.
    pub(crate) fn start() -> Result<Self> {
        // Else the kernel would take both hosts for itself, and their controllers for two paths.
        run("modprobe", &["nvme-core", "multipath=N"])?;
        run("modprobe", &["--all", "nvmet", "nvme-loop"])?;
        make(format!("{NVMET}/ports/1"))?;
        write(format!("{NVMET}/ports/1/addr_trtype"), "loop")?;
        Ok(Self { subsystems: 0 })
    }

    /// Makes a namespace without reservations, and connects both hosts to it.
    pub(crate) fn namespace(&mut self) -> Result<Unit> {
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
        let disks = [connect(&name, HOSTS[0])?, connect(&name, HOSTS[1])?];
        Ok(Unit { serial: name, disks })
    }
}

/// Connects a host to a subsystem; its one namespace as that host sees it.
fn connect(subsystem: &str, host: u128) -> Result<PathBuf> {
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
    let Some((_, instance)) = answer.split_once("instance=") else { bail!("nvme-fabrics says {answer:?}") };
    let instance = instance.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
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
