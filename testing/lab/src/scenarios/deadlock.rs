//! A command that never ends: LIO's loopback (tcm_loop) deadlocks on PREEMPT AND ABORT. Its sender hangs as it would on a
//! failing array.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};
use scsi_pr::{Completion, Key, PrManager, Type};

use crate::commands::{clear, preempt_and_abort, read_keys, register, reserve};
use crate::helper::Helper;
use crate::lab::Lab;
use crate::report::Report;
use crate::scenario::Scenario;
use crate::system::{make, run, wait_for, write};

/// It has a separate boot, because only the end of the guest ends the command.
pub(super) const DEADLOCK: Scenario = Scenario {
    name: "deadlock",
    boot: "deadlock",
    purpose: "while one command never ends, the helper serves other disks and new clients",
    run: deadlock,
};

const CORE: &str = "/sys/kernel/config/target/core/fileio_1/deadlock";
const LOOPBACK: &str = "/sys/kernel/config/target/loopback";

fn deadlock(lab: &mut Lab, report: &mut Report) -> Result<()> {
    let unit = lab.target()?.unit()?;
    let [first, second] = loopback()?;
    let helper = Helper::start(&lab.helper(), "deadlock", &["-u", "nobody"])?;
    let kind = Type::WriteExclusive;
    for (disk, key) in [(&first, Key(1)), (&second, Key(2))] {
        let answer = helper.client().execute(open(disk)?.as_fd(), register(Key::ZERO, key).command())?;
        report.equal(format!("REGISTER by {}", disk.display()), &Completion::Good(Vec::new()), &answer);
    }
    let (client, device) = (helper.client(), open(&first)?);
    let (sender, answered) = mpsc::channel();
    thread::spawn(move || {
        let _ = sender.send(client.execute(device.as_fd(), preempt_and_abort(Key(1), Key(2), kind).command()));
    });
    wait_for("thread of the helper in an uninterruptible wait", || hangs(helper.process()))?;
    for round in 0..3 {
        let client = helper.client();
        let disk = open(&unit.disks[0])?;
        let mut outcome = Ok(());
        for request in [register(Key::ZERO, Key(1)), reserve(Key(1), kind), read_keys(), clear(Key(1))] {
            match client.execute(disk.as_fd(), request.command()) {
                Ok(Completion::Good(_)) => {}
                other => outcome = Err(format!("{request}: {other:?}")),
            }
        }
        report.check(format!("the helper serves another disk, round {round}"), outcome);
    }
    let outcome = match answered.recv_timeout(Duration::from_secs(1)) {
        Err(mpsc::RecvTimeoutError::Timeout) => hangs(helper.process()).map_err(|error| error.to_string()),
        answer => Err(format!("{answer:?}")),
    };
    report.check("the command still hangs", outcome);
    helper.abandon();
    Ok(())
}

fn open(disk: &Path) -> Result<File> {
    Ok(File::options().read(true).write(true).open(disk)?)
}

/// Succeeds if a thread of the process is in an uninterruptible wait (state D).
fn hangs(process: u32) -> Result<()> {
    for thread in fs::read_dir(format!("/proc/{process}/task"))? {
        let stat = fs::read_to_string(thread?.path().join("stat"))?;
        if stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('D')) {
            return Ok(());
        }
    }
    bail!("no thread hangs")
}

/// Two loopback initiators of one unit.
fn loopback() -> Result<[PathBuf; 2]> {
    run("modprobe", &["--all", "target_core_file", "tcm_loop", "sd_mod", "sg"])?;
    make(CORE)?;
    write(format!("{CORE}/control"), "fd_dev_name=/dev/shm/deadlock,fd_dev_size=16777216")?;
    write(format!("{CORE}/wwn/vpd_unit_serial"), "deadlock")?;
    write(format!("{CORE}/enable"), "1")?;
    Ok([initiator(1)?, initiator(2)?])
}

fn initiator(number: u8) -> Result<PathBuf> {
    let portal_group = format!("{LOOPBACK}/iqn.2026-11.lab:loop{number}/tpgt_1");
    let lun = format!("{portal_group}/lun/lun_0");
    make(&lun)?;
    write(format!("{portal_group}/nexus"), &format!("iqn.2026-11.lab:deadlock{number}"))?;
    symlink(CORE, format!("{lun}/link"))?;
    let address = fs::read_to_string(format!("{portal_group}/address"))?;
    let block = format!("/sys/bus/scsi/devices/{}:0/block", address.trim());
    let disk = wait_for("disk of an initiator", || match fs::read_dir(&block)?.next() {
        Some(entry) => anyhow::Ok(Path::new("/dev").join(entry?.file_name())),
        None => bail!("{block} is empty"),
    })?;
    wait_for("ready disk", || run("sg_turs", &[&disk.to_string_lossy()]))?;
    Ok(disk)
}
