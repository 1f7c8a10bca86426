//! A real SCSI target, LIO, and its initiators in the same kernel, by iSCSI over 127.0.0.1.
//!
//! Loopback (tcm_loop) would be faster to set up, but it deadlocks on PREEMPT AND ABORT, and its initiators have no names.

use std::cell::{Cell, RefCell};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Result, bail};

use crate::system::{make, run, wait_for, write};

const CORE: &str = "/sys/kernel/config/target/core/fileio_0";
const TARGETS: &str = "/sys/kernel/config/target/iscsi";
/// open-iscsi's configuration.
const CONFIGURATION: &str = "/etc/iscsi/iscsid.conf";
const SETTINGS: &str = "node.startup = manual\nnode.session.scan = manual\n";
const UNIT_BYTES: &str = "16777216";

/// The initiators of a [`Unit`], by the last part of their names.
pub(crate) const INITIATORS: [&str; 2] = ["a", "b"];

/// The target and the sessions of its initiators.
pub(crate) struct Target {
    /// The start of the serial numbers of its units.
    prefix: String,
    units: Cell<usize>,
    /// The initiators that iscsiadm has records of.
    known: Rc<RefCell<Vec<String>>>,
}

/// A new logical unit, as each initiator sees it.
pub(crate) struct Unit {
    /// The serial number, which names the target's file for APTPL.
    pub(crate) serial: String,
    /// The block devices, one for each of [`INITIATORS`].
    pub(crate) disks: [PathBuf; 2],
}

impl Target {
    /// Sets up the target and logs both initiators in.
    pub(crate) fn start() -> Result<Self> {
        run("modprobe", &["--all", "target_core_file", "iscsi_target_mod", "iscsi_tcp", "sd_mod", "sg"])?;
        let target = Self::new("lab".to_owned(), Rc::default())?;
        start_iscsid()?;
        Ok(target)
    }

    /// Sets up another target beside this one. Initiators discover targets once, at their first login, so this must come
    /// before.
    pub(crate) fn another(&self, name: &str) -> Result<Self> {
        Self::new(format!("{name}-"), Rc::clone(&self.known))
    }

    fn new(prefix: String, known: Rc<RefCell<Vec<String>>>) -> Result<Self> {
        let target = Self { prefix, units: Cell::new(0), known };
        let group = target.portal_group();
        make(format!("{group}/np/127.0.0.1:3260"))?;
        for (attribute, value) in [
            ("authentication", "0"),
            ("demo_mode_write_protect", "0"),
            ("generate_node_acls", "1"),
            ("cache_dynamic_acls", "1"),
        ] {
            write(format!("{group}/attrib/{attribute}"), value)?;
        }
        // A login scans for unit 0.
        target.add_unit()?;
        write(format!("{group}/enable"), "1")?;
        Ok(target)
    }

    fn name(&self) -> String {
        format!("iqn.2026-11.{}:target", self.prefix.trim_end_matches('-'))
    }

    fn portal_group(&self) -> String {
        format!("{TARGETS}/{}/tpgt_1", self.name())
    }

    /// Makes initiators log in at once after they lose a session, instead of two seconds later. Call this before they log
    /// in for the first time.
    pub(crate) fn allow_prompt_logins(&self) -> Result<()> {
        write(format!("{}/param/DefaultTime2Wait", self.portal_group()), "0")?;
        write(CONFIGURATION, &format!("{SETTINGS}node.session.iscsi.DefaultTime2Wait = 0\n"))
    }

    /// A file with the number of logins that the target has accepted.
    pub(crate) fn accepted_logins(&self) -> PathBuf {
        Path::new(TARGETS).join(self.name()).join("fabric_statistics/iscsi_login_stats/accepts")
    }

    /// Creates a unit without reservations.
    pub(crate) fn unit(&self) -> Result<Unit> {
        let (number, serial) = self.add_unit()?;
        let mut disks = Vec::new();
        for initiator in INITIATORS {
            disks.push(self.disk(initiator, number)?);
        }
        let disks = disks.try_into().expect("there are two initiators");
        Ok(Unit { serial, disks })
    }

    /// The disk by which `initiator` sees the unit of this number. Logs the initiator in first if needed.
    pub(crate) fn disk(&self, initiator: &str, unit: usize) -> Result<PathBuf> {
        let session = self.log_in(initiator)?;
        write(format!("/sys/class/scsi_host/{}/scan", host_of(&session)?), &format!("0 0 {unit}"))?;
        let disk = wait_for(&format!("disk {unit} of initiator {initiator}"), || disk_of(&session, unit))?;
        // Each initiator's first command gets a unit attention, which no scenario expects.
        wait_for(&format!("ready {}", disk.display()), || run("sg_turs", &[&disk.to_string_lossy()]))?;
        Ok(disk)
    }

    /// The session of `initiator`, after a login if needed.
    fn log_in(&self, initiator: &str) -> Result<PathBuf> {
        let target = self.name();
        if let Ok(session) = session_of(initiator, &target) {
            return Ok(session);
        }
        if !self.known.borrow().iter().any(|known| known == initiator) {
            discover(initiator)?;
            self.known.borrow_mut().push(initiator.to_owned());
        }
        run("iscsiadm", &["-m", "node", "-T", &target, "-I", initiator, "--login"])?;
        wait_for("session", || session_of(initiator, &target))
    }

    /// Creates a unit that no initiator has scanned yet. Returns its number and its serial number.
    pub(crate) fn add_unit(&self) -> Result<(usize, String)> {
        let number = self.units.get();
        // LIO takes the hexadecimal digits of this and pads them with zeros, so that 1 and 10 would give one identifier.
        let serial = format!("{}{number:03}", self.prefix);
        let backstore = format!("{CORE}/{serial}");
        make(&backstore)?;
        write(format!("{backstore}/control"), &format!("fd_dev_name=/dev/shm/{serial},fd_dev_size={UNIT_BYTES}"))?;
        write(format!("{backstore}/wwn/vpd_unit_serial"), &serial)?;
        write(format!("{backstore}/enable"), "1")?;
        let lun = format!("{}/lun/lun_{number}", self.portal_group());
        make(&lun)?;
        symlink(&backstore, format!("{lun}/link")).with_context(|| format!("link {lun} to {backstore}"))?;
        self.units.set(number + 1);
        Ok((number, serial))
    }
}

impl Unit {
    /// The text of the target's file for APTPL. The kernel writes it in the root file system that it booted with.
    pub(crate) fn aptpl_file(&self) -> String {
        fs::read_to_string(format!("/proc/1/root/var/target/pr/aptpl_{}", self.serial)).unwrap_or_default()
    }
}

/// The iSCSI name of `initiator`.
pub(crate) fn name_of(initiator: &str) -> String {
    format!("iqn.2026-11.lab:{initiator}")
}

/// Starts open-iscsi with a separate configuration, without automatic logins and scans.
pub(crate) fn start_iscsid() -> Result<()> {
    for directory in ["/etc/iscsi", "/var/lib/iscsi"] {
        make(directory)?;
        run("mount", &["-t", "tmpfs", "tmpfs", directory])?;
    }
    make("/run/lock/iscsi")?;
    write(CONFIGURATION, SETTINGS)?;
    write("/etc/iscsi/initiatorname.iscsi", "InitiatorName=iqn.2026-11.lab:none\n")?;
    run("iscsid", &[])?;
    Ok(())
}

/// Gives `initiator` an interface with its name, and records of the targets at 127.0.0.1.
pub(crate) fn discover(initiator: &str) -> Result<()> {
    let iface = ["-m", "iface", "-I", initiator, "-o"];
    run("iscsiadm", &[&iface[..], &["new"]].concat())?;
    let name = ["update", "-n", "iface.initiatorname", "-v", &name_of(initiator)];
    run("iscsiadm", &[&iface[..], &name].concat())?;
    let portal = ["-t", "sendtargets", "-p", "127.0.0.1", "-o", "new"];
    run("iscsiadm", &[&["-m", "discovery", "-I", initiator], &portal[..]].concat())?;
    Ok(())
}

/// The sysfs directory of the session of `initiator` with `target`.
fn session_of(initiator: &str, target: &str) -> Result<PathBuf> {
    for session in fs::read_dir("/sys/class/iscsi_session")? {
        let session = session?.path();
        let is = |attribute: &str, value: &str| -> Result<bool> {
            Ok(fs::read_to_string(session.join(attribute))?.trim() == value)
        };
        if is("ifacename", initiator)? && is("targetname", target)? {
            return Ok(fs::canonicalize(session.join("device"))?);
        }
    }
    bail!("initiator {initiator} has no session with {target}")
}

/// The name of the SCSI host of `session`, such as host3.
fn host_of(session: &Path) -> Result<String> {
    let host = session.parent().and_then(Path::file_name).context("a session without a host")?;
    Ok(host.to_string_lossy().into_owned())
}

fn disk_of(session: &Path, unit: usize) -> Result<PathBuf> {
    for target in children(session, "target")? {
        for device in
            children(&target, "")?.into_iter().filter(|path| path.to_string_lossy().ends_with(&format!(":{unit}")))
        {
            if let Some(disk) = children(&device.join("block"), "sd")?.first() {
                return Ok(Path::new("/dev").join(disk.file_name().context("a disk has a name")?));
            }
        }
    }
    bail!("{} has no unit {unit}", session.display())
}

fn children(directory: &Path, prefix: &str) -> Result<Vec<PathBuf>> {
    let mut children = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            children.push(entry.path());
        }
    }
    Ok(children)
}
