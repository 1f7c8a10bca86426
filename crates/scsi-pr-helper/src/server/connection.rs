//! The thread of a connection: reads, runs, answers, until the client has gone or falls silent.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use rustix::io::ioctl_fionread;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{SendFlags, Shutdown, shutdown};
use scsi_pr::{CommandBuf, Completion, PrManager, SenseCode, Status};
use scsi_pr_daemon::IdleConnections;
use tracing::Level;

use super::Peer;
use super::disconnect::DisconnectReason;
use super::registry::{Registry, Slot, TooManyCommands};
use super::request_stream::{self, Read, RequestStream, SLOW_READER_TIMEOUT};
use crate::wire::feature_word;

/// The failure of a request whose descriptor the kernel has dropped.
const DROPPED: &str = "the kernel dropped the file descriptor of a request, which was answered BUSY: raise the limit on \
                       open files, or see whether a security module refuses the descriptor";

/// While there are no more threads, a silent connection keeps its thread for [`Limits::receive_timeout`]. So many threads take
/// less than a megabyte; to start one takes up to 100 µs of a command.
///
/// [`Limits::receive_timeout`]: super::Limits::receive_timeout
const KEPT_THREADS: usize = 64;

/// While there are more, a silent connection keeps its thread for this time.
const IDLE_TIMEOUT: Duration = Duration::from_secs(1);

/// The wait before the server answers BUSY on its own account. A client that repeats its commands at once, on thousands of
/// connections, would otherwise take the processors from the commands that run.
const BUSY_DELAY: Duration = Duration::from_millis(500);

/// A connection, with all that its thread needs.
pub(super) struct Connection {
    pub(super) socket: Arc<OwnedFd>,
    pub(super) peer: Peer,
    /// Its number, for the trace.
    pub(super) number: u64,
    pub(super) manager: Arc<dyn PrManager>,
    pub(super) slot: Slot,
    /// Where the connection goes when it is idle.
    pub(super) idle: Arc<IdleConnections<Connection>>,
    pub(super) requests: RequestStream,
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Connection {
    /// Sets the time after which the connection is idle. It is about to have a thread.
    pub(super) fn set_idle_timeout(&self) {
        let registry = self.registry();
        let mut timeout = registry.limits.receive_timeout;
        if registry.connections().saturating_sub(self.idle.count()) > KEPT_THREADS {
            timeout = timeout.min(IDLE_TIMEOUT);
        }
        let _ = set_socket_timeout(&self.socket, Timeout::Recv, Some(timeout));
    }

    /// Greets the client, and serves it.
    pub(super) fn greet(self) {
        let timeout = SLOW_READER_TIMEOUT.min(self.registry().limits.send_timeout);
        let _ = set_socket_timeout(&self.socket, Timeout::Send, Some(timeout));
        // A client that is gone already is found out when its connection is read.
        let _ = rustix::net::send(&self.socket, &feature_word(0), SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        self.run();
    }

    /// Serves the connection until it ends, or until it is idle.
    pub(super) fn run(mut self) {
        let idle = Arc::clone(&self.idle);
        loop {
            match self.serve() {
                Ended::Idle => match idle.insert(self.number, self) {
                    Some(connection) => self = connection,
                    None => return,
                },
                Ended::Closed => return self.close(),
                Ended::Broken(reason) => {
                    self.registry().record_disconnect(self.peer, self.slot.process(), reason);
                    return self.close();
                }
            }
        }
    }

    /// Closes the connection, which may take long: the client may have sent any descriptors.
    pub(super) fn close(self) {
        let Self { socket, peer: Peer { pid, .. }, number, slot, requests, .. } = self;
        // From here this has the last reference to the socket, so the close is on this thread, and no lock is held meanwhile.
        // The connection counts until it is closed.
        slot.begin_close();
        // The client learns it at once.
        let _ = shutdown(&socket, Shutdown::Both);
        drop(requests);
        drop(socket);
        drop(slot);
        tracing::event!(name: "pr_helper_close", Level::DEBUG, connection = number, pid, "closed");
    }

    /// Whether the client has sent something that was not read.
    pub(super) fn has_input(&self) -> bool {
        ioctl_fionread(&self.socket).is_ok_and(|bytes| bytes > 0)
    }

    fn registry(&self) -> &Registry {
        self.slot.registry()
    }

    fn serve(&mut self) -> Ended {
        let receive_timeout = self.registry().limits.receive_timeout;
        loop {
            let served = match self.requests.read(self.socket.as_fd(), receive_timeout) {
                Read::Request(request, device) => self.run_command(&request, device),
                Read::WithoutDescriptor(request) => {
                    self.registry().counters.lost_descriptors.fetch_add(1, Ordering::Relaxed);
                    self.log_failure(&DROPPED);
                    self.answer_busy(&request)
                }
                Read::Idle => Err(Ended::Idle),
                Read::End => Err(Ended::Closed),
                Read::Broken(reason) => Err(Ended::Broken(reason)),
            };
            if let Err(ended) = served {
                return ended;
            }
        }
    }

    fn run_command(&self, request: &CommandBuf, device: OwnedFd) -> Result<(), Ended> {
        let cdb = request.cdb();
        tracing::event!(
            name: "pr_helper_request",
            Level::TRACE,
            connection = self.number,
            opcode = cdb.bytes()[0],
            service_action = cdb.service_action(),
            "request"
        );
        let mut command = match self.slot.begin_command() {
            Ok(command) => command,
            Err(TooManyCommands) => {
                drop(device);
                self.registry().counters.busy.fetch_add(1, Ordering::Relaxed);
                tracing::event!(name: "pr_helper_busy", Level::DEBUG, connection = self.number, "answered BUSY");
                self.log_failure(
                    &"as many commands run as may, and a further one was answered BUSY: look for devices \
                                   that hang, or raise --max-commands",
                );
                return self.answer_busy(request);
            }
        };
        // A manager that panics may leave its own state broken; the server lends it nothing but the descriptor.
        let executed = catch_unwind(AssertUnwindSafe(|| self.manager.execute(device.as_fd(), request.command())));
        // Before the answer: a client that has it may count on the server not holding the device any more.
        drop(device);
        command.end_running();
        let completion = match executed {
            Ok(Ok(completion)) => completion,
            Ok(Err(error)) => self.failed(&error),
            Err(_) => self.failed(&"a persistent reservation manager panicked"),
        };
        self.answer(&completion, request)
    }

    /// There is no answer of the device: the guest learns that the unit could not be reached, the log why.
    fn failed(&self, error: &dyn std::fmt::Display) -> Completion {
        self.log_failure(error);
        Completion::check(SenseCode::LUN_COMMUNICATION_FAILURE)
    }

    fn log_failure(&self, failure: &dyn std::fmt::Display) {
        self.registry().log_failure(self.peer, self.slot.process(), failure);
    }

    /// Answers a command that was not begun.
    fn answer_busy(&self, request: &CommandBuf) -> Result<(), Ended> {
        thread::sleep(BUSY_DELAY);
        self.answer(&Completion::Status(Status::BUSY), request)
    }

    fn answer(&self, completion: &Completion, request: &CommandBuf) -> Result<(), Ended> {
        let timeout = self.registry().limits.send_timeout;
        // Shutdown does not wait for clients that do not read.
        let may_wait = || !self.registry().is_stopping();
        let allocation_length = request.cdb().allocation_length();
        request_stream::answer(self.socket.as_fd(), completion, allocation_length, timeout, may_wait)
            .map_err(|errno| Ended::Broken(DisconnectReason::Send(errno.into())))
    }
}

/// The way in which [`Connection::serve`] ended.
enum Ended {
    /// The client was silent for the socket's SO_RCVTIMEO.
    Idle,
    /// The client has closed, or the server stops.
    Closed,
    /// The connection cannot go on.
    Broken(DisconnectReason),
}
