//! One connection: reads exactly what comes next, keeps the descriptor that belongs to it, sends answers.

use std::fmt;
use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::FileType;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, sendmsg};
use scsi_pr::{CommandBuf, Completion, InvalidCommand, PrManager};

use super::Peer;
use crate::descriptor::{Passed, receive};
use crate::wire::{Event, RequestDecoder, RequestViolation, encode_response};

/// How long a client that does not read is waited for before the time, and the server's end, are thought of.
pub(super) const SEND_PATIENCE: Duration = Duration::from_millis(500);

/// A connection, wherever it is: parked, waiting or attended. Small, because there are thousands of them.
pub(super) struct Connection {
    pub(super) socket: OwnedFd,
    pub(super) peer: Peer,
    /// Its number, for the trace.
    pub(super) number: u64,
    pub(super) manager: Arc<dyn PrManager>,
    decoder: RequestDecoder,
    /// The descriptor that came with the CDB.
    descriptor: Option<OwnedFd>,
    /// A descriptor came, and the kernel dropped it: there was no room in this process, or a security module said no.
    lost_descriptor: bool,
    /// Since when there has been a part of a request.
    half_since: Option<Instant>,
    /// When it was parked, if it was after a command.
    pub(super) parked: Option<Instant>,
    /// A request that has been read and waits to be run.
    pub(super) pending: Option<Box<(CommandBuf, OwnedFd)>>,
}

/// What reading came to.
pub(super) enum Read {
    /// A request and the device it is for.
    Request(CommandBuf, OwnedFd),
    /// A request whose descriptor the kernel dropped, which is not the client's doing.
    Dropped(CommandBuf),
    /// Nothing more has come.
    Silent,
    /// The client has closed; nothing is missing.
    End,
    /// The connection cannot go on.
    Broken(Breach),
}

/// Why a connection is closed.
#[derive(Debug)]
pub(super) enum Breach {
    Violation(RequestViolation),
    NoDescriptor,
    ManyDescriptors,
    EndInParameterList,
    Read(Errno),
    Write(Errno),
    Connections(usize),
    HalfSent(Duration),
    Unwatched,
}

impl Breach {
    /// Whether an administrator should know: a client that breaks the protocol finds its connection closed, and its guest
    /// a command that failed for no reason. That a client is gone is no news.
    pub(super) fn is_told(&self) -> bool {
        !matches!(self, Self::Read(_))
    }
}

impl fmt::Display for Breach {
    /// In the words of the C helper, where it has any: its users search their logs for them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Violation(RequestViolation::Command(InvalidCommand::Opcode(_))) => {
                f.write_str("Invalid CDB, closing socket.")
            }
            Self::Violation(violation) => write!(f, "Invalid request, closing socket: {violation}"),
            Self::NoDescriptor => f.write_str("No file descriptor in request."),
            Self::ManyDescriptors => f.write_str("More than one file descriptor in request, closing socket."),
            Self::EndInParameterList => f.write_str("Unexpected end-of-file before all data were read"),
            Self::Read(errno) => write!(f, "Unable to read from socket: {}", reason(*errno)),
            Self::Write(errno) => write!(f, "Unable to write to socket: {}", reason(*errno)),
            Self::Connections(most) => write!(f, "More than {most} connections of one process, closing socket."),
            Self::Unwatched => {
                f.write_str("Unable to watch a connection: the system has no room in epoll, closing socket.")
            }
            Self::HalfSent(wait) => {
                write!(f, "Half a request and nothing more for {} s, closing socket.", wait.as_secs())
            }
        }
    }
}

/// The text of strerror(3), which is what the C helper prints.
pub(super) fn reason(errno: Errno) -> String {
    let text = std::io::Error::from(errno).to_string();
    text.find(" (os error").map_or(text.clone(), |end| text[..end].to_owned())
}

/// What commands are counted by: a device, whatever node it is reached through; else a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Device {
    /// The type of the node, where that says which device it is.
    node: Option<u32>,
    number: u64,
    inode: u64,
}

impl Device {
    pub(super) fn of(descriptor: &OwnedFd) -> Self {
        match rustix::fs::fstat(descriptor) {
            Ok(stat) => match FileType::from_raw_mode(stat.st_mode) {
                node @ (FileType::BlockDevice | FileType::CharacterDevice) => {
                    Self { node: Some(node.as_raw_mode()), number: stat.st_rdev, inode: 0 }
                }
                _ => Self { node: None, number: stat.st_dev, inode: stat.st_ino },
            },
            // Files that do not say what they are count as one.
            Err(_) => Self { node: None, number: 0, inode: 0 },
        }
    }
}

impl Connection {
    pub(super) fn new(socket: OwnedFd, peer: Peer, number: u64, manager: Arc<dyn PrManager>) -> Self {
        Self {
            socket,
            peer,
            number,
            manager,
            decoder: RequestDecoder::new(),
            descriptor: None,
            lost_descriptor: false,
            half_since: None,
            parked: None,
            pending: None,
        }
    }

    /// Reads until a request is whole or nothing comes. Waits a moment, as long as SO_RCVTIMEO says, for the rest of a
    /// request when `patient`, for its beginning when `lingers`.
    pub(super) fn read(&mut self, patient: bool, lingers: bool) -> Read {
        loop {
            let waits = lingers || (patient && !self.decoder.is_idle());
            let flags = if waits { RecvFlags::empty() } else { RecvFlags::DONTWAIT };
            let takes_descriptor = self.decoder.takes_descriptor();
            let room = self.decoder.wanted();
            let wanted = room.len();
            let received = if takes_descriptor {
                receive(&self.socket, room, flags)
            } else {
                // Without room for a control message the kernel drops what descriptors there are.
                rustix::io::retry_on_intr(|| recv(&self.socket, &mut *room, flags))
                    .map(|(_, count)| (count, Passed::None))
            };
            let (count, passed) = match received {
                Ok((0, _)) if self.decoder.is_in_parameter_list() => return Read::Broken(Breach::EndInParameterList),
                Ok((0, _)) => return Read::End,
                Ok(received) => received,
                Err(Errno::AGAIN) => return Read::Silent,
                Err(errno) => return Read::Broken(Breach::Read(errno)),
            };
            if takes_descriptor && let Err(breach) = self.take(passed, count == wanted) {
                return Read::Broken(breach);
            }
            match self.decoder.advance(count) {
                Err(violation) => return Read::Broken(Breach::Violation(violation)),
                Ok(None) => {}
                Ok(Some(Event::Negotiated(_))) => self.half_since = None,
                Ok(Some(Event::Request(request))) => {
                    self.half_since = None;
                    self.lost_descriptor = false;
                    return match self.descriptor.take() {
                        Some(descriptor) => Read::Request(request, descriptor),
                        None => Read::Dropped(request),
                    };
                }
            }
        }
    }

    /// Keeps the descriptor that came with a piece of a CDB; the whole CDB must have brought one.
    fn take(&mut self, passed: Passed, complete: bool) -> Result<(), Breach> {
        let one_already = self.descriptor.is_some() || self.lost_descriptor;
        match passed {
            Passed::None => {}
            Passed::One(descriptor) if !one_already => self.descriptor = Some(descriptor),
            Passed::Dropped if !one_already => self.lost_descriptor = true,
            Passed::One(_) | Passed::Dropped | Passed::Many => return Err(Breach::ManyDescriptors),
        }
        if complete && self.descriptor.is_none() && !self.lost_descriptor {
            return Err(Breach::NoDescriptor);
        }
        Ok(())
    }

    /// Until when it may be parked, when a request is half sent.
    pub(super) fn half_sent(&mut self, patience: Duration) -> Option<Instant> {
        if self.decoder.is_idle() {
            return None;
        }
        Some(*self.half_since.get_or_insert_with(Instant::now) + patience)
    }

    /// Sends an answer, for at most `time_out`. `may_wait` is asked when the client does not read, and again every
    /// [`SEND_PATIENCE`]: what it refuses is given up.
    pub(super) fn answer(
        &self,
        completion: &Completion,
        allocation_length: usize,
        time_out: Duration,
        mut may_wait: impl FnMut() -> bool,
    ) -> Result<(), Errno> {
        let (header, data) = encode_response(completion, allocation_length);
        let mut sent = match self.send(&header, data, SendFlags::DONTWAIT) {
            Ok(sent) if sent == header.len() + data.len() => return Ok(()),
            Ok(sent) => sent,
            Err(Errno::AGAIN) => 0,
            Err(errno) => return Err(errno),
        };
        let deadline = Instant::now() + time_out;
        while sent < header.len() + data.len() {
            if !may_wait() || Instant::now() >= deadline {
                return Err(Errno::AGAIN);
            }
            let (header, data) = (&header[sent.min(header.len())..], &data[sent.saturating_sub(header.len())..]);
            match self.send(header, data, SendFlags::empty()) {
                Ok(more) => sent += more,
                Err(Errno::AGAIN) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    fn send(&self, header: &[u8], data: &[u8], flags: SendFlags) -> Result<usize, Errno> {
        let flags = flags | SendFlags::NOSIGNAL;
        rustix::io::retry_on_intr(|| {
            if data.is_empty() {
                return rustix::net::send(&self.socket, header, flags);
            }
            let pieces = [IoSlice::new(header), IoSlice::new(data)];
            sendmsg(self.socket.as_fd(), &pieces, &mut SendAncillaryBuffer::default(), flags)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use scsi_pr::{Command, Error};
    use std::io::Write;
    use std::os::fd::BorrowedFd;
    use std::os::unix::net::UnixStream;

    struct Nobody;

    impl PrManager for Nobody {
        fn execute(&self, _: BorrowedFd<'_>, _: Command<'_>) -> Result<Completion, Error> {
            Err(Error::not_run("run anything"))
        }
    }

    #[test]
    fn half_a_request_is_not_as_old_as_the_handshake() {
        const PATIENCE: Duration = Duration::from_secs(60);
        let (socket, mut client) = UnixStream::pair().unwrap();
        let peer = Peer { pid: 1, uid: 1, gid: 1 };
        let mut connection = Connection::new(socket.into(), peer, 1, Arc::new(Nobody));
        let mut half_sent_after = |bytes: &[u8]| {
            client.write_all(bytes).unwrap();
            assert!(matches!(connection.read(false, false), Read::Silent));
            connection.half_sent(PATIENCE)
        };
        assert!(half_sent_after(&[0; 2]).is_some());
        assert_eq!(half_sent_after(&[0; 2]), None);
        let begun = Instant::now();
        let given_up = half_sent_after(&[0x5e]);
        assert!(given_up >= Some(begun + PATIENCE));
        assert_eq!(half_sent_after(&[0]), given_up, "its age is that of its first byte");
    }
}
