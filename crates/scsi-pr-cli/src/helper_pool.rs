//! [`HelperPool`]: the connections of one initiator to the helper of `--pass`.

use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use scsi_pr::{Command, Completion, Error, PrManager, Status};
use scsi_pr_helper::HelperClient;

/// The most connections of one initiator. The helper sees one process, whose connections it bounds: an initiator must leave room
/// for the others. One connection runs one command at a time, so this many devices of a virtual machine may hang.
pub(crate) const MAX_CONNECTIONS: usize = 16;

/// The longest wait for a connection, while others of the same initiator use all of them.
const WAIT_TIMEOUT: Duration = Duration::from_secs(30);

/// The time after which an unused connection is closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// A [`PrManager`] over a bounded number of connections, which all sockets and clients of an initiator share. It opens a
/// connection when all others are in use, and [`close_idle`] closes unused ones.
pub(crate) struct HelperPool {
    socket: PathBuf,
    max: usize,
    wait_timeout: Duration,
    state: Mutex<State>,
    freed: Condvar,
}

#[derive(Default)]
struct State {
    /// Unused clients, the most recently used one last.
    idle: Vec<(HelperClient, Instant)>,
    in_use: usize,
}

/// A client, taken from the pool until this is dropped.
struct Lease<'a> {
    pool: &'a HelperPool,
    client: Option<HelperClient>,
}

impl HelperPool {
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self::with_limits(socket, MAX_CONNECTIONS, WAIT_TIMEOUT)
    }

    fn with_limits(socket: PathBuf, max: usize, wait_timeout: Duration) -> Self {
        Self { socket, max, wait_timeout, state: Mutex::default(), freed: Condvar::new() }
    }

    /// `None` if all connections stay in use for the timeout.
    fn lease(&self) -> Option<Lease<'_>> {
        let start = Instant::now();
        let mut state = self.state();
        while state.in_use >= self.max {
            let left = self.wait_timeout.saturating_sub(start.elapsed());
            if left.is_zero() {
                return None;
            }
            (state, _) = self.freed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        }
        state.in_use += 1;
        let client = state.idle.pop().map(|(client, _)| client);
        drop(state);
        Some(Lease { pool: self, client: Some(client.unwrap_or_else(|| HelperClient::new(&self.socket))) })
    }

    fn close_idle_at(&self, now: Instant) {
        let expired: Vec<_> = {
            let mut state = self.state();
            // The least recently used ones come first.
            let expired = state.idle.partition_point(|(_, used)| now.saturating_duration_since(*used) >= IDLE_TIMEOUT);
            state.idle.drain(..expired).collect()
        };
        // Closing a socket may take its time; no command waits for it.
        drop(expired);
    }

    /// No statement under this lock can panic half-way.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let mut state = self.pool.state();
        state.in_use -= 1;
        state.idle.extend(self.client.take().map(|client| (client, Instant::now())));
        self.pool.freed.notify_one();
    }
}

impl PrManager for HelperPool {
    fn execute(&self, device: BorrowedFd<'_>, command: Command<'_>) -> Result<Completion, Error> {
        match self.lease() {
            Some(Lease { client: Some(ref client), .. }) => client.execute(device, command),
            _ => Ok(Completion::Status(Status::BUSY)),
        }
    }
}

/// Starts the thread that closes unused connections of `pools`. It ends with the last pool.
pub(crate) fn close_idle(pools: &[Arc<HelperPool>]) -> std::io::Result<()> {
    let pools: Vec<Weak<HelperPool>> = pools.iter().map(Arc::downgrade).collect();
    let run = move || {
        loop {
            thread::sleep(IDLE_TIMEOUT / 4);
            let alive: Vec<_> = pools.iter().filter_map(Weak::upgrade).collect();
            if alive.is_empty() {
                return;
            }
            alive.iter().for_each(|pool| pool.close_idle_at(Instant::now()));
        }
    };
    thread::Builder::new().name("helper-idle".to_owned()).spawn(run).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    /// The number of unused clients, and of those in use.
    fn counts(pool: &HelperPool) -> (usize, usize) {
        let state = pool.state();
        (state.idle.len(), state.in_use)
    }

    fn pool(max: usize) -> HelperPool {
        HelperPool::with_limits("/nonexistent/helper.sock".into(), max, Duration::from_millis(10))
    }

    #[test]
    fn connections_are_bounded_and_shared() {
        let pool = pool(2);
        let (first, second) = (pool.lease().unwrap(), pool.lease().unwrap());
        assert!(pool.lease().is_none());
        drop(first);
        let third = pool.lease().unwrap();
        assert_eq!(counts(&pool), (0, 2), "the unused client is used again");
        drop((second, third));
        assert_eq!(counts(&pool), (2, 0));
    }

    #[test]
    fn command_is_busy_while_all_connections_are_in_use() {
        let pool = pool(1);
        let _lease = pool.lease().unwrap();
        let device = File::open("/dev/null").unwrap();
        let answer = pool.execute(device.as_fd(), Command::cleanup()).unwrap();
        assert_eq!(answer, Completion::Status(Status::BUSY));
    }

    #[test]
    fn command_that_waits_gets_the_connection_that_becomes_free() {
        let pool = HelperPool::with_limits("/nonexistent/helper.sock".into(), 1, Duration::from_secs(60));
        let lease = pool.lease().unwrap();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| pool.lease().is_some());
            drop(lease);
            assert!(waiting.join().unwrap());
        });
    }

    #[test]
    fn unused_connections_are_closed_after_the_timeout() {
        let pool = pool(3);
        let leases = [pool.lease(), pool.lease()];
        drop(leases);
        let now = Instant::now();
        pool.close_idle_at(now);
        assert_eq!(counts(&pool), (2, 0));
        let _in_use = pool.lease();
        pool.close_idle_at(now + 2 * IDLE_TIMEOUT);
        assert_eq!(counts(&pool), (0, 1));
    }
}
