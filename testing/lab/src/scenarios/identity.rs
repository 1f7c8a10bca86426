//! The units of devices for shared reservations. Every path to a disk is the same unit, and its parts are other units.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use scsi_pr_store::{UnitId, Units};

use crate::layer::Layer;
use crate::report::Report;
use crate::scenario::Scenario;
use crate::system::{make, run};

/// A SCSI disk, its parts, and the devices layered over it.
pub(super) const SCSI: Scenario = Scenario {
    name: "identity",
    boot: "target",
    purpose: "a SCSI disk is one unit by both paths, by a map and by loop devices; its parts are other units",
    run: |lab, report| {
        let unit = lab.target()?.unit()?;
        let [first, second] = &unit.disks;
        let disk = identify(first)?;
        // LIO's company identifier. LIO takes the digits after it from the serial number.
        starts_with(report, "a SCSI disk", &disk, "naa.6001405");
        same(report, "its other path", &disk, second)?;
        same(report, "the same by SG", &disk, &generic(first)?)?;
        let other = identify(&lab.target()?.unit()?.disks[0])?;
        differs(report, "another disk", &disk, &other);

        let partition = Layer::partition(first)?;
        let part = identify(&partition.path)?;
        report.equal("its first partition", format!("{disk}-part1").as_str(), part.as_str());
        let looped = Loop::over(&partition.path, &[])?;
        same(report, "a loop device over that", &part, &looped.path)?;
        drop((looped, partition));

        let map = Layer::multipath(&unit.disks)?;
        same(report, "a multipath map", &disk, &map.path)?;
        let partition = Layer::partition_of_map(&map.path)?;
        report.equal("the map's first partition", part.as_str(), identify(&partition.path)?.as_str());
        drop((partition, map));

        let linear = Layer::linear(second)?;
        let volume = identify(&linear.path)?;
        starts_with(report, "a map with a UUID of no known kind", &volume, "dm.LAB-");
        drop(linear);

        let looped = Loop::over(second, &[])?;
        same(report, "a loop device over the disk", &disk, &looped.path)?;
        drop(looped);
        let looped = Loop::over(second, &["--offset", "1048576"])?;
        report.check(
            "a loop device over a part of it is refused",
            match identify(&looped.path) {
                Ok(unit) => Err(format!("it is {unit}")),
                Err(_) => Ok(()),
            },
        );
        drop(looped);
        files(report, first, &disk)
    },
};

/// An NVMe namespace with two hosts.
pub(super) const NVME: Scenario = Scenario {
    name: "nvme-identity",
    boot: "nvme",
    purpose: "an NVMe namespace is one unit to both hosts",
    run: |lab, report| {
        let unit = lab.nvmet()?.namespace()?;
        let disk = identify(&unit.disks[0])?;
        starts_with(report, "a namespace", &disk, "nvme.uuid.");
        same(report, "the same to the other host", &disk, &unit.disks[1])?;
        let partition = Layer::partition(&unit.disks[0])?;
        report.equal("its first partition", format!("{disk}-part1").as_str(), identify(&partition.path)?.as_str());
        let other = identify(&lab.nvmet()?.namespace()?.disks[0])?;
        differs(report, "another namespace", &disk, &other);
        Ok(())
    },
};

/// A file's unit depends on its disk, not on the mount point.
fn files(report: &mut Report, disk: &Path, unit: &UnitId) -> Result<()> {
    run("modprobe", &["ext4"])?;
    run("mkfs.ext4", &["-q", "-F", &disk.to_string_lossy()])?;
    let mount_point = PathBuf::from("/run/identity");
    make(&mount_point)?;
    let mut seen = Vec::new();
    for round in 0..2 {
        run("mount", &[&disk.to_string_lossy(), &mount_point.to_string_lossy()])?;
        let [image, other] = ["image", "other"].map(|name| mount_point.join(name));
        if round == 0 {
            fs::write(&image, [0; 4096]).context("create a file")?;
            fs::write(&other, [0; 4096]).context("create another file")?;
        }
        let file = identify(&image)?;
        starts_with(report, "a file on the disk", &file, &format!("{unit}.inode."));
        differs(report, "another file on it", &file, &identify(&other)?);
        let looped = Loop::over(&image, &[])?;
        same(report, "a loop device over the file", &file, &looped.path)?;
        seen.push(file);
        drop(looped);
        run("umount", &[&mount_point.to_string_lossy()])?;
    }
    report.equal("the file in another mount", seen[0].as_str(), seen[1].as_str());
    Ok(())
}

fn identify(path: &Path) -> Result<UnitId> {
    let device = File::open(path).with_context(|| format!("open {}", path.display()))?;
    Ok(Units::default().identify(device.as_fd())?)
}

fn same(report: &mut Report, what: &str, unit: &UnitId, path: &Path) -> Result<()> {
    report.equal(what, unit.as_str(), identify(path)?.as_str());
    Ok(())
}

fn starts_with(report: &mut Report, what: &str, unit: &UnitId, prefix: &str) {
    let outcome = if unit.as_str().starts_with(prefix) { Ok(()) } else { Err(format!("it is {unit}")) };
    report.check(format!("{what} has a name that starts with {prefix}"), outcome);
}

fn differs(report: &mut Report, what: &str, unit: &UnitId, other: &UnitId) {
    let outcome = if other == unit { Err(format!("it is {other}, too")) } else { Ok(()) };
    report.check(format!("{what} is another unit"), outcome);
}

/// The SCSI generic device of a disk.
fn generic(disk: &Path) -> Result<PathBuf> {
    run("modprobe", &["sg"])?;
    let name = disk.file_name().context("a disk has a name")?.to_string_lossy();
    let directory = format!("/sys/block/{name}/device/scsi_generic");
    let entry = fs::read_dir(&directory).with_context(|| format!("read {directory}"))?.next();
    Ok(Path::new("/dev").join(entry.context("the disk has no SCSI generic device")??.file_name()))
}

/// A loop device. It is detached when dropped.
struct Loop {
    path: PathBuf,
}

impl Loop {
    fn over(path: &Path, options: &[&str]) -> Result<Self> {
        run("modprobe", &["loop"])?;
        let device = run("losetup", &[&["--find", "--show"], options, &[&*path.to_string_lossy()]].concat())?;
        Ok(Self { path: device.trim().into() })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        if let Err(error) = run("losetup", &["--detach", &self.path.to_string_lossy()]) {
            eprintln!("lab-guest: cannot detach {}: {error:#}", self.path.display());
        }
    }
}
