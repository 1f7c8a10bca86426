//! [`Observed`]: who did what, for the log, tracing and counters.

mod counters;
mod sys;

use std::fmt;
use std::fs;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::FileType;
use scsi_pr::{Command, Completion, Error, Opcode, PrManager};
use tracing::level_filters::LevelFilter;
use tracing::{Level, event};

use crate::device::{Device, Kind};
use crate::throttle::Budget;
pub use counters::{Counters, Counts};

/// For whom commands are run: who connected to the socket (`SO_PEERCRED`, unix(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// Its process; 0 when the process is not to be seen from here.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} of user {}", self.pid, self.uid)
    }
}

/// Tells what the manager inside does, and changes nothing about it.
///
/// Events of [`tracing`], by name. The first two are QEMU's, arguments and text alike, so that what was written to watch
/// QEMU watches a helper too:
///
/// | name | level | when | text |
/// | --- | --- | --- | --- |
/// | `pr_manager_execute` | TRACE | a command came | `fd=7 cmd=0x5f service action=0x01` |
/// | `pr_manager_run` | TRACE | it is handed to the manager inside | the same |
/// | `pr_helper_completed` | TRACE | it was answered | the same, and device, status, duration |
/// | `pr_helper_reserve_out` | INFO | a PERSISTENT RESERVE OUT was answered | what was done to which device by whom |
///
/// The first three are SDT probes as well (`.note.stapsdt`: bpftrace, SystemTap, perf), provider `qemu` as in QEMU's own
/// binaries, with the arguments `fd`, `cmd`, `sa`; that of `pr_helper_completed` has the SCSI status as a fourth, -1 when
/// there was no answer. A probe that nobody listens to is one `nop`.
///
/// The INFO lines are at most 100 in ten seconds, and 1,000 of all that share their counters; the next one says how many
/// were left out. A guest can send thousands of commands a second, connect as often as it likes, and shall not fill the
/// host's log.
#[derive(Debug)]
pub struct Observed<M> {
    inner: M,
    client: Client,
    counters: Arc<Counters>,
    lines: Budget,
}

impl<M> Observed<M> {
    /// Around `inner`, which runs the commands of `client`. `counters` may be shared.
    pub const fn new(inner: M, client: Client, counters: Arc<Counters>) -> Self {
        Self { inner, client, counters, lines: Budget::new(100, Duration::from_secs(10)) }
    }

    /// Says what a PERSISTENT RESERVE OUT did.
    fn log(&self, device: BorrowedFd<'_>, command: Command<'_>, result: &Result<Completion, Error>, took: Took) {
        // Before the line is made, and counted only if there is somebody to read it.
        let Some(left_out) = self.lines.spend() else { return };
        let Some(left_out) = self.counters.lines.spend_for(left_out) else { return };
        event!(
            name: "pr_helper_reserve_out",
            target: TARGET,
            Level::INFO,
            "{command}, on {device} by {client}: {result}{took}{left_out}",
            device = Named(device),
            client = self.client,
            result = Answer(result),
            left_out = LeftOut(left_out),
        );
    }
}

impl<M: PrManager> PrManager for Observed<M> {
    fn execute(&self, device: BorrowedFd<'_>, command: Command<'_>) -> Result<Completion, Error> {
        let opcode = command.opcode();
        let call = Call { fd: device.as_raw_fd(), cmd: opcode.byte(), sa: command.cdb().service_action() };
        let line = opcode == Opcode::ReserveOut && LevelFilter::current() >= LevelFilter::INFO;
        // The clock is read only for those who want to know.
        let started = (line || LevelFilter::current() >= LevelFilter::TRACE).then(Instant::now);

        self.counters.begin(opcode);
        sys::pr_manager_execute(&call);
        event!(name: "pr_manager_execute", target: TARGET, Level::TRACE, fd = call.fd, cmd = call.cmd, sa = call.sa, "{call}");
        sys::pr_manager_run(&call);
        event!(name: "pr_manager_run", target: TARGET, Level::TRACE, fd = call.fd, cmd = call.cmd, sa = call.sa, "{call}");
        let result = self.inner.execute(device, command);

        self.counters.end(&result);
        sys::pr_helper_completed(&call, status(&result));
        let took = Took(started.map(|started| started.elapsed()));
        event!(
            name: "pr_helper_completed",
            target: TARGET,
            Level::TRACE,
            fd = call.fd,
            cmd = call.cmd,
            sa = call.sa,
            status = status(&result),
            microseconds = took.0.map(|took| took.as_micros() as u64),
            "{call} on {device}: {result}{took}",
            device = Named(device),
            result = Answer(&result),
        );
        if line {
            self.log(device, command, &result, took);
        }
        result
    }

    fn is_connected(&self) -> bool {
        self.inner.is_connected()
    }
}

/// The target of every event: the names tell them apart.
const TARGET: &str = "pr_helper";

/// What a command is to QEMU's events.
struct Call {
    fd: i32,
    cmd: u8,
    sa: u8,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "fd={} cmd={:#04x} service action={:#04x}", self.fd, self.cmd, self.sa)
    }
}

/// The SCSI status, -1 when there is no answer.
fn status(result: &Result<Completion, Error>) -> i16 {
    match result {
        Ok(Completion::Good(_)) => 0x00,
        Ok(Completion::CheckCondition(_)) => 0x02,
        Ok(Completion::Status(status)) => i16::from(status.byte()),
        Err(_) => -1,
    }
}

/// The result in words.
struct Answer<'a>(&'a Result<Completion, Error>);

impl fmt::Display for Answer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Ok(completion) => completion.fmt(f),
            Err(error) => write!(f, "no answer ({error})"),
        }
    }
}

/// The device in words; looked up when it is written.
struct Named<'a>(BorrowedFd<'a>);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Device::of(self.0) {
            Ok(device) if *device.kind() == Kind::NotADevice(FileType::RegularFile) => {
                // One file is told from another by its name alone, which the kernel knows without asking the file system. It
                // is quoted because it is a client's text.
                match fs::read_link(format!("/proc/self/fd/{}", self.0.as_raw_fd())) {
                    Ok(path) => write!(f, "the file {path:?}"),
                    Err(_) => device.fmt(f),
                }
            }
            Ok(device) => device.fmt(f),
            Err(error) => write!(f, "a descriptor of which is not known what it is ({error})"),
        }
    }
}

/// How long it took, if that was measured.
#[derive(Clone, Copy)]
struct Took(Option<Duration>);

impl fmt::Display for Took {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |took| write!(f, ", after {} us", took.as_micros()))
    }
}

/// How many lines were left out before this one.
struct LeftOut(u64);

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            count => write!(f, " ({count} such lines before this one were left out)"),
        }
    }
}

#[cfg(test)]
mod tests;
