//! A thread on a connection: reads, runs, answers, lingers.

use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use rustix::event::epoll;
use scsi_pr::{CommandBuf, Completion, SenseCode, Status};
use tracing::Level;

use super::books::{Closing, Id, Task, Turn};
use super::connection::{Breach, Connection, Device, Read};
use super::shared::{PeerKey, ServerJob, Shared, State};
use super::{CONNECTION_EVENTS, Peer};

/// Does a job. `may_run` is false when there is no thread to replace this one.
pub(super) fn attend(shared: &Arc<Shared>, job: ServerJob, may_run: bool) {
    let ServerJob { id, connection, peer, task, turn } = job;
    let slot = if let Task::Serve(slot) = task { slot } else { None };
    let seat = Seat {
        shared,
        id,
        peer,
        task,
        connection: Some(connection),
        turn: Some(turn),
        slot,
        running: false,
        left: false,
    };
    match task {
        Task::Serve(_) => seat.serve(may_run),
        Task::Busy => seat.serve(false),
        Task::Close(Closing::Stop) => drop(seat),
        Task::Close(Closing::Refused) => {
            let limit = shared.limits.connections / shared.limits.peer_share.max(1);
            seat.complain(&Breach::Connections(limit.max(1)));
        }
        Task::Close(Closing::HalfSent) => seat.complain(&Breach::HalfSent(shared.limits.half_sent)),
        Task::Close(Closing::Unwatched) => seat.complain(&Breach::Unwatched),
    }
}

/// A connection on a thread. Whatever happens, what it holds in the books is given back when this is dropped, and the
/// connection closed unless it went elsewhere.
struct Seat<'a> {
    shared: &'a Arc<Shared>,
    id: Id,
    peer: PeerKey,
    task: Task<Device>,
    connection: Option<Box<Connection>>,
    /// When the first command arrived; later ones have not waited.
    turn: Option<Turn>,
    /// The slot of a device, held while its command runs.
    slot: Option<Device>,
    /// Whether a command was begun and not answered.
    running: bool,
    /// Whether all of it was given back.
    left: bool,
}

/// Whether a command may begin.
enum Admission {
    Run(CommandBuf, OwnedFd),
    /// It waits for the device now, and the connection with it.
    Waits,
    /// The server stops.
    Stopping(CommandBuf, OwnedFd),
}

/// Why a request is answered BUSY although its device is not.
const DROPPED: &str = "the kernel dropped the file descriptor of a request, which was answered BUSY: raise the limit on \
                       open files, or see whether a security module refuses the descriptor";

/// What to do once a command is answered.
enum Next {
    Linger,
    Yield,
    Close,
}

impl Seat<'_> {
    fn connection(&mut self) -> &mut Connection {
        self.connection.as_mut().expect("a seat has its connection until it is left")
    }

    fn complain(&self, breach: &Breach) {
        if let Some(connection) = &self.connection {
            self.shared.complain(connection, breach);
        }
    }

    /// Serves the connection until it falls silent; BUSY to the first command where none may run.
    fn serve(mut self, may_run: bool) {
        let linger = self.shared.limits.linger;
        let patient = may_run && !linger.is_zero();
        // One command alone is no sign of others: of a thousand clients that send one, none is to keep a thread.
        let mut busy = self.connection().parked.is_some_and(|parked| parked.elapsed() < linger);
        let mut lingers = false;
        loop {
            let read = match self.connection().pending.take() {
                Some(pending) => Read::Request(pending.0, pending.1),
                None => self.connection().read(patient, lingers),
            };
            let next = match read {
                Read::Request(request, descriptor) if may_run => match self.admit(request, descriptor) {
                    Admission::Run(request, descriptor) => self.run(&request, descriptor),
                    Admission::Waits => return,
                    Admission::Stopping(request, descriptor) => {
                        drop(descriptor);
                        self.busy(&request).map(|()| Next::Close)
                    }
                },
                Read::Request(request, descriptor) => {
                    drop(descriptor);
                    self.busy(&request).map(|()| Next::Yield)
                }
                Read::Dropped(request) => {
                    self.warn(&DROPPED);
                    self.busy(&request).map(|()| Next::Linger)
                }
                Read::Silent => return self.park(),
                Read::End => return,
                Read::Broken(breach) => Err(breach),
            };
            self.turn = None;
            match next {
                Ok(Next::Linger) => (lingers, busy) = (patient && busy, true),
                Ok(Next::Yield) => return self.park(),
                Ok(Next::Close) => return,
                Err(breach) => return self.complain(&breach),
            }
        }
    }

    fn admit(&mut self, request: CommandBuf, descriptor: OwnedFd) -> Admission {
        let device = self.slot.unwrap_or_else(|| Device::of(&descriptor));
        let number = self.connection().number;
        let shared = self.shared;
        let admission = shared.change(|state| {
            if state.stopping {
                return Admission::Stopping(request, descriptor);
            }
            if self.slot.is_some() || state.books.take_slot(device) {
                state.commands += 1;
                (self.slot, self.running) = (Some(device), true);
                return Admission::Run(request, descriptor);
            }
            let mut connection = self.connection.take().expect("a seat has its connection until it is left");
            connection.pending = Some(Box::new((request, descriptor)));
            state.books.hold(self.id, connection, device, self.turn, Instant::now());
            self.leave(state);
            Admission::Waits
        });
        if matches!(admission, Admission::Waits) {
            tracing::event!(
                name: "pr_helper_wait",
                Level::DEBUG,
                connection = number,
                "waits: as many commands as may run on its device"
            );
        }
        admission
    }

    fn run(&mut self, request: &CommandBuf, descriptor: OwnedFd) -> Result<Next, Breach> {
        let connection = self.connection();
        let cdb = request.cdb();
        tracing::event!(
            name: "pr_helper_request",
            Level::TRACE,
            connection = connection.number,
            opcode = cdb.bytes()[0],
            service_action = cdb.service_action(),
            "request"
        );
        // What a manager leaves behind when it panics is its own business; of ours nothing is borrowed but the fd.
        let executed =
            catch_unwind(AssertUnwindSafe(|| connection.manager.execute(descriptor.as_fd(), request.command())));
        // Before the answer: who has it may count on the device not being held here any more.
        drop(descriptor);
        let completion = match executed {
            Ok(Ok(completion)) => completion,
            Ok(Err(error)) => self.failed(&error),
            Err(_) => self.failed(&"a persistent reservation manager panicked"),
        };
        self.answer(&completion, request)?;
        let shared = self.shared;
        Ok(shared.change(|state| {
            self.leave_slot(state);
            if state.stopping {
                // It counts as running until the connection is closed.
                return Next::Close;
            }
            self.leave_command(state);
            if state.books.should_yield(self.peer) { Next::Yield } else { Next::Linger }
        }))
    }

    /// There is no answer: the guest is told that the unit could not be reached, the log why.
    fn failed(&mut self, error: &dyn std::fmt::Display) -> Completion {
        self.warn(error);
        Completion::check(SenseCode::LUN_COMMUNICATION_FAILURE)
    }

    fn warn(&mut self, failure: &dyn std::fmt::Display) {
        let Peer { pid, uid, .. } = self.connection().peer;
        let shared = self.shared;
        shared.say(&shared.failures, || tracing::event!(name: "pr_helper_failure", Level::WARN, pid, uid, "{failure}"));
    }

    fn busy(&mut self, request: &CommandBuf) -> Result<(), Breach> {
        let number = self.connection().number;
        tracing::event!(name: "pr_helper_busy", Level::DEBUG, connection = number, "answered BUSY");
        self.answer(&Completion::Status(Status::BUSY), request)
    }

    fn answer(&mut self, completion: &Completion, request: &CommandBuf) -> Result<(), Breach> {
        let connection = self.connection.take().expect("a seat has its connection until it is left");
        let shared = self.shared;
        let answered =
            connection.answer(completion, request.cdb().allocation_length(), shared.limits.send_timeout, || {
                shared.change(|state| {
                    self.leave_slot(state);
                    // The end of the server does not wait for who does not read.
                    !state.stopping
                })
            });
        self.connection = Some(connection);
        answered.map_err(Breach::Write)
    }

    fn leave_slot(&mut self, state: &mut State) {
        if let Some(device) = self.slot.take() {
            state.books.leave_slot(device);
        }
    }

    fn leave_command(&mut self, state: &mut State) {
        state.commands -= usize::from(std::mem::take(&mut self.running));
    }

    fn leave(&mut self, state: &mut State) {
        self.leave_slot(state);
        self.leave_command(state);
        state.books.leave_seat(self.peer, &self.task);
        self.left = true;
    }

    /// Back to epoll, until something comes. Closed instead when the server stops.
    fn park(mut self) {
        let shared = self.shared;
        let half_sent = self.connection().half_sent(shared.limits.half_sent);
        let number = self.connection().number;
        self.connection().parked = self.turn.is_none().then(Instant::now);
        shared.change(|state| {
            let Some(connection) = self.connection.take() else { return };
            let data = epoll::EventData::new_u64(self.id as u64);
            // Under the lock: before the connection has its place the epoll thread cannot look for it.
            if state.stopping || epoll::modify(&shared.epoll, &connection.socket, data, CONNECTION_EVENTS).is_err() {
                self.connection = Some(connection);
                return;
            }
            state.books.park(self.id, connection, half_sent);
            self.leave(state);
        });
        tracing::event!(name: "pr_helper_park", Level::TRACE, connection = number, "parked");
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        if self.left {
            return;
        }
        let closed = self.connection.take().map(|connection| {
            let Connection { number, peer: Peer { pid, .. }, .. } = *connection;
            // Closing may block: what the client sent and nobody read may hold descriptors.
            drop(connection);
            tracing::event!(name: "pr_helper_close", Level::DEBUG, connection = number, pid, "closed");
        });
        let shared = self.shared;
        shared.change(|state| {
            if closed.is_some() {
                state.books.closed(self.id);
            }
            self.leave(state);
        });
    }
}
