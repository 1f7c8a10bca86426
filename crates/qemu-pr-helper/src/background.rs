//! `-d`: the helper in the background, and a launcher in the foreground that waits until it serves.
//!
//! The C helper forks and its parent exits at once, so its caller learns of no later failure. A Rust
//! program does not fork safely, and need not: the launcher starts the same binary again with the same arguments, shares
//! a socket with it as its standard input, and ends when the helper says that it serves, or does not.

use std::env;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::net::{RecvFlags, SendFlags};
use rustix::process::{Pid, Signal, kill_process};
use scsi_pr_daemon::log::Log;
use scsi_pr_daemon::signals;
use scsi_pr_helper::descriptor::{self, IoMode, Passed};

use crate::activation;
use crate::message::{Message, Result, invoked_as, reason};

/// Set for a helper that a launcher started.
const MARK: &str = "QEMU_PR_HELPER_LAUNCHED";

fn failed(error: impl Into<io::Error>) -> Message {
    let error: io::Error = error.into();
    Message::new(format!("Failed to daemonize: {}", reason(error)))
}

/// Starts the helper in the background and waits until it serves. A listening socket that was passed to this process is
/// passed on.
pub(crate) fn launch(listener: Option<OwnedFd>) -> Result<ExitCode> {
    let (helper, theirs) = UnixStream::pair().map_err(failed)?;
    match &listener {
        Some(listener) => descriptor::send(&helper, &[0], listener.as_fd(), IoMode::Blocking).map_err(failed)?,
        None => rustix::net::send(&helper, &[0], SendFlags::NOSIGNAL).map_err(failed)?,
    };
    let mut command = Command::new("/proc/self/exe");
    command.arg0(invoked_as()).args(env::args_os().skip(1)).env(MARK, "1").stdin(OwnedFd::from(theirs));
    for variable in activation::VARIABLES {
        command.env_remove(variable);
    }
    let process = command.spawn().map_err(|error| {
        Message::new(format!("Failed to daemonize: cannot start /proc/self/exe again: {}", reason(error)))
    })?;
    // The command holds the other end.
    drop(command);
    drop(listener);
    wait(&helper, process)
}

/// The exit code of the launcher: success once the helper serves.
fn wait(helper: &UnixStream, mut process: Child) -> Result<ExitCode> {
    let stop = signals::stop()?;
    let mut ready = [PollFd::new(helper, PollFlags::IN), PollFd::new(&stop, PollFlags::IN)];
    rustix::io::retry_on_intr(|| poll(&mut ready, None)).map_err(failed)?;
    if ready[0].revents().is_empty() {
        // Stopped, and the helper with it, however far it is: nothing runs of a start that failed.
        let _ = kill_process(Pid::from_child(&process), Signal::TERM);
        process.wait().map_err(failed)?;
        return Ok(ExitCode::FAILURE);
    }
    let (length, _) = rustix::net::recv(helper, &mut [0; 1], RecvFlags::empty()).map_err(failed)?;
    if length == 1 {
        return Ok(ExitCode::SUCCESS);
    }
    // It has said why, unless it was killed.
    let status = process.wait().map_err(failed)?;
    match status.code() {
        Some(_) => Ok(ExitCode::FAILURE),
        None => Err(Message::new(format!("the helper ended before it was ready: {status}"))),
    }
}

/// Whether a launcher started this process.
pub(crate) fn was_launched() -> bool {
    env::var_os(MARK).is_some()
}

/// The connection to the launcher that started this process.
pub(crate) struct Launcher {
    socket: OwnedFd,
    /// Opened before the sandbox forbids it.
    null: OwnedFd,
}

impl Launcher {
    /// The launcher of this process, and the listening socket that was passed on.
    pub(crate) fn of_this_process() -> Result<(Self, Option<OwnedFd>)> {
        let _ = rustix::thread::set_name(c"qemu-pr-helper");
        let socket = io::stdin().as_fd().try_clone_to_owned().map_err(failed)?;
        let (_, passed) = descriptor::receive(&socket, &mut [0; 1], IoMode::Blocking).map_err(failed)?;
        let listener = match passed {
            Passed::One(listener) => Some(listener),
            _ => None,
        };
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
        Ok((Self { socket, null }, listener))
    }

    /// Leaves the session and the working directory of the launcher.
    pub(crate) fn leave(&self) -> Result<()> {
        nix::unistd::setsid().map_err(failed)?;
        env::set_current_dir("/").map_err(failed)
    }

    /// Tells the launcher that the helper serves, and gives up the standard streams: `log` uses the journal from here on.
    ///
    /// # Errors
    ///
    /// The launcher has ended: its user cancelled the start.
    pub(crate) fn ready(self, log: &Log) -> Result<()> {
        let Self { socket, null } = self;
        let _ = io::stdout().flush();
        rustix::stdio::dup2_stdin(&null).map_err(failed)?;
        rustix::net::send(&socket, &[1], SendFlags::NOSIGNAL)
            .map_err(|_| Message::new("stopped: the start was cancelled"))?;
        log.leave_stderr();
        rustix::stdio::dup2_stdout(&null).and_then(|()| rustix::stdio::dup2_stderr(&null)).map_err(failed)
    }
}
