//! [`DeviceRouter`] on real devices of every kind, which appear, disappear and change while it caches them.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use scsi_pr::{Command, Completion, Error, Key, PrManager, ReserveOut, SenseCode, Type};
use scsi_pr_linux::routing::Workers;
use scsi_pr_linux::{DeviceRouter, SgIo};

use crate::commands::{clear, read_full_status, read_keys, register, register_ignoring, release, reserve};
use crate::layer::Layer;
use crate::report::Report;
use crate::scenario::Scenario;
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

/// Every kind of device, by one manager with all earlier devices in its cache.
pub(super) const DEVICES: Scenario = Scenario {
    name: "routing",
    boot: "nvme",
    purpose: "every kind of device gets its manager, also when another device had its number or its table before",
    run: |lab, report| {
        let worker: Arc<dyn PrManager> = Arc::new(OnePath(SgIo::new()));
        let workers = Workers { multipath: Arc::clone(&worker), nvme: Arc::clone(&worker), block_ioctl: worker };
        let router = DeviceRouter::new(workers);
        let scsi = lab.target()?.unit()?;
        let nvme = lab.nvmet()?.namespace()?;
        for unit in [&scsi, &nvme] {
            steps(&router, report, unit, whole)?;
            for layer in [Layer::partition, Layer::linear] {
                let layer = layer(&unit.disks[0])?;
                steps(&router, report, &with_device(&layer.path, unit), part)?;
            }
        }
        generic(&router, report, &scsi)?;
        table(&router, report, &scsi, &nvme)?;
        minor(&router, report, &scsi)?;
        reattached(&router, report, &scsi)
    },
};

/// Stands in for the worker for maps: one path shows which manager gets a command. It only unregisters.
struct OnePath(SgIo);

impl PrManager for OnePath {
    fn execute(&self, device: BorrowedFd<'_>, command: Command<'_>) -> Result<Completion, Error> {
        match ReserveOut::parse(command) {
            Ok(ReserveOut::Register { service_action_key: Key::ZERO, .. }) => self.0.execute(device, command),
            _ => Ok(Completion::check(REFUSED)),
        }
    }
}

fn steps(router: &DeviceRouter, report: &mut Report, unit: &Unit, script: fn(&mut Run<'_>)) -> Result<()> {
    let mut run = Run::new(router, unit)?;
    script(&mut run);
    run.report(report)
}

/// `unit`, with `device` in place of the first initiator's disk.
fn with_device(device: &Path, unit: &Unit) -> Unit {
    Unit { serial: unit.serial.clone(), disks: [device.to_owned(), unit.disks[1].clone()] }
}

fn whole(run: &mut Run<'_>) {
    run.send(A, &register(NONE, KEY_A), Good);
    run.send(A, &reserve(KEY_A, KIND), Good);
    run.send(B, &read_keys(), Keys(vec![KEY_A]));
    run.send(A, &read_full_status(), Good);
    run.send(A, &clear(KEY_A), Good);
}

/// Initiator A sees B's registration and changes nothing.
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
fn generic(router: &DeviceRouter, report: &mut Report, scsi: &Unit) -> Result<()> {
    let name = scsi.disks[0].file_name().context("a disk has a name")?;
    let directory = Path::new("/sys/class/block").join(name).join("device/scsi_generic");
    let mut entries = std::fs::read_dir(&directory).with_context(|| format!("read {}", directory.display()))?;
    let path = Path::new("/dev").join(entries.next().context("the disk has no SCSI generic device")??.file_name());
    let device =
        File::options().read(true).write(true).open(&path).with_context(|| format!("open {}", path.display()))?;
    for request in [register(NONE, KEY_A), reserve(KEY_A, KIND), clear(KEY_A)] {
        let answer = router.execute(device.as_fd(), request.command())?;
        report.equal(format!("{request}, by {}", path.display()), &Completion::Good(Vec::new()), &answer);
    }
    Ok(())
}

/// A linear map whose table changes while it is open.
fn table(router: &DeviceRouter, report: &mut Report, scsi: &Unit, nvme: &Unit) -> Result<()> {
    let layer = Layer::linear(&scsi.disks[0])?;
    let mut other = Run::new(router, nvme)?;
    other.send(B, &register(NONE, KEY_B), Good);
    {
        let mut through = Run::new(router, &with_device(&layer.path, nvme))?;
        through.send(A, &read_keys(), Keys(vec![]));
        let map = layer.path.to_string_lossy();
        run("dmsetup", &["reload", &map, "--table", &format!("0 2048 linear {} 0", nvme.disks[0].display())])?;
        run("env", &["DM_DISABLE_UDEV=1", "dmsetup", "resume", &map])?;
        through.send(A, &read_keys(), Keys(vec![KEY_B]));
        through.send(A, &clear(KEY_B), Sense(REFUSED));
        through.report(report)?;
    }
    other.send(B, &clear(KEY_B), Good);
    other.report(report)
}

/// A linear map, then a multipath map with the same number, then a linear map again.
fn minor(router: &DeviceRouter, report: &mut Report, scsi: &Unit) -> Result<()> {
    let mut numbers = Vec::new();
    for multipath in [false, true, false] {
        let layer = if multipath { Layer::multipath(&scsi.disks)? } else { Layer::linear(&scsi.disks[0])? };
        numbers.push(run("dmsetup", &["info", "-c", "--noheadings", "-o", "minor", &layer.path.to_string_lossy()])?);
        let mut through = Run::new(router, &with_device(&layer.path, scsi))?;
        // An unregistration reaches the map's unit, where no key is registered.
        through.send(A, &register(KEY_A, NONE), if multipath { Conflict } else { Sense(REFUSED) });
        through.send(A, &register(NONE, KEY_A), Sense(REFUSED));
        through.report(report)?;
    }
    let same = numbers.windows(2).all(|pair| pair[0] == pair[1]);
    report
        .check("the linear maps and the multipath map had the same number", same.then_some(()).ok_or(numbers.concat()));
    Ok(())
}

/// A loop device with one file, then with another.
fn reattached(router: &DeviceRouter, report: &mut Report, unit: &Unit) -> Result<()> {
    run("modprobe", &["loop"])?;
    for name in ["one", "two"] {
        let file = format!("/dev/shm/loop-{name}");
        std::fs::write(&file, [0; 1 << 16]).with_context(|| format!("make {file}"))?;
        run("losetup", &["/dev/loop0", &file])?;
        let outcome = steps(router, report, &with_device(Path::new("/dev/loop0"), unit), |run| {
            run.send(A, &register(NONE, KEY_A), Sense(REFUSED));
            run.send(A, &read_keys(), Sense(REFUSED));
        });
        run("losetup", &["-d", "/dev/loop0"])?;
        outcome?;
    }
    Ok(())
}
