//! [`Observed`]: log lines, trace events and counters of commands.

mod client;
mod counters;
mod metrics;
mod sys;

use std::fmt;
use std::fs;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use scsi_pr::{Command, Completion, Error, Opcode, PrManager, ReserveOut, ReserveOutAction, SenseCode};
use scsi_pr_daemon::log::cut;
use tracing::level_filters::LevelFilter;
use tracing::{Level, event};

use crate::device::{Access, BlockDevice, Device, DeviceClass, FileType, Number};
pub use client::{Client, RefusalReason};
pub use counters::{Counters, Counts};
pub use metrics::{CommandCount, CommandMetrics, Latency};

/// Logs, traces and counts the commands of one client, and changes nothing about them.
///
/// Events of [`tracing`], by name. The first two are QEMU's, arguments and text alike, so that what was written to watch
/// QEMU watches a helper too:
///
/// | name | level | when | text |
/// | --- | --- | --- | --- |
/// | `pr_manager_execute` | TRACE | a command came | `fd=7 cmd=0x5f service action=0x01` |
/// | `pr_manager_run` | TRACE | it is handed to the manager inside | the same |
/// | `pr_helper_completed` | TRACE | it was answered | the same, and device, status, duration |
/// | `pr_helper_reserve_out` | INFO | a PERSISTENT RESERVE OUT was answered | command, device, client, outcome |
///
/// The first three are SDT probes as well (`.note.stapsdt`: bpftrace, SystemTap, perf), provider `qemu` as in QEMU's own
/// binaries, with the arguments `fd`, `cmd`, `sa`; that of `pr_helper_completed` has the SCSI status as a fourth, -1 when
/// there was no answer. A probe without a listener is one `nop`.
///
/// A guest can send thousands of commands a second. So the INFO lines of a process are limited to 100 in ten seconds, and
/// to another 100 of commands that were GOOD; the next line gives the number that were suppressed. All managers that share
/// their [`Counters`] share the limits.
///
/// A refused PERSISTENT RESERVE OUT has a line at WARN too, by [`Refusals`](super::Refusals). Where the manager inside has
/// logged none, this type says whether the descriptor or the kind of device is the reason.
#[derive(Debug)]
pub struct Observed<M> {
    inner: M,
    client: Client,
    counters: Arc<Counters>,
}

impl<M> Observed<M> {
    /// Around `inner`, which runs the commands of `client`. `counters` may be shared.
    pub const fn new(inner: M, client: Client, counters: Arc<Counters>) -> Self {
        Self { inner, client, counters }
    }

    /// Logs a PERSISTENT RESERVE OUT and its outcome.
    fn log(&self, device: BorrowedFd<'_>, command: Command<'_>, result: &Result<Completion, Error>, took: Elapsed) {
        let is_good = matches!(result, Ok(Completion::Good(_)));
        let Some(suppressed) = self.counters.lines.check(self.client.pid, is_good) else { return };
        let device = Described(device).to_string();
        let service_action = command.cdb().service_action();
        let action = ReserveOutAction::from_code(service_action).map(|action| action.to_string());
        let keys = ReserveOut::keys(command);
        event!(
            name: "pr_helper_reserve_out",
            target: TARGET,
            Level::INFO,
            pid = self.client.pid,
            uid = self.client.uid,
            virtual_machine = self.client.virtual_machine(),
            device,
            service_action = action.unwrap_or_else(|| format!("{service_action:02x}h")),
            key = keys.map(|(key, _)| tracing::field::display(key)),
            service_action_key = keys.map(|(_, key)| tracing::field::display(key)),
            outcome = %Answer(result),
            microseconds = took.microseconds(),
            suppressed = suppressed.0,
            "{command}, on {device} by {client}: {result}{took}{suppressed}",
            client = self.client,
            result = Answer(result),
        );
    }

    /// Logs why a PERSISTENT RESERVE OUT was refused, where the descriptor or the kind of device is the reason.
    fn log_refusal(&self, descriptor: BorrowedFd<'_>, command: Command<'_>, completion: &Completion) {
        let Some(refusal) = Refusal::of(descriptor, completion) else { return };
        let Refusal { number, reason, why, remedy } = refusal;
        self.counters.refusals.log(number, reason, || (command, Described(descriptor), why, remedy));
    }
}

impl<M: PrManager> PrManager for Observed<M> {
    fn execute(&self, device: BorrowedFd<'_>, command: Command<'_>) -> Result<Completion, Error> {
        let opcode = command.opcode();
        let call = Call { fd: device.as_raw_fd(), cmd: opcode.byte(), sa: command.cdb().service_action() };
        let line = opcode == Opcode::ReserveOut && LevelFilter::current() >= LevelFilter::INFO;
        let metrics = self.counters.metrics.as_ref();
        // The clock is read only for those who want to know.
        let started = (line || metrics.is_some() || LevelFilter::current() >= LevelFilter::TRACE).then(Instant::now);

        self.counters.begin(opcode);
        sys::pr_manager_execute(&call);
        event!(name: "pr_manager_execute", target: TARGET, Level::TRACE, fd = call.fd, cmd = call.cmd, sa = call.sa, "{call}");
        sys::pr_manager_run(&call);
        event!(name: "pr_manager_run", target: TARGET, Level::TRACE, fd = call.fd, cmd = call.cmd, sa = call.sa, "{call}");
        let (result, took, running) = self.client.run(|| {
            let result = self.inner.execute(device, command);
            let took = started.map(|started| started.elapsed());
            let is_logged = Client::running().is_some_and(|running| running.refusal.is_some());
            if let (Opcode::ReserveOut, Ok(completion), false) = (opcode, &result, is_logged) {
                self.log_refusal(device, command, completion);
            }
            (result, took, Client::running())
        });

        self.counters.end(&result);
        if let (Some(metrics), Some(took), Some(running)) = (metrics, took, running) {
            metrics.end(command, &result, running.target, running.refusal, took);
        }
        sys::pr_helper_completed(&call, status(&result));
        let took = Elapsed(took);
        event!(
            name: "pr_helper_completed",
            target: TARGET,
            Level::TRACE,
            fd = call.fd,
            cmd = call.cmd,
            sa = call.sa,
            status = status(&result),
            microseconds = took.microseconds(),
            "{call} on {device}: {result}{took}",
            device = Described(device),
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

/// Why a command was refused on its descriptor.
struct Refusal {
    /// The device number of a block device.
    number: Option<Number>,
    reason: RefusalReason,
    why: &'static str,
    remedy: &'static str,
}

impl Refusal {
    /// The refusal that `completion` is, unless a logical unit may have given that answer.
    fn of(descriptor: BorrowedFd<'_>, completion: &Completion) -> Option<Self> {
        const OTHER_DISK: &str =
            "give the virtual machine a disk that has reservations, or share the disk by `scsi-pr serve`";
        let invalid_opcode = *completion == Completion::check(SenseCode::INVALID_OPCODE);
        if !invalid_opcode && *completion != Completion::check(SenseCode::IO_PROCESS_TERMINATED) {
            return None;
        }
        let is_read_only = invalid_opcode && Access::of(descriptor).ok()? == Access::ReadOnly;
        let device = Device::of(descriptor).ok()?;
        let (why, remedy) = match device.class() {
            _ if is_read_only => (
                "the descriptor is not open for writing",
                "let the virtual machine write to the disk (in libvirt, remove <readonly/>)",
            ),
            DeviceClass::OtherBlock if invalid_opcode => ("its driver has no persistent reservations", OTHER_DISK),
            DeviceClass::OtherCharacter | DeviceClass::NotADevice(_) => ("it is not a disk", OTHER_DISK),
            _ => return None,
        };
        let number = BlockDevice::of(descriptor).ok()?.map(|device| device.number());
        let reason = if is_read_only { RefusalReason::ReadOnly } else { RefusalReason::Device };
        Some(Self { number, reason, why, remedy })
    }
}

/// The arguments of QEMU's events about a command.
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
pub(super) struct Described<'a>(pub(super) BorrowedFd<'a>);

impl fmt::Display for Described<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// The most bytes of a path: a path may have 4,096.
        const MAX_PATH: usize = 256;
        match Device::of(self.0) {
            Ok(device) if *device.class() == DeviceClass::NotADevice(FileType::RegularFile) => {
                // The kernel knows a file's path without asking the file system. It is quoted: the client chose it.
                match fs::read_link(format!("/proc/self/fd/{}", self.0.as_raw_fd())) {
                    Ok(path) => write!(f, "the file {:?}", cut(&path.to_string_lossy(), MAX_PATH)),
                    Err(_) => device.fmt(f),
                }
            }
            Ok(device) => device.fmt(f),
            Err(error) => write!(f, "an unknown device ({error})"),
        }
    }
}

/// The duration, if it was measured.
#[derive(Clone, Copy)]
struct Elapsed(Option<Duration>);

impl Elapsed {
    fn microseconds(self) -> Option<u64> {
        self.0.map(|took| u64::try_from(took.as_micros()).unwrap_or(u64::MAX))
    }
}

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |took| write!(f, ", after {} us", took.as_micros()))
    }
}

#[cfg(test)]
mod tests;
