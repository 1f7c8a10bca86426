//! [`Registry`]: the connections of a server, its bounds, and its end.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::net::{Shutdown, shutdown};
use scsi_pr_daemon::RateLimiter;

use super::counters::ServerCounters;
use super::disconnect::DisconnectReason;
use super::{Limits, Peer};

/// Identifies a process by its id and, in another process namespace, by the inode number of its pidfd: the id is 0 there.
/// Before Linux 6.9 all processes of other namespaces count as one. The user does not count, so that a process cannot
/// have another share by changing its user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ProcessKey {
    pub(super) pid: u32,
    pub(super) pidfd_inode: u64,
}

/// The use that a process makes of the server.
#[derive(Debug, Default)]
pub(super) struct ProcessUse {
    connections: AtomicUsize,
    running: AtomicUsize,
}

/// The connections of a server.
pub(super) struct Registry {
    pub(super) limits: Limits,
    pub(super) counters: Arc<ServerCounters>,
    state: Mutex<State>,
    /// Commands that a manager runs: the bound is for these.
    running: AtomicUsize,
    /// Commands that were begun and not answered.
    unanswered: AtomicUsize,
    is_stopping: AtomicBool,
    /// No connection may send a request any more.
    drained: Condvar,
    disconnects: RateLimiter<ProcessKey>,
    failures: RateLimiter<ProcessKey>,
}

#[derive(Default)]
struct State {
    /// The number of connections, those included that are being closed.
    connections: usize,
    /// Sockets of the connections that are not being closed, by their number: each may have sent a request.
    sockets: HashMap<u64, Arc<OwnedFd>>,
    processes: HashMap<ProcessKey, Arc<ProcessUse>>,
}

/// The place of a connection in the registry; dropping it gives the place back.
pub(super) struct Slot {
    registry: Arc<Registry>,
    number: u64,
    process: ProcessKey,
    usage: Arc<ProcessUse>,
}

/// A command that was begun; dropping it says that it was answered.
pub(super) struct BegunCommand<'a> {
    slot: &'a Slot,
    is_running: bool,
}

/// As many commands run as may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooManyCommands;

/// A client can cause these lines at will.
const LINES_PER_PROCESS: u32 = 10;
const LINES: u32 = 100;
const LINE_PERIOD: Duration = Duration::from_secs(5);

impl Registry {
    pub(super) fn new(limits: Limits, counters: Arc<ServerCounters>) -> Self {
        Self {
            limits,
            counters,
            state: Mutex::default(),
            running: AtomicUsize::new(0),
            unanswered: AtomicUsize::new(0),
            is_stopping: AtomicBool::new(false),
            drained: Condvar::new(),
            disconnects: RateLimiter::new(LINES_PER_PROCESS, LINES, LINE_PERIOD),
            failures: RateLimiter::new(LINES_PER_PROCESS, LINES, LINE_PERIOD),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change of the state is whole: a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a connection of `process`, if there is room for it.
    pub(super) fn register(
        self: &Arc<Self>,
        number: u64,
        process: ProcessKey,
        socket: &Arc<OwnedFd>,
    ) -> Result<Slot, DisconnectReason> {
        let Limits { connections, .. } = self.limits;
        let share = self.limits.share(connections);
        let mut state = self.state();
        if state.connections >= connections {
            return Err(DisconnectReason::Connections(connections));
        }
        let usage = Arc::clone(state.processes.entry(process).or_default());
        if usage.connections.load(Ordering::Relaxed) >= share {
            return Err(DisconnectReason::PeerConnections(share));
        }
        usage.connections.fetch_add(1, Ordering::Relaxed);
        state.connections += 1;
        self.counters.open.fetch_add(1, Ordering::Relaxed);
        state.sockets.insert(number, Arc::clone(socket));
        Ok(Slot { registry: Arc::clone(self), number, process, usage })
    }

    /// Ends the input of every connection. A client that sends a request from now on learns that it was not sent. Requests
    /// that were sent before can still be read, and answered.
    pub(super) fn stop(&self) {
        self.is_stopping.store(true, Ordering::SeqCst);
        for socket in self.state().sockets.values() {
            let _ = shutdown(socket, Shutdown::Read);
        }
    }

    /// The number of connections.
    pub(super) fn connections(&self) -> usize {
        self.state().connections
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::SeqCst)
    }

    /// The number of commands that were begun and not answered.
    pub(super) fn unanswered(&self) -> usize {
        self.unanswered.load(Ordering::SeqCst)
    }

    /// Waits until every request that was sent was answered, for at most `limit`. Returns the number of commands that were
    /// not.
    pub(super) fn wait_until_drained(&self, limit: Duration) -> usize {
        let deadline = Instant::now().checked_add(limit);
        let mut state = self.state();
        while !state.sockets.is_empty() {
            // An `Instant` cannot hold every `Duration`: a limit that is longer is none.
            let left = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                break;
            }
            (state, _) = self.drained.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        }
        self.unanswered()
    }

    /// Counts that a connection is closed, and logs why, within the limit of lines.
    pub(super) fn record_disconnect(&self, peer: Peer, process: ProcessKey, reason: DisconnectReason) {
        self.counters.disconnect(reason.cause());
        let Peer { pid, uid, .. } = peer;
        if !reason.should_log() {
            tracing::event!(name: "pr_helper_violation", tracing::Level::DEBUG, pid, uid, "{reason}");
        } else if let Some(suppressed) = self.disconnects.check(process) {
            tracing::event!(name: "pr_helper_violation", tracing::Level::WARN, pid, uid, "{reason} ({peer}){suppressed}");
        }
    }

    /// Logs why a command has no answer of its device, within the limit of lines.
    pub(super) fn log_failure(&self, peer: Peer, process: ProcessKey, failure: &dyn std::fmt::Display) {
        if let Some(suppressed) = self.failures.check(process) {
            let Peer { pid, uid, .. } = peer;
            tracing::event!(name: "pr_helper_failure", tracing::Level::WARN, pid, uid, "{failure} ({peer}){suppressed}");
        }
    }
}

impl Slot {
    pub(super) fn registry(&self) -> &Registry {
        &self.registry
    }

    pub(super) fn process(&self) -> ProcessKey {
        self.process
    }

    /// The server reads no more from the connection. Drops the registry's reference to the socket: the caller is about to
    /// close it, which may take long.
    pub(super) fn begin_close(&self) {
        let mut state = self.registry.state();
        let socket = state.sockets.remove(&self.number);
        if state.sockets.is_empty() {
            self.registry.drained.notify_all();
        }
        drop(state);
        drop(socket);
    }

    /// Begins a command, if it may run.
    pub(super) fn begin_command(&self) -> Result<BegunCommand<'_>, TooManyCommands> {
        let Registry { limits, running, unanswered, .. } = &*self.registry;
        unanswered.fetch_add(1, Ordering::SeqCst);
        let of_all = running.fetch_add(1, Ordering::Relaxed);
        let of_process = self.usage.running.fetch_add(1, Ordering::Relaxed);
        let command = BegunCommand { slot: self, is_running: true };
        if of_all >= limits.running || of_process >= limits.share(limits.running) {
            Err(TooManyCommands)
        } else {
            Ok(command)
        }
    }
}

impl BegunCommand<'_> {
    /// The manager is done with the command: before the answer, so that a client that has it finds room for the next.
    pub(super) fn end_running(&mut self) {
        if std::mem::take(&mut self.is_running) {
            self.slot.usage.running.fetch_sub(1, Ordering::Relaxed);
            self.slot.registry.running.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for BegunCommand<'_> {
    fn drop(&mut self) {
        self.end_running();
        self.slot.registry.unanswered.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.begin_close();
        let mut state = self.registry.state();
        state.connections -= 1;
        self.registry.counters.open.fetch_sub(1, Ordering::Relaxed);
        // Under the lock, as a new connection of the process would count in the same value.
        if self.usage.connections.fetch_sub(1, Ordering::Relaxed) == 1 {
            state.processes.remove(&self.process);
        }
    }
}
