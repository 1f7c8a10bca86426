//! [`Server`]: portals, connections, and sessions.

use std::collections::HashMap;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use scsi_pr_daemon::RateLimiter;

use crate::connection::{self, DisconnectReason};
use crate::directory::Directory;
use crate::login::Negotiated;
use crate::pool::Pool;

/// The time that a login waits for a former session of the same initiator to end.
const REINSTATEMENT_TIMEOUT: Duration = Duration::from_secs(10);

/// Touched a little at a time: there may be a thousand idle connections.
const STACK: usize = 256 << 10;

/// A listening socket, and the portal group that it belongs to: the relative target port identifier of its sessions.
#[derive(Debug)]
pub struct Portal {
    /// The socket.
    pub listener: TcpListener,
    /// Target Portal Group Tag; at least 1.
    pub group: u16,
}

/// The bounds of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerOptions {
    /// Connections at a time; more are closed at once.
    pub connections: usize,
    /// Threads for commands that may block.
    pub threads: usize,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self { connections: 2048, threads: 4096 }
    }
}

/// An iSCSI target server.
pub struct Server {
    shared: Arc<Shared>,
    portals: Vec<Portal>,
    options: ServerOptions,
}

/// The state that connections share.
pub(crate) struct Shared {
    directory: RwLock<Arc<Directory>>,
    sessions: Mutex<HashMap<SessionKey, Handle>>,
    ended: Condvar,
    next_tsih: AtomicU16,
    next_session: Mutex<u64>,
    addresses: Vec<(SocketAddr, u16)>,
    pub(crate) pool: Arc<Pool>,
    connections: Mutex<HashMap<u64, TcpStream>>,
    disconnects: RateLimiter<std::net::IpAddr>,
}

/// The identity of a session: a login with the same one reinstates it (RFC 7143 6.3.5).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct SessionKey {
    initiator: String,
    isid: [u8; 6],
    target: Option<String>,
    portal_group: u16,
}

struct Handle {
    id: u64,
    socket: TcpStream,
}

/// A session in the table of sessions; dropping it removes the session.
pub(crate) struct Registration {
    shared: Arc<Shared>,
    key: SessionKey,
    id: u64,
}

impl Server {
    /// A server of these targets at these portals.
    ///
    /// # Errors
    ///
    /// A portal has no address.
    pub fn new(portals: Vec<Portal>, directory: Directory, options: ServerOptions) -> io::Result<Self> {
        let addresses = portals.iter().map(|portal| Ok((portal.listener.local_addr()?, portal.group)));
        let shared = Shared {
            directory: RwLock::new(Arc::new(directory)),
            sessions: Mutex::default(),
            ended: Condvar::new(),
            next_tsih: AtomicU16::new(1),
            next_session: Mutex::new(0),
            addresses: addresses.collect::<io::Result<_>>()?,
            pool: Pool::new(options.threads),
            connections: Mutex::default(),
            disconnects: RateLimiter::new(10, 100, Duration::from_secs(10)),
        };
        Ok(Self { shared: Arc::new(shared), portals, options })
    }

    /// Replaces the directory: sessions that exist go on with theirs, new ones see the new one.
    pub fn set_directory(&self, directory: Directory) {
        *self.shared.directory.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(directory);
    }

    /// Accepts and serves connections until `stop` is readable; then closes every connection and returns.
    ///
    /// # Errors
    ///
    /// Those of poll(2).
    pub fn run(&self, stop: BorrowedFd<'_>) -> io::Result<()> {
        for portal in &self.portals {
            portal.listener.set_nonblocking(true)?;
        }
        loop {
            let mut events: Vec<_> =
                self.portals.iter().map(|portal| PollFd::new(&portal.listener, PollFlags::IN)).collect();
            events.push(PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN));
            match poll(&mut events, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            let ready: Vec<bool> = events.iter().map(|event| !event.revents().is_empty()).collect();
            if ready.last() == Some(&true) {
                break;
            }
            for (portal, _) in self.portals.iter().zip(ready).filter(|(_, ready)| *ready) {
                self.accept(portal);
            }
        }
        for connection in self.shared.lock(&self.shared.connections).values() {
            let _ = connection.shutdown(Shutdown::Both);
        }
        Ok(())
    }

    fn accept(&self, portal: &Portal) {
        let (socket, peer) = match portal.listener.accept() {
            Ok(accepted) => accepted,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => return,
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                // The reason is mostly a lack of descriptors, which a moment may change.
                thread::sleep(Duration::from_millis(100));
                return;
            }
        };
        let _ = socket.set_nonblocking(false);
        let shared = Arc::clone(&self.shared);
        let group = portal.group;
        let Some(id) = shared.add_connection(&socket, self.options.connections) else {
            shared.log_disconnect(peer, &"the limit of connections is reached");
            return;
        };
        let work = move || {
            let reason = connection::run(&shared, socket, group);
            shared.lock(&shared.connections).remove(&id);
            match reason {
                DisconnectReason::Closed | DisconnectReason::LoggedOut => tracing::info!("{peer}: {reason}"),
                reason => shared.log_disconnect(peer, &reason),
            }
        };
        if let Err(error) = thread::Builder::new().name("iscsi".into()).stack_size(STACK).spawn(work) {
            self.shared.lock(&self.shared.connections).remove(&id);
            self.shared.log_disconnect(peer, &format!("no thread can be started: {error}"));
        }
    }
}

impl Shared {
    pub(crate) fn directory(&self) -> Arc<Directory> {
        Arc::clone(&self.directory.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn lock<'a, T>(&self, mutex: &'a Mutex<T>) -> MutexGuard<'a, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn new_id(&self) -> u64 {
        let mut next = self.lock(&self.next_session);
        *next += 1;
        *next
    }

    /// A TSIH, which is never zero.
    pub(crate) fn new_tsih(&self) -> u16 {
        self.next_tsih
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |tsih| Some(tsih.checked_add(1).unwrap_or(1)))
            .unwrap_or(1)
    }

    fn add_connection(&self, socket: &TcpStream, limit: usize) -> Option<u64> {
        let clone = socket.try_clone().ok()?;
        let id = self.new_id();
        let mut connections = self.lock(&self.connections);
        if connections.len() >= limit {
            return None;
        }
        connections.insert(id, clone);
        Some(id)
    }

    /// Adds a session, and ends the one that it reinstates. `None` when that one does not end in time.
    pub(crate) fn register(
        self: &Arc<Self>,
        negotiated: &Negotiated,
        portal_group: u16,
        socket: &TcpStream,
    ) -> Option<Registration> {
        let key = SessionKey {
            initiator: negotiated.initiator.clone(),
            isid: negotiated.isid,
            target: negotiated.target.as_ref().map(|(name, _)| name.clone()),
            portal_group,
        };
        let id = self.new_id();
        let handle = Handle { id, socket: socket.try_clone().ok()? };
        let deadline = Instant::now() + REINSTATEMENT_TIMEOUT;
        let mut sessions = self.lock(&self.sessions);
        while let Some(former) = sessions.get(&key) {
            let _ = former.socket.shutdown(Shutdown::Both);
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            (sessions, _) = self.ended.wait_timeout(sessions, left).unwrap_or_else(PoisonError::into_inner);
        }
        sessions.insert(key.clone(), handle);
        Some(Registration { shared: Arc::clone(self), key, id })
    }

    /// The TargetAddress values. A portal that listens on every address is named by the one that the peer has found.
    pub(crate) fn portals(&self, socket: &TcpStream) -> Vec<String> {
        let local = socket.local_addr().map(|address| address.ip());
        let address = |(address, group): &(SocketAddr, u16)| {
            let ip = if address.ip().is_unspecified() { *local.as_ref().ok()? } else { address.ip() };
            Some(format!("{},{group}", SocketAddr::new(ip, address.port())))
        };
        self.addresses.iter().filter_map(address).collect()
    }

    fn log_disconnect(&self, peer: SocketAddr, reason: &dyn std::fmt::Display) {
        if let Some(suppressed) = self.disconnects.check(peer.ip()) {
            tracing::warn!("connection of {peer} closed: {reason}{suppressed}");
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut sessions = self.shared.lock(&self.shared.sessions);
        if sessions.get(&self.key).is_some_and(|handle| handle.id == self.id) {
            sessions.remove(&self.key);
        }
        drop(sessions);
        self.shared.ended.notify_all();
    }
}
