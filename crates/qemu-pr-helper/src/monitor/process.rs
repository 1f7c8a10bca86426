//! What the monitor does. It waits for nobody: it touches no device, and closes no descriptor of one.

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
use rustix::net::{AddressFamily, RecvFlags, SendFlags, Shutdown};
use rustix::pipe::fcntl_getpipe_size;
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, getrlimit, pidfd_open, setrlimit};
use rustix::thread::CapabilitySet;
use scsi_pr_daemon::socket::SocketFile;
use scsi_pr_helper::descriptor::{self, Passed};

use crate::link::{BUSY, DIRECTORY, LOG, NO_SOCKET, REMOVE, ROOM, SOCKET, TOO_MANY, Task, WORKER};
use crate::message::{Message, Result, reason};
use crate::privileges;
use crate::worker;

/// What the monitor may do besides being user 0. It removes a file from a directory of another user, with the sticky bit
/// too (CAP_DAC_OVERRIDE, CAP_FOWNER); its workers open device files, send SCSI commands (CAP_SYS_RAWIO), and make the
/// ioctls of reservations, NVMe and device mapper (CAP_SYS_ADMIN).
const PRIVILEGES: CapabilitySet = CapabilitySet::DAC_OVERRIDE
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::SYS_RAWIO)
    .union(CapabilitySet::SYS_ADMIN);

/// How many workers there may be.
const MOST_WORKERS: usize = 64;

/// Is the monitor, until the helper and the last worker end.
#[cold]
#[inline(never)]
pub(crate) fn run() -> Result<()> {
    // A signal to the group or the service is the helper's to act on; the monitor has work to do after it.
    let _ = SigSet::all().thread_block();
    let _ = rustix::thread::set_name(c"qemu-pr-monitor");
    let failed = |error: io::Error| Message::new(format!("cannot be a monitor: {}", reason(error)));
    let helper = io::stdin().as_fd().try_clone_to_owned().map_err(failed)?;
    close_inherited(&helper).map_err(failed)?;
    std::env::set_current_dir("/").map_err(failed)?;
    let held = rustix::thread::capabilities(None).map_err(|error| failed(error.into()))?.permitted;
    raise_limit();
    // A program that user 0 executes has what is in the bounding set.
    privileges::drop_to(PRIVILEGES & held, PRIVILEGES & held, None, None).map_err(failed)?;
    let file = socket_to_keep(&helper).map_err(failed)?;
    Keeping { helper: Some(helper), file, log: None, workers: Vec::new() }.run();
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

/// Closes what this process has been given besides its input: libvirt and systemd wait for the ends of pipes and files
/// that the helper was started with.
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

/// The first messages. Only the helper as it was before it served anybody can have sent them: they are there before the
/// monitor starts.
fn socket_to_keep(helper: &OwnedFd) -> io::Result<Option<SocketFile>> {
    let next = || {
        let mut room = [0; ROOM];
        let (length, passed) = descriptor::receive(helper, &mut room, RecvFlags::empty())?;
        Ok::<_, io::Error>((room[..length].to_vec(), passed))
    };
    let (first, passed) = next()?;
    let directory = match (first.first(), passed) {
        (Some(&NO_SOCKET), Passed::None) => return Ok(None),
        (Some(&DIRECTORY), Passed::One(directory)) => directory,
        _ => return Err(io::ErrorKind::InvalidData.into()),
    };
    match next()? {
        (mut name, Passed::One(file)) if name.first() == Some(&SOCKET) => {
            name.remove(0);
            Ok(Some(SocketFile::from_parts(directory, OsString::from_vec(name), file)))
        }
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// A process that was started for a command, or to recover what such a one left behind.
struct Worker {
    task: Task,
    process: Child,
    /// Readable once it has ended. `None` where the kernel has no such thing (before Linux 5.3), or no room for it.
    end: Option<OwnedFd>,
    /// Its log. The helper takes the end of this for the end of the worker, so it is closed when the device is free.
    log: OwnedFd,
    /// Whether it runs a command.
    runs: bool,
}

impl Worker {
    /// Starts it: for the command that comes by `socket`, or else to recover. `None` when it cannot be started, which its log
    /// is told.
    fn start(task: Task, log: OwnedFd, socket: Option<OwnedFd>) -> Option<Self> {
        let runs = socket.is_some();
        let duty = if runs { task.duty.word() } else { worker::RECOVER };
        // What it inherits of this process besides is nothing but two variables of the environment.
        let started = log.try_clone().and_then(|stderr| {
            Command::new("/proc/self/exe")
                .arg0(worker::NAME)
                .args([duty, &task.device, &task.uuid])
                .stdin(socket.map_or(Stdio::null(), Stdio::from))
                .stdout(Stdio::null())
                .stderr(stderr)
                .spawn()
        });
        match started {
            Ok(process) => {
                let end = pidfd_open(Pid::from_child(&process), PidfdFlags::empty()).ok();
                Some(Self { task, process, end, log, runs })
            }
            Err(error) => {
                say(&log, &format!("{} cannot be started: {}", worker::NAME, reason(error)));
                None
            }
        }
    }

    /// What is left of it: itself while it runs; when it died in a command, the one that recovers the map; else nothing.
    fn remains(mut self) -> Option<Self> {
        let died = match self.process.try_wait() {
            Ok(None) => return Some(self),
            Ok(Some(status)) if status.success() => return None,
            Ok(Some(status)) => status.to_string(),
            Err(error) => format!("nobody knows how: {}", reason(error)),
        };
        say(&self.log, &format!("the process ended before it was done ({died})"));
        (self.runs && !self.task.uuid.is_empty()).then(|| Self::start(self.task, self.log, None)).flatten()
    }
}

/// Writes a line to the log of a worker. If there is no room, or nobody to read it, it is lost.
fn say(log: &OwnedFd, line: &str) {
    let _ = rustix::io::write(log, format!("{line}\n").as_bytes());
}

/// Whether this is a pipe: no file to which root had better not write. Asks nobody but the kernel.
fn is_pipe(log: &OwnedFd) -> bool {
    fcntl_getpipe_size(log).is_ok()
}

/// Whether this is a socket of this machine, as the worker's end is. Asks nobody but the kernel.
fn is_socket(socket: &OwnedFd) -> bool {
    socket_domain(socket) == Ok(AddressFamily::UNIX)
}

/// What the monitor has.
struct Keeping {
    /// The link to the helper, until it ends.
    helper: Option<OwnedFd>,
    /// The socket to remove.
    file: Option<SocketFile>,
    /// The log of the worker that is to be started next.
    log: Option<OwnedFd>,
    workers: Vec<Worker>,
}

impl Keeping {
    fn run(mut self) {
        while self.helper.is_some() || !self.workers.is_empty() {
            self.wait();
            self.workers = std::mem::take(&mut self.workers).into_iter().filter_map(Worker::remains).collect();
            if let Some(helper) = self.helper.take() {
                match self.listen(&helper) {
                    true => self.helper = Some(helper),
                    false => {
                        // It may be there, and is to know.
                        let _ = rustix::net::shutdown(&helper, Shutdown::Both);
                        let _ = self.remove();
                    }
                }
            }
        }
    }

    /// Waits until there is something to do.
    fn wait(&self) {
        const SHORT: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        let ends = self.workers.iter().filter_map(|worker| worker.end.as_ref());
        let mut polled: Vec<_> = self.helper.iter().chain(ends).map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        // A worker without such a descriptor is looked at now and then.
        let blind = self.workers.iter().any(|worker| worker.end.is_none());
        if let Err(errno) = poll(&mut polled, blind.then_some(&SHORT))
            && errno != Errno::INTR
        {
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    }

    /// Does what the helper says, if it says something. Whether the helper is still there.
    fn listen(&mut self, helper: &OwnedFd) -> bool {
        let mut room = [0; ROOM];
        let (length, passed) = match descriptor::receive(helper, &mut room, RecvFlags::DONTWAIT) {
            Ok((0, _)) => return false,
            Ok(received) => received,
            Err(Errno::AGAIN) => return true,
            Err(_) => return false,
        };
        match (room[0], passed) {
            (REMOVE, _) => {
                let errno = self.remove().err().map_or(0, Errno::raw_os_error);
                let _ = rustix::net::send(helper, &errno.to_ne_bytes(), SendFlags::NOSIGNAL);
            }
            (LOG, Passed::One(log)) if is_pipe(&log) => self.log = Some(log),
            (LOG, Passed::Dropped) => self.log = None,
            (WORKER, Passed::One(socket)) if is_socket(&socket) => self.start(&room[1..length], socket),
            // The helper sees its end closed.
            (WORKER, Passed::Dropped) => self.log = None,
            // Nothing else is known, and a helper that says something else is not ours any more. To close what it has passed
            // may take for ever.
            (_, passed) => {
                std::mem::forget(passed);
                return false;
            }
        }
        true
    }

    fn remove(&mut self) -> rustix::io::Result<()> {
        match &self.file {
            Some(file) => file.remove(),
            None => Ok(()),
        }
    }

    /// Starts a worker, if it may be started, which it says on the worker's own socket. It has to be said before the worker
    /// has that. A socket that ends then is one of a worker that could not be started.
    fn start(&mut self, task: &[u8], socket: OwnedFd) {
        let admitted = match (Task::decode(task), self.log.take()) {
            (None, _) => Err(Errno::INVAL.raw_os_error()),
            (_, None) => Err(Errno::MFILE.raw_os_error()),
            (Some(task), _) if self.workers.iter().any(|worker| worker.task.device == task.device) => Err(BUSY),
            (Some(_), Some(_)) if self.workers.len() >= MOST_WORKERS => Err(TOO_MANY),
            (Some(task), Some(log)) => Ok((task, log)),
        };
        let answer = admitted.as_ref().err().copied().unwrap_or(0);
        let _ = rustix::net::send(&socket, &answer.to_ne_bytes(), SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
        if let Ok((task, log)) = admitted {
            self.workers.extend(Worker::start(task, log, Some(socket)));
        }
    }
}
