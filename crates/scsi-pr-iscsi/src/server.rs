//! [`Server`]: portals, and the threads of connections.

use std::io;
use std::net::TcpListener;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use scsi_pr_daemon::{IdleConnections, spawn_with};

use crate::connection::{self, FullFeature, IdleSessions};
use crate::directory::Directory;
use crate::disconnect::DisconnectReason;
use crate::server_options::ServerOptions;
use crate::shared::Shared;

/// A command may go through several layers. Under 2 MiB, so that the kernel uses no huge page for it.
const STACK: usize = 256 << 10;
/// The name of the threads of connections.
const THREAD: &str = "iscsi";

/// The time between two looks for idle connections that are due for a NOP-In.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
const POLL_TIMEOUT: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// The time that commands get to end when the server stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// A listening socket, and the portal group that it belongs to: the relative target port identifier of its sessions.
#[derive(Debug)]
pub struct Portal {
    /// The socket.
    pub listener: TcpListener,
    /// Target Portal Group Tag; at least 1.
    pub group: u16,
}

/// An iSCSI target server.
pub struct Server {
    shared: Arc<Shared>,
    idle: Arc<IdleSessions>,
    portals: Vec<Portal>,
    options: ServerOptions,
}

impl Server {
    /// A server of these targets at these portals.
    ///
    /// # Errors
    ///
    /// A portal has no address, or those of epoll_create1(2).
    pub fn new(portals: Vec<Portal>, directory: Directory, options: ServerOptions) -> io::Result<Self> {
        let addresses = portals.iter().map(|portal| Ok((portal.listener.local_addr()?, portal.group)));
        let shared = Shared::new(directory, addresses.collect::<io::Result<_>>()?, options);
        let idle = Arc::new(IdleConnections::new()?);
        Ok(Self { shared: Arc::new(shared), idle, portals, options })
    }

    /// Replaces the directory. Sessions go on, unless the initiator may no longer use the target.
    pub fn set_directory(&self, directory: Directory) {
        self.shared.set_directory(directory);
    }

    /// Accepts and serves connections until `stop` is readable. Then no connection reads another request; each is closed
    /// once its commands have their answers, or after 10 s.
    ///
    /// # Errors
    ///
    /// Those of poll(2).
    pub fn run(&self, stop: BorrowedFd<'_>) -> io::Result<()> {
        for portal in &self.portals {
            portal.listener.set_nonblocking(true)?;
        }
        let result = self.accept_until(stop);
        self.shared.begin_stop();
        for connection in self.idle.stop() {
            self.resume(connection);
        }
        self.shared.close_connections(STOP_TIMEOUT);
        result
    }

    fn accept_until(&self, stop: BorrowedFd<'_>) -> io::Result<()> {
        let idle = &*self.idle;
        let mut next_look = Instant::now() + LOOK_INTERVAL;
        loop {
            let mut events = vec![PollFd::from_borrowed_fd(stop, PollFlags::IN), PollFd::new(idle, PollFlags::IN)];
            events.extend(self.portals.iter().map(|portal| PollFd::new(&portal.listener, PollFlags::IN)));
            // A connection becomes idle without waking this thread.
            match poll(&mut events, self.shared.has_connections().then_some(&POLL_TIMEOUT)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            let ready: Vec<bool> = events.iter().map(|event| !event.revents().is_empty()).collect();
            if ready[0] {
                return Ok(());
            }
            if ready[1] {
                idle.take_readable().into_iter().for_each(|connection| self.resume(connection));
            }
            if Instant::now() >= next_look {
                idle.take_if(|connection| connection.is_due())
                    .into_iter()
                    .for_each(|connection| self.resume(connection));
                next_look = Instant::now() + LOOK_INTERVAL;
            }
            for (portal, _) in self.portals.iter().zip(&ready[2..]).filter(|(_, ready)| **ready) {
                self.accept(portal);
            }
        }
    }

    /// Gives an idle connection a thread.
    fn resume(&self, connection: Box<FullFeature>) {
        if let Err((connection, errno)) = spawn_with(THREAD, STACK, connection, FullFeature::run) {
            connection.close(&DisconnectReason::NoThread(errno));
        }
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
        let Some(entry) = self.shared.add_connection(&socket, peer, portal.group, self.options.connections) else {
            self.shared.log_disconnect(peer, &"the limit of connections is reached");
            return;
        };
        let work = |(socket, entry, idle)| connection::begin(socket, entry, idle);
        if let Err(((_, entry, _), errno)) = spawn_with(THREAD, STACK, (socket, entry, Arc::clone(&self.idle)), work) {
            entry.end(&DisconnectReason::NoThread(errno));
        }
    }
}
