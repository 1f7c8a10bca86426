//! A real virtual machine: QEMU's pr-manager-helper, scsi-block, and sg_persist in the guest. This project's helper serves
//! one of its disks, and QEMU's helper another.

use std::os::fd::AsFd;

use anyhow::Result;
use scsi_pr::{Completion, Key, PrManager, Type};

use crate::cluster::Cluster;
use crate::commands::{preempt_and_abort, register};
use crate::disk;
use crate::lab::Lab;
use crate::report::Report;
use crate::scenario::Scenario;
use crate::sg_raw::SgRaw;

/// A cluster node in a virtual machine.
pub(super) const GUEST: Scenario = Scenario {
    name: "guest",
    boot: "machine",
    purpose: "sg_persist in a virtual machine gets the same results from this project's helper and from QEMU's",
    run: |lab, report| guest(lab.cluster()?, report),
};

/// A helper that is killed and started again.
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
    purpose: "sg_persist in a virtual machine on a multipath map, when the holder's path fails",
    run: |lab, report| map(lab, report),
};

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
    cluster.both(report, READ_KEYS_AFTER_PREEMPT, 0, "0xdef")?;
    cluster.both(report, WRITE, 1, "")?;
    cluster.sg_persist(report, "--out --register-ignore --param-sark=0x123", 0, "")?;
    cluster.both(report, WRITE, 0, "")?;
    cluster.sg_persist(report, "--out --clear --param-rk=0x123", 0, "")?;
    cluster.sg_persist(report, "--in --read-keys", 0, "there are NO registered reservation keys")
}

/// The preempted initiator has a unit attention. The first command gets it, unless multipathd's path checker, which sends
/// TEST UNIT READY through the same nexus, was faster; so its result is left out.
const READ_KEYS_AFTER_PREEMPT: &str =
    "sg_persist --no-inquiry --in --read-keys $DISK >/dev/null 2>&1; sg_persist --no-inquiry --in --read-keys $DISK";

/// Writes a block with O_DIRECT, so that its result is the disk's answer.
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
    // The path that did not send CLEAR may have a pending unit attention.
    let read_keys = sg_persist("--in --read-keys");
    run(lab, report, &format!("{read_keys} || {read_keys}"), "there are NO registered reservation keys")
}
