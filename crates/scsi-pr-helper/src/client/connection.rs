//! One connection to a helper: bytes within a deadline. The client decides about retries.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv, send, socket_with,
};
use scsi_pr::{Cdb, Command, Completion};

use crate::deadline::Deadline;
use crate::descriptor::{self, IoMode};
use crate::wire::{self, FEATURE_CLEANUP, ResponseDecoder};

const NONBLOCKING: SendFlags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);

/// A connection whose handshake is done.
#[derive(Debug)]
pub(super) struct Connection {
    socket: OwnedFd,
    /// The feature bits that were offered and that this client knows.
    features: u32,
}

/// A request did not go out whole.
#[derive(Debug)]
pub(super) enum SendError {
    /// The helper has not got a whole CDB: it cannot have run anything.
    Before(io::Error),
    /// The helper has the CDB, and at most part of the parameter list. It should not run such a command, but the client
    /// cannot rely on that.
    After(io::Error),
}

/// Connects to the socket at `path`.
///
/// # Errors
///
/// Those of connect(2). Only a full backlog makes it wait.
pub(super) fn open(path: &Path, deadline: &Deadline) -> io::Result<OwnedFd> {
    let address = SocketAddrUnix::new(path)?;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    loop {
        // A Unix socket cannot be connected in the background; its send time-out is what limits connect(2).
        set_socket_timeout(&socket, Timeout::Send, Some(deadline.left().max(Duration::from_millis(1))))?;
        match connect(&socket, &address) {
            Ok(()) => return Ok(socket),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Err(deadline.expired()),
            Err(error) => return Err(error.into()),
        }
    }
}

impl Connection {
    /// Shakes hands: wants what is known of what is offered.
    pub(super) fn negotiate(socket: OwnedFd, deadline: &Deadline) -> io::Result<Self> {
        let mut offered = [0; 4];
        let mut have = 0;
        while have < offered.len() {
            have += receive(&socket, &mut offered[have..], deadline)?;
        }
        let features = wire::decode_features(offered) & FEATURE_CLEANUP;
        let mut word = &wire::feature_word(features)[..];
        while !word.is_empty() {
            word = &word[sending(&socket, deadline, || Ok(send(&socket, word, NONBLOCKING)?))?..];
        }
        Ok(Self { socket, features })
    }

    /// Whether the helper runs CLEANUP.
    pub(super) fn has_cleanup(&self) -> bool {
        self.features & FEATURE_CLEANUP != 0
    }

    /// Whether a request can be sent: the helper is there, and has nothing to say that was not asked for. Bytes that
    /// wait here would be taken for the answer.
    pub(super) fn is_idle(&self) -> bool {
        self.events(PollFlags::IN | PollFlags::RDHUP).is_empty()
    }

    /// Whether the helper has closed its end.
    pub(super) fn is_hung_up(&self) -> bool {
        !self.events(PollFlags::RDHUP).is_empty()
    }

    fn events(&self, wanted: PollFlags) -> PollFlags {
        let mut polled = [PollFd::new(&self.socket, wanted)];
        match rustix::io::retry_on_intr(|| poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))) {
            Ok(_) => polled[0].revents(),
            Err(_) => PollFlags::ERR,
        }
    }

    /// Sends a request: CDB and parameter list in one piece, so that both go or neither does.
    pub(super) fn send(&self, device: impl AsFd, command: &Command<'_>, deadline: &Deadline) -> Result<(), SendError> {
        let cdb = command.cdb().bytes();
        let request = [cdb, command.parameter_list()].concat();
        let mut sent = 0;
        while sent < request.len() {
            let rest = &request[sent..];
            sent += sending(&self.socket, deadline, || match sent {
                0 => descriptor::send(&self.socket, rest, device.as_fd(), IoMode::Nonblocking),
                _ => Ok(send(&self.socket, rest, NONBLOCKING)?),
            })
            .map_err(if sent < cdb.len() { SendError::Before } else { SendError::After })?;
        }
        Ok(())
    }

    /// Reads the answer to `cdb`.
    pub(super) fn receive(&self, cdb: &Cdb, deadline: &Deadline) -> io::Result<Completion> {
        let mut decoder = ResponseDecoder::new(cdb);
        loop {
            let count = receive(&self.socket, decoder.wanted(), deadline)?;
            let answer =
                decoder.advance(count).map_err(|violation| io::Error::new(io::ErrorKind::InvalidData, violation))?;
            if let Some(completion) = answer {
                return Ok(completion);
            }
        }
    }
}

/// At least one byte; the end of the stream is an error.
fn receive(socket: &OwnedFd, room: &mut [u8], deadline: &Deadline) -> io::Result<usize> {
    loop {
        deadline.wait(socket, PollFlags::IN)?;
        match recv(socket, &mut *room, RecvFlags::DONTWAIT) {
            Ok((_, 0)) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the helper closed the connection")),
            Ok((_, count)) => return Ok(count),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Calls `send` until it takes some bytes.
fn sending(socket: &OwnedFd, deadline: &Deadline, send: impl Fn() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match send() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => deadline.wait(socket, PollFlags::OUT)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
