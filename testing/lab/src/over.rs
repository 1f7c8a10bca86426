//! Devices over a disk: device-mapper maps and partitions. There is no udevd here that would make their nodes.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::system::run;

/// A device over others; gone when dropped.
pub(crate) struct Over {
    /// Its node.
    pub(crate) path: PathBuf,
    remove: Vec<String>,
}

impl Over {
    /// The whole of `disk` as a linear map.
    pub(crate) fn linear(disk: &Path) -> Result<Self> {
        map("linear", "LAB-", disk, &format!("linear {} 0", disk.display()))
    }

    /// A multipath map over two paths to one unit, as multipathd makes it. Its second path has failed: the kernel would
    /// send commands down both in turn, and nobody could say which.
    pub(crate) fn multipath([first, second]: &[PathBuf; 2]) -> Result<Self> {
        run("modprobe", &["--all", "dm-multipath", "dm-round-robin"])?;
        let paths = format!("round-robin 0 2 1 {} 1 {} 1", first.display(), second.display());
        let over = map("multipath", "mpath-", first, &format!("multipath 0 0 1 1 {paths}"))?;
        run("dmsetup", &["message", &over.path.to_string_lossy(), "0", &format!("fail_path {}", second.display())])?;
        Ok(over)
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
        Ok(Self { path: format!("{disk}{separator}1").into(), remove: words(&["delpart", &disk, "1"]) })
    }
}

/// A map as large as `disk`, with a name of its own. What kind it is, its UUID begins with.
fn map(kind: &str, uuid: &str, disk: &Path, target: &str) -> Result<Over> {
    run("modprobe", &["dm-mod"])?;
    let sectors = run("blockdev", &["--getsz", &disk.to_string_lossy()])?;
    let table = format!("0 {} {target}", sectors.trim());
    let disk = disk.file_name().context("a disk has a name")?.to_string_lossy();
    let (name, uuid) = (format!("{kind}-{disk}"), format!("{uuid}{disk}"));
    run("env", &["DM_DISABLE_UDEV=1", "dmsetup", "create", &name, "--uuid", &uuid, "--table", &table])?;
    let remove = words(&["env", "DM_DISABLE_UDEV=1", "dmsetup", "remove", &name]);
    Ok(Over { path: Path::new("/dev/mapper").join(name), remove })
}

fn words(command: &[&str]) -> Vec<String> {
    command.iter().map(|word| (*word).to_owned()).collect()
}

impl Drop for Over {
    fn drop(&mut self) {
        let words: Vec<&str> = self.remove.iter().map(String::as_str).collect();
        if let Err(error) = run(words[0], &words[1..]) {
            eprintln!("lab-guest: {} stays: {error:#}", self.path.display());
        }
    }
}
