//! The managers that translate commands, on devices with reservations: `BlockIoctl` on a SCSI disk and on an NVMe
//! namespace, `Nvme` on an NVMe namespace, each with two initiators or hosts.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};
use scsi_pr::{Command, Completion, Error, FullStatus, InitiatorPort, Key, Opcode, PrManager, SenseCode, Type};
use scsi_pr_linux::{BlockIoctl, Nvme};

use crate::commands::*;
use crate::helper::Helper;
use crate::lab::Lab;
use crate::layer::Layer;
use crate::nvmet::{Controller, HOSTS, Nvmet};
use crate::report::Report;
use crate::scenario::Scenario;
use crate::script::Access::{Permitted, Refused};
use crate::script::Expect::{Conflict, Good, Keys, Reservation, Sense};
use crate::script::Node::{A, B};
use crate::script::{Access, Run};
use crate::sg_raw::SgRaw;
use crate::target::Unit;

const KEY_A: Key = Key(0xa1);
const KEY_B: Key = Key(0xb2);
const NONE: Key = Key(0);

const LIST: SenseCode = SenseCode::INVALID_FIELD_IN_PARAMETER_LIST;
const CDB: SenseCode = SenseCode::INVALID_FIELD_IN_CDB;

/// IOC_PR on a SCSI disk, on the stable kernel, which has no ioctls to read reservations.
pub(super) const SCSI: Scenario = Scenario {
    name: "block-ioctl",
    boot: "target",
    purpose: "by IOC_PR on a SCSI disk, without the ioctls that read",
    run: |lab, report| {
        let unit = lab.target()?.unit()?;
        let manager = ReadBySgRaw(BlockIoctl::default());
        let mut run = Run::new(&manager, &unit)?;
        scsi(&mut run)?;
        finish(run, report)?;
        refused_on(&BlockIoctl::default(), &unit, report, &[(&read_keys(), CDB), (&read_reservation(), CDB)])?;
        on_device_mapper(&unit, report)?;
        on_a_partition(&unit, report)?;
        let permissions = Permissions { change: false, read: false };
        privileges(&unit.disks[0], report, by_ioctl, &permissions)
    },
};

/// The same on a kernel with those ioctls.
pub(super) const SCSI_ON_A_NEWER_KERNEL: Scenario = Scenario {
    name: "block-ioctl-reads",
    boot: "nvme",
    purpose: "by IOC_PR on a SCSI disk, with the ioctls that read",
    run: |lab, report| {
        let unit = lab.target()?.unit()?;
        let manager = BlockIoctl::default();
        let mut run = Run::new(&manager, &unit)?;
        run.send(A, &report_capabilities(), Good);
        run.send(A, &read_full_status(), Sense(CDB));
        scsi(&mut run)?;
        finish(run, report)?;
        on_device_mapper(&unit, report)?;
        on_a_partition(&unit, report)?;
        let permissions = Permissions { change: true, read: true };
        privileges(&unit.disks[0], report, by_ioctl, &permissions)
    },
};

/// NVMe's reservation commands.
pub(super) const NVME: Scenario = Scenario {
    name: "nvme",
    boot: "nvme",
    purpose: "by NVMe's reservation commands on a namespace with two hosts",
    run: |lab, report| {
        let unit = lab.nvmet()?.namespace()?;
        let manager = Nvme::new();
        let mut run = Run::new(&manager, &unit)?;
        nvme(&mut run)?;
        finish(run, report)?;
        refused_on(&BlockIoctl::default(), &unit, report, &[(&read_full_status(), CDB)])?;
        let permissions = Permissions { change: true, read: true };
        privileges(&unit.disks[0], report, by_nvme, &permissions)
    },
};

/// The same through the helper.
pub(super) const NVME_BY_HELPER: Scenario = Scenario {
    name: "nvme-helper",
    boot: "nvme",
    purpose: "a namespace with two hosts through the helper with -u nobody, also with --manager=nvme and =block",
    run: |lab, report| {
        type Script = fn(&mut Run<'_>) -> Result<()>;
        let script: [(&str, Script); 3] = [("auto", nvme), ("nvme", nvme), ("block", nvme_by_ioctl)];
        for (manager, script) in script {
            let unit = lab.nvmet()?.namespace()?;
            let helper = helper(lab, manager)?;
            let client = helper.client();
            let mut run = Run::new(&client, &unit)?;
            script(&mut run)?;
            finish(run, report)?;
        }
        Ok(())
    },
};

/// IOC_PR through the helper. Its workers send the ioctls, because this kernel requires CAP_SYS_ADMIN.
pub(super) const SCSI_BY_HELPER: Scenario = Scenario {
    name: "block-helper",
    boot: "target",
    purpose: "by IOC_PR on a SCSI disk through the helper with -u nobody --manager=block",
    run: |lab, report| {
        let unit = lab.target()?.unit()?;
        let helper = helper(lab, "block")?;
        let manager = ReadBySgRaw(helper.client());
        let mut run = Run::new(&manager, &unit)?;
        scsi(&mut run)?;
        finish(run, report)?;
        refused_on(&helper.client(), &unit, report, &[(&read_keys(), CDB), (&read_reservation(), CDB)])
    },
};

/// The helper as an ordinary user, with one manager for every device.
fn helper(lab: &Lab, manager: &str) -> Result<Helper> {
    let options = ["-u", "nobody", &format!("--manager={manager}")];
    Helper::start(&lab.helper(), &format!("by-{manager}"), &options)
}

/// IOC_PR on NVMe.
pub(super) const NVME_BY_IOCTL: Scenario = Scenario {
    name: "nvme-by-ioctl",
    boot: "nvme",
    purpose: "by IOC_PR on a namespace with two hosts",
    run: |lab, report| {
        let unit = lab.nvmet()?.namespace()?;
        let manager = BlockIoctl::default();
        let mut run = Run::new(&manager, &unit)?;
        nvme_by_ioctl(&mut run)?;
        finish(run, report)?;
        on_device_mapper(&unit, report)
    },
};

/// A namespace with two paths, by the kernel's own multipath support, which is on by default.
pub(super) const NVME_WITH_PATHS: Scenario = Scenario {
    name: "nvme-paths",
    boot: "nvme-paths",
    purpose: "by NVMe's reservation commands and by IOC_PR on a namespace with two paths",
    run: |_, report| {
        let (unit, [first, second]) = Nvmet::start_with_multipath()?.namespace_with_paths()?;
        let manager = Nvme::new();
        let mut run = Run::new(&manager, &unit)?;
        let kind = Type::ExclusiveAccess;
        run.send(A, &register(NONE, KEY_A), Good);
        run.send(A, &reserve(KEY_A, kind), Good);
        run.send(A, &read_keys(), Keys(vec![KEY_A]));
        run.send(A, &report_capabilities(), Good);
        let status = FullStatus::parse(&run.send(A, &read_full_status(), Good))?.value;
        run.observe("a host with two controllers is registered once", status.descriptors.len() == 1);
        run.write(A, Permitted);
        first.disconnect()?;
        run.write(A, Permitted);
        run.send(A, &read_reservation(), Reservation(Some((KEY_A, kind))));
        run.send(A, &preempt(KEY_A, KEY_A, Type::WriteExclusive), Good);
        run.send(A, &release(KEY_A, Type::WriteExclusive), Good);
        run.send(A, &register_ignoring(KEY_B), Good);
        run.report(report)?;
        let ioctls = BlockIoctl::default();
        let mut run = Run::new(&ioctls, &unit)?;
        run.send(A, &reserve(KEY_B, kind), Good);
        run.send(A, &read_reservation(), Reservation(Some((KEY_B, kind))));
        run.send(A, &register_ignoring(NONE), Sense(LIST));
        run.send(A, &release(KEY_B, kind), Good);
        run.report(report)?;
        without_a_path(&unit.disks[0], second, report)
    },
};

/// The managers must not answer GOOD after the last path to an open namespace is gone.
fn without_a_path(disk: &Path, last: Controller, report: &mut Report) -> Result<()> {
    let device = OpenOptions::new().read(true).write(true).open(disk)?;
    last.disconnect()?;
    let (nvme, ioctls) = (Nvme::new(), BlockIoctl::default());
    for (name, manager) in [("Nvme", &nvme as &dyn PrManager), ("BlockIoctl", &ioctls)] {
        for request in [register_ignoring(KEY_A), reserve(KEY_B, Type::WriteExclusive), clear(KEY_B), read_keys()] {
            let answer = manager.execute(device.as_fd(), request.command())?;
            let what = format!("{name}, without a path: {request}: {answer}");
            let is_good = matches!(answer, Completion::Good(_));
            report.check(what, if is_good { Err("no command can succeed".to_owned()) } else { Ok(()) });
        }
    }
    Ok(())
}

/// Sends PERSISTENT RESERVE OUT by a manager, and PERSISTENT RESERVE IN by `sg_raw`, which has no code of this project.
struct ReadBySgRaw<M>(M);

impl<M: PrManager> PrManager for ReadBySgRaw<M> {
    fn execute(&self, device: BorrowedFd<'_>, command: Command<'_>) -> Result<Completion, Error> {
        match command.opcode() {
            Opcode::ReserveIn => {
                // This takes the unit attention that a preemption may have left.
                SgRaw.execute(device, read_keys().command())?;
                SgRaw.execute(device, command)
            }
            _ => self.0.execute(device, command),
        }
    }
}

fn finish(mut run: Run<'_>, report: &mut Report) -> Result<()> {
    run.send(A, &read_keys(), Keys(vec![]));
    run.report(report)
}

/// Commands with the same result on a SCSI disk and on a namespace, by any manager. At the end both initiators are
/// registered, and A is the holder.
fn everywhere(run: &mut Run<'_>) {
    run.send(A, &read_keys(), Keys(vec![]));
    run.send(A, &read_reservation(), Reservation(None));
    run.send(A, &register(KEY_A, KEY_B), Conflict);
    run.send(A, &register(NONE, KEY_A), Good);
    run.send(B, &register(NONE, Key(0xb1)), Good);
    run.send(B, &register(Key(0xb9), KEY_B), Conflict);
    run.send(B, &register(Key(0xb1), KEY_B), Good);
    run.send(B, &read_keys(), Keys(vec![KEY_A, KEY_B]));
    for kind in Type::ALL {
        let all = kind.is_all_registrants();
        let shared = all || kind.is_registrants_only();
        run.send(A, &reserve(KEY_B, kind), Conflict);
        run.send(A, &reserve(KEY_A, kind), Good);
        run.send(A, &reserve(KEY_A, kind), Good);
        run.send(B, &read_reservation(), Reservation(Some((if all { NONE } else { KEY_A }, kind))));
        if !all {
            run.send(B, &reserve(KEY_B, kind), Conflict);
        }
        run.write(A, Permitted);
        run.write(B, Access::permitted_if(shared));
        run.read(B, Access::permitted_if(shared || kind.is_write_exclusive()));
        run.send(A, &release(KEY_B, kind), Conflict);
        if !all {
            run.send(B, &release(KEY_B, kind), Good);
            run.send(B, &read_reservation(), Reservation(Some((KEY_A, kind))));
        }
        run.send(A, &release(KEY_A, kind), Good);
        run.send(B, &read_reservation(), Reservation(None));
        run.write(B, Permitted);
    }
    for (preempts, kind) in
        [(preempt as fn(_, _, _) -> _, Type::WriteExclusive), (preempt_and_abort, Type::ExclusiveAccess)]
    {
        run.send(A, &reserve(KEY_A, kind), Good);
        run.write(B, Refused);
        run.send(B, &preempts(KEY_B, Key(0xdead), kind), Conflict);
        run.send(B, &preempts(KEY_B, NONE, kind), Sense(LIST));
        run.send(B, &preempts(KEY_A, KEY_A, kind), Conflict);
        run.send(B, &preempts(KEY_B, KEY_A, Type::WriteExclusiveRegistrantsOnly), Good);
        run.send(A, &read_keys(), Keys(vec![KEY_B]));
        run.send(A, &read_reservation(), Reservation(Some((KEY_B, Type::WriteExclusiveRegistrantsOnly))));
        run.write(A, Refused);
        run.write(B, Permitted);
        // A preemption of the sender's key changes the type, and the registration stays.
        run.send(B, &preempts(KEY_B, KEY_B, Type::WriteExclusive), Good);
        run.send(A, &read_reservation(), Reservation(Some((KEY_B, Type::WriteExclusive))));
        run.send(B, &release(KEY_B, Type::WriteExclusive), Good);
        run.send(A, &register_ignoring(KEY_A), Good);
    }
    // A preemption with the key zero removes all other registrants of an all-registrants reservation.
    run.send(A, &reserve(KEY_A, Type::WriteExclusiveAllRegistrants), Good);
    run.write(B, Permitted);
    run.send(B, &preempt(KEY_B, NONE, Type::ExclusiveAccessRegistrantsOnly), Good);
    run.send(A, &read_keys(), Keys(vec![KEY_B]));
    run.read(A, Refused);
    run.send(B, &clear(KEY_A), Conflict);
    run.send(B, &clear(KEY_B), Good);
    run.write(A, Permitted);
    for (node, key) in [(A, Key(0xa7)), (B, Key(0xb7)), (A, KEY_A), (B, KEY_B)] {
        run.send(node, &register_ignoring(key), Good);
    }
    run.send(A, &read_keys(), Keys(vec![KEY_A, KEY_B]));
    run.send(A, &reserve(KEY_A, Type::WriteExclusiveRegistrantsOnly), Good);
    run.write(B, Permitted);
}

/// Commands that no ioctl or NVMe command can express.
fn untranslatable(run: &mut Run<'_>) {
    run.send(A, &replace_lost(KEY_A), Sense(CDB));
    run.send(A, &register_spec_i_pt(KEY_A, &[]), Sense(LIST));
}

fn scsi(run: &mut Run<'_>) -> Result<()> {
    run.send(B, &reserve(KEY_B, Type::WriteExclusive), Sense(SenseCode::LUN_COMMUNICATION_FAILURE));
    run.send(A, &register_ignoring(NONE), Good);
    everywhere(run);
    untranslatable(run);
    run.send(A, &register_all_tg_pt(KEY_A), Sense(LIST));
    // The holder removes the other registrant. Clusters fence a node in this way.
    run.send(A, &preempt_and_abort(KEY_A, KEY_B, Type::WriteExclusiveRegistrantsOnly), Good);
    run.send(A, &read_keys(), Keys(vec![KEY_A]));
    run.write(B, Refused);
    run.send(A, &register(KEY_A, NONE), Good);
    run.write(B, Permitted);
    run.send(B, &register_aptpl(KEY_B), Good);
    run.send(B, &register_ignoring(NONE), Good);
    Ok(())
}

fn nvme(run: &mut Run<'_>) -> Result<()> {
    run.send(A, &report_capabilities(), Good);
    run.send(B, &reserve(KEY_B, Type::WriteExclusive), Conflict);
    run.send(A, &register_ignoring(NONE), Good);
    run.send(A, &register(NONE, NONE), Good);
    everywhere(run);
    run.send(A, &register(NONE, NONE), Conflict);
    untranslatable(run);
    run.send(A, &register_aptpl(KEY_A), Sense(LIST));
    hosts(run)?;
    // nvmet reports success to the holder although nothing changed.
    let kind = Type::WriteExclusiveRegistrantsOnly;
    for preempts in [preempt, preempt_and_abort] {
        run.send(A, &preempts(KEY_A, KEY_B, kind), Sense(SenseCode::TARGET_FAILURE));
        run.send(A, &read_keys(), Keys(vec![KEY_A, KEY_B]));
        run.write(B, Permitted);
        run.send(A, &preempts(KEY_A, Key(0xdead), kind), Conflict);
        run.send(A, &preempts(KEY_A, NONE, kind), Sense(LIST));
    }
    // The reservation ends with the holder's registration.
    run.send(A, &register(KEY_A, NONE), Good);
    run.send(B, &read_reservation(), Reservation(None));
    // nvmet does not count the second registrant as a holder.
    let all = Type::WriteExclusiveAllRegistrants;
    run.send(B, &reserve(KEY_B, all), Good);
    run.write(A, Refused);
    run.send(A, &register_all_tg_pt(KEY_A), Good);
    run.write(A, Permitted);
    run.send(A, &reserve(KEY_A, all), Good);
    run.send(A, &reserve(Key(0xdead), all), Conflict);
    run.send(A, &release(KEY_A, kind), Sense(SenseCode::INVALID_RELEASE));
    run.send(A, &release(KEY_A, all), Sense(SenseCode::TARGET_FAILURE));
    run.send(A, &read_reservation(), Reservation(Some((NONE, all))));
    // The reservation ends with the last registration.
    run.send(B, &register_ignoring(NONE), Good);
    run.send(B, &register_ignoring(NONE), Good);
    run.write(B, Refused);
    run.send(A, &register(KEY_A, NONE), Good);
    run.write(B, Permitted);
    Ok(())
}

/// READ FULL STATUS names the hosts by their identifiers.
fn hosts(run: &mut Run<'_>) -> Result<()> {
    let data = run.send(B, &read_full_status(), Good);
    let status = FullStatus::parse(&data)?.value;
    let [a, b] = &status.descriptors[..] else { bail!("two registrations were expected: {status}") };
    for (descriptor, host) in [(a, HOSTS[0]), (b, HOSTS[1])] {
        let is_host = descriptor.transport_id()?.port() == InitiatorPort::Srp { port_identifier: host };
        run.observe(&format!("the port of a host is its identifier, {host:032x}"), is_host && descriptor.all_tg_pt);
    }
    run.observe("A is the holder", a.held.is_some() && b.held.is_none());
    Ok(())
}

fn nvme_by_ioctl(run: &mut Run<'_>) -> Result<()> {
    run.send(A, &report_capabilities(), Good);
    run.send(B, &reserve(KEY_B, Type::WriteExclusive), Conflict);
    everywhere(run);
    untranslatable(run);
    run.send(A, &register_all_tg_pt(KEY_A), Sense(LIST));
    run.send(A, &register_aptpl(KEY_A), Sense(LIST));
    let kind = Type::WriteExclusiveRegistrantsOnly;
    for preempts in [preempt, preempt_and_abort] {
        run.send(A, &preempts(KEY_A, KEY_B, kind), Sense(SenseCode::TARGET_FAILURE));
        run.send(A, &read_keys(), Keys(vec![KEY_A, KEY_B]));
        run.send(A, &preempts(KEY_A, Key(0xdead), kind), Conflict);
        run.send(A, &preempts(KEY_A, NONE, kind), Sense(LIST));
    }
    // The kernel would leave a registration with the key zero.
    for unregisters in [register(KEY_B, NONE), register_ignoring(NONE), register(NONE, NONE)] {
        run.send(B, &unregisters, Sense(LIST));
    }
    run.send(A, &release(NONE, kind), Conflict);
    run.send(A, &clear(NONE), Conflict);
    run.send(A, &read_reservation(), Reservation(Some((KEY_A, kind))));
    run.send(A, &release(KEY_A, kind), Good);
    let all = Type::WriteExclusiveAllRegistrants;
    run.send(A, &reserve(KEY_A, all), Good);
    run.send(B, &release(KEY_B, all), Sense(SenseCode::TARGET_FAILURE));
    run.send(B, &clear(KEY_B), Good);
    Ok(())
}

/// Checks that `manager` refuses these.
fn refused_on(
    manager: &dyn PrManager,
    unit: &Unit,
    report: &mut Report,
    requests: &[(&Request, SenseCode)],
) -> Result<()> {
    let mut run = Run::new(manager, unit)?;
    for (request, code) in requests {
        run.send(A, request, Sense(*code));
    }
    run.report(report)
}

/// Device mapper drops the abort of PREEMPT AND ABORT, and does not pass on an unregistration on NVMe.
fn on_device_mapper(unit: &Unit, report: &mut Report) -> Result<()> {
    let [a, b] = &unit.disks;
    let (a, b) = (Layer::linear(a)?, Layer::linear(b)?);
    let is_nvme = unit.disks[0].to_string_lossy().contains("nvme");
    let mapped = Unit { serial: unit.serial.clone(), disks: [a.path.clone(), b.path.clone()] };
    let manager = BlockIoctl::default();
    let mut run = Run::new(&manager, &mapped)?;
    let kind = Type::WriteExclusive;
    run.send(A, &register(NONE, KEY_A), Good);
    run.send(B, &register(NONE, KEY_B), Good);
    run.send(A, &reserve(KEY_A, kind), Good);
    run.write(B, Refused);
    run.send(B, &preempt_and_abort(KEY_B, KEY_A, kind), Sense(CDB));
    run.write(B, Refused);
    run.send(B, &preempt(KEY_B, KEY_A, kind), Good);
    run.write(B, Permitted);
    if is_nvme {
        run.send(B, &register(KEY_B, NONE), Sense(LIST));
        run.send(B, &clear(KEY_B), Good);
    } else {
        run.send(B, &register(KEY_B, NONE), Good);
    }
    run.write(A, Permitted);
    run.report(report)
}

/// Whether the kernel permits this by IOC_PR.
fn by_ioctl(device: &File, request: &Request) -> bool {
    BlockIoctl::default().try_execute(device.as_fd(), request.command()).is_ok()
}

/// Whether the kernel permits this by NVMe commands.
fn by_nvme(device: &File, request: &Request) -> bool {
    Nvme::new().try_execute(device.as_fd(), request.command()).is_ok()
}

/// Checks which commands the manager may send from a thread without CAP_SYS_ADMIN.
fn privileges(
    disk: &Path,
    report: &mut Report,
    is_permitted: impl Fn(&File, &Request) -> bool + Sync,
    expected: &Permissions,
) -> Result<()> {
    let open = |write: bool| OpenOptions::new().read(true).write(write).open(disk).context("open the disk");
    let (for_reading, for_writing) = (open(false)?, open(true)?);
    let (register, clear) = (register_ignoring(KEY_A), clear(KEY_A));
    for (what, device, request, expected) in [
        ("a registration, on a descriptor for reading", &for_reading, &register, false),
        ("a registration, on a descriptor for writing", &for_writing, &register, expected.change),
        ("CLEAR, on a descriptor for writing", &for_writing, &clear, expected.change),
        ("READ KEYS, on a descriptor for reading", &for_reading, &read_keys(), expected.read),
    ] {
        let seen = without_privilege(|| is_permitted(device, request))?;
        report.equal(format!("without CAP_SYS_ADMIN, {what} is permitted"), &expected, &seen);
    }
    for (what, request) in [("a registration", &register), ("CLEAR", &clear)] {
        report.equal(format!("with CAP_SYS_ADMIN, {what} is permitted"), &true, &is_permitted(&for_reading, request));
    }
    Ok(())
}

/// The commands that the kernel permits without CAP_SYS_ADMIN.
struct Permissions {
    /// Changes by a descriptor that is open for writing.
    change: bool,
    /// Reads by a descriptor that is open for reading alone.
    read: bool,
}

/// By IOC_PR on a partition, Linux 6.1 reserves the whole disk.
fn on_a_partition(unit: &Unit, report: &mut Report) -> Result<()> {
    let [a, b] = &unit.disks;
    let (a, b) = (Layer::partition(a)?, Layer::partition(b)?);
    let parts = Unit { serial: unit.serial.clone(), disks: [a.path.clone(), b.path.clone()] };
    let none = SenseCode::INVALID_OPCODE;
    let requests = [register_ignoring(KEY_A), report_capabilities()];
    refused_on(&BlockIoctl::default(), &parts, report, &[(&requests[0], none), (&requests[1], none)])
}

/// Runs `act` in a thread without CAP_SYS_ADMIN.
fn without_privilege<T: Send>(act: impl FnOnce() -> T + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let mut sets: CapabilitySets = capabilities(None)?;
            sets.effective.remove(CapabilitySet::SYS_ADMIN);
            set_capabilities(None, sets)?;
            Ok(act())
        });
        thread.join().expect("the thread does not panic")
    })
}
