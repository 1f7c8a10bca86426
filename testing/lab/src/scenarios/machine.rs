//! A real virtual machine: QEMU's pr-manager-helper, scsi-block, and sg_persist in the guest. One of its disks has our
//! helper behind it, the other QEMU's.

use std::os::fd::AsFd;
use std::path::Path;

use anyhow::Result;
use scsi_pr::{Completion, Key, PrManager, Type};

use super::{Lab, Scenario};
use crate::commands::{preempt_and_abort, register};
use crate::disk;
use crate::helper::Helper;
use crate::machine::{Disk, Machine};
use crate::report::Report;
use crate::sg_raw::SgRaw;
use crate::target::Unit;

/// A cluster node in a virtual machine.
pub(super) const GUEST: Scenario = Scenario {
    name: "guest",
    boot: "machine",
    purpose: "sg_persist in a virtual machine: our helper does for it what QEMU's does",
    run: |lab, report| guest(lab.cluster()?, report),
};

/// A helper that goes away and comes back.
pub(super) const RESTART: Scenario = Scenario {
    name: "restart",
    boot: "machine",
    purpose: "the helper is killed and started again while the virtual machine runs",
    run: |lab, report| restart(lab.cluster()?, report),
};

/// A multipath map that is passed through.
pub(super) const MAP: Scenario = Scenario {
    name: "guest-map",
    boot: "machine",
    purpose: "sg_persist in a virtual machine on a multipath map, whose holder's path dies",
    run: |lab, report| map(lab, report),
};

/// Our helper, and QEMU's object for it.
const OURS: &str = "ours";

/// A virtual machine with two disks, one for each helper.
pub(super) struct Cluster {
    machine: Machine,
    /// The units of /dev/sda and /dev/sdb, which the second initiator of the target reaches too.
    units: [Unit; 2],
    ours: Option<Helper>,
    program: std::path::PathBuf,
    _qemus: Helper,
    /// The helper of /dev/sdc, which is a multipath map.
    _map: Helper,
}

impl Cluster {
    pub(super) fn start(lab: &mut Lab) -> Result<Self> {
        let program = lab.programs.join("qemu-pr-helper");
        let ours = Helper::start(&program, OURS, &[])?;
        let qemus = Helper::start(Path::new("/usr/bin/qemu-pr-helper"), "qemus", &[])?;
        let target = lab.target()?;
        let units = [target.unit()?, target.unit()?];
        let map = Helper::start(&program, "map", &["-u", "nobody"])?;
        let device = lab.multipath()?.map(2, 0)?.device.clone();
        let disks = [
            Disk { manager: OURS, socket: ours.socket(), device: &units[0].disks[0] },
            Disk { manager: "qemus", socket: qemus.socket(), device: &units[1].disks[0] },
            Disk { manager: "map", socket: map.socket(), device: &device },
        ];
        let machine = Machine::resume(lab.machine()?, &disks)?;
        Ok(Self { machine, units, ours: Some(ours), program, _qemus: qemus, _map: map })
    }

    /// Kills our helper.
    fn stop(&mut self) -> Result<()> {
        self.ours.take().map_or(Ok(()), Helper::kill)
    }

    /// Starts our helper where it was.
    fn start_again(&mut self) -> Result<()> {
        self.ours = Some(Helper::start(&self.program, OURS, &[])?);
        Ok(())
    }

    /// What QEMU has said of the connection to our helper since it was asked last.
    fn changes(&self) -> String {
        let changes =
            self.machine.connections(OURS).into_iter().map(|connected| if connected { "made" } else { "lost" });
        changes.collect::<Vec<_>>().join(", ")
    }

    /// Runs `sg_persist OPTIONS` on both disks.
    fn sg_persist(&mut self, report: &mut Report, options: &str, status: i32, containing: &str) -> Result<()> {
        self.both(report, &format!("sg_persist --no-inquiry {options} $DISK"), status, containing)
    }

    /// Runs a command on both disks; both must end with `status` and say the same, `containing` included.
    fn both(&mut self, report: &mut Report, command: &str, status: i32, containing: &str) -> Result<()> {
        let ours = self.machine.run(&format!("DISK=/dev/sda; {command}"))?;
        let qemus = self.machine.run(&format!("DISK=/dev/sdb; {command}"))?;
        let outcome = if ours != qemus {
            Err(format!("expected, as with QEMU's helper,\n{qemus}\ngot\n{ours}"))
        } else if ours.status != status || !ours.output.contains(containing) {
            Err(format!("expected exit status {status} and {containing:?}, got\n{ours}"))
        } else {
            Ok(())
        };
        let said = if containing.is_empty() { String::new() } else { format!(", {containing}") };
        report.check(format!("{command}: exit status {status}{said}"), outcome);
        Ok(())
    }
}

fn guest(cluster: &mut Cluster, report: &mut Report) -> Result<()> {
    cluster.sg_persist(report, "--in --report-capabilities", 0, "Persist Through Power Loss Capable(PTPL_C): 1")?;
    cluster.sg_persist(report, "--in --read-keys", 0, "there are NO registered reservation keys")?;
    cluster.sg_persist(report, "--out --reserve --param-rk=0xabc --prout-type=5", 2, "")?;
    cluster.sg_persist(report, "--out --register --param-sark=0xabc", 0, "")?;
    cluster.sg_persist(report, "--out --reserve --param-rk=0xabc --prout-type=5", 0, "")?;
    cluster.sg_persist(report, "--in --read-keys", 0, "0xabc")?;
    cluster.sg_persist(report, "--in --read-reservation", 0, "Write Exclusive, registrants only")?;
    cluster.sg_persist(report, "--in --read-full-status", 0, "iqn.2026-11.lab:a")?;
    cluster.both(report, WRITE, 0, "")?;
    for unit in &cluster.units {
        let other = disk::Disk::open(&unit.disks[1])?;
        let refused = other.write(1).is_err_and(|error| disk::is_conflict(&error));
        report.check("a write of another host is refused", if refused { Ok(()) } else { Err("it passed".to_owned()) });
        for request in [
            register(Key::ZERO, Key(0xdef)),
            preempt_and_abort(Key(0xdef), Key(0xabc), Type::WriteExclusiveRegistrantsOnly),
        ] {
            let answer = SgRaw.execute(other.file().as_fd(), request.command())?;
            let good = answer == Completion::Good(Vec::new());
            report.check(format!("another host: {request}"), if good { Ok(()) } else { Err(answer.to_string()) });
        }
    }
    cluster.sg_persist(report, "--in --read-keys", 6, "")?;
    cluster.sg_persist(report, "--in --read-keys", 0, "0xdef")?;
    cluster.both(report, WRITE, 1, "")?;
    cluster.sg_persist(report, "--out --register-ignore --param-sark=0x123", 0, "")?;
    cluster.both(report, WRITE, 0, "")?;
    cluster.sg_persist(report, "--out --clear --param-rk=0x123", 0, "")?;
    cluster.sg_persist(report, "--in --read-keys", 0, "there are NO registered reservation keys")
}

/// Writes a block past the cache; the disk is the last word.
const WRITE: &str = "dd if=/dev/zero bs=4096 count=1 oflag=direct conv=notrunc of=$DISK 2>/dev/null";

fn restart(cluster: &mut Cluster, report: &mut Report) -> Result<()> {
    let read_keys = "sg_persist --no-inquiry --in --read-keys $DISK";
    cluster.sg_persist(report, "--out --register --param-sark=0x77", 0, "")?;
    cluster.changes();

    cluster.stop()?;
    cluster.start_again()?;
    cluster.both(report, read_keys, 0, "0x77")?;
    report.equal("QEMU's events", "lost, made", &cluster.changes());

    cluster.stop()?;
    let without = cluster.machine.run(&format!("DISK=/dev/sda; {read_keys}"))?;
    let failed = without.status != 0 && !without.output.contains("0x77");
    report.check("without a helper the command fails", if failed { Ok(()) } else { Err(without.to_string()) });
    report.equal("QEMU's events", "lost", &cluster.changes());
    cluster.start_again()?;
    cluster.both(report, read_keys, 0, "0x77")?;
    report.equal("QEMU's events", "made", &cluster.changes());
    cluster.sg_persist(report, "--out --clear --param-rk=0x77", 0, "")
}

fn map(lab: &mut Lab, report: &mut Report) -> Result<()> {
    lab.cluster()?;
    let map = lab.multipath()?.map(2, 0)?;
    let other_host = disk::Disk::open(&map.other_host.path())?;
    let paths = map.pair().map(Clone::clone);
    let refused = |report: &mut Report| {
        let refused = other_host.write(1).is_err_and(|error| disk::is_conflict(&error));
        report.check("a write of another host is refused", if refused { Ok(()) } else { Err("it passed".to_owned()) });
    };
    let run = |lab: &mut Lab, report: &mut Report, command: &str, containing: &str| -> Result<()> {
        let ending = lab.cluster()?.machine.run(&format!("DISK=/dev/sdc; {command}"))?;
        let outcome = match ending.status == 0 && ending.output.contains(containing) {
            true => Ok(()),
            false => Err(ending.to_string()),
        };
        report.check(format!("on a map: {command}: {containing:?}"), outcome);
        Ok(())
    };
    let sg_persist = |options: &str| format!("sg_persist --no-inquiry {options} $DISK");
    run(lab, report, &sg_persist("--out --register --param-sark=0xabc"), "")?;
    run(lab, report, &sg_persist("--out --reserve --param-rk=0xabc --prout-type=5"), "")?;
    run(lab, report, &sg_persist("--in --read-full-status"), "iqn.2026-11.lab:path2")?;
    run(lab, report, WRITE, "")?;
    refused(report);
    for path in &paths {
        path.set_alive(false)?;
        run(lab, report, &sg_persist("--in --read-reservation"), "Write Exclusive, registrants only")?;
        run(lab, report, WRITE, "")?;
        refused(report);
        path.set_alive(true)?;
        lab.multipath()?.map(2, 0)?.wait_for_paths(2)?;
    }
    run(lab, report, &sg_persist("--out --release --param-rk=0xabc --prout-type=5"), "")?;
    run(lab, report, &sg_persist("--out --clear --param-rk=0xabc"), "")?;
    // The path that has not sent the CLEAR is told of it first.
    let read_keys = sg_persist("--in --read-keys");
    run(lab, report, &format!("{read_keys} || {read_keys}"), "there are NO registered reservation keys")
}
