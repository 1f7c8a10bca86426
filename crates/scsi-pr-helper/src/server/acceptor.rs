//! [`Acceptor`]: accepts connections, and starts their threads.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::{PeerCredentials, PeerPidfd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{Shutdown, SocketFlags, accept_with, shutdown};
use scsi_pr::PrManager;
use scsi_pr_daemon::{IdleConnections, RateLimiter, reason, spawn_with};
use tracing::Level;

use super::connection::Connection;
use super::disconnect::DisconnectReason;
use super::registry::{ProcessKey, Registry};
use super::request_stream::RequestStream;
use super::{Admission, Peer};

/// A command may go through several layers of managers. Under 2 MiB, so that the kernel uses no huge page for it.
const STACK: usize = 256 << 10;

/// A thread that only closes a connection.
const CLOSE_STACK: usize = 32 << 10;

/// The time for which nothing is accepted after the system had no room for another connection.
const BACK_OFF: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// The most connections that a listener may have accepted at a time, so that others have their turn.
const BATCH: usize = 64;

/// The most refused connections that are being closed at a time. To close what a client has sent may take long.
const CLOSING: usize = 256;

pub(super) struct Acceptor<F> {
    registry: Arc<Registry>,
    sockets: Vec<(OwnedFd, F)>,
    admission: Option<Admission>,
    idle: Arc<IdleConnections<Connection>>,
    accepted: u64,
    /// Refused connections that have no thread to close them yet.
    refused: Vec<Arc<OwnedFd>>,
    /// One reference for each thread that closes a refused connection, and one here.
    closing: Arc<()>,
    failures: RateLimiter<()>,
}

impl<F: Fn(&Peer) -> Arc<dyn PrManager>> Acceptor<F> {
    pub(super) fn new(
        registry: Arc<Registry>,
        sockets: Vec<(OwnedFd, F)>,
        admission: Option<Admission>,
    ) -> io::Result<Self> {
        let failures = RateLimiter::new(10, 10, Duration::from_secs(5));
        let idle = Arc::new(IdleConnections::new()?);
        let (refused, closing) = (Vec::new(), Arc::new(()));
        Ok(Self { registry, sockets, admission, idle, accepted: 0, refused, closing, failures })
    }

    /// Accepts until `stop` is readable. Then it closes the listeners, and every connection without a request.
    pub(super) fn run(mut self, stop: BorrowedFd<'_>) -> io::Result<()> {
        let result = self.accept_until(stop);
        close(std::mem::take(&mut self.sockets).into_iter().map(|(listener, _)| listener).collect());
        self.registry.stop();
        let (waiting, idle): (Vec<_>, Vec<_>) = self.idle.stop().into_iter().partition(Connection::has_input);
        for connection in waiting {
            self.start_thread(connection, Connection::run);
        }
        for connection in &idle {
            let _ = shutdown(&connection.socket, Shutdown::Both);
        }
        let close_all = |idle: Vec<Connection>| idle.into_iter().for_each(Connection::close);
        if let Err((idle, _)) = spawn_with("pr-connection", STACK, idle, close_all) {
            close_all(idle);
        }
        result
    }

    fn accept_until(&mut self, stop: BorrowedFd<'_>) -> io::Result<()> {
        for (listener, _) in &self.sockets {
            // Between poll and accept another process that has the listener may accept what was there.
            rustix::io::ioctl_fionbio(listener, true)?;
        }
        let mut backs_off = false;
        loop {
            self.close_refused();
            let waits = std::mem::take(&mut backs_off) || !self.refused.is_empty();
            let idle = Arc::clone(&self.idle);
            let mut events = vec![PollFd::from_borrowed_fd(stop, PollFlags::IN), PollFd::new(&idle, PollFlags::IN)];
            if !waits {
                events.extend(self.sockets.iter().map(|(listener, _)| PollFd::new(listener, PollFlags::IN)));
            }
            match poll(&mut events, waits.then_some(&BACK_OFF)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            let ready: Vec<bool> = events.iter().map(|event| !event.revents().is_empty()).collect();
            if ready[0] {
                return Ok(());
            }
            if ready[1] {
                for connection in idle.take_readable() {
                    self.start_thread(connection, Connection::run);
                }
            }
            for index in (0..ready.len() - 2).filter(|index| ready[index + 2]) {
                backs_off |= !self.accept_from(index);
            }
        }
    }

    /// Accepts what there is on a listener. Whether there was room for all of it.
    fn accept_from(&mut self, index: usize) -> bool {
        for _ in 0..BATCH {
            if !self.refused.is_empty() {
                return true;
            }
            match accept_with(&self.sockets[index].0, SocketFlags::CLOEXEC) {
                Ok(socket) => self.start(socket, index),
                Err(Errno::AGAIN) => return true,
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(errno) => {
                    if let Some(suppressed) = self.failures.check(()) {
                        tracing::event!(
                            name: "pr_helper_accept_failed",
                            Level::WARN,
                            "Unable to accept a connection, trying again: {}{suppressed}",
                            reason(io::Error::from(errno))
                        );
                    }
                    return false;
                }
            }
        }
        true
    }

    /// Registers a connection, and starts its thread.
    fn start(&mut self, socket: OwnedFd, index: usize) {
        self.accepted += 1;
        self.registry.counters.accepted.fetch_add(1, Ordering::Relaxed);
        let number = self.accepted;
        let peer = peer_of(&socket);
        let process = ProcessKey { pid: peer.pid, pidfd_inode: pidfd_inode(&socket, &peer) };
        let Peer { pid, uid, .. } = peer;
        tracing::event!(name: "pr_helper_accept", Level::DEBUG, connection = number, pid, uid, "accepted");
        let socket = Arc::new(socket);
        if self.admission.as_ref().is_some_and(|admit| !admit(socket.as_fd())) {
            return self.refuse(socket, peer, process, DisconnectReason::NotAdmitted);
        }
        let slot = match self.registry.register(number, process, &socket) {
            Ok(slot) => slot,
            Err(reason) => return self.refuse(socket, peer, process, reason),
        };
        let manager = (self.sockets[index].1)(&peer);
        let (requests, idle) = (RequestStream::default(), Arc::clone(&self.idle));
        self.start_thread(Connection { socket, peer, number, manager, slot, idle, requests }, Connection::greet);
    }

    fn start_thread(&mut self, connection: Connection, work: fn(Connection)) {
        connection.set_idle_timeout();
        if let Err((connection, error)) = spawn_with("pr-connection", STACK, connection, work) {
            let Connection { socket, peer, slot, .. } = connection;
            self.refuse(socket, peer, slot.process(), DisconnectReason::NoThread(error));
        }
    }

    fn refuse(&mut self, socket: Arc<OwnedFd>, peer: Peer, process: ProcessKey, reason: DisconnectReason) {
        self.registry.record_disconnect(peer, process, reason);
        // The client learns it at once, even if no thread is free to close the socket.
        let _ = shutdown(&socket, Shutdown::Both);
        self.refused.push(socket);
    }

    /// Closes refused connections on threads of their own: to close a descriptor that a client has sent may take as long
    /// as the client likes. While one of them has no thread, nothing is accepted.
    fn close_refused(&mut self) {
        while Arc::strong_count(&self.closing) <= CLOSING
            && let Some(socket) = self.refused.pop()
        {
            if let Err(((socket, _), _)) =
                spawn_with("pr-close", CLOSE_STACK, (socket, Arc::clone(&self.closing)), drop)
            {
                return self.refused.push(socket);
            }
        }
    }
}

/// Closes the listeners, and with them the connections that were not accepted. To close what was sent on those may take
/// long, but holds up neither this thread nor another listener. From the moment it begins, no client can connect.
fn close(listeners: Vec<OwnedFd>) {
    let (end, ended) = mpsc::channel::<()>();
    for listener in listeners {
        let end = end.clone();
        // Where no thread can be started, the listener is closed here.
        let _ = spawn_with("pr-close", CLOSE_STACK, (listener, end), drop);
    }
    drop(end);
    let _ = ended.recv_timeout(Duration::from_millis(100));
}

/// rustix has this too, but its process id cannot be 0, which the kernel reports for other process namespaces.
fn peer_of(socket: &OwnedFd) -> Peer {
    getsockopt(socket, PeerCredentials).map_or(Peer { pid: 0, uid: u32::MAX, gid: u32::MAX }, |credentials| Peer {
        pid: credentials.pid().try_into().unwrap_or(0),
        uid: credentials.uid(),
        gid: credentials.gid(),
    })
}

fn pidfd_inode(socket: &OwnedFd, peer: &Peer) -> u64 {
    let inode = || rustix::fs::fstat(getsockopt(socket, PeerPidfd).ok()?.as_fd()).ok().map(|stat| stat.st_ino);
    if peer.pid == 0 { inode().unwrap_or(0) } else { 0 }
}
