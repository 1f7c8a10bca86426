//! The helper's end: serves any [`PrManager`] over a listening Unix socket, with a thread for each connection.
//!
//! The protocol allows one command in flight on a connection, and every call may block: for minutes, on a dying array. So
//! each connection has a thread that reads, runs, answers, and closes, with blocking calls and deadlines on the socket. A
//! device that hangs, or a descriptor whose close hangs, holds its own thread and nothing else.
//!
//! * The thread that calls [`serve`] accepts. It never touches what a client sent, not even to close it.
//! * While there are many threads, a silent connection gives up its own. It has one again when its client sends something.
//! * Bounds are checked when a connection is accepted: connections in all, and of each peer process. The server closes a
//!   connection over a bound, with a line in the log.
//! * BUSY is for a command that could not be run. Otherwise the server closes a connection only for a violation of the
//!   protocol: libvirt takes a closed connection for a dead helper.

mod acceptor;
mod connection;
mod counters;
mod disconnect;
mod one;
mod registry;
mod request_stream;
mod tasks;

use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use scsi_pr::PrManager;

use acceptor::Acceptor;
pub use counters::ServerCounters;
pub use one::{Served, serve_one};
use registry::Registry;

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

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} of user {}", self.pid, self.uid)
    }
}

/// The bounds of [`serve`]. A number of zero means one; a time of more than a year means a year.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Connections, with at most a thread each. The server closes further ones. It lowers the number to the threads for which
    /// RLIMIT_NPROC, the pids.max of the cgroup and vm.max_map_count leave room.
    pub connections: usize,
    /// Commands that run at the same time. The server answers further ones with BUSY.
    pub running: usize,
    /// One peer process may have one part in this many of `connections` and of `running`.
    pub peer_share: usize,
    /// The time that a client may take to read an answer.
    pub send_timeout: Duration,
    /// The time that a client may take from the first byte of a request to the last; at most twice as long when the bytes
    /// come one by one. After so much silence a connection gives up its thread, however few there are.
    pub receive_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 16_384,
            running: 4_096,
            peer_share: 4,
            send_timeout: Duration::from_secs(30),
            receive_timeout: Duration::from_secs(300),
        }
    }
}

impl Limits {
    /// The same with so many connections.
    #[must_use]
    pub fn with_connections(self, connections: usize) -> Self {
        Self { connections, ..self }
    }

    /// The same with so many commands at the same time.
    #[must_use]
    pub fn with_running(self, running: usize) -> Self {
        Self { running, ..self }
    }

    /// The same with one part in so many for each peer process.
    #[must_use]
    pub fn with_peer_share(self, peer_share: usize) -> Self {
        Self { peer_share, ..self }
    }

    /// The same with so much time for a client to read an answer.
    #[must_use]
    pub fn with_send_timeout(self, send_timeout: Duration) -> Self {
        Self { send_timeout, ..self }
    }

    /// The same with so much time from the first byte of a request to the last.
    #[must_use]
    pub fn with_receive_timeout(self, receive_timeout: Duration) -> Self {
        Self { receive_timeout, ..self }
    }

    /// The limits that can be kept: at least one of everything, no time that an `Instant` cannot hold, and no more threads
    /// than the system has room for.
    fn within_reason(self) -> Self {
        const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);
        const SHORTEST: Duration = Duration::from_millis(1);
        Self {
            connections: self.connections.min(tasks::max_connections()).max(1),
            running: self.running.max(1),
            peer_share: self.peer_share.max(1),
            send_timeout: self.send_timeout.clamp(SHORTEST, LONGEST),
            receive_timeout: self.receive_timeout.clamp(SHORTEST, LONGEST),
        }
    }

    fn share(&self, whole: usize) -> usize {
        (whole / self.peer_share).max(1)
    }
}

/// The requests that are not answered when [`serve`] has returned.
#[must_use = "commands may still be running"]
pub struct Draining {
    registry: Arc<Registry>,
}

impl Draining {
    /// The number of commands that were begun and not answered.
    pub fn running(&self) -> usize {
        self.registry.unanswered()
    }

    /// Waits until the last request that was sent was answered, for at most `limit`. Returns the number of commands that
    /// still run.
    pub fn wait(self, limit: Duration) -> usize {
        self.registry.wait_until_drained(limit)
    }
}

impl fmt::Debug for Draining {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Draining").field("running", &self.running()).finish()
    }
}

/// Serves until `stop` is readable. Then it closes the listener and every connection without a request. The server still
/// runs a request that was sent before, and closes its connection after the answer. [`Draining`] knows those requests.
///
/// The server asks `manager_for` once for each connection, on the calling thread: it must be quick.
///
/// # Errors
///
/// Those of poll(2), and of making the listener non-blocking.
pub fn serve(
    listener: OwnedFd,
    manager_for: impl Fn(&Peer) -> Arc<dyn PrManager>,
    limits: Limits,
    stop: BorrowedFd<'_>,
) -> io::Result<Draining> {
    Server::new(limits).serve(vec![(listener, manager_for)], stop)
}

/// Decides by its connected socket whether a client is served.
type Admission = Box<dyn Fn(BorrowedFd<'_>) -> bool>;

/// A server with more settings than [`serve`] has.
pub struct Server {
    limits: Limits,
    admission: Option<Admission>,
    counters: Arc<ServerCounters>,
}

impl Server {
    /// A server that serves every client, within these limits.
    pub fn new(limits: Limits) -> Self {
        Self { limits, admission: None, counters: Arc::default() }
    }

    /// The same, for the clients that `admit` permits. It is asked once for each connection, on the thread that accepts, so
    /// it must be quick. The server closes other connections, with a line in the log; they take no part of the limits.
    #[must_use]
    pub fn with_admission(self, admit: impl Fn(BorrowedFd<'_>) -> bool + 'static) -> Self {
        Self { admission: Some(Box::new(admit)), ..self }
    }

    /// The same, which counts in `counters`. They are for this server alone.
    #[must_use]
    pub fn with_counters(self, counters: Arc<ServerCounters>) -> Self {
        Self { counters, ..self }
    }

    /// Serves clients of several sockets, each with its own `manager_for`, as [`serve`] does those of one. The limits are for
    /// all of them together: another socket costs a descriptor.
    ///
    /// # Errors
    ///
    /// Those of [`serve`].
    pub fn serve<F: Fn(&Peer) -> Arc<dyn PrManager>>(
        self,
        sockets: Vec<(OwnedFd, F)>,
        stop: BorrowedFd<'_>,
    ) -> io::Result<Draining> {
        let registry = Arc::new(Registry::new(self.limits.within_reason(), self.counters));
        Acceptor::new(Arc::clone(&registry), sockets, self.admission)?.run(stop)?;
        Ok(Draining { registry })
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("limits", &self.limits).finish_non_exhaustive()
    }
}
