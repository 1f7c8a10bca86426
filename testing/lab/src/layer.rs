//! Devices layered over a disk: device-mapper maps and partitions. No udevd runs here, so `dmsetup` makes their nodes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::system::run;

/// A device over other devices. It is removed when dropped.
pub(crate) struct Layer {
    /// Its node.
    pub(crate) path: PathBuf,
    /// The command that removes it.
    remove: Vec<String>,
}

impl Layer {
    /// A linear map of the whole of `disk`.
    pub(crate) fn linear(disk: &Path) -> Result<Self> {
        map("linear", "LAB-", disk, &format!("linear {} 0", disk.display()))
    }

    /// A map of the whole of `disk` whose writes take `delay`.
    pub(crate) fn delayed(disk: &Path, delay: Duration) -> Result<Self> {
        let disk_name = disk.display();
        map("delay", "LAB-", disk, &format!("delay {disk_name} 0 0 {disk_name} 0 {}", delay.as_millis()))
    }

    /// A multipath map of two paths to one unit, as multipathd makes it. Its second path has failed, because the kernel
    /// would send commands down both paths in turn.
    pub(crate) fn multipath([first, second]: &[PathBuf; 2]) -> Result<Self> {
        run("modprobe", &["--all", "dm-multipath", "dm-round-robin"])?;
        let paths = format!("round-robin 0 2 1 {} 1 {} 1", first.display(), second.display());
        let layer = map("multipath", "mpath-", first, &format!("multipath 0 0 1 1 {paths}"))?;
        run("dmsetup", &["message", &layer.path.to_string_lossy(), "0", &format!("fail_path {}", second.display())])?;
        Ok(layer)
    }

    /// The first partition of a multipath map, as kpartx makes it.
    pub(crate) fn partition_of_map(map: &Path) -> Result<Self> {
        self::map("kpartx", "part1-mpath-", map, &format!("linear {} 0", map.display()))
    }

    /// A partition of `disk`.
    pub(crate) fn partition(disk: &Path) -> Result<Self> {
        let disk = disk.to_string_lossy();
        run("addpart", &[&disk, "1", "2048", "2048"])?;
        let separator = if disk.ends_with(|last: char| last.is_ascii_digit()) { "p" } else { "" };
        Ok(Self { path: format!("{disk}{separator}1").into(), remove: owned(&["delpart", &disk, "1"]) })
    }
}

/// A map as large as `disk`. `uuid` is the start of its UUID, which names the kind of map.
fn map(kind: &str, uuid: &str, disk: &Path, target: &str) -> Result<Layer> {
    run("modprobe", &["dm-mod"])?;
    let sectors = run("blockdev", &["--getsz", &disk.to_string_lossy()])?;
    let table = format!("0 {} {target}", sectors.trim());
    let disk = disk.file_name().context("a disk has a name")?.to_string_lossy();
    let (name, uuid) = (format!("{kind}-{disk}"), format!("{uuid}{disk}"));
    run("env", &["DM_DISABLE_UDEV=1", "dmsetup", "create", &name, "--uuid", &uuid, "--table", &table])?;
    let remove = owned(&["env", "DM_DISABLE_UDEV=1", "dmsetup", "remove", &name]);
    Ok(Layer { path: Path::new("/dev/mapper").join(name), remove })
}

fn owned(command: &[&str]) -> Vec<String> {
    command.iter().map(|argument| (*argument).to_owned()).collect()
}

impl Drop for Layer {
    fn drop(&mut self) {
        let command: Vec<&str> = self.remove.iter().map(String::as_str).collect();
        if let Err(error) = run(command[0], &command[1..]) {
            eprintln!("lab-guest: cannot remove {}: {error:#}", self.path.display());
        }
    }
}
