//! [`DiskServer`]: a running `scsi-pr disk`, on this host or on an [imitated](Host) one.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testing_support::Process;

use crate::system::{make, wait_for, write};

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The settings of `scsi-pr disk` with one unit.
#[derive(Clone)]
pub(crate) struct DiskSettings {
    pub(crate) program: PathBuf,
    /// The name of the unit, of its control socket, and of its log.
    pub(crate) name: String,
    pub(crate) store: String,
    pub(crate) medium: PathBuf,
    pub(crate) cache: &'static str,
    pub(crate) address: SocketAddr,
    /// The host that runs it; this one if `None`.
    pub(crate) host: Option<Host>,
    pub(crate) takeover: Option<u64>,
}

/// A host that is imitated on this kernel: namespaces for its mounts, its name and its processes, and files with its
/// machine id and its boot id in the places of the kernel's and of the machine's.
#[derive(Clone)]
pub(crate) struct Host {
    name: &'static str,
    directory: PathBuf,
}

/// A running `scsi-pr disk`. It is killed when dropped.
pub(crate) struct DiskServer {
    process: Child,
    /// The server itself: on an imitated host a child of `process`.
    pid: Pid,
    log: PathBuf,
}

impl Host {
    /// A host with new identifiers.
    pub(crate) fn new(name: &'static str) -> Result<Self> {
        let host = Self { name, directory: Path::new("/run/hosts").join(name) };
        make(&host.directory)?;
        write(host.directory.join("machine-id"), &random_uuid()?.replace('-', ""))?;
        host.start_again()?;
        Ok(host)
    }

    /// Gives it the boot id of a new boot. Programs that run keep the former one.
    pub(crate) fn start_again(&self) -> Result<()> {
        // A file that is mounted elsewhere must keep its content.
        let path = self.directory.join("boot-id");
        let _ = fs::remove_file(&path);
        write(path, &random_uuid()?)
    }

    /// `unshare` with a script that prepares the namespaces and becomes the program of further arguments.
    fn command(&self) -> Command {
        const SCRIPT: &str = "echo \"$1\" >/proc/sys/kernel/hostname && mount --bind \"$2/machine-id\" /etc/machine-id && \
             mount --bind \"$2/boot-id\" \"$3\" && shift 3 && exec \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]);
        command.args(["sh", "-c", SCRIPT, "sh", self.name]).arg(&self.directory).arg(BOOT_ID);
        command
    }
}

fn random_uuid() -> Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/uuid")?.trim().to_owned())
}

impl DiskSettings {
    fn command(&self) -> Command {
        let mut command = match &self.host {
            Some(host) => {
                let mut command = host.command();
                command.arg(&self.program);
                command
            }
            None => Command::new(&self.program),
        };
        command.arg("disk").arg(format!("--store={}", self.store)).arg(format!("--cache={}", self.cache));
        command.arg(format!("--unit={}={}", self.name, self.medium.display()));
        command.arg(format!("--listen={}", self.address)).arg(format!("--control={}", self.path("sock").display()));
        command.args(self.takeover.map(|epoch| format!("--takeover={epoch}")));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    fn path(&self, extension: &str) -> PathBuf {
        let host = self.host.as_ref().map_or("this", |host| host.name);
        PathBuf::from(format!("/run/{}-{host}.{extension}", self.name))
    }

    /// Starts the server, and waits until it listens.
    pub(crate) fn start(&self) -> Result<DiskServer> {
        let log = self.path("log");
        let process = self.command().stderr(File::create(&log)?).spawn();
        let process = process.with_context(|| format!("start {}", self.program.display()))?;
        let mut server = DiskServer { pid: pid_of(process.id()), process, log };
        let ended = wait_for("listening server", || match server.process.try_wait()? {
            None => TcpStream::connect(self.address).map(|_| None),
            Some(status) => Ok(Some(status)),
        })?;
        if let Some(status) = ended {
            bail!("the server ended ({status}): {}", server.log());
        }
        if self.host.is_some() {
            let [child] = Process::new(server.process.id()).children()[..] else { bail!("unshare has one child") };
            server.pid = pid_of(child.pid());
        }
        Ok(server)
    }

    /// Starts the server, which must refuse to serve. Returns its message.
    pub(crate) fn refusal(&self) -> Result<String> {
        let output = self.command().output().with_context(|| format!("start {}", self.program.display()))?;
        ensure!(!output.status.success(), "the server has served, and ended with success");
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

fn pid_of(id: u32) -> Pid {
    Pid::from_raw(id.cast_signed())
}

impl DiskServer {
    /// The process id of the server.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Sends a signal to the server.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(self.pid, signal)?)
    }

    /// Waits for the end of the server.
    pub(crate) fn wait(&mut self) -> Result<ExitStatus> {
        Ok(self.process.wait()?)
    }

    /// Kills the server, and waits for its end.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.wait()?;
        Ok(())
    }

    /// The lines that it has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for DiskServer {
    fn drop(&mut self) {
        if matches!(self.process.try_wait(), Ok(None)) {
            // `unshare` ends after the server, and so after its mounts. It stops when the server stops.
            let _ = self.signal(Signal::SIGKILL);
            let _ = kill(pid_of(self.process.id()), Signal::SIGCONT);
            let _ = self.process.wait();
        }
    }
}
