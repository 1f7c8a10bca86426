//! The helper's end: serves any [`PrManager`] over a listening Unix socket.
//!
//! The protocol allows one command in flight on a connection, commands block (for minutes, on a dying array), and
//! nearly all connections are silent nearly always. So:
//!
//! * A silent connection is parked on epoll and costs no thread. The epoll thread is the caller of [`serve`]; it never
//!   touches what a client sent, not even to close it, because a client's file can make any call on it hang.
//! * A connection that becomes readable gets a thread of its own, which reads, runs, answers, and parks it. One that is
//!   busy, with a command soon after the last, is parked only when nothing has come for a moment: the thread *lingers*,
//!   and the connection runs at the speed of a bare loop.
//! * No pool whose exhaustion would stop the others: bounds per device and per peer process. What is over them waits,
//!   without a thread, in the order of arrival; then the answer is BUSY.
//! * A connection is closed for violations of the protocol only: libvirt takes a closed connection for a dead helper.

mod attend;
mod books;
mod complaints;
mod connection;
mod one;
mod shared;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::{PeerCredentials, PeerPidfd};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{SendFlags, Shutdown, SocketFlags, accept_with};
use rustix::time::Timespec;
use scsi_pr::{Completion, PrManager, Status};

use books::{Closing, Id};
use connection::{Connection, SEND_PATIENCE};
pub use one::{Served, serve_one};
use shared::{PeerKey, Shared};

use crate::wire::feature_word;

/// One event, then silence until the connection is parked again.
const CONNECTION_EVENTS: EventFlags = EventFlags::IN.union(EventFlags::RDHUP).union(EventFlags::ONESHOT);

/// How long nothing is accepted when the system has no room for another connection.
const BACK_OFF: Duration = Duration::from_millis(100);

/// The process at the other end, as it was when it connected (SO_PEERCRED, unix(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Peer {
    /// Its process id; 0 when it lives in a process namespace that cannot be seen from here.
    pub pid: u32,
    /// Its effective user id.
    pub uid: u32,
    /// Its effective group id.
    pub gid: u32,
}

/// What [`serve`] bounds. A number of zero means one; a time of more than a year means a year.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections; over them nothing is accepted until one is closed.
    pub connections: usize,
    /// Connections that are being served, one thread each: the commands that may hang at a time.
    pub running: usize,
    /// Commands running on one device.
    pub per_device: usize,
    /// One peer process may have one part in this many of `connections` and of `running`.
    pub peer_share: usize,
    /// How long a command over a bound waits before it is answered BUSY.
    pub wait: Duration,
    /// How long a thread waits for the next request of a connection that is busy, and how soon after the last command the
    /// next must come for a connection to be called so; zero: none is.
    pub linger: Duration,
    /// How long a client may take to read an answer.
    pub send_timeout: Duration,
    /// How long a client may take from the first byte of a request to the last.
    pub half_sent: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 16_384,
            running: 4_096,
            per_device: 64,
            peer_share: 4,
            wait: Duration::from_secs(30),
            linger: Duration::from_millis(10),
            send_timeout: Duration::from_secs(30),
            half_sent: Duration::from_secs(300),
        }
    }
}

/// What still runs after [`serve`] has returned.
#[must_use = "commands may still be running"]
pub struct Draining {
    shared: Arc<Shared>,
}

impl Draining {
    /// How many commands were begun and not answered.
    pub fn running(&self) -> usize {
        self.shared.running()
    }

    /// Returns when the last running command was answered and its connection closed; for a command that hangs, never.
    pub fn wait(self) {
        self.shared.wait_until_drained();
    }
}

impl fmt::Debug for Draining {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Draining").field("running", &self.running()).finish()
    }
}

/// Serves until `stop` is readable. Then the listener is closed, and with it every connection that no thread attends: a
/// command that was read and waits for its turn is answered BUSY, one that was not read is not answered. What still runs
/// is in [`Draining`].
///
/// `manager_for` is asked once for each connection, on the calling thread: it must be quick.
///
/// # Errors
///
/// Those of epoll_create1(2), eventfd(2) and of adding the listener and `stop` to it. Nothing has been accepted then.
pub fn serve(
    listener: OwnedFd,
    manager_for: impl Fn(&Peer) -> Arc<dyn PrManager>,
    limits: Limits,
    stop: BorrowedFd<'_>,
) -> io::Result<Draining> {
    serve_all(vec![(listener, manager_for)], limits, stop)
}

/// Serves clients of several sockets, each with its own `manager_for`, as [`serve`] does those of one. The limits are for
/// all of them together, and so are the threads: another socket costs a descriptor.
///
/// # Errors
///
/// Those of [`serve`].
pub fn serve_all<F: Fn(&Peer) -> Arc<dyn PrManager>>(
    sockets: Vec<(OwnedFd, F)>,
    limits: Limits,
    stop: BorrowedFd<'_>,
) -> io::Result<Draining> {
    let shared = Arc::new(Shared::new(limits)?);
    let mut reception = Reception { shared: Arc::clone(&shared), sockets, door: Door::Open, accepted: 0 };
    let result = reception.run(stop);
    close(reception.sockets.into_iter().map(|(listener, _)| listener).collect());
    shared.change(|state| {
        state.stopping = true;
        state.books.close_all(|connection| {
            if connection.pending.is_some() {
                let _ = connection.answer(&Completion::Status(Status::BUSY), 0, Duration::ZERO, || false);
            }
            // At once: the thread that closes it may be held up by the connection before.
            let _ = rustix::net::shutdown(&connection.socket, Shutdown::Both);
        });
    });
    shared.dismiss();
    result.map(|()| Draining { shared })
}

/// Closes the listeners, and with them the connections that nobody has accepted. What was sent on those may take long to
/// be closed, but neither on this thread nor before another listener. Nobody can connect from the moment it begins, and
/// then it is waited for no more.
fn close(listeners: Vec<OwnedFd>) {
    let (end, ended) = mpsc::channel::<()>();
    for listener in listeners {
        let end = end.clone();
        let closing = move || {
            drop(listener);
            drop(end);
        };
        // Where there is no thread to be had the listener goes with the closure, here.
        let _ = thread::Builder::new().name("pr-close".into()).spawn(closing);
    }
    drop(end);
    let _ = ended.recv_timeout(Duration::from_millis(100));
}

/// Whether connections are accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Door {
    Open,
    /// Until a connection is closed.
    Full,
    /// Until then, because accept(2) failed.
    Until(Instant),
}

/// The epoll thread.
struct Reception<F> {
    shared: Arc<Shared>,
    sockets: Vec<(OwnedFd, F)>,
    door: Door,
    accepted: u64,
}

/// What is on epoll besides connections, whose ids are small. The listeners have theirs in their order, from this one on.
const STOP: u64 = u64::MAX;
const WAKE: u64 = u64::MAX - 1;
const LISTENERS: u64 = 1 << 63;

impl<F: Fn(&Peer) -> Arc<dyn PrManager>> Reception<F> {
    fn run(&mut self, stop: BorrowedFd<'_>) -> io::Result<()> {
        for (listener, _) in &self.sockets {
            // Between two looks at a listener another process that has it may accept what was there.
            rustix::io::ioctl_fionbio(listener, true)?;
        }
        self.watch_listeners()?;
        for (source, data) in [(stop, STOP), (self.shared.wake.as_fd(), WAKE)] {
            epoll::add(&self.shared.epoll, source, EventData::new_u64(data), EventFlags::IN)?;
        }
        let mut events = Vec::with_capacity(256);
        let mut readable = Vec::new();
        loop {
            let now = Instant::now();
            self.open_door(now);
            self.shared.complaints().for_each(|complaints| complaints.count(now));
            let closed_until = if let Door::Until(until) = self.door { Some(until) } else { None };
            let until = self.shared.before_sleep(now, closed_until, |state| {
                for id in readable.drain(..) {
                    state.books.readable(id, now);
                }
                state.books.expire(now);
            });
            events.clear();
            let timeout = until.map(|until| timespec(until.saturating_duration_since(now)));
            match epoll::wait(&self.shared.epoll, rustix::buffer::spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            for event in &events {
                match event.data.u64() {
                    STOP => return Ok(()),
                    WAKE => {
                        let _ = rustix::io::read(&self.shared.wake, &mut [0; 8]);
                    }
                    listener @ LISTENERS.. => self.accept((listener - LISTENERS) as usize),
                    id => readable.push(id as Id),
                }
            }
        }
    }

    fn watch_listeners(&self) -> Result<(), Errno> {
        (LISTENERS..).zip(&self.sockets).try_for_each(|(data, (listener, _))| {
            match epoll::add(&self.shared.epoll, listener, EventData::new_u64(data), EventFlags::IN) {
                // One that was watched already when it failed for another.
                Err(Errno::EXIST) => Ok(()),
                result => result,
            }
        })
    }

    /// Accepts what there is on a listener, but not for ever: the others and parked connections have their turn too.
    fn accept(&mut self, index: usize) {
        if self.door != Door::Open {
            // It was closed since this event was read.
            return;
        }
        for _ in 0..64 {
            if self.shared.change(|state| {
                state.full = state.books.is_full();
                state.full
            }) {
                return self.close_door(Door::Full);
            }
            match accept_with(&self.sockets[index].0, SocketFlags::CLOEXEC) {
                Ok(socket) => self.welcome(socket, index),
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(errno) => {
                    let reason = connection::reason(errno);
                    self.shared.say(&self.shared.accepting, || {
                        tracing::event!(
                            name: "pr_helper_accept_failed",
                            tracing::Level::WARN,
                            "Unable to accept a connection, trying again: {reason}"
                        );
                    });
                    return self.close_door(Door::Until(Instant::now() + BACK_OFF));
                }
            }
        }
    }

    fn close_door(&mut self, door: Door) {
        for (listener, _) in &self.sockets {
            // Whether it succeeds makes no difference but that of a vain wake-up.
            let _ = epoll::delete(&self.shared.epoll, listener);
        }
        self.door = door;
    }

    fn open_door(&mut self, now: Instant) {
        let open = match self.door {
            Door::Open => return,
            Door::Full => self.shared.change(|state| {
                state.full = state.books.is_full();
                !state.full
            }),
            Door::Until(until) => until <= now,
        };
        if open {
            self.door = Door::Open;
            if self.watch_listeners().is_err() {
                // Those that are watched already would wake this thread again and again.
                self.close_door(Door::Until(now + BACK_OFF));
            }
        }
    }

    fn welcome(&mut self, socket: OwnedFd, index: usize) {
        self.accepted += 1;
        let (number, limits) = (self.accepted, &self.shared.limits);
        let peer = peer_of(&socket);
        tracing::event!(
            name: "pr_helper_accept",
            tracing::Level::DEBUG,
            connection = number,
            pid = peer.pid,
            uid = peer.uid,
            "accepted"
        );
        for (which, time) in [(Timeout::Send, SEND_PATIENCE.min(limits.send_timeout)), (Timeout::Recv, limits.linger)] {
            // Zero would mean for ever.
            let _ = set_socket_timeout(&socket, which, Some(time.max(Duration::from_millis(1))));
        }
        // A client that is gone already is found out when its connection is read.
        let _ = rustix::net::send(&socket, &feature_word(0), SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        let connection = Box::new(Connection::new(socket, peer, number, (self.sockets[index].1)(&peer)));
        let account = PeerKey { pid: peer.pid, uid: peer.uid, unseen: unseen(&connection.socket, &peer) };
        self.shared.change(|state| match state.books.open(account) {
            Ok(id) => {
                let data = EventData::new_u64(id as u64);
                match epoll::add(&self.shared.epoll, &connection.socket, data, CONNECTION_EVENTS) {
                    Ok(()) => state.books.park(id, connection, None),
                    Err(_) => state.books.dispose(id, connection, Closing::Unwatched),
                }
            }
            Err(id) => {
                // The peer learns it at once, even if no thread is free to close it.
                let _ = rustix::net::shutdown(&connection.socket, Shutdown::Both);
                state.books.dispose(id, connection, Closing::Refused);
            }
        });
    }
}

/// rustix has this too, but its process id cannot be 0, which the kernel says for other process namespaces.
fn peer_of(socket: &OwnedFd) -> Peer {
    getsockopt(socket, PeerCredentials).map_or(Peer { pid: 0, uid: u32::MAX, gid: u32::MAX }, |credentials| Peer {
        pid: credentials.pid().try_into().unwrap_or(0),
        uid: credentials.uid(),
        gid: credentials.gid(),
    })
}

/// What tells processes of other process namespaces apart, which all have the id 0 here: the number of the pidfd's inode
/// (Linux 6.9; on older ones they are as one).
fn unseen(socket: &OwnedFd, peer: &Peer) -> u64 {
    let number = || rustix::fs::fstat(getsockopt(socket, PeerPidfd).ok()?).ok().map(|stat| stat.st_ino);
    if peer.pid == 0 { number().unwrap_or(0) } else { 0 }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec { tv_sec: duration.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: duration.subsec_nanos().into() }
}
