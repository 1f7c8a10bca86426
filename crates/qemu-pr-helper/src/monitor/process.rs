//! The monitor's own process. It never blocks: it touches no device, and closes no descriptor of one.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::SigSet;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::socket_domain;
use rustix::net::{AddressFamily, SendFlags, Shutdown};
use rustix::pipe::fcntl_getpipe_size;
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, getrlimit, pidfd_open, setrlimit};
use scsi_pr_daemon::privileges::{Capability, Privileges};
use scsi_pr_daemon::socket::SocketFile;
use scsi_pr_helper::descriptor::{self, IoMode, Passed};

use crate::message::{Message, Result, reason};
use crate::monitor_channel::{
    BUSY, DIRECTORY, LOG, NO_MORE_SOCKETS, REMOVE, ROOM, SOCKET, TOO_MANY, WORKER, WorkerTask,
};
use crate::worker;

/// The monitor's capabilities, which its workers inherit. The monitor removes a file from a directory of another user, with
/// the sticky bit too (CAP_DAC_OVERRIDE, CAP_FOWNER). Workers open device files, send SCSI commands (CAP_SYS_RAWIO), and
/// make the ioctls of reservations, NVMe and device mapper (CAP_SYS_ADMIN).
const CAPABILITIES: [Capability; 4] =
    [Capability::DacOverride, Capability::Fowner, Capability::SysRawIo, Capability::SysAdmin];

/// The limit on workers. A device has one at a time, so no map holds more than one of them.
const MAX_WORKERS: usize = 64;

/// Runs the monitor until the helper and the last worker end.
pub(crate) fn run() -> Result<()> {
    // A signal to the process group is for the helper. The monitor has work to do after the helper's end.
    let _ = SigSet::all().thread_block();
    let _ = rustix::thread::set_name(c"qemu-pr-monitor");
    let failed = |error: io::Error| Message::new(format!("cannot be a monitor: {}", reason(error)));
    let helper = io::stdin().as_fd().try_clone_to_owned().map_err(failed)?;
    close_inherited(&helper).map_err(failed)?;
    std::env::set_current_dir("/").map_err(failed)?;
    raise_limit();
    // A container may permit only some of them.
    let permitted = CAPABILITIES.into_iter().filter(|capability| capability.is_permitted().unwrap_or(false));
    Privileges::none().with(permitted).for_executed_programs().keep_only_these().map_err(failed)?;
    let files = receive_socket_files(&helper).map_err(failed)?;
    MonitorProcess { helper: Some(helper), files, log: None, workers: Vec::new() }.run();
    Ok(())
}

/// Raises the limit on open files to the kernel's own, for workers to inherit: libmpathpersist asks for that many, and logs
/// with each command that it may not have them.
fn raise_limit() {
    let most = std::fs::read_to_string("/proc/sys/fs/nr_open").ok().and_then(|most| most.trim().parse().ok());
    let maximum = getrlimit(Resource::Nofile).maximum;
    let raise_to = |most: Option<u64>| setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most });
    // Not every container permits more than its own limit (CAP_SYS_RESOURCE); it goes without.
    if most.is_none() || maximum.is_none_or(|maximum| Some(maximum) >= most) || raise_to(most).is_err() {
        let _ = raise_to(maximum);
    }
}

/// Closes all inherited descriptors but the channel: libvirt and systemd wait for the end of pipes and locks that the
/// helper has inherited.
fn close_inherited(helper: &OwnedFd) -> io::Result<()> {
    // The listing has a descriptor of its own, which is closed before the others are.
    let open: Vec<i32> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|number| *number > 2 && *number != helper.as_raw_fd())
        .collect();
    for number in open {
        let _ = nix::unistd::close(number);
    }
    Ok(())
}

/// Receives the first messages. They are trusted: the helper has sent them before it served a client.
fn receive_socket_files(helper: &OwnedFd) -> io::Result<Vec<SocketFile>> {
    let next = || {
        let mut room = [0; ROOM];
        let (length, passed) = descriptor::receive(helper, &mut room, IoMode::Blocking)?;
        Ok::<_, io::Error>((room[..length].to_vec(), passed))
    };
    let mut files = Vec::new();
    loop {
        let (first, passed) = next()?;
        let directory = match (first.first(), passed) {
            (Some(&NO_MORE_SOCKETS), Passed::None) => return Ok(files),
            (Some(&DIRECTORY), Passed::One(directory)) => directory,
            _ => return Err(io::ErrorKind::InvalidData.into()),
        };
        match next()? {
            (mut name, Passed::One(file)) if name.first() == Some(&SOCKET) => {
                name.remove(0);
                files.push(SocketFile::from_parts(directory, OsString::from_vec(name), file));
            }
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// A process that runs a command, or recovers the map of one that died.
struct Worker {
    task: WorkerTask,
    process: Child,
    /// A pidfd, readable once the process has ended. `None` before Linux 5.3, or when the descriptor table is full.
    end: Option<OwnedFd>,
    /// Its log. The helper takes the end of this pipe for the end of the worker, so it is closed when the device is free.
    log: OwnedFd,
    purpose: Purpose,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Command,
    Recovery,
}

impl Worker {
    /// Starts a worker: for the command that comes over `socket`, or else to recover a map. `None` when it cannot be
    /// started; its log has the reason.
    fn start(task: WorkerTask, log: OwnedFd, socket: Option<OwnedFd>) -> Option<Self> {
        let purpose = if socket.is_some() { Purpose::Command } else { Purpose::Recovery };
        let kind = if purpose == Purpose::Command { task.kind.argument() } else { worker::RECOVER };
        let started = log.try_clone().and_then(|stderr| {
            Command::new("/proc/self/exe")
                .arg0(worker::NAME)
                .args([kind, &task.device, &task.uuid])
                .stdin(socket.map_or(Stdio::null(), Stdio::from))
                .stdout(Stdio::null())
                .stderr(stderr)
                .spawn()
        });
        match started {
            Ok(process) => {
                let end = pidfd_open(Pid::from_child(&process), PidfdFlags::empty()).ok();
                Some(Self { task, process, end, log, purpose })
            }
            Err(error) => {
                write_line(&log, &format!("{} cannot be started: {}", worker::NAME, reason(error)));
                None
            }
        }
    }

    /// This worker while it runs; the one that recovers the map if this one died in a command; else `None`.
    fn reap(mut self) -> Option<Self> {
        let died = match self.process.try_wait() {
            Ok(None) => return Some(self),
            Ok(Some(status)) if status.success() => return None,
            Ok(Some(status)) => status.to_string(),
            Err(error) => format!("its exit status is unknown: {}", reason(error)),
        };
        write_line(&self.log, &format!("the process ended before it was done ({died})"));
        (self.purpose == Purpose::Command && !self.task.uuid.is_empty())
            .then(|| Self::start(self.task, self.log, None))
            .flatten()
    }
}

/// Writes a line to the log of a worker. It is lost if the pipe is full or has no reader.
fn write_line(log: &OwnedFd, line: &str) {
    let _ = rustix::io::write(log, format!("{line}\n").as_bytes());
}

/// Whether this is a pipe, and not a file that root must not write to. No file system is asked.
fn is_pipe(log: &OwnedFd) -> bool {
    fcntl_getpipe_size(log).is_ok()
}

/// Whether this is a Unix socket, as the worker's end is. No file system is asked.
fn is_socket(socket: &OwnedFd) -> bool {
    socket_domain(socket) == Ok(AddressFamily::UNIX)
}

/// The state of the monitor.
struct MonitorProcess {
    /// The channel to the helper, until the helper ends.
    helper: Option<OwnedFd>,
    /// The files of the sockets, to be removed.
    files: Vec<SocketFile>,
    /// The log of the worker that the next message asks for.
    log: Option<OwnedFd>,
    workers: Vec<Worker>,
}

impl MonitorProcess {
    fn run(mut self) {
        while self.helper.is_some() || !self.workers.is_empty() {
            self.wait();
            self.workers = std::mem::take(&mut self.workers).into_iter().filter_map(Worker::reap).collect();
            if let Some(helper) = self.helper.take() {
                match self.receive(&helper) {
                    true => self.helper = Some(helper),
                    false => {
                        // A helper that still runs learns that it has no monitor any more.
                        let _ = rustix::net::shutdown(&helper, Shutdown::Both);
                        let _ = self.remove();
                    }
                }
            }
        }
    }

    /// Waits for a message or the end of a worker.
    fn wait(&self) {
        const SHORT: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        let ends = self.workers.iter().filter_map(|worker| worker.end.as_ref());
        let mut polled: Vec<_> = self.helper.iter().chain(ends).map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        // The end of a worker without a pidfd is polled for.
        let polls = self.workers.iter().any(|worker| worker.end.is_none());
        if let Err(errno) = poll(&mut polled, polls.then_some(&SHORT))
            && errno != Errno::INTR
        {
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    }

    /// Handles a message of the helper, if there is one. Whether the helper is still there.
    fn receive(&mut self, helper: &OwnedFd) -> bool {
        let mut room = [0; ROOM];
        let (length, passed) = match descriptor::receive(helper, &mut room, IoMode::Nonblocking) {
            Ok((0, _)) => return false,
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
            Err(_) => return false,
        };
        match (room[0], passed) {
            (REMOVE, _) => {
                let errno =
                    self.remove().err().map_or(0, |error| error.raw_os_error().unwrap_or(Errno::IO.raw_os_error()));
                let _ = rustix::net::send(helper, &errno.to_ne_bytes(), SendFlags::NOSIGNAL);
            }
            (LOG, Passed::One(log)) if is_pipe(&log) => self.log = Some(log),
            (LOG, Passed::Dropped) => self.log = None,
            (WORKER, Passed::One(socket)) if is_socket(&socket) => self.start(&room[1..length], socket),
            // The helper sees the socket closed.
            (WORKER, Passed::Dropped) => self.log = None,
            // An attacker has taken over the helper. Closing a descriptor of theirs may block for ever.
            (_, passed) => {
                std::mem::forget(passed);
                return false;
            }
        }
        true
    }

    /// Removes the files of the sockets. The first error counts.
    fn remove(&self) -> io::Result<()> {
        let mut result = Ok(());
        for file in &self.files {
            result = result.and(file.remove());
        }
        result
    }

    /// Starts a worker if the limits permit it, and answers on the worker's own socket before the worker has it. If the
    /// start fails after that, the helper sees the socket closed.
    fn start(&mut self, task: &[u8], socket: OwnedFd) {
        let permitted = match (WorkerTask::decode(task), self.log.take()) {
            (None, _) => Err(Errno::INVAL.raw_os_error()),
            (_, None) => Err(Errno::MFILE.raw_os_error()),
            (Some(task), _) if self.workers.iter().any(|worker| worker.task.device == task.device) => Err(BUSY),
            (Some(_), Some(_)) if self.workers.len() >= MAX_WORKERS => Err(TOO_MANY),
            (Some(task), Some(log)) => Ok((task, log)),
        };
        let answer = permitted.as_ref().err().copied().unwrap_or(0);
        let _ = rustix::net::send(&socket, &answer.to_ne_bytes(), SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
        if let Ok((task, log)) = permitted {
            self.workers.extend(Worker::start(task, log, Some(socket)));
        }
    }
}
