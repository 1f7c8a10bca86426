//! What the epoll thread and the others share: the books behind a lock, and the crew of threads.
//!
//! Threads are started when there is work for them and kept in reserve for a moment, two for good. The last thread of
//! the reserve is not spent on a command, which may hang, unless it can be replaced: where no more threads are to be
//! had it answers BUSY. Nor is it spent on anything while there are other jobs.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, epoll, eventfd};
use tracing::Level;

use super::attend::attend;
use super::books::{Books, Bounds, Job, Task};
use super::complaints::Complaints;
use super::connection::{Breach, Connection, Device};
use super::{Limits, Peer};

/// How many threads stay in reserve for good, and how long the others do.
const RESERVE: isize = 2;
const RESERVE_TIME: Duration = Duration::from_secs(5);

/// A command may go through several layers of managers.
const STACK: usize = 256 * 1024;

/// Who shares the bounds of one peer: a process and its user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct PeerKey {
    pub(super) pid: u32,
    pub(super) uid: u32,
    /// Which process it is, when it is one of those that all have the id 0 here.
    pub(super) unseen: u64,
}

pub(super) type ServerJob = Job<Box<Connection>, PeerKey, Device>;

pub(super) struct Shared {
    pub(super) limits: Limits,
    pub(super) epoll: OwnedFd,
    /// Readable when the epoll thread is to look at the state.
    pub(super) wake: OwnedFd,
    state: Mutex<State>,
    /// Threads in reserve wait here.
    reserve: Condvar,
    /// Who drains waits here.
    drained: Condvar,
    pub(super) violations: Complaints,
    pub(super) failures: Complaints,
    pub(super) accepting: Complaints,
}

pub(super) struct State {
    pub(super) books: Books<Box<Connection>, PeerKey, Device>,
    /// Threads that have been started and have no job. One may take a job before who started it has counted it: it is
    /// below zero then.
    reserve: isize,
    /// Commands that were begun and whose answer is not sent.
    pub(super) commands: usize,
    pub(super) stopping: bool,
    /// The epoll thread waits for a connection to be closed.
    pub(super) full: bool,
    /// No thread could be started for the jobs there are.
    stranded: bool,
    /// Until when the epoll thread sleeps.
    asleep_until: Option<Instant>,
}

impl Shared {
    pub(super) fn new(limits: Limits) -> Result<Self, rustix::io::Errno> {
        let limits = within_reason(limits);
        let share = |whole: usize| (whole / limits.peer_share).max(1);
        // An eighth more for what must not wait for hanging commands.
        let errands = (limits.running / 8).max(limits.peer_share);
        let bounds = Bounds {
            connections: limits.connections,
            connections_of_peer: share(limits.connections),
            seats: [limits.running, errands],
            seats_of_peer: [share(limits.running), share(errands)],
            per_device: limits.per_device,
            wait: limits.wait,
        };
        Ok(Self {
            limits,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            state: Mutex::new(State {
                books: Books::new(bounds),
                reserve: 0,
                commands: 0,
                stopping: false,
                full: false,
                stranded: false,
                asleep_until: None,
            }),
            reserve: Condvar::new(),
            drained: Condvar::new(),
            violations: Complaints::new("connections that were closed"),
            failures: Complaints::new("commands that failed"),
            accepting: Complaints::new("connections that could not be accepted"),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change of the state is whole: a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, and sees to what follows from it: threads for new jobs, an earlier deadline, the last answer.
    pub(super) fn change<T>(self: &Arc<Self>, act: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let jobs = state.books.jobs();
        let result = act(&mut state);
        let new_jobs = state.books.jobs().saturating_sub(jobs);
        let hire = new_jobs > 0 && state.reserve <= 0;
        let has_room = state.full && !state.books.is_full();
        let is_due = state.books.deadline().is_some_and(|first| state.asleep_until.is_some_and(|until| first < until));
        let wake = has_room || is_due;
        if wake {
            // Once is enough.
            (state.full, state.asleep_until) = (false, None);
        }
        let drained = state.stopping && state.commands == 0;
        drop(state);
        for _ in 0..new_jobs {
            self.reserve.notify_one();
        }
        if hire && !self.hire() {
            self.strand();
        }
        if wake {
            self.wake();
        }
        if drained {
            self.drained.notify_all();
        }
        result
    }

    /// Has the epoll thread look at the state.
    pub(super) fn wake(&self) {
        // It fails when the counter is full: the thread is woken already.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Has the epoll thread see to it that the jobs there are get a thread.
    fn strand(&self) {
        self.lock().stranded = true;
        self.wake();
    }

    /// For the epoll thread: until when it may sleep, after `act`; at most until `latest`.
    pub(super) fn before_sleep(
        self: &Arc<Self>,
        now: Instant,
        latest: Option<Instant>,
        act: impl FnOnce(&mut State),
    ) -> Option<Instant> {
        const RETRY: Duration = Duration::from_millis(100);
        let retry = self.change(|state| {
            act(state);
            std::mem::take(&mut state.stranded) && state.books.jobs() > 0 && state.reserve <= 0
        });
        let stranded = retry && !self.hire();
        let complaints = self.complaints().filter_map(Complaints::deadline).min();
        let mut state = self.lock();
        state.stranded |= stranded;
        let retry = state.stranded.then(|| now + RETRY);
        // A far deadline, so that "asleep for ever" is no special case; old kernels take no farther one.
        let far = now + Duration::from_secs(3600);
        state.asleep_until =
            state.books.deadline().into_iter().chain(complaints).chain(retry).chain(latest).chain([far]).min();
        state.asleep_until
    }

    /// Starts a thread. It is in reserve only once it is known to exist: nobody is to count on one that may fail.
    fn hire(self: &Arc<Self>) -> bool {
        let shared = Arc::clone(self);
        let started = std::thread::Builder::new().name("pr-command".into()).stack_size(STACK).spawn(move || {
            while let Some((job, may_run)) = shared.next_job() {
                attend(&shared, job, may_run);
                shared.lock().reserve += 1;
            }
        });
        if started.is_ok() {
            self.lock().reserve += 1;
        }
        started.is_ok()
    }

    /// The next job of a thread in reserve, and whether it may run a command; `None` when the thread is not needed any
    /// more.
    fn next_job(self: &Arc<Self>) -> Option<(ServerJob, bool)> {
        let mut state = self.lock();
        let mut waited = false;
        loop {
            if let Some(job) = state.books.next_job() {
                state.reserve -= 1;
                // An errand may hang as well, but there is always time to start a thread for who comes later.
                let needed = matches!(job.task, Task::Serve(_)) || state.books.jobs() > 0;
                let replace = state.reserve <= 0 && needed && !state.stopping;
                drop(state);
                let replaced = !replace || self.hire();
                if !replaced {
                    self.strand();
                }
                return Some((job, replaced));
            }
            if state.stopping || (waited && state.reserve > RESERVE) {
                state.reserve -= 1;
                return None;
            }
            (state, waited) = if state.reserve > RESERVE {
                let (state, result) =
                    self.reserve.wait_timeout(state, RESERVE_TIME).unwrap_or_else(PoisonError::into_inner);
                (state, result.timed_out())
            } else {
                (self.reserve.wait(state).unwrap_or_else(PoisonError::into_inner), false)
            };
        }
    }

    /// Lets threads in reserve see that the server stops.
    pub(super) fn dismiss(&self) {
        self.reserve.notify_all();
    }

    pub(super) fn wait_until_drained(&self) {
        let state = self.lock();
        let _drained =
            self.drained.wait_while(state, |state| state.commands > 0).unwrap_or_else(PoisonError::into_inner);
    }

    pub(super) fn running(&self) -> usize {
        self.lock().commands
    }

    pub(super) fn complaints(&self) -> impl Iterator<Item = &Complaints> {
        [&self.violations, &self.failures, &self.accepting].into_iter()
    }

    /// Says why a connection is closed, if anybody should know.
    pub(super) fn complain(&self, connection: &Connection, breach: &Breach) {
        let Peer { pid, uid, .. } = connection.peer;
        if breach.is_told() {
            self.say(
                &self.violations,
                || tracing::event!(name: "pr_helper_violation", Level::WARN, pid, uid, "{breach}"),
            );
        } else {
            let connection = connection.number;
            tracing::event!(name: "pr_helper_violation", Level::DEBUG, connection, pid, uid, "{breach}");
        }
    }

    /// Says one of `complaints`, unless there were many just now.
    pub(super) fn say(&self, complaints: &Complaints, complaint: impl FnOnce()) {
        if complaints.say(complaint, Instant::now()) {
            // To say in time how many there were.
            self.wake();
        }
    }
}

/// The limits that can be kept: at least one of everything, and no time that an `Instant` cannot hold.
fn within_reason(limits: Limits) -> Limits {
    const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);
    Limits {
        connections: limits.connections.max(1),
        running: limits.running.max(1),
        per_device: limits.per_device.max(1),
        peer_share: limits.peer_share.max(1),
        wait: limits.wait.min(LONGEST),
        linger: limits.linger.min(LONGEST),
        send_timeout: limits.send_timeout.min(LONGEST),
        half_sent: limits.half_sent.min(LONGEST),
    }
}

#[cfg(test)]
mod tests {
    use super::super::books::Closing;
    use super::*;
    use scsi_pr::{Command, Completion, Error, PrManager};
    use std::os::fd::BorrowedFd;
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc::{Receiver, Sender, channel};

    /// A connection with this takes until somebody says so to be closed.
    struct Clinging {
        closing: Sender<()>,
        let_go: Mutex<Receiver<()>>,
    }

    impl PrManager for Clinging {
        fn execute(&self, _: BorrowedFd<'_>, _: Command<'_>) -> Result<Completion, Error> {
            Err(Error::not_run("run anything"))
        }
    }

    impl Drop for Clinging {
        fn drop(&mut self) {
            let _ = self.closing.send(());
            let _ = self.let_go.lock().unwrap().recv();
        }
    }

    #[test]
    fn errands_that_hang_keep_no_thread_from_the_next() {
        let shared = Arc::new(Shared::new(Limits::default()).unwrap());
        let (closing, closings) = channel();
        let mut let_go = Vec::new();
        shared.change(|state| {
            for number in 0..8 {
                let (sender, receiver) = channel();
                let_go.push(sender);
                let manager = Clinging { closing: closing.clone(), let_go: Mutex::new(receiver) };
                let peer = Peer { pid: 1, uid: 1, gid: 1 };
                let socket = UnixStream::pair().unwrap().0.into();
                let id = state.books.open(PeerKey { pid: 1, uid: 1, unseen: 0 }).unwrap();
                let connection = Box::new(Connection::new(socket, peer, number, Arc::new(manager)));
                state.books.dispose(id, connection, Closing::Stop);
            }
        });
        for number in 0..8 {
            closings.recv_timeout(Duration::from_secs(60)).unwrap_or_else(|_| panic!("only {number} are being closed"));
        }
        drop(let_go);
    }
}
