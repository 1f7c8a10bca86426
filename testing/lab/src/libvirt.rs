//! [`Libvirt`]: a real libvirtd with a real journal, and the virtual machines that it starts.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use rustix::net::sockopt::socket_peercred;

use crate::console::Console;
use crate::debian::Package;
use crate::system::{make, run, wait_for, write};

/// Where virtual machines find their kernel. QEMU's user may not look into the directory of the sources.
const BOOT: &str = "/var/lib/libvirt/boot";

/// Runs a program whose root directory is the root of its mount namespace. A process that enters the namespace of a virtual
/// machine finds the same files then. This guest's own programs run below `/new`.
const WITH_ROOT: &str = "cd /new && mount --move . / && exec chroot . \"$0\"";

/// Runs the journal. It does not start without control groups.
const JOURNALD: &str = "mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec /lib/systemd/systemd-journald";

const LIBVIRTD_LOG: &str = "/run/libvirtd.log";
const EVENTS: &str = "/run/events";

/// libvirtd, the journal, and a client that prints QEMU's events.
pub(crate) struct Libvirt {
    _processes: Vec<Process>,
    /// The options of the virtual machine's kernel.
    options: String,
}

/// A disk of a virtual machine.
pub(crate) struct Lun<'a> {
    pub(crate) device: &'a Path,
    /// The element of the disk that names its helper.
    pub(crate) reservations: &'a str,
    pub(crate) access: Access,
}

/// The access of a virtual machine to a disk.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    ReadWrite,
    ReadOnly,
}

/// A running virtual machine.
pub(crate) struct Domain {
    name: String,
    pub(crate) console: Console,
}

/// Kills a process when it is dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Libvirt {
    /// Installs the helper from `packages`, where libvirt looks for QEMU's, and starts libvirtd and a journal. `machine` has the
    /// kernel of virtual machines.
    pub(crate) fn start(packages: &Path, machine: &Path) -> Result<Self> {
        Package::new(packages, "scsi-pr-helper", "qemu-pr-helper").install("1")?;
        run("systemd-sysusers", &["--inline", "u libvirt-qemu - \"libvirt's virtual machines\""])?;
        make("/etc/libvirt")?;
        // Without virtlogd. The mount namespaces of virtual machines and all else are as by default.
        write("/etc/libvirt/qemu.conf", "stdio_handler = \"file\"\n")?;
        let options = install_kernel(machine)?;
        write("/etc/machine-id", "0123456789abcdef0123456789abcdef\n")?;
        let mut journald = Command::new("unshare");
        journald.args(["--mount", "sh", "-ec", JOURNALD]);
        let journald = process(journald, "/run/journald.log")?;
        wait_for("journal", || run("journalctl", &["--identifier", "systemd-journald"]).and_then(is_not_empty))?;
        let mut libvirtd = Command::new("nsenter");
        libvirtd.args(["--target", "1", "--mount", "/bin/unshare", "-m", "/bin/sh", "-ec", WITH_ROOT, "libvirtd"]);
        let libvirtd = process(libvirtd, LIBVIRTD_LOG)?;
        wait_for("libvirtd", || virsh(&["uri"])).with_context(|| text_of(LIBVIRTD_LOG))?;
        let mut events = Command::new("virsh");
        events.args(["qemu-monitor-event", "--event", "PR_MANAGER_STATUS_CHANGED", "--loop"]);
        let events = process(events, EVENTS)?;
        Ok(Self { _processes: vec![events, libvirtd, journald], options })
    }

    /// Starts a virtual machine, whose first disk is /dev/sda in it, and waits until its shell is ready.
    pub(crate) fn domain(&self, name: &str, disks: &[Lun<'_>]) -> Result<Domain> {
        let socket = format!("/run/{name}.console");
        let listener = UnixListener::bind(&socket)?;
        fs::set_permissions(&socket, Permissions::from_mode(0o666))?;
        let file = format!("/run/{name}.xml");
        write(&file, &self.description(name, &socket, disks))?;
        virsh(&["define", &file])?;
        virsh(&["start", name]).with_context(|| log_of(name))?;
        let (console, _) = listener.accept()?;
        let mut domain = Domain { name: name.to_owned(), console: Console::new(console.try_clone()?, console) };
        domain.console.wait_until_ready().with_context(|| log_of(name))?;
        Ok(domain)
    }

    fn description(&self, name: &str, console: &str, disks: &[Lun<'_>]) -> String {
        let disks: String = disks.iter().zip('a'..='z').map(|(disk, letter)| disk.description(letter)).collect();
        let options = &self.options;
        format!(
            "\
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{name}</name>
  <memory unit='MiB'>128</memory>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>{BOOT}/kernel</kernel>
    <initrd>{BOOT}/initramfs</initrd>
    <cmdline>{options}</cmdline>
  </os>
  <features><acpi/></features>
  <devices>
    <controller type='usb' model='none'/>
    <controller type='scsi' model='virtio-scsi'/>
{disks}
    <serial type='unix'><source mode='connect' path='{console}'/></serial>
    <memballoon model='none'/>
  </devices>
  <qemu:commandline>
    <qemu:arg value='-icount'/>
    <qemu:arg value='shift=4'/>
  </qemu:commandline>
</domain>
"
        )
    }

    /// QEMU's events about the helpers of a domain, in the order in which libvirt received them.
    pub(crate) fn events(&self, domain: &str) -> Result<Vec<String>> {
        let events = fs::read_to_string(EVENTS)?;
        let of_domain = events.lines().filter(|line| line.contains(&format!("domain '{domain}'")));
        Ok(of_domain.map(str::to_owned).collect())
    }
}

impl Lun<'_> {
    fn description(&self, letter: char) -> String {
        let Self { device, reservations, access } = self;
        let device = device.display();
        let access = if *access == Access::ReadOnly { "<readonly/>" } else { "<shareable/>" };
        format!(
            "\
    <disk type='block' device='lun'>
      <driver name='qemu' type='raw' cache='none' error_policy='report' rerror_policy='report'/>
      <source dev='{device}'>{reservations}</source>
      <target dev='sd{letter}' bus='scsi'/>
      {access}
    </disk>
"
        )
    }
}

impl Domain {
    /// The process ID of QEMU.
    pub(crate) fn qemu(&self) -> Result<u32> {
        process_id(format!("/run/libvirt/qemu/{}.pid", self.name).into())
    }

    /// The process ID of the helper that libvirt started: of the process that listens.
    pub(crate) fn helper(&self) -> Result<u32> {
        let socket = UnixStream::connect(self.helper_socket()?).context("connect to the helper of libvirt")?;
        Ok(socket_peercred(socket)?.pid.as_raw_nonzero().get().cast_unsigned())
    }

    /// The socket of that helper.
    pub(crate) fn helper_socket(&self) -> Result<PathBuf> {
        Ok(self.directory()?.join("pr-helper0.sock"))
    }

    /// libvirt's directory for this machine, which has the number of the start in its name.
    fn directory(&self) -> Result<PathBuf> {
        for entry in fs::read_dir("/var/lib/libvirt/qemu")? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.starts_with("domain-") && name.ends_with(&format!("-{}", self.name)) {
                return Ok(path);
            }
        }
        bail!("libvirt has no directory for {}", self.name)
    }

    /// Ends the virtual machine.
    pub(crate) fn destroy(self) -> Result<()> {
        virsh(&["destroy", &self.name])?;
        Ok(())
    }
}

/// Runs `virsh`, as root.
fn virsh(arguments: &[&str]) -> Result<String> {
    run("virsh", &[&["--quiet", "--connect", "qemu:///system"], arguments].concat())
}

fn is_not_empty(text: String) -> Result<()> {
    if text.is_empty() { bail!("it is empty") } else { Ok(()) }
}

fn process(mut command: Command, log: &str) -> Result<Process> {
    let log = File::create(log)?;
    let command = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    Ok(Process(command.spawn().with_context(|| format!("start {command:?}"))?))
}

fn process_id(file: PathBuf) -> Result<u32> {
    let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    text.trim().parse().with_context(|| format!("{} has {text:?}", file.display()))
}

/// Copies the kernel and the initramfs of `machine` to where QEMU may read them. Returns the options of the kernel.
fn install_kernel(machine: &Path) -> Result<String> {
    let arguments = fs::read_to_string(machine.join("arguments")).context("read QEMU's arguments")?;
    let value = |option: &str| {
        let mut values = arguments.lines().skip_while(|argument| *argument != option).skip(1);
        values.next().with_context(|| format!("QEMU's arguments have no {option}"))
    };
    make(BOOT)?;
    fs::copy(value("-kernel")?, format!("{BOOT}/kernel"))?;
    fs::copy(machine.join(value("-initrd")?), format!("{BOOT}/initramfs"))?;
    Ok(value("-append")?.to_owned())
}

/// The logs that explain why a domain does not start.
fn log_of(name: &str) -> String {
    format!("{}{}", text_of(&format!("/var/log/libvirt/qemu/{name}.log")), text_of(LIBVIRTD_LOG))
}

fn text_of(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}
