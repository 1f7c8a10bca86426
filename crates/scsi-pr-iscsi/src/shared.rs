//! [`Shared`]: the state that connections share: the directory, and the table of sessions.

use std::collections::{BTreeMap, HashMap};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use scsi_pr_daemon::RateLimiter;

use crate::directory::Directory;
use crate::disconnect::DisconnectReason;
use crate::login::Negotiated;
use crate::memory::Memory;
use crate::pool::Pool;
use crate::server_options::ServerOptions;

/// The time that a login waits for a former session of the same initiator to end.
const REINSTATEMENT_TIMEOUT: Duration = Duration::from_secs(10);

/// The most connections over the limit: those that are being closed for others.
const CLOSING: usize = 64;

/// The state that connections share.
pub(crate) struct Shared {
    directory: RwLock<Arc<Directory>>,
    sessions: Mutex<HashMap<SessionKey, Handle>>,
    ended: Condvar,
    next_tsih: AtomicU16,
    next_session: Mutex<u64>,
    addresses: Vec<(SocketAddr, u16)>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) memory: Arc<Memory>,
    pub(crate) ping_interval: Duration,
    /// By their number, which grows.
    connections: Mutex<BTreeMap<u64, OpenConnection>>,
    connection_ended: Condvar,
    is_stopping: AtomicBool,
    has_stopped: AtomicBool,
    disconnects: RateLimiter<std::net::IpAddr>,
}

/// A connection in the table of connections.
struct OpenConnection {
    socket: TcpStream,
    /// It has not logged in, and is not being closed for another one.
    is_expendable: bool,
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

/// A connection in the table of connections; dropping it removes the connection.
pub(crate) struct ConnectionEntry {
    pub(crate) shared: Arc<Shared>,
    pub(crate) id: u64,
    pub(crate) portal_group: u16,
    peer: SocketAddr,
}

impl ConnectionEntry {
    /// Removes the connection, and logs why.
    pub(crate) fn end(self, reason: &DisconnectReason) {
        let (shared, peer) = (Arc::clone(&self.shared), self.peer);
        drop(self);
        match reason {
            DisconnectReason::Closed | DisconnectReason::LoggedOut | DisconnectReason::Stopping => {
                tracing::info!("{peer}: {reason}");
            }
            reason => shared.log_disconnect(peer, reason),
        }
    }
}

impl Drop for ConnectionEntry {
    fn drop(&mut self) {
        self.shared.lock(&self.shared.connections).remove(&self.id);
        self.shared.connection_ended.notify_all();
    }
}

/// A session in the table of sessions; dropping it removes the session.
pub(crate) struct Registration {
    shared: Arc<Shared>,
    key: SessionKey,
    id: u64,
}

impl Shared {
    /// The state before the first connection, for portals at these addresses.
    pub(crate) fn new(directory: Directory, addresses: Vec<(SocketAddr, u16)>, options: ServerOptions) -> Self {
        Self {
            directory: RwLock::new(Arc::new(directory)),
            sessions: Mutex::default(),
            ended: Condvar::new(),
            next_tsih: AtomicU16::new(1),
            next_session: Mutex::new(0),
            addresses,
            pool: Pool::new(options.threads),
            memory: Arc::new(Memory::new(options.memory)),
            ping_interval: options.ping_interval,
            connections: Mutex::default(),
            connection_ended: Condvar::new(),
            is_stopping: AtomicBool::new(false),
            has_stopped: AtomicBool::new(false),
            disconnects: RateLimiter::new(10, 100, Duration::from_secs(10)),
        }
    }

    /// Replaces the directory, and ends the sessions of initiators that may no longer use their target.
    pub(crate) fn set_directory(&self, directory: Directory) {
        let directory = Arc::new(directory);
        *self.directory.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&directory);
        for (key, session) in self.lock(&self.sessions).iter() {
            if !directory.admits(&key.initiator, key.target.as_deref()) {
                tracing::info!("the session of {} ends: it may no longer use its target", key.initiator);
                let _ = session.socket.shutdown(Shutdown::Both);
            }
        }
    }

    /// Whether the server stops: a connection that reads no more lets its commands end.
    pub(crate) fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Acquire)
    }

    /// Whether the server waits for commands no longer.
    pub(crate) fn has_stopped(&self) -> bool {
        self.has_stopped.load(Ordering::Acquire)
    }

    /// From now on no connection reads a request.
    pub(crate) fn begin_stop(&self) {
        self.is_stopping.store(true, Ordering::Release);
    }

    /// Ends every connection once its commands have their answers; after `timeout` it is closed.
    pub(crate) fn close_connections(&self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        let mut connections = self.lock(&self.connections);
        let shut_down = |connections: &BTreeMap<u64, OpenConnection>, how| {
            connections.values().for_each(|connection| _ = connection.socket.shutdown(how));
        };
        shut_down(&connections, Shutdown::Read);
        while !connections.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                tracing::warn!("{} connections have commands that run on without an answer", connections.len());
                self.has_stopped.store(true, Ordering::Release);
                shut_down(&connections, Shutdown::Both);
                return;
            }
            let waited = self.connection_ended.wait_timeout(connections, left);
            (connections, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

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

    pub(crate) fn has_connections(&self) -> bool {
        !self.lock(&self.connections).is_empty()
    }

    /// Adds a connection. At the limit, the oldest one that has not logged in is closed for it: anyone can make such
    /// connections. `None` if there is none.
    pub(crate) fn add_connection(
        self: &Arc<Self>,
        socket: &TcpStream,
        peer: SocketAddr,
        portal_group: u16,
        limit: usize,
    ) -> Option<ConnectionEntry> {
        let clone = socket.try_clone().ok()?;
        let id = self.new_id();
        let mut connections = self.lock(&self.connections);
        if connections.len() >= limit {
            // Those that are being closed still count.
            if connections.len() >= limit + CLOSING {
                return None;
            }
            let oldest = connections.values_mut().find(|connection| connection.is_expendable)?;
            let _ = oldest.socket.shutdown(Shutdown::Both);
            oldest.is_expendable = false;
        }
        connections.insert(id, OpenConnection { socket: clone, is_expendable: true });
        Some(ConnectionEntry { shared: Arc::clone(self), id, peer, portal_group })
    }

    /// The connection has logged in.
    pub(crate) fn end_login(&self, id: u64) {
        if let Some(connection) = self.lock(&self.connections).get_mut(&id) {
            connection.is_expendable = false;
        }
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

    pub(crate) fn log_disconnect(&self, peer: SocketAddr, reason: &dyn std::fmt::Display) {
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
