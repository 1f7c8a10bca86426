//! [`Machine`]: QEMU with a small Linux guest. Its SCSI disks are passed through, and its reservations go to helpers.

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::console::{Console, Ending, TIMEOUT, lines};
use crate::system::wait_for;

const QMP: &str = "/run/qmp.sock";

/// A disk of the machine.
pub(crate) struct Disk<'a> {
    /// The id of its pr-manager-helper object.
    pub(crate) manager: &'a str,
    /// The helper's socket.
    pub(crate) socket: &'a Path,
    /// The block device that is passed through.
    pub(crate) device: &'a Path,
}

/// A running virtual machine. It ends when dropped.
pub(crate) struct Machine {
    qemu: Child,
    console: Console,
    /// QEMU's events, one JSON object each.
    events: Receiver<String>,
}

impl Machine {
    /// Resumes the machine that was saved in `directory`. `disks` are /dev/sda, /dev/sdb and so on in it.
    pub(crate) fn resume(directory: &Path, disks: &[Disk<'_>]) -> Result<Self> {
        let arguments = fs::read_to_string(directory.join("arguments")).context("read QEMU's arguments")?;
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(arguments.lines()).args(["-incoming", "exec:cat state"]).current_dir(directory);
        qemu.args(["-serial", "stdio", "-qmp", &format!("unix:{QMP},server=on,wait=off")]);
        for (number, Disk { manager, socket, device }) in disks.iter().enumerate() {
            let (socket, device) = (socket.display(), device.display());
            qemu.args(["-object", &format!("pr-manager-helper,id={manager},path={socket}")]);
            let node = format!("driver=raw,node-name=disk{number},cache.direct=on,file.driver=host_device");
            qemu.args(["-blockdev", &format!("{node},file.filename={device},file.pr-manager={manager}")]);
            qemu.args(["-device", &format!("scsi-block,drive=disk{number},scsi-id={number}")]);
        }
        let mut qemu = qemu.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("start QEMU in the guest")?;
        let input = qemu.stdin.take().context("QEMU has no input")?;
        let console = Console::new(input, qemu.stdout.take().context("QEMU has no output")?);
        let events = events()?;
        let mut machine = Self { qemu, console, events };
        // The machine was saved without disks.
        for (number, letter) in ('a'..='z').take(disks.len()).enumerate() {
            let find = format!("echo 0 {number} 0 >/sys/class/scsi_host/host0/scan");
            let ending = machine.run(&format!("{find} && until test -b /dev/sd{letter}; do sleep 0.3; done"))?;
            if ending.status != 0 {
                bail!("the virtual machine cannot find its disks: {ending}");
            }
        }
        Ok(machine)
    }

    /// Runs a line of shell in the machine, and waits until it ends.
    pub(crate) fn run(&mut self, line: &str) -> Result<Ending> {
        self.console.run(line)
    }

    /// The new events of a pr-manager-helper object, each as whether the object is connected.
    pub(crate) fn connections(&self, manager: &str) -> Vec<bool> {
        let events = self.events.try_iter().filter(|event| event.contains("\"PR_MANAGER_STATUS_CHANGED\""));
        let events = events.filter(|event| event.contains(&format!("\"id\": \"{manager}\"")));
        events.map(|event| event.contains("\"connected\": true")).collect()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// Subscribes to QEMU's events, and waits until the machine runs. Serial input that arrives earlier is lost.
fn events() -> Result<Receiver<String>> {
    let mut socket = wait_for("QMP of the virtual machine", || UnixStream::connect(QMP))?;
    let answers = lines(socket.try_clone()?);
    socket.write_all(b"{\"execute\":\"qmp_capabilities\"}\n")?;
    let deadline = Instant::now() + TIMEOUT;
    while Instant::now() < deadline {
        socket.write_all(b"{\"execute\":\"query-status\"}\n")?;
        // This may skip events of the start, which no scenario needs.
        let answer = answers.iter().find(|answer| answer.contains("\"running\""));
        if answer.context("QEMU has ended")?.contains("\"running\": true") {
            return Ok(answers);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    bail!("the virtual machine did not resume within {TIMEOUT:?}")
}
