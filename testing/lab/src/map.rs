//! Multipath maps over units of a real SCSI target, each also seen by another host. multipathd and udev are the
//! machine's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Result, bail};

use crate::system::{make, run, wait_for, write};
use crate::target::{Target, name_of};

/// The initiator that is another host.
const OTHER_HOST: &str = "other";

/// How many units there are for the maps of scenarios. The other host has them from the start: its configuration
/// excludes by name every disk that is there when multipathd starts.
pub(crate) const UNITS: usize = 5;

/// The part of multipathd's configuration that stays.
const BLACKLIST: &str = "/etc/multipath/conf.d/lab.conf";

/// udev, multipathd, and the maps that were made.
pub(crate) struct Multipath {
    target: Rc<Target>,
    /// The units without a map: number and disk of the other host.
    free: Vec<(usize, Disk)>,
    maps: Vec<Map>,
}

/// A map and what is beneath it.
pub(crate) struct Map {
    target: Rc<Target>,
    /// The number of its unit.
    unit: usize,
    /// The map, once multipathd has made it.
    pub(crate) device: PathBuf,
    /// The disks of its paths, but for those that are added later.
    pub(crate) paths: Vec<Disk>,
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

    /// Makes the kernel take the disk for dead, or alive again.
    pub(crate) fn set_alive(&self, alive: bool) -> Result<()> {
        write(format!("/sys/block/{}/device/state", self.name), if alive { "running\n" } else { "offline\n" })
    }
}

impl Multipath {
    /// Starts udev and multipathd, with `reservation_key file`, for so many maps.
    pub(crate) fn start(target: Rc<Target>, units: usize) -> Result<Self> {
        start_udev()?;
        let mut free = Vec::new();
        for _ in 0..units {
            let (unit, _) = target.add_unit()?;
            free.push((unit, disk(&target, OTHER_HOST, unit)?));
        }
        make("/etc/multipath/conf.d")?;
        let mut names = Vec::new();
        for entry in fs::read_dir("/sys/block")? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.starts_with("sd") {
                names.push(name);
            }
        }
        write(BLACKLIST, &format!("blacklist {{\n devnode \"^(loop|ram|vd|sr|({})$)\"\n}}\n", names.join("|")))?;
        write_configuration("reservation_key file")?;
        start_multipathd()?;
        Ok(Self { target, free, maps: Vec::new() })
    }

    /// A map of so many paths, with nothing registered: the one of this number that was made before, or a new one.
    pub(crate) fn map(&mut self, paths: usize, number: usize) -> Result<&Map> {
        while self.maps.iter().filter(|map| map.paths.len() == paths).count() <= number {
            let (unit, other_host) = self.free.pop().context("all units have maps")?;
            self.maps.push(Map::new(Rc::clone(&self.target), paths, unit, other_host)?);
        }
        self.maps.iter().filter(|map| map.paths.len() == paths).nth(number).context("it was just made")
    }

    /// A disk that is no path of any map, of an unused unit.
    pub(crate) fn disk(&mut self) -> Result<Disk> {
        Ok(self.free.pop().context("all units have maps")?.1)
    }
}

impl Map {
    fn new(target: Rc<Target>, paths: usize, unit: usize, other_host: Disk) -> Result<Self> {
        let paths =
            (1..=paths).map(|number| disk(&target, &format!("path{number}"), unit)).collect::<Result<Vec<_>>>()?;
        let holders = format!("/sys/block/{}/holders", paths[0].name);
        let name = wait_for("map", || match fs::read_dir(&holders)?.next() {
            Some(holder) => anyhow::Ok(fs::read_to_string(holder?.path().join("dm/name"))?.trim().to_owned()),
            None => bail!("{holders} is empty"),
        })?;
        let map = Self { target, unit, device: Path::new("/dev/mapper").join(name), paths, other_host };
        wait_for("its device file", || fs::metadata(&map.device))?;
        map.wait_for_paths(map.paths.len())?;
        Ok(map)
    }

    /// Both paths of a map of two.
    pub(crate) fn pair(&self) -> [&Disk; 2] {
        match &self.paths[..] {
            [first, second] => [first, second],
            paths => unreachable!("the map has {} paths", paths.len()),
        }
    }

    /// The name of the map.
    pub(crate) fn name(&self) -> String {
        self.device.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Adds a path, which multipathd takes into the map.
    pub(crate) fn add_path(&self) -> Result<Disk> {
        disk(&self.target, "added", self.unit)
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
            if active_paths(&status) == count { Ok(()) } else { bail!("{status}") }
        })
    }

    /// Gives multipathd a configuration with this line in its defaults, and waits until it goes by it.
    pub(crate) fn configure(&self, line: &str) -> Result<()> {
        write_configuration(line)?;
        run("multipathd", &["reconfigure"])?;
        wait_for("new configuration", || {
            let shown = run("multipathd", &["show", "config", "local"])?.replace('"', "");
            let keys: Vec<_> =
                shown.lines().map(str::trim).filter(|line| line.starts_with("reservation_key")).collect();
            if keys == line.split_terminator('\n').collect::<Vec<_>>() { Ok(()) } else { bail!("{keys:?}") }
        })?;
        self.wait_for_paths(self.paths.len())
    }
}

/// The number of paths in use, by the status that dmsetup prints.
pub(crate) fn active_paths(status: &str) -> usize {
    let words: Vec<_> = status.split_whitespace().collect();
    let is_number = |word: &str| word.contains(':') && word.starts_with(|first: char| first.is_ascii_digit());
    words.windows(2).filter(|pair| is_number(pair[0]) && pair[1] == "A").count()
}

/// Starts udev, which tells multipathd of new disks, and makes /dev/mapper.
pub(crate) fn start_udev() -> Result<()> {
    run("modprobe", &["dm-multipath"])?;
    if under_systemd() {
        run("systemctl", &["start", "systemd-udevd"])?;
        run("udevadm", &["trigger"])?;
        return run("udevadm", &["settle"]).map(drop);
    }
    for program in [&["/lib/systemd/systemd-udevd", "--daemon"][..], &["udevadm", "trigger"], &["udevadm", "settle"]] {
        run("env", &[&["SYSTEMD_IGNORE_CHROOT=1"], program].concat())?;
    }
    Ok(())
}

/// Writes multipathd's configuration with this line in its defaults.
pub(crate) fn write_configuration(line: &str) -> Result<()> {
    let text = format!(
        "defaults {{\n find_multipaths no\n user_friendly_names yes\n polling_interval 1\n {line}\n}}\n\
         overrides {{\n no_path_retry queue\n}}\n"
    );
    fs::write("/etc/multipath.conf", text).context("write /etc/multipath.conf")
}

/// Starts multipathd, whose log goes to /run/multipathd.log or to the journal, and waits until it answers.
pub(crate) fn start_multipathd() -> Result<()> {
    if under_systemd() {
        run("systemctl", &["start", "multipathd.service"])?;
    } else {
        run("sh", &["-c", "exec setsid multipathd -d -v3 >>/run/multipathd.log 2>&1 </dev/null &"])?;
    }
    wait_for("answer of multipathd", || {
        let answer = run("multipathd", &["show", "daemon"])?;
        if answer.contains("running") || answer.contains("idle") { Ok(()) } else { bail!("{answer}") }
    })
}

/// Whether systemd is process 1. The units of the packages then start the daemons.
fn under_systemd() -> bool {
    Path::new("/run/systemd/system/program.service").exists()
}

/// The process of multipathd.
pub(crate) fn multipathd() -> Result<String> {
    Ok(fs::read_to_string("/run/multipathd.pid").context("read /run/multipathd.pid")?.trim().to_owned())
}

/// Whether the kernel takes the disk for alive.
pub(crate) fn is_alive(disk: &Disk) -> bool {
    let state = fs::read_to_string(format!("/sys/block/{}/device/state", disk.name));
    state.is_ok_and(|state| state.trim() == "running")
}

/// The disk by which an initiator sees a unit.
fn disk(target: &Target, initiator: &str, unit: usize) -> Result<Disk> {
    let disk = target.disk(initiator, unit)?;
    let name = disk.file_name().context("a disk has a name")?.to_string_lossy().into_owned();
    Ok(Disk { name, initiator: name_of(initiator) })
}
