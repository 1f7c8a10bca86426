//! A real libvirtd starts the helper of this project, or connects a virtual machine to one that runs.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::disk;
use crate::helper::Helper;
use crate::lab::Lab;
use crate::libvirt::{Access, Domain, Lun};
use crate::report::Report;
use crate::scenario::Scenario;
use crate::system::{run, wait_for};

/// libvirt starts the helper.
pub(super) const MANAGED: Scenario = Scenario {
    name: "libvirt-managed",
    boot: "libvirt",
    purpose: "libvirtd starts the helper for a virtual machine, the journal has its log, and libvirtd starts it again",
    run: managed,
};

/// The helper runs already.
pub(super) const UNMANAGED: Scenario = Scenario {
    name: "libvirt-unmanaged",
    boot: "libvirt",
    purpose: "libvirtd connects a virtual machine to a helper that runs already",
    run: unmanaged,
};

fn managed(lab: &mut Lab, report: &mut Report) -> Result<()> {
    let target = lab.target()?;
    let (unit, read_only) = (target.unit()?, target.unit()?);
    let libvirt = lab.libvirt()?;
    let reservations = "<reservations managed='yes'/>";
    let mut domain = libvirt.domain(
        "managed",
        &[
            Lun { device: &unit.disks[0], reservations, access: Access::ReadWrite },
            Lun { device: &read_only.disks[0], reservations, access: Access::ReadOnly },
        ],
    )?;
    let helper = domain.helper()?;
    confined(report, &domain, helper)?;

    reserve(report, &mut domain, "/dev/sda")?;
    let other = disk::Disk::open(&unit.disks[1])?;
    let refused = other.write(1).is_err_and(|error| disk::is_conflict(&error));
    report.check("a write of another host is refused", if refused { Ok(()) } else { Err("it passed".to_owned()) });

    let without_reader = has_no_reader(helper);
    report.check("libvirt has closed standard error of the helper", without_reader.map_err(|e| format!("{e:#}")));
    refused_on_read_only_disk(report, &mut domain)?;
    logged(report, helper, domain.qemu()?, &read_only.disks[0])?;

    kill_process(pid(helper)?, Signal::KILL)?;
    sg_persist(report, &mut domain, "--in --read-keys /dev/sda", 0, "0xabc")?;
    let events = wait_for("events of a lost and a new connection", || {
        let events = libvirt.events("managed")?;
        let connected = |value: bool| events.iter().any(|event| event.contains(&format!("\"connected\":{value}")));
        ensure!(connected(false) && connected(true), "{events:#?}");
        anyhow::Ok(events)
    })?;
    report.check(format!("the helper is killed; libvirt gets events: {}", events.join("; ")), Ok(()));
    let again = domain.helper()?;
    let new = if again != helper { Ok(()) } else { Err(format!("{again} as before")) };
    report.check("libvirt has started another helper", new);
    confined(report, &domain, again)?;
    refused_on_read_only_disk(report, &mut domain)?;
    logged(report, again, domain.qemu()?, &read_only.disks[0])?;
    sg_persist(report, &mut domain, "--out --clear --param-rk=0xabc /dev/sda", 0, "")?;

    let socket = domain.helper_socket()?;
    ensure!(socket.exists(), "{} does not exist", socket.display());
    domain.destroy()?;
    let ended = wait_for("end of the helper", || {
        ensure!(!Path::new(&format!("/proc/{again}")).exists(), "process {again} runs");
        ensure!(!socket.exists(), "{} exists", socket.display());
        Ok(())
    });
    report.check("the helper ends with the virtual machine", ended.map_err(|error| format!("{error:#}")));
    Ok(())
}

fn unmanaged(lab: &mut Lab, report: &mut Report) -> Result<()> {
    let unit = lab.target()?.unit()?;
    // This adds the user who runs virtual machines.
    lab.libvirt()?;
    let helper = Helper::start(&lab.helper(), "unmanaged", &[])?;
    let socket = helper.socket().to_string_lossy().into_owned();
    // As the socket unit of systemd does it with SocketUser=.
    run("chown", &["libvirt-qemu", &socket])?;
    let reservations =
        format!("<reservations managed='no'><source type='unix' path='{socket}' mode='client'/></reservations>");
    let libvirt = lab.libvirt()?;
    let disks = [Lun { device: &unit.disks[0], reservations: &reservations, access: Access::ReadWrite }];
    let mut domain = libvirt.domain("unmanaged", &disks)?;
    let own = domain.helper();
    report.check("libvirt starts no helper", if own.is_err() { Ok(()) } else { Err(format!("{own:?}")) });
    reserve(report, &mut domain, "/dev/sda")?;

    helper.kill()?;
    let helper = Helper::start(&lab.helper(), "unmanaged", &[])?;
    run("chown", &["libvirt-qemu", &socket])?;
    sg_persist(report, &mut domain, "--in --read-keys /dev/sda", 0, "0xabc")?;
    sg_persist(report, &mut domain, "--out --clear --param-rk=0xabc /dev/sda", 0, "")?;
    let log = helper.logged();
    report.check("the helper logs nothing", if log.is_empty() { Ok(()) } else { Err(format!("{log:#?}")) });
    domain.destroy()
}

/// The virtual machine registers and reserves, and writes.
fn reserve(report: &mut Report, domain: &mut Domain, disk: &str) -> Result<()> {
    let mut run = |options: &str, expected: &str| sg_persist(report, domain, &format!("{options} {disk}"), 0, expected);
    run("--in --report-capabilities", "Persist Through Power Loss Capable(PTPL_C): 1")?;
    run("--out --register --param-sark=0xabc", "")?;
    run("--out --reserve --param-rk=0xabc --prout-type=5", "")?;
    run("--in --read-reservation", "Write Exclusive, registrants only")?;
    run("--in --read-full-status", "iqn.2026-11.lab:a")?;
    let write = format!("dd if=/dev/zero bs=4096 count=1 oflag=direct conv=notrunc of={disk} 2>/dev/null");
    in_domain(report, domain, &write, 0, "")
}

fn refused_on_read_only_disk(report: &mut Report, domain: &mut Domain) -> Result<()> {
    sg_persist(report, domain, "--readonly --out --register --param-sark=0xabc /dev/sdb", 9, "")
}

fn sg_persist(report: &mut Report, domain: &mut Domain, options: &str, status: i32, containing: &str) -> Result<()> {
    in_domain(report, domain, &format!("sg_persist --no-inquiry {options}"), status, containing)
}

fn in_domain(report: &mut Report, domain: &mut Domain, command: &str, status: i32, containing: &str) -> Result<()> {
    let ending = domain.console.run(command)?;
    let outcome = match ending.status == status && ending.output.contains(containing) {
        true => Ok(()),
        false => Err(format!("expected exit status {status} and {containing:?}, got\n{ending}")),
    };
    report.check(format!("in the virtual machine: {command}: exit status {status}"), outcome);
    Ok(())
}

/// The helper runs in the mount namespace of the virtual machine, as its own user, in its sandbox.
fn confined(report: &mut Report, domain: &Domain, helper: u32) -> Result<()> {
    let namespace = |process: String| fs::read_link(format!("/proc/{process}/ns/mnt"));
    let (of_helper, of_qemu) = (namespace(helper.to_string())?, namespace(domain.qemu()?.to_string())?);
    let own = of_helper == of_qemu && of_helper != namespace("self".to_owned())?;
    let outcome = if own { Ok(()) } else { Err(format!("{}, {}", of_helper.display(), of_qemu.display())) };
    report.check("the helper runs in the mount namespace of its virtual machine", outcome);

    let status = fs::read_to_string(format!("/proc/{helper}/status"))?;
    let value = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
        line.unwrap_or_default().split_whitespace().next().unwrap_or_default().to_owned()
    };
    let user = run("id", &["-u", "qemu-pr-helper"])?;
    report.equal("the user of the helper", user.trim(), &value("Uid"));
    report.equal("its capabilities: CAP_SYS_RAWIO", "0000000000020000", &value("CapEff"));
    report.equal("no_new_privs", "1", &value("NoNewPrivs"));
    report.equal("its seccomp mode, a filter", "2", &value("Seccomp"));
    Ok(())
}

/// Standard error of the process is a pipe that no process can read.
fn has_no_reader(process: u32) -> Result<()> {
    let pipe = fs::read_link(format!("/proc/{process}/fd/2"))?;
    ensure!(pipe.to_string_lossy().starts_with("pipe:"), "standard error is {}", pipe.display());
    for process in fs::read_dir("/proc")? {
        let process = process?.path();
        // Processes end at any time, and the kernel's own have no descriptors.
        for descriptor in fs::read_dir(process.join("fd")).into_iter().flatten().flatten() {
            if fs::read_link(descriptor.path()).is_ok_and(|target| target == pipe) {
                let information = process.join("fdinfo").join(descriptor.file_name());
                let information = fs::read_to_string(information).unwrap_or_default();
                let flags = information.lines().find_map(|line| line.strip_prefix("flags:")).context("no flags")?;
                ensure!(flags.trim().ends_with('1'), "{} has {flags}", descriptor.path().display());
            }
        }
    }
    Ok(())
}

/// The command of the guide finds the line about the refused command, and the line has its fields.
fn logged(report: &mut Report, helper: u32, qemu: u32, device: &Path) -> Result<()> {
    let device = device.file_name().context("a disk has a name")?.to_string_lossy().into_owned();
    let fields = [
        "\"_TRANSPORT\":\"journal\"".to_owned(),
        "\"PRIORITY\":\"4\"".to_owned(),
        format!("\"SYSLOG_PID\":\"{helper}\""),
        "\"SCSI_PR_EVENT\":\"pr_helper_refused\"".to_owned(),
        format!("\"SCSI_PR_PID\":\"{qemu}\""),
        "\"SCSI_PR_VIRTUAL_MACHINE\":\"managed\"".to_owned(),
        format!(" ({device})"),
    ];
    let line = wait_for("line of the helper in the journal", || {
        let journal = run("journalctl", &["-t", "qemu-pr-helper", "-o", "json"])?;
        let line = journal.lines().find(|line| fields.iter().all(|field| line.contains(field)));
        line.map(drop).with_context(|| format!("{fields:?} in {journal:?}"))
    });
    report
        .check("journalctl -t qemu-pr-helper has the line with its fields", line.map_err(|error| format!("{error:#}")));
    let text = run("journalctl", &["-t", "qemu-pr-helper", "-o", "cat"])?;
    let (records, others): (Vec<_>, Vec<_>) = text
        .lines()
        .filter(|line| !line.contains("refused on"))
        .partition(|line| line.starts_with("PERSISTENT RESERVE OUT, ") && line.contains("virtual machine \"managed\""));
    let is_complete = ["REGISTER, ", "RESERVE, "]
        .iter()
        .all(|action| records.iter().any(|record| record.contains(action) && record.contains(": GOOD, after ")));
    report.check("it has a record of each change", if is_complete { Ok(()) } else { Err(format!("{records:#?}")) });
    let outcome = if others.is_empty() { Ok(()) } else { Err(format!("{others:#?}")) };
    report.check("it has no other lines", outcome);
    Ok(())
}

fn pid(process: u32) -> Result<Pid> {
    Pid::from_raw(i32::try_from(process)?).context("no process has ID 0")
}
