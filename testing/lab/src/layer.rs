//! Devices layered over a disk: device-mapper maps and partitions. No udevd runs here, so `dmsetup` makes their nodes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::system::{make, run};

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

    /// A map of the whole of `disk` that logs writes to `log` as soon as they are durable: dm-log-writes.
    pub(crate) fn logged(disk: &Path, log: &Path) -> Result<Self> {
        map("log-writes", "LAB-LOG-", disk, &format!("log-writes {} {}", disk.display(), log.display()))
    }

    /// Writes a mark to the log of a [logged](Self::logged) device.
    pub(crate) fn mark(&self, mark: &str) -> Result<()> {
        run("dmsetup", &["message", &self.path.to_string_lossy(), "0", "mark", mark])?;
        Ok(())
    }

    /// Suspends the device: reads and writes wait until the guard is dropped. The file system on it is not frozen before.
    pub(crate) fn suspend(&self) -> Result<Suspended<'_>> {
        run("dmsetup", &["suspend", "--nolockfs", &self.path.to_string_lossy()])?;
        Ok(Suspended(&self.path))
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

/// A device that is suspended. It is resumed when this is dropped.
pub(crate) struct Suspended<'a>(&'a Path);

impl Drop for Suspended<'_> {
    fn drop(&mut self) {
        if let Err(error) = run("dmsetup", &["resume", &self.0.to_string_lossy()]) {
            eprintln!("lab-guest: cannot resume {}: {error:#}", self.0.display());
        }
    }
}

/// A file system that is mounted. It is unmounted when this is dropped.
pub(crate) struct Mount {
    pub(crate) path: &'static str,
}

impl Mount {
    /// Mounts the ext4 file system of `device`. It writes its journal for fsync(2) and the like alone, not from time to time.
    pub(crate) fn ext4(device: &Path, path: &'static str) -> Result<Self> {
        make(path)?;
        run("mount", &["-t", "ext4", "-o", "commit=3600", &device.to_string_lossy(), path])?;
        Ok(Self { path })
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = run("umount", &[self.path]) {
            eprintln!("lab-guest: {error:#}");
        }
    }
}

/// Makes memory disks `/dev/ram0` to `/dev/ram3` of 32 MiB, and loads the modules of the layers over them.
pub(crate) fn load_memory_disks() -> Result<()> {
    run("modprobe", &["brd", "rd_nr=4", "rd_size=32768"])?;
    run("modprobe", &["--all", "dm-delay", "dm-log-writes", "ext4"])?;
    Ok(())
}

/// Makes an ext4 file system.
pub(crate) fn make_ext4(device: &Path) -> Result<()> {
    run("mkfs.ext4", &["-q", "-F", &device.to_string_lossy()])?;
    Ok(())
}

/// A map as large as `disk`. `uuid` is the start of its UUID, which names the kind of map.
fn map(kind: &str, uuid: &str, disk: &Path, target: &str) -> Result<Layer> {
    run("modprobe", &["dm-mod"])?;
    let sectors = run("blockdev", &["--getsz", &disk.to_string_lossy()])?;
    let table = format!("0 {} {target}", sectors.trim());
    let disk = disk.file_name().context("a disk has a name")?.to_string_lossy();
    let (name, uuid) = (format!("{kind}-{disk}"), format!("{uuid}{disk}"));
    run("env", &["DM_DISABLE_UDEV=1", "dmsetup", "create", &name, "--uuid", &uuid, "--table", &table])?;
    // The kernel may let go of a mount some time after the end of its last process.
    let remove = owned(&["env", "DM_DISABLE_UDEV=1", "dmsetup", "remove", "--retry", &name]);
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
