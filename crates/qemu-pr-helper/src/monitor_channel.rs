//! The channel from the helper to its monitor: a SOCK_SEQPACKET socket over which the helper sends requests.
//!
//! Each message is a type byte, data, and at most one descriptor.
//!
//! ```text
//! helper                                                    monitor
//!    ── 'D', descriptor of the directory ──▶                 at the start, for each socket: its file to remove at the end
//!    ── 'S', name, descriptor of the file ──▶
//!    ── 'N' ──▶                                              once, after them: there are no more
//!    ── 'R' ──▶                                              remove the files
//!    ◀── errno, or 0 ──                                      on the channel
//!    ── 'L', descriptor of a pipe ──▶                        start a worker: its standard error
//!    ── 'W', a [`WorkerTask`], descriptor of a socket ──▶    its standard input
//!    ◀── errno, BUSY, TOO_MANY, or 0 ──                      on that socket, before the worker has it
//! ```
//!
//! Numbers are 4 bytes in native order. The answer about a worker comes on the worker's own socket, so answers cannot be
//! taken for those of another worker.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{RecvFlags, SendFlags, Shutdown};
use rustix::pipe::{PipeFlags, pipe_with};
use scsi_pr_helper::descriptor::{self, IoMode};

pub(crate) const DIRECTORY: u8 = b'D';
pub(crate) const SOCKET: u8 = b'S';
pub(crate) const NO_MORE_SOCKETS: u8 = b'N';
pub(crate) const REMOVE: u8 = b'R';
pub(crate) const LOG: u8 = b'L';
pub(crate) const WORKER: u8 = b'W';

/// Longer than any message: a file name has 255 bytes at most, a DM UUID 128.
pub(crate) const ROOM: usize = 320;

/// In place of an errno: a worker for this device runs already.
pub(crate) const BUSY: i32 = -1;
/// In place of an errno: the limit on workers is reached.
pub(crate) const TOO_MANY: i32 = -2;

/// The time that the monitor has to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The manager of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WorkerKind {
    /// `Multipath`.
    Multipath,
    /// `BlockIoctl`.
    Block,
    /// `Nvme`.
    Nvme,
}

impl WorkerKind {
    /// Every kind, in the order of its number.
    pub(crate) const ALL: [Self; 3] = [Self::Multipath, Self::Block, Self::Nvme];

    /// The first argument of a worker of this kind.
    pub(crate) const fn argument(self) -> &'static str {
        match self {
            Self::Multipath => "multipath",
            Self::Block => "block",
            Self::Nvme => "nvme",
        }
    }

    /// The kind whose argument this is.
    pub(crate) fn from_argument(argument: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.argument() == argument)
    }
}

/// The command line of a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WorkerTask {
    pub(crate) kind: WorkerKind,
    /// The device number, `252:0`. The monitor only compares it.
    pub(crate) device: String,
    /// The DM UUID of a multipath map that is to be recovered if the worker dies. Empty for other devices, and for a map
    /// that another process has suspended: it must not be resumed.
    pub(crate) uuid: String,
}

impl WorkerTask {
    fn encode(&self) -> Vec<u8> {
        format!("{}{} {} {}", char::from(WORKER), self.kind.argument(), self.device, self.uuid).into_bytes()
    }

    /// Reads the data of a message, after its type byte.
    pub(crate) fn decode(data: &[u8]) -> Option<Self> {
        let mut arguments = std::str::from_utf8(data).ok()?.splitn(3, ' ');
        let (kind, device, uuid) = (arguments.next()?, arguments.next()?, arguments.next()?);
        Some(Self { kind: WorkerKind::from_argument(kind)?, device: device.to_owned(), uuid: uuid.to_owned() })
    }
}

/// The helper's end of the channel.
pub(crate) struct MonitorChannel {
    socket: OwnedFd,
    /// Held while the two messages for a worker are sent.
    sending: Mutex<()>,
}

/// The monitor has started no worker, so no command has been run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// The monitor has ended.
    #[error("the monitor, which starts workers, has ended: start the helper again")]
    MonitorEnded,
    /// A worker for the device runs.
    #[error("the worker of an earlier command on the device still runs")]
    Busy,
    /// The limit on workers is reached.
    #[error("64 workers are already running (the limit); check for hung devices")]
    TooMany,
    /// The monitor or the kernel has refused it for now.
    #[error("{0}")]
    Failed(io::Error),
}

impl From<io::Error> for StartError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::BrokenPipe
            | ErrorKind::ConnectionReset
            | ErrorKind::NotConnected
            | ErrorKind::ConnectionRefused => Self::MonitorEnded,
            _ => Self::Failed(error),
        }
    }
}

/// A worker that the monitor starts. Where that fails, the stream ends at once, and the log has the reason.
pub(crate) struct StartedWorker {
    /// Takes the command.
    pub(crate) stream: UnixStream,
    /// A non-blocking pipe with the worker's log. It ends when the worker has ended.
    pub(crate) log: OwnedFd,
}

impl MonitorChannel {
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Self> {
        set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_TIMEOUT))?;
        Ok(Self { socket, sending: Mutex::new(()) })
    }

    /// Whether the monitor runs.
    pub(crate) fn is_alive(&self) -> bool {
        let mut polled = [PollFd::new(&self.socket, PollFlags::RDHUP)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::io::retry_on_intr(|| poll(&mut polled, Some(&now))).is_ok() && polled[0].revents().is_empty()
    }

    /// Closes the channel, which ends the monitor.
    pub(crate) fn close(&self) {
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
    }

    /// Asks the monitor to remove the files of the sockets.
    ///
    /// # Errors
    ///
    /// The monitor cannot remove one of them, or does not answer.
    pub(crate) fn remove_sockets(&self) -> io::Result<()> {
        rustix::net::send(&self.socket, &[REMOVE], SendFlags::NOSIGNAL)?;
        match answer(&self.socket)? {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    /// Asks the monitor to start a worker.
    ///
    /// # Errors
    ///
    /// [`StartError`]
    pub(crate) fn start(&self, task: &WorkerTask) -> Result<StartedWorker, StartError> {
        let (stream, theirs) = UnixStream::pair()?;
        set_socket_timeout(&stream, Timeout::Recv, Some(ANSWER_TIMEOUT)).map_err(io::Error::from)?;
        // A worker does not wait for the reader of its log.
        let (log, lines) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).map_err(io::Error::from)?;
        {
            let _sending = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
            descriptor::send(&self.socket, &[LOG], lines.as_fd(), IoMode::Nonblocking)?;
            descriptor::send(&self.socket, &task.encode(), theirs.as_fd(), IoMode::Nonblocking)?;
        }
        drop((theirs, lines));
        match answer(&stream) {
            Ok(0) => Ok(StartedWorker { stream, log }),
            Ok(BUSY) => Err(StartError::Busy),
            Ok(TOO_MANY) => Err(StartError::TooMany),
            Ok(errno) => Err(StartError::Failed(io::Error::from_raw_os_error(errno))),
            Err(_) if !self.is_alive() => Err(StartError::MonitorEnded),
            Err(error) => Err(StartError::Failed(error)),
        }
    }
}

/// The number with which the monitor answers.
fn answer(socket: impl AsFd) -> io::Result<i32> {
    let mut answer = [0; 4];
    match rustix::io::retry_on_intr(|| rustix::net::recv(&socket, &mut answer, RecvFlags::WAITALL))? {
        (4, _) => Ok(i32::from_ne_bytes(answer)),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use scsi_pr_helper::descriptor::Passed;

    proptest! {
        #[test]
        fn encoded_task_is_decoded(kind in prop::sample::select(&WorkerKind::ALL[..]), uuid in "[ -~]{0,128}") {
            let task = WorkerTask { kind, device: "4294967295:4294967295".to_owned(), uuid };
            let bytes = task.encode();
            prop_assert!(bytes.len() < ROOM && bytes[0] == WORKER);
            prop_assert_eq!(WorkerTask::decode(&bytes[1..]), Some(task));
        }

        #[test]
        fn any_bytes_are_a_task_or_none(data in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Some(task) = WorkerTask::decode(&data) {
                prop_assert_eq!(&task.encode()[1..], &data);
            }
        }
    }

    fn channel() -> (MonitorChannel, OwnedFd) {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        (MonitorChannel::new(ours).unwrap(), theirs)
    }

    fn task() -> WorkerTask {
        WorkerTask { kind: WorkerKind::Block, device: "7:0".to_owned(), uuid: String::new() }
    }

    /// The next message: its bytes and its descriptor.
    fn message(monitor: &OwnedFd) -> (Vec<u8>, OwnedFd) {
        let mut room = [0; ROOM];
        match descriptor::receive(monitor, &mut room, IoMode::Blocking).unwrap() {
            (length, Passed::One(descriptor)) => (room[..length].to_vec(), descriptor),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn answers_in_any_order_reach_their_worker() {
        let (channel, monitor) = channel();
        std::thread::scope(|scope| {
            let asked: Vec<_> = (0..8).map(|_| scope.spawn(|| channel.start(&task()))).collect();
            let mut waiting: Vec<_> = (0..8)
                .map(|_| {
                    let (log, _) = message(&monitor);
                    let (worker, socket) = message(&monitor);
                    assert_eq!((log, worker), (vec![LOG], task().encode()));
                    socket
                })
                .collect();
            for (socket, number) in waiting.drain(..).rev().zip([0, BUSY, TOO_MANY, 11, 0, 0, BUSY, 11]) {
                rustix::net::send(&socket, &number.to_ne_bytes(), SendFlags::empty()).unwrap();
            }
            let mut got = [0; 4];
            for asked in asked {
                got[match asked.join().unwrap() {
                    Ok(_) => 0,
                    Err(StartError::Busy) => 1,
                    Err(StartError::TooMany) => 2,
                    Err(StartError::Failed(error)) if error.raw_os_error() == Some(11) => 3,
                    Err(other) => panic!("{other}"),
                }] += 1;
            }
            assert_eq!(got, [3, 2, 1, 2]);
        });
    }

    #[test]
    fn ended_monitor_differs_from_one_that_drops_a_message() {
        let (dropping, monitor) = channel();
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| dropping.start(&task()));
            drop((message(&monitor), message(&monitor)));
            assert!(matches!(asked.join().unwrap(), Err(StartError::Failed(_))));
            assert!(dropping.is_alive());
            // It ends with both messages unread.
            let asked = scope.spawn(|| dropping.start(&task()));
            std::thread::sleep(Duration::from_millis(20));
            drop(monitor);
            assert!(matches!(asked.join().unwrap(), Err(StartError::MonitorEnded)));
        });
        assert!(!dropping.is_alive());
        assert!(matches!(dropping.start(&task()), Err(StartError::MonitorEnded)));
    }

    #[test]
    fn monitor_that_reads_nothing_delays_no_command() {
        let (channel, _monitor) = channel();
        // Without a reader, the socket becomes full.
        let full = (0..100_000).find_map(|_| {
            descriptor::send(&channel.socket, &[LOG], std::io::stderr().as_fd(), IoMode::Nonblocking).err()
        });
        assert!(full.is_some());
        assert!(matches!(channel.start(&task()), Err(StartError::Failed(_))));
    }
}
