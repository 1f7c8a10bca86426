//! The link between the helper and its monitor: a SOCK_SEQPACKET socket over which the helper gives orders.
//!
//! Each message is a byte that says what it is, data, and at most one descriptor.
//!
//! ```text
//! helper                                                    monitor
//!    ── 'D', descriptor of its directory ──▶                 before anything else, once: the socket to watch over;
//!    ── 'S', name, descriptor of the file ──▶                or 'N', if there is none
//!    ── 'R' ──▶                                              remove it
//!    ◀── errno, or 0 ──                                      on the link
//!    ── 'L', descriptor for the lines of a worker's log ──▶  start a worker; its standard error
//!    ── 'W', a [`Task`], descriptor of its end ──▶           its standard input
//!    ◀── errno, BUSY, TOO_MANY, or 0 ──                      on the worker's end, before the worker has it
//! ```
//!
//! Numbers are 4 bytes in native order. What becomes of a worker is told on its own socket, so that answers never get
//! mixed up, whoever waits for them and for how long.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{RecvFlags, SendFlags, Shutdown};
use rustix::pipe::{PipeFlags, pipe_with};
use scsi_pr_helper::descriptor;

pub(crate) const DIRECTORY: u8 = b'D';
pub(crate) const SOCKET: u8 = b'S';
pub(crate) const NO_SOCKET: u8 = b'N';
pub(crate) const REMOVE: u8 = b'R';
pub(crate) const LOG: u8 = b'L';
pub(crate) const WORKER: u8 = b'W';

/// Longer than any message: a file name has 255 bytes at most, a DM UUID 128.
pub(crate) const ROOM: usize = 320;

/// In place of an errno: a worker for this device runs already.
pub(crate) const BUSY: i32 = -1;
/// In place of an errno: as many workers run as there may be.
pub(crate) const TOO_MANY: i32 = -2;

/// How long the helper waits for the monitor's answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Which manager a worker has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Duty {
    /// `Multipath`.
    Multipath,
    /// `BlockIoctl`.
    Block,
    /// `Nvme`.
    Nvme,
}

impl Duty {
    const ALL: [Self; 3] = [Self::Multipath, Self::Block, Self::Nvme];

    /// How it is written.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Multipath => "multipath",
            Self::Block => "block",
            Self::Nvme => "nvme",
        }
    }

    /// The duty that is written so.
    pub(crate) fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|duty| duty.word() == word)
    }
}

/// What a worker is started for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Task {
    pub(crate) duty: Duty,
    /// The device number, `252:0`. The monitor only compares it.
    pub(crate) device: String,
    /// The DM UUID of a multipath map, by which it is known again when it is to be recovered; empty for what is none, and for
    /// one that is suspended already: it must not be resumed.
    pub(crate) uuid: String,
}

impl Task {
    fn encode(&self) -> Vec<u8> {
        format!("{}{} {} {}", char::from(WORKER), self.duty.word(), self.device, self.uuid).into_bytes()
    }

    /// Reads what follows the first byte.
    pub(crate) fn decode(data: &[u8]) -> Option<Self> {
        let mut words = std::str::from_utf8(data).ok()?.splitn(3, ' ');
        let (duty, device, uuid) = (words.next()?, words.next()?, words.next()?);
        Some(Self { duty: Duty::from_word(duty)?, device: device.to_owned(), uuid: uuid.to_owned() })
    }
}

/// The helper's end.
pub(crate) struct Link {
    socket: OwnedFd,
    /// Held while messages are sent that belong together.
    together: Mutex<()>,
}

/// Why there is no worker. No command has been handed over.
#[derive(Debug)]
pub(crate) enum NotStarted {
    /// The monitor has ended.
    Gone,
    /// A worker for the device runs.
    Busy,
    /// As many workers run as there may be.
    TooMany,
    /// It failed, now.
    Failed(io::Error),
}

impl fmt::Display for NotStarted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => f.write_str("the monitor, which would start it, has ended: start the helper anew"),
            Self::Busy => f.write_str("the worker of an earlier command on the device still runs"),
            Self::TooMany => f.write_str("as many run as there may be: look at the devices that hang"),
            Self::Failed(error) => error.fmt(f),
        }
    }
}

impl From<Errno> for NotStarted {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN | Errno::CONNREFUSED => Self::Gone,
            errno => Self::Failed(errno.into()),
        }
    }
}

/// A worker that is being started: a stream that ends at once says that it could not be, and its log says why.
pub(crate) struct Started {
    /// On which it takes a command.
    pub(crate) stream: UnixStream,
    /// What it writes to its log; does not block. It ends when the worker has.
    pub(crate) log: OwnedFd,
}

impl Link {
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Self> {
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
        Ok(Self { socket, together: Mutex::new(()) })
    }

    /// Whether the monitor is there.
    pub(crate) fn is_alive(&self) -> bool {
        let mut polled = [PollFd::new(&self.socket, PollFlags::RDHUP)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::io::retry_on_intr(|| poll(&mut polled, Some(&now))).is_ok() && polled[0].revents().is_empty()
    }

    /// Ends it, and the monitor with it.
    pub(crate) fn close(&self) {
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
    }

    /// Has the socket removed.
    ///
    /// # Errors
    ///
    /// The monitor's, or that it does not answer.
    pub(crate) fn remove_socket(&self) -> io::Result<()> {
        rustix::net::send(&self.socket, &[REMOVE], SendFlags::NOSIGNAL)?;
        match answer(&self.socket)? {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    /// Has a worker started.
    pub(crate) fn start(&self, task: &Task) -> Result<Started, NotStarted> {
        let (stream, theirs) = UnixStream::pair().map_err(NotStarted::Failed)?;
        set_socket_timeout(&stream, Timeout::Recv, Some(PATIENCE))?;
        // Writing must not block either: a worker waits for nobody who reads what it logs.
        let (log, lines) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        {
            let _together = self.together.lock().unwrap_or_else(PoisonError::into_inner);
            descriptor::send(&self.socket, &[LOG], lines.as_fd(), SendFlags::DONTWAIT)?;
            descriptor::send(&self.socket, &task.encode(), theirs.as_fd(), SendFlags::DONTWAIT)?;
        }
        drop((theirs, lines));
        match answer(&stream) {
            Ok(0) => Ok(Started { stream, log }),
            Ok(BUSY) => Err(NotStarted::Busy),
            Ok(TOO_MANY) => Err(NotStarted::TooMany),
            Ok(errno) => Err(NotStarted::Failed(io::Error::from_raw_os_error(errno))),
            Err(_) if !self.is_alive() => Err(NotStarted::Gone),
            Err(error) => Err(NotStarted::Failed(error)),
        }
    }
}

/// A number that the monitor answers with.
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
        fn a_task_survives_the_link(duty in prop::sample::select(&Duty::ALL[..]), uuid in "[ -~]{0,128}") {
            let task = Task { duty, device: "4294967295:4294967295".to_owned(), uuid };
            let bytes = task.encode();
            prop_assert!(bytes.len() < ROOM && bytes[0] == WORKER);
            prop_assert_eq!(Task::decode(&bytes[1..]), Some(task));
        }

        #[test]
        fn whatever_comes_is_a_task_or_none(data in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Some(task) = Task::decode(&data) {
                prop_assert_eq!(&task.encode()[1..], &data);
            }
        }
    }

    fn link() -> (Link, OwnedFd) {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        (Link::new(ours).unwrap(), theirs)
    }

    fn task() -> Task {
        Task { duty: Duty::Block, device: "7:0".to_owned(), uuid: String::new() }
    }

    /// The next message: its bytes and its descriptor.
    fn message(monitor: &OwnedFd) -> (Vec<u8>, OwnedFd) {
        let mut room = [0; ROOM];
        match descriptor::receive(monitor, &mut room, RecvFlags::empty()).unwrap() {
            (length, Passed::One(descriptor)) => (room[..length].to_vec(), descriptor),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn whatever_order_the_monitor_answers_in_each_gets_its_own() {
        let (link, monitor) = link();
        std::thread::scope(|scope| {
            let asked: Vec<_> = (0..8).map(|_| scope.spawn(|| link.start(&task()))).collect();
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
                    Err(NotStarted::Busy) => 1,
                    Err(NotStarted::TooMany) => 2,
                    Err(NotStarted::Failed(error)) if error.raw_os_error() == Some(11) => 3,
                    Err(other) => panic!("{other}"),
                }] += 1;
            }
            assert_eq!(got, [3, 2, 1, 2]);
        });
    }

    #[test]
    fn a_monitor_that_is_gone_is_told_from_one_that_drops_a_message() {
        let (dropping, monitor) = link();
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| dropping.start(&task()));
            drop((message(&monitor), message(&monitor)));
            assert!(matches!(asked.join().unwrap(), Err(NotStarted::Failed(_))));
            assert!(dropping.is_alive());
            // It ends with both messages unread.
            let asked = scope.spawn(|| dropping.start(&task()));
            std::thread::sleep(Duration::from_millis(20));
            drop(monitor);
            assert!(matches!(asked.join().unwrap(), Err(NotStarted::Gone)));
        });
        assert!(!dropping.is_alive());
        assert!(matches!(dropping.start(&task()), Err(NotStarted::Gone)));
    }

    #[test]
    fn a_monitor_that_takes_nothing_keeps_nobody_waiting() {
        let (link, _monitor) = link();
        // Nobody reads, so that the socket is full at some time.
        let full = (0..100_000)
            .find_map(|_| descriptor::send(&link.socket, &[LOG], std::io::stderr().as_fd(), SendFlags::DONTWAIT).err());
        assert!(full.is_some());
        assert!(matches!(link.start(&task()), Err(NotStarted::Failed(_))));
    }
}
