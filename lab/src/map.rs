//! A multipath map over a real SCSI target, LIO, and another host of the same unit: loopback initiators, all in this
//! kernel. multipathd and udev are the machine's own.
//!
//! Loopback is set up and taken away path by path, within the kernel. It deadlocks on PREEMPT AND ABORT.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::system::{make, run, wait_for, write};

const CORE: &str = "/sys/kernel/config/target/core/fileio_1";
const LOOPBACK: &str = "/sys/kernel/config/target/loopback";
const UNIT: &str = "labmap";
const UNIT_BYTES: &str = "16777216";

/// The map and what is beneath it.
pub(crate) struct Map {
    /// The map, once multipathd has made it.
    pub(crate) device: PathBuf,
    /// The disks of the first two paths.
    pub(crate) paths: [Disk; 2],
    /// The disk of the other host, which multipathd leaves alone.
    pub(crate) other_host: Disk,
}

/// A disk: one initiator's view of the unit.
#[derive(Clone)]
pub(crate) struct Disk {
    /// The kernel's name, as in sda.
    pub(crate) name: String,
    /// The name by which the unit knows its initiator.
    pub(crate) initiator: String,
}

impl Disk {
    /// The device file.
    pub(crate) fn path(&self) -> PathBuf {
        Path::new("/dev").join(&self.name)
    }

    /// Has the kernel hold the disk for dead, or alive again.
    pub(crate) fn set_alive(&self, alive: bool) -> Result<()> {
        write(format!("/sys/block/{}/device/state", self.name), if alive { "running\n" } else { "offline\n" })
    }
}

impl Map {
    /// Sets up the unit, its initiators, and the map over two of them, with `reservation_key file`.
    pub(crate) fn start() -> Result<Self> {
        run("modprobe", &["--all", "target_core_file", "tcm_loop", "sd_mod", "sg", "dm-multipath"])?;
        // Without udev, nobody tells multipathd of new disks, and nobody makes /dev/mapper.
        for program in
            [&["/lib/systemd/systemd-udevd", "--daemon"][..], &["udevadm", "trigger"], &["udevadm", "settle"]]
        {
            run("env", &[&["SYSTEMD_IGNORE_CHROOT=1"], program].concat())?;
        }
        let backstore = format!("{CORE}/{UNIT}");
        make(&backstore)?;
        write(format!("{backstore}/control"), &format!("fd_dev_name=/dev/shm/{UNIT},fd_dev_size={UNIT_BYTES}"))?;
        write(format!("{backstore}/wwn/vpd_unit_serial"), UNIT)?;
        write(format!("{backstore}/enable"), "1")?;
        let other_host = initiator(9)?;
        make("/etc/multipath")?;
        let mut map = Self { device: PathBuf::new(), paths: [initiator(1)?, initiator(2)?], other_host };
        map.write_configuration("reservation_key file")?;
        start_multipathd()?;
        let name = wait_for("a map", || match fs::read_dir("/sys/block")?.find_map(name_of_map) {
            Some(name) => Ok(name),
            None => bail!("there is none"),
        })?;
        map.device = Path::new("/dev/mapper").join(&name);
        wait_for("its device file", || fs::metadata(&map.device))?;
        map.wait_for_paths(2)?;
        Ok(map)
    }

    /// The name of the map.
    pub(crate) fn name(&self) -> String {
        self.device.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Adds a path, which multipathd takes into the map.
    pub(crate) fn add_path(&self) -> Result<Disk> {
        initiator(3)
    }

    /// Where sysfs lists the paths.
    pub(crate) fn slaves(&self) -> Result<PathBuf> {
        let device = fs::canonicalize(&self.device)?;
        Ok(Path::new("/sys/block").join(device.file_name().context("a device has a name")?).join("slaves"))
    }

    /// Takes a path away for good.
    pub(crate) fn remove_path(&self, path: &Disk) -> Result<()> {
        write(format!("/sys/block/{}/device/delete", path.name), "1")
    }

    /// Waits until so many paths are in use.
    pub(crate) fn wait_for_paths(&self, count: usize) -> Result<()> {
        wait_for(&format!("map with {count} active paths"), || {
            let status = run("dmsetup", &["status", &self.name()])?;
            let active = status
                .split_whitespace()
                .collect::<Vec<_>>()
                .windows(2)
                .filter(|pair| {
                    pair[0].contains(':') && pair[0].starts_with(|first: char| first.is_ascii_digit()) && pair[1] == "A"
                })
                .count();
            if active == count { Ok(()) } else { bail!("{status}") }
        })
    }

    /// Gives multipathd a configuration with this line in its defaults, and waits until it goes by it.
    pub(crate) fn configure(&self, line: &str) -> Result<()> {
        self.write_configuration(line)?;
        run("multipathd", &["reconfigure"])?;
        wait_for("new configuration", || {
            let shown = run("multipathd", &["show", "config", "local"])?.replace('"', "");
            let keys: Vec<_> =
                shown.lines().map(str::trim).filter(|line| line.starts_with("reservation_key")).collect();
            if keys == line.split_terminator('\n').collect::<Vec<_>>() { Ok(()) } else { bail!("{keys:?}") }
        })?;
        self.wait_for_paths(2)
    }

    fn write_configuration(&self, line: &str) -> Result<()> {
        let text = format!(
            "defaults {{\n find_multipaths no\n user_friendly_names yes\n polling_interval 1\n {line}\n}}\n\
             blacklist {{\n devnode \"^(loop|ram|vd|sr|{})\"\n}}\n\
             overrides {{\n no_path_retry queue\n}}\n",
            self.other_host.name
        );
        fs::write("/etc/multipath.conf", text).context("write /etc/multipath.conf")
    }
}

/// Starts multipathd and waits until it answers.
pub(crate) fn start_multipathd() -> Result<()> {
    run("multipathd", &[])?;
    wait_for("answer of multipathd", || {
        let answer = run("multipathd", &["show", "daemon"])?;
        if answer.contains("running") || answer.contains("idle") { Ok(()) } else { bail!("{answer}") }
    })
}

/// The process of multipathd.
pub(crate) fn multipathd() -> Result<String> {
    Ok(fs::read_to_string("/run/multipathd.pid").context("read /run/multipathd.pid")?.trim().to_owned())
}

fn name_of_map(entry: std::io::Result<fs::DirEntry>) -> Option<String> {
    let directory = entry.ok()?.path();
    let uuid = fs::read_to_string(directory.join("dm/uuid")).ok()?;
    uuid.starts_with("mpath-")
        .then(|| fs::read_to_string(directory.join("dm/name")).ok())?
        .map(|name| name.trim().to_owned())
}

/// An initiator of the unit, and the disk that it sees.
fn initiator(number: u8) -> Result<Disk> {
    // With iSCSI names, the unit's TransportIDs are iSCSI ones, which libmpathpersist can be handed.
    let portal_group = format!("{LOOPBACK}/iqn.2026-11.lab:target{number}/tpgt_1");
    let initiator = format!("iqn.2026-11.lab:path{number}");
    let lun = format!("{portal_group}/lun/lun_0");
    make(&lun)?;
    write(format!("{portal_group}/nexus"), &initiator)?;
    symlink(format!("{CORE}/{UNIT}"), format!("{lun}/link")).context("give an initiator its unit")?;
    let address = fs::read_to_string(format!("{portal_group}/address"))?;
    let block = format!("/sys/bus/scsi/devices/{}:0/block", address.trim());
    let name = wait_for("disk of an initiator", || match fs::read_dir(&block)?.next() {
        Some(entry) => anyhow::Ok(entry?.file_name().to_string_lossy().into_owned()),
        None => bail!("{block} is empty"),
    })?;
    wait_for("ready disk", || run("sg_turs", &[&format!("/dev/{name}")]))?;
    Ok(Disk { name, initiator })
}
