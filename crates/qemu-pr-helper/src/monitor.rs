//! The monitor: a second process, of the same binary, that stays what the helper no longer is. It removes the socket when
//! the helper ends, whatever way it ends and whoever owns the directory; and it starts a worker for each command that
//! takes more privileges than the helper has.
//!
//! It is started before the helper drops its privileges and has one thread and one input: a [`Link`] to the helper. When
//! the helper is gone that ends, and the monitor with it, once the workers that still run have ended.

mod process;

use std::env;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn};
use nix::sys::signal::{SigSet, Signal};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, PidfdFlags, WaitOptions, pidfd_open, waitpid};
use scsi_pr_daemon::socket::SocketFile;
use scsi_pr_helper::descriptor;

use crate::link::{DIRECTORY, Link, NO_SOCKET, SOCKET};
use crate::message::{invoked_as, reason};
pub(crate) use process::run;

/// What the monitor is called: its first word, by which this binary knows that it is one.
const NAME: &str = "qemu-pr-helper-monitor";

/// What a monitor, and with it each worker, has of the environment of the helper: where its libraries are, and where
/// multipathd listens.
const VARIABLES: [&str; 2] = ["LD_LIBRARY_PATH", "MULTIPATH_SOCKET_NAME"];

/// The helper's side of a monitor.
struct Monitor {
    link: Arc<Link>,
    process: Pid,
}

impl Monitor {
    /// Starts a monitor, to watch over the file `socket` if there is one; its path is for people to see which one.
    fn start(socket: Option<(&Path, &SocketFile)>) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        let (link, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        let mut arguments = vec![NAME.into()];
        match socket {
            Some((path, file)) => {
                let (directory, name, file) = file.parts();
                descriptor::send(&link, &[DIRECTORY], directory, SendFlags::empty())?;
                descriptor::send(&link, &[&[SOCKET], name.as_bytes()].concat(), file, SendFlags::empty())?;
                arguments.push(path.as_os_str().to_owned());
            }
            None => {
                rustix::net::send(&link, &[NO_SOCKET], SendFlags::NOSIGNAL)?;
            }
        }
        let process = spawn(arguments, theirs.as_fd())?;
        Ok(Self { link: Arc::new(Link::new(link)?), process })
    }
}

/// Starts this binary again, with these words and this input.
///
/// `std::process` does not reset SIGCHLD, which whoever started the helper may have had ignored: nobody would know how a
/// worker ended.
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
    /// Has the monitor end. It is waited for, because not every container has somebody who would; but not if it waits for
    /// workers itself.
    fn drop(&mut self) {
        self.link.close();
        let moment = Timespec { tv_sec: 1, tv_nsec: 0 };
        if let Ok(end) = pidfd_open(self.process, PidfdFlags::empty()) {
            let _ = rustix::io::retry_on_intr(|| poll(&mut [PollFd::new(&end.as_fd(), PollFlags::IN)], Some(&moment)));
        }
        let _ = waitpid(Some(self.process), WaitOptions::NOHANG);
    }
}

/// What is kept for the helper: its socket's file, which goes when this value does, and the monitor.
pub(crate) struct Kept {
    /// `None` when the socket is somebody else's, or removed.
    socket: Option<(PathBuf, SocketFile)>,
    monitor: Option<Monitor>,
}

impl Kept {
    /// This socket, if it is ours, without a monitor.
    pub(crate) fn new(socket: Option<(PathBuf, SocketFile)>) -> Self {
        Self { socket, monitor: None }
    }

    /// Starts a monitor, where this process is about to become unable to do what it can now: user 0 drops its privileges,
    /// and anybody else can never do more.
    pub(crate) fn start_monitor(&mut self) {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        match Monitor::start(self.socket.as_ref().map(|(path, file)| (path.as_path(), file))) {
            Ok(monitor) => self.monitor = Some(monitor),
            // To serve is worth more than what it is for.
            Err(error) => {
                let socket = self.socket.as_ref().map(|(path, _)| format!(", and {} may stay behind", path.display()));
                tracing::warn!(
                    "the monitor cannot be started (is /proc mounted?), so multipath maps cannot be reserved{}: {}",
                    socket.unwrap_or_default(),
                    reason(error)
                );
            }
        }
    }

    /// The link to the monitor, if there is one.
    pub(crate) fn link(&self) -> Option<Arc<Link>> {
        self.monitor.as_ref().map(|monitor| Arc::clone(&monitor.link))
    }

    /// Removes the socket's file, if it is ours and still there.
    pub(crate) fn remove_socket(&mut self) {
        let Some((path, file)) = self.socket.take() else { return };
        let removed = self.monitor.as_ref().is_some_and(|monitor| monitor.link.remove_socket().is_ok());
        if !removed && let Err(error) = file.remove() {
            tracing::error!("Failed to unlink socket {}: {}", path.display(), reason(error));
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.remove_socket();
    }
}

/// Whether this process was started to be a monitor.
pub(crate) fn is_wanted() -> bool {
    invoked_as() == NAME
}
