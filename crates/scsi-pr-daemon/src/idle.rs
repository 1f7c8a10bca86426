//! [`IdleConnections`]: connections that have no thread.

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

/// The most connections that [`IdleConnections::take_readable`] gives at a time.
const BATCH: usize = 64;

/// Connections that were silent for a while. Their threads have ended. Most connections of a daemon are idle.
#[derive(Debug)]
pub struct IdleConnections<C> {
    epoll: OwnedFd,
    /// By their number; `None` after [`IdleConnections::stop`].
    connections: Mutex<Option<HashMap<u64, C>>>,
}

impl<C: AsFd> IdleConnections<C> {
    /// No connections.
    ///
    /// # Errors
    ///
    /// Those of epoll_create1(2).
    pub fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(CreateFlags::CLOEXEC)?, connections: Mutex::new(Some(HashMap::new())) })
    }

    fn connections(&self) -> MutexGuard<'_, Option<HashMap<u64, C>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of connections.
    pub fn count(&self) -> usize {
        self.connections().as_ref().map_or(0, HashMap::len)
    }

    /// Keeps a connection, which has a number of its own, until it is readable. Returns it if the server has stopped, or if
    /// the kernel has no room.
    pub fn insert(&self, number: u64, connection: C) -> Option<C> {
        let mut connections = self.connections();
        let Some(connections) = &mut *connections else { return Some(connection) };
        match epoll::add(&self.epoll, &connection, EventData::new_u64(number), EventFlags::IN) {
            Ok(()) => connections.insert(number, connection),
            Err(_) => Some(connection),
        }
    }

    /// Some connections that are readable.
    pub fn take_readable(&self) -> Vec<C> {
        let mut events = [MaybeUninit::<Event>::uninit(); BATCH];
        let Ok((events, _)) = epoll::wait(&self.epoll, &mut events, Some(&Timespec::default())) else {
            return Vec::new();
        };
        let mut connections = self.connections();
        let Some(connections) = &mut *connections else { return Vec::new() };
        let readable = events.iter().filter_map(|event| connections.remove(&event.data.u64()));
        self.without_notice(readable)
    }

    /// The connections for which `is_wanted` holds, readable or not.
    pub fn take_if(&self, is_wanted: impl Fn(&C) -> bool) -> Vec<C> {
        let mut connections = self.connections();
        let Some(connections) = &mut *connections else { return Vec::new() };
        self.without_notice(connections.extract_if(|_, connection| is_wanted(connection)).map(|(_, taken)| taken))
    }

    /// These connections, which were just taken: the kernel reports them no more.
    fn without_notice(&self, taken: impl Iterator<Item = C>) -> Vec<C> {
        let removed = taken.inspect(|connection| {
            let _ = epoll::delete(&self.epoll, connection);
        });
        removed.collect()
    }

    /// All connections. From now on none is kept.
    pub fn stop(&self) -> Vec<C> {
        self.connections().take().into_iter().flat_map(HashMap::into_values).collect()
    }
}

impl<C> AsFd for IdleConnections<C> {
    /// Readable when a connection is.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}
