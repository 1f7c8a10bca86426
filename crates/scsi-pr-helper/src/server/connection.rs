//! The thread of a connection: reads, runs, answers, until the client has gone.

use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{SendFlags, Shutdown, shutdown};
use scsi_pr::{CommandBuf, Completion, PrManager, SenseCode, Status};
use tracing::Level;

use super::Peer;
use super::disconnect::DisconnectReason;
use super::registry::{NotBegun, Registry, Slot};
use super::request_stream::{self, Read, RequestStream, SLOW_READER_TIMEOUT};
use crate::wire::feature_word;

/// The failure of a request whose descriptor the kernel has dropped.
const DROPPED: &str = "the kernel dropped the file descriptor of a request, which was answered BUSY: raise the limit on \
                       open files, or see whether a security module refuses the descriptor";

/// A connection, with all that its thread needs.
pub(super) struct Connection {
    pub(super) socket: Arc<OwnedFd>,
    pub(super) peer: Peer,
    /// Its number, for the trace.
    pub(super) number: u64,
    pub(super) manager: Arc<dyn PrManager>,
    pub(super) slot: Slot,
}

impl Connection {
    /// Serves the connection to its end.
    pub(super) fn run(self) {
        let mut requests = RequestStream::default();
        if let Err(reason) = self.serve(&mut requests) {
            self.slot.registry().log_disconnect(self.peer, self.slot.process(), reason);
        }
        let Self { socket, peer: Peer { pid, .. }, number, slot, .. } = self;
        // The client learns it at once: to close the descriptors that it sent may take long.
        let _ = shutdown(&socket, Shutdown::Both);
        // This is the last reference to the socket, so the close is on this thread, and no lock is held meanwhile. The
        // connection counts until it is closed.
        slot.begin_close();
        drop(requests);
        drop(socket);
        drop(slot);
        tracing::event!(name: "pr_helper_close", Level::DEBUG, connection = number, pid, "closed");
    }

    fn registry(&self) -> &Registry {
        self.slot.registry()
    }

    fn serve(&self, requests: &mut RequestStream) -> Result<(), DisconnectReason> {
        let limits = self.registry().limits;
        for (which, timeout) in
            [(Timeout::Send, SLOW_READER_TIMEOUT.min(limits.send_timeout)), (Timeout::Recv, limits.receive_timeout)]
        {
            let _ = set_socket_timeout(&self.socket, which, Some(timeout));
        }
        // A client that is gone already is found out when its connection is read.
        let _ = rustix::net::send(&self.socket, &feature_word(0), SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        loop {
            match requests.read(self.socket.as_fd(), limits.receive_timeout) {
                Read::Request(request, device) => match self.run_command(&request, device)? {
                    Next::Continue => {}
                    Next::Stop => return Ok(()),
                },
                Read::WithoutDescriptor(request) => {
                    self.log_failure(&DROPPED);
                    self.answer(&Completion::Status(Status::BUSY), &request)?;
                }
                Read::End => return Ok(()),
                Read::Broken(reason) => return Err(reason),
            }
        }
    }

    fn run_command(&self, request: &CommandBuf, device: OwnedFd) -> Result<Next, DisconnectReason> {
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
            Err(NotBegun::Stopping) => return Ok(Next::Stop),
            Err(NotBegun::Busy) => {
                drop(device);
                tracing::event!(name: "pr_helper_busy", Level::DEBUG, connection = self.number, "answered BUSY");
                self.log_failure(
                    &"as many commands run as may, and a further one was answered BUSY: look for devices \
                                   that hang, or raise --max-commands",
                );
                self.answer(&Completion::Status(Status::BUSY), request)?;
                return Ok(Next::Continue);
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
        self.answer(&completion, request)?;
        Ok(Next::Continue)
    }

    /// There is no answer of the device: the guest learns that the unit could not be reached, the log why.
    fn failed(&self, error: &dyn std::fmt::Display) -> Completion {
        self.log_failure(error);
        Completion::check(SenseCode::LUN_COMMUNICATION_FAILURE)
    }

    fn log_failure(&self, failure: &dyn std::fmt::Display) {
        self.registry().log_failure(self.peer, self.slot.process(), failure);
    }

    fn answer(&self, completion: &Completion, request: &CommandBuf) -> Result<(), DisconnectReason> {
        let timeout: Duration = self.registry().limits.send_timeout;
        // Shutdown does not wait for clients that do not read.
        let may_wait = || !self.registry().is_stopping();
        let allocation_length = request.cdb().allocation_length();
        request_stream::answer(self.socket.as_fd(), completion, allocation_length, timeout, may_wait)
            .map_err(DisconnectReason::Send)
    }
}

/// The connection's next step after a request.
enum Next {
    Continue,
    Stop,
}
