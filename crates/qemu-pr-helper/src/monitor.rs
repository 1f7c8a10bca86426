//! The monitor: a second process of the same binary, which stays root. It removes the sockets when the helper ends, even
//! when a signal kills the helper. It starts a worker for each command that takes more privileges than the helper has.
//!
//! The helper starts it before it drops its privileges. The monitor has one thread and one input, a [`MonitorChannel`].
//! It ends when the helper and the last worker have ended.

mod process;

use std::env;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::sync::Arc;

use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn};
use nix::sys::signal::{SigSet, Signal};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, PidfdFlags, WaitOptions, pidfd_open, waitpid};
use scsi_pr_daemon::socket::SocketFile;
use scsi_pr_helper::descriptor::{self, IoMode};

use crate::message::{invoked_as, reason};
use crate::monitor_channel::{DIRECTORY, MonitorChannel, NO_MORE_SOCKETS, SOCKET};
pub(crate) use process::run;

/// The monitor's first argument, by which this binary knows that it is one.
const NAME: &str = "qemu-pr-helper-monitor";

/// The variables that the monitor and its workers inherit: the path of their libraries, and multipathd's socket.
const VARIABLES: [&str; 2] = ["LD_LIBRARY_PATH", "MULTIPATH_SOCKET_NAME"];

/// The helper's side of a monitor.
struct Monitor {
    channel: Arc<MonitorChannel>,
    process: Pid,
}

impl Monitor {
    /// Starts a monitor that removes the files `sockets` at the end. The paths are for administrators who look at processes.
    fn start(sockets: &[(PathBuf, SocketFile)]) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        let (channel, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        let mut arguments = vec![NAME.into()];
        for (path, file) in sockets {
            let (directory, name, file) = file.parts();
            descriptor::send(&channel, &[DIRECTORY], directory, IoMode::Blocking)?;
            descriptor::send(&channel, &[&[SOCKET], name.as_bytes()].concat(), file, IoMode::Blocking)?;
            arguments.push(path.as_os_str().to_owned());
        }
        rustix::net::send(&channel, &[NO_MORE_SOCKETS], SendFlags::NOSIGNAL)?;
        let process = spawn(arguments, theirs.as_fd())?;
        Ok(Self { channel: Arc::new(MonitorChannel::new(channel)?), process })
    }
}

/// Starts this binary again, with these arguments and this standard input.
///
/// `std::process` does not reset SIGCHLD. If the helper's parent ignored it, the monitor could not learn how a worker
/// ended.
fn spawn(arguments: Vec<OsString>, input: BorrowedFd<'_>) -> io::Result<Pid> {
    let mut actions = PosixSpawnFileActions::init()?;
    actions.add_dup2(input.as_raw_fd(), 0)?;
    let null = File::options().write(true).open("/dev/null")?;
    for output in [1, 2] {
        actions.add_dup2(null.as_raw_fd(), output)?;
    }
    let mut attributes = PosixSpawnAttr::init()?;
    attributes.set_flags(PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF)?;
    attributes.set_sigdefault(&SigSet::from(Signal::SIGCHLD))?;
    let variables = VARIABLES.into_iter().filter_map(|name| {
        let mut variable = OsString::from(format!("{name}="));
        variable.push(env::var_os(name)?);
        Some(variable)
    });
    let strings =
        |all: Vec<OsString>| all.into_iter().map(|one| CString::new(one.into_vec())).collect::<Result<Vec<_>, _>>();
    let (arguments, variables) = (strings(arguments)?, strings(variables.collect())?);
    let process = posix_spawn("/proc/self/exe", &actions, &attributes, &arguments, &variables)?;
    Ok(Pid::from_raw(process.as_raw()).expect("a process that was started has a number"))
}

impl Drop for Monitor {
    /// Ends the monitor, and waits for it, as not every container has an init process. A monitor that waits for its workers
    /// is not waited for.
    fn drop(&mut self) {
        self.channel.close();
        let moment = Timespec { tv_sec: 1, tv_nsec: 0 };
        if let Ok(end) = pidfd_open(self.process, PidfdFlags::empty()) {
            let _ = rustix::io::retry_on_intr(|| poll(&mut [PollFd::new(&end.as_fd(), PollFlags::IN)], Some(&moment)));
        }
        let _ = waitpid(Some(self.process), WaitOptions::NOHANG);
    }
}

/// Removes the files of sockets when it is dropped, by the monitor where there is one.
#[derive(Default)]
pub(crate) struct SocketGuard {
    /// Those that this process made and that are not removed.
    sockets: Vec<(PathBuf, SocketFile)>,
    monitor: Option<Monitor>,
}

impl SocketGuard {
    /// Adds the file of a socket. There must be no monitor yet.
    pub(crate) fn add(&mut self, path: PathBuf, file: SocketFile) {
        self.sockets.push((path, file));
    }

    /// Starts a monitor if this process is root. Any other user has no more privileges now than later.
    pub(crate) fn start_monitor(&mut self) {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        match Monitor::start(&self.sockets) {
            Ok(monitor) => self.monitor = Some(monitor),
            // The helper can serve most commands without it.
            Err(error) => {
                let stays = |(path, _): &(PathBuf, _)| format!(", and {} may stay behind", path.display());
                tracing::warn!(
                    "the monitor cannot be started (is /proc mounted?), so multipath maps cannot be reserved{}: {}",
                    self.sockets.iter().map(stays).collect::<String>(),
                    reason(error)
                );
            }
        }
    }

    /// The channel to the monitor, if there is one.
    pub(crate) fn channel(&self) -> Option<Arc<MonitorChannel>> {
        self.monitor.as_ref().map(|monitor| Arc::clone(&monitor.channel))
    }

    /// The directories from which this process has to remove files, without a monitor.
    pub(crate) fn own_directories(&self) -> Vec<BorrowedFd<'_>> {
        let own = self.sockets.iter().filter(|_| self.monitor.is_none());
        own.map(|(_, file)| file.parts().0).collect()
    }

    /// Removes the files that this process made and that are still there.
    pub(crate) fn remove_sockets(&mut self) {
        let sockets = std::mem::take(&mut self.sockets);
        if sockets.is_empty() || self.monitor.as_ref().is_some_and(|monitor| monitor.channel.remove_sockets().is_ok()) {
            return;
        }
        for (path, file) in sockets {
            if let Err(error) = file.remove() {
                tracing::error!("Failed to unlink socket {}: {}", path.display(), reason(error));
            }
        }
    }
}

impl Drop for SocketGuard {
    fn drop(&mut self) {
        self.remove_sockets();
    }
}

/// Whether this process was started to be a monitor.
pub(crate) fn is_wanted() -> bool {
    invoked_as() == NAME
}
