//! [`ByDevice`] on real devices of every kind, which come, go and change while it remembers them.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use scsi_pr::{Completion, Key, PrManager, SenseCode, Type};
use scsi_pr_linux::device::Sysfs;
use scsi_pr_linux::policy::{ByDevice, Routes, ScsiFirst, WholeUnit};
use scsi_pr_linux::{BlockIoctl, Nvme, SgIo};

use super::Scenario;
use crate::commands::{clear, read_full_status, read_keys, register, register_ignoring, release, reserve};
use crate::over::Over;
use crate::report::Report;
use crate::script::Expect::{Conflict, Good, Keys, Sense};
use crate::script::Node::{A, B};
use crate::script::Run;
use crate::system::run;
use crate::target::Unit;

const KEY_A: Key = Key(0xa1);
const KEY_B: Key = Key(0xb2);
const NONE: Key = Key(0);
const KIND: Type = Type::WriteExclusive;
const REFUSED: SenseCode = SenseCode::INVALID_OPCODE;

/// Every kind of device, by one manager that has seen all of those before.
pub(super) const DEVICES: Scenario = Scenario {
    name: "routing",
    boot: "nvme",
    purpose: "every kind of device has its manager, also when its number or its table has been another's",
    run: |lab, report| {
        let by_device = ByDevice::new(
            Routes {
                sg_io: Arc::new(SgIo::new()),
                // What goes down one path is enough to see who is asked.
                multipath: Arc::new(WholeUnit::new(SgIo::new(), Sysfs::default())),
                nvme: Arc::new(Nvme::new()),
                block: Arc::new(ScsiFirst::new(BlockIoctl::default())),
            },
            Sysfs::default(),
        );
        let scsi = lab.target()?.unit()?;
        let nvme = lab.nvmet()?.namespace()?;
        for unit in [&scsi, &nvme] {
            steps(&by_device, report, unit, whole)?;
            for over in [Over::partition, Over::linear] {
                let over = over(&unit.disks[0])?;
                steps(&by_device, report, &beside(&over.path, unit), part)?;
            }
        }
        generic(&by_device, report, &scsi)?;
        table(&by_device, report, &scsi, &nvme)?;
        minor(&by_device, report, &scsi)?;
        reattached(&by_device, report, &scsi)
    },
};

fn steps(by_device: &ByDevice, report: &mut Report, unit: &Unit, script: fn(&mut Run<'_>)) -> Result<()> {
    let mut run = Run::new(by_device, unit)?;
    script(&mut run);
    run.report(report)
}

/// `unit`, which its first initiator sees as another device.
fn beside(device: &Path, unit: &Unit) -> Unit {
    Unit { serial: unit.serial.clone(), disks: [device.to_owned(), unit.disks[1].clone()] }
}

fn whole(run: &mut Run<'_>) {
    run.send(A, &register(NONE, KEY_A), Good);
    run.send(A, &reserve(KEY_A, KIND), Good);
    run.send(B, &read_keys(), Keys(vec![KEY_A]));
    run.send(A, &read_full_status(), Good);
    run.send(A, &clear(KEY_A), Good);
}

/// A reads what B does, and does nothing.
fn part(run: &mut Run<'_>) {
    run.send(B, &register(NONE, KEY_B), Good);
    run.send(A, &read_keys(), Keys(vec![KEY_B]));
    run.send(A, &read_full_status(), Good);
    for request in [register(NONE, KEY_A), register_ignoring(KEY_A), release(KEY_B, KIND), clear(KEY_B)] {
        run.send(A, &request, Sense(REFUSED));
    }
    run.send(B, &read_keys(), Keys(vec![KEY_B]));
    run.send(B, &clear(KEY_B), Good);
}

/// The unit as a SCSI generic device.
fn generic(by_device: &ByDevice, report: &mut Report, scsi: &Unit) -> Result<()> {
    let name = scsi.disks[0].file_name().context("a disk has a name")?;
    let directory = Path::new("/sys/class/block").join(name).join("device/scsi_generic");
    let mut entries = std::fs::read_dir(&directory).with_context(|| format!("read {}", directory.display()))?;
    let path = Path::new("/dev").join(entries.next().context("a disk without a generic device")??.file_name());
    let device =
        File::options().read(true).write(true).open(&path).with_context(|| format!("open {}", path.display()))?;
    for request in [register(NONE, KEY_A), reserve(KEY_A, KIND), clear(KEY_A)] {
        let answer = by_device.execute(device.as_fd(), request.command())?;
        report.equal(format!("{request}, by {}", path.display()), &Completion::Good(Vec::new()), &answer);
    }
    Ok(())
}

/// A linear map that gets another table while it is open.
fn table(by_device: &ByDevice, report: &mut Report, scsi: &Unit, nvme: &Unit) -> Result<()> {
    let over = Over::linear(&scsi.disks[0])?;
    let mut other = Run::new(by_device, nvme)?;
    other.send(B, &register(NONE, KEY_B), Good);
    {
        let mut through = Run::new(by_device, &beside(&over.path, nvme))?;
        through.send(A, &read_keys(), Keys(vec![]));
        let map = over.path.to_string_lossy();
        run("dmsetup", &["reload", &map, "--table", &format!("0 2048 linear {} 0", nvme.disks[0].display())])?;
        run("env", &["DM_DISABLE_UDEV=1", "dmsetup", "resume", &map])?;
        through.send(A, &read_keys(), Keys(vec![KEY_B]));
        through.send(A, &clear(KEY_B), Sense(REFUSED));
        through.report(report)?;
    }
    other.send(B, &clear(KEY_B), Good);
    other.report(report)
}

/// A linear map, and a multipath map that has its number after it; and the other way round.
fn minor(by_device: &ByDevice, report: &mut Report, scsi: &Unit) -> Result<()> {
    let mut numbers = Vec::new();
    for multipath in [false, true, false] {
        let over = if multipath { Over::multipath(&scsi.disks)? } else { Over::linear(&scsi.disks[0])? };
        numbers.push(run("dmsetup", &["info", "-c", "--noheadings", "-o", "minor", &over.path.to_string_lossy()])?);
        let mut through = Run::new(by_device, &beside(&over.path, scsi))?;
        // To unregister passes to a map's unit, where nothing is registered.
        through.send(A, &register(KEY_A, NONE), if multipath { Conflict } else { Sense(REFUSED) });
        through.send(A, &register(NONE, KEY_A), Sense(REFUSED));
        through.report(report)?;
    }
    let same = numbers.windows(2).all(|pair| pair[0] == pair[1]);
    report.check("a linear map and a multipath map had one number", same.then_some(()).ok_or(numbers.concat()));
    Ok(())
}

/// A loop device, before and after it is attached to another file.
fn reattached(by_device: &ByDevice, report: &mut Report, unit: &Unit) -> Result<()> {
    run("modprobe", &["loop"])?;
    for name in ["one", "two"] {
        let file = format!("/dev/shm/loop-{name}");
        std::fs::write(&file, [0; 1 << 16]).with_context(|| format!("make {file}"))?;
        run("losetup", &["/dev/loop0", &file])?;
        let outcome = steps(by_device, report, &beside(Path::new("/dev/loop0"), unit), |run| {
            run.send(A, &register(NONE, KEY_A), Sense(REFUSED));
            run.send(A, &read_keys(), Sense(REFUSED));
        });
        run("losetup", &["-d", "/dev/loop0"])?;
        outcome?;
    }
    Ok(())
}
