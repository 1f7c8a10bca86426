//! [`Server`]: portals, and the threads of connections.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

use crate::connection::{self, DisconnectReason};
use crate::directory::Directory;
use crate::shared::Shared;

/// Touched a little at a time: there may be a thousand idle connections.
const STACK: usize = 256 << 10;

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

impl Server {
    /// A server of these targets at these portals.
    ///
    /// # Errors
    ///
    /// A portal has no address.
    pub fn new(portals: Vec<Portal>, directory: Directory, options: ServerOptions) -> io::Result<Self> {
        let addresses = portals.iter().map(|portal| Ok((portal.listener.local_addr()?, portal.group)));
        let shared = Shared::new(directory, addresses.collect::<io::Result<_>>()?, options.threads);
        Ok(Self { shared: Arc::new(shared), portals, options })
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
        self.shared.close_connections(STOP_TIMEOUT);
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
            shared.remove_connection(id);
            match reason {
                DisconnectReason::Closed | DisconnectReason::LoggedOut | DisconnectReason::Stopping => {
                    tracing::info!("{peer}: {reason}")
                }
                reason => shared.log_disconnect(peer, &reason),
            }
        };
        if let Err(error) = thread::Builder::new().name("iscsi".into()).stack_size(STACK).spawn(work) {
            self.shared.remove_connection(id);
            self.shared.log_disconnect(peer, &format!("no thread can be started: {error}"));
        }
    }
}
