//! [`RequestStream`]: reads requests with their descriptors from a socket, and sends answers.

use std::io::{self, ErrorKind, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, sendmsg};
use scsi_pr::{CommandBuf, Completion};

use super::disconnect::DisconnectReason;
use crate::descriptor::{IoMode, Passed, receive};
use crate::wire::{Event, RequestDecoder, encode_response};

/// Reads requests. The socket's SO_RCVTIMEO bounds every wait for bytes.
#[derive(Debug, Default)]
pub(super) struct RequestStream {
    decoder: RequestDecoder,
    /// The descriptor that came with the CDB.
    descriptor: Option<OwnedFd>,
    /// A descriptor came, and the kernel dropped it: this process had no room, or a security module refused it.
    has_lost_descriptor: bool,
    /// The time of the first byte of a request that is not complete.
    begun: Option<Instant>,
}

/// The result of [`RequestStream::read`].
#[derive(Debug)]
pub(super) enum Read {
    /// A request, and the device that it is for.
    Request(CommandBuf, OwnedFd),
    /// A request whose descriptor the kernel has dropped, which is not the client's fault.
    WithoutDescriptor(CommandBuf),
    /// The client was silent between requests for the socket's SO_RCVTIMEO.
    Idle,
    /// The client has closed; nothing is missing.
    End,
    /// The connection cannot go on.
    Broken(DisconnectReason),
}

impl RequestStream {
    /// Waits for the next request. A client may be silent between requests for as long as it likes, but may take only
    /// `timeout` for a request, or a little more: this is checked when bytes come, and at every SO_RCVTIMEO.
    pub(super) fn read(&mut self, socket: BorrowedFd<'_>, timeout: Duration) -> Read {
        loop {
            let takes_descriptor = self.decoder.takes_descriptor();
            let room = self.decoder.wanted();
            let wanted = room.len();
            let received = if takes_descriptor {
                receive(socket, room, IoMode::Blocking)
            } else {
                // Without room for a control message the kernel drops the descriptors.
                rustix::io::retry_on_intr(|| recv(socket, &mut *room, RecvFlags::empty()))
                    .map(|(_, count)| (count, Passed::None))
                    .map_err(io::Error::from)
            };
            let (count, passed) = match received {
                Ok((0, _)) if self.decoder.is_in_parameter_list() => {
                    return Read::Broken(DisconnectReason::EndInParameterList);
                }
                Ok((0, _)) => return Read::End,
                Ok(received) => received,
                Err(error) if error.kind() != ErrorKind::WouldBlock => {
                    return Read::Broken(DisconnectReason::Receive(error));
                }
                Err(_) if self.decoder.is_idle() => return Read::Idle,
                Err(_) if self.is_late(timeout) => return Read::Broken(DisconnectReason::HalfSent(timeout)),
                Err(_) => continue,
            };
            if takes_descriptor && let Err(reason) = self.keep(passed, count == wanted) {
                return Read::Broken(reason);
            }
            match self.decoder.advance(count) {
                Err(violation) => return Read::Broken(DisconnectReason::Violation(violation)),
                Ok(None) if self.is_late(timeout) => return Read::Broken(DisconnectReason::HalfSent(timeout)),
                Ok(None) => {}
                Ok(Some(Event::Negotiated(_))) => self.begun = None,
                Ok(Some(Event::Request(request))) => {
                    self.begun = None;
                    self.has_lost_descriptor = false;
                    return match self.descriptor.take() {
                        Some(descriptor) => Read::Request(request, descriptor),
                        None => Read::WithoutDescriptor(request),
                    };
                }
            }
        }
    }

    /// Whether a request that is not complete has taken `timeout`.
    fn is_late(&mut self, timeout: Duration) -> bool {
        self.begun.get_or_insert_with(Instant::now).elapsed() >= timeout
    }

    /// Keeps the descriptor that came with a piece of a CDB; the whole CDB must have brought one.
    fn keep(&mut self, passed: Passed, is_complete: bool) -> Result<(), DisconnectReason> {
        let has_one = self.descriptor.is_some() || self.has_lost_descriptor;
        match passed {
            Passed::None => {}
            Passed::One(descriptor) if !has_one => self.descriptor = Some(descriptor),
            Passed::Dropped if !has_one => self.has_lost_descriptor = true,
            Passed::One(_) | Passed::Dropped | Passed::Many => return Err(DisconnectReason::ManyDescriptors),
        }
        if is_complete && self.descriptor.is_none() && !self.has_lost_descriptor {
            return Err(DisconnectReason::NoDescriptor);
        }
        Ok(())
    }
}

/// Grace period for a slow reader before the send timeout and shutdown are checked: the SO_SNDTIMEO of a connection.
pub(super) const SLOW_READER_TIMEOUT: Duration = Duration::from_millis(500);

/// Sends an answer, for at most `timeout`. When the client does not read, `may_wait` is asked at once, and again every
/// [`SLOW_READER_TIMEOUT`]; the answer is given up when it returns `false`.
pub(super) fn answer(
    socket: BorrowedFd<'_>,
    completion: &Completion,
    allocation_length: usize,
    timeout: Duration,
    may_wait: impl Fn() -> bool,
) -> Result<(), Errno> {
    let (header, data) = encode_response(completion, allocation_length);
    let length = header.len() + data.len();
    let mut sent = match send(socket, &header, data, SendFlags::DONTWAIT) {
        Ok(sent) if sent == length => return Ok(()),
        Ok(sent) => sent,
        Err(Errno::AGAIN) => 0,
        Err(errno) => return Err(errno),
    };
    let deadline = Instant::now() + timeout;
    while sent < length {
        if !may_wait() || Instant::now() >= deadline {
            return Err(Errno::AGAIN);
        }
        let (header, data) = (&header[sent.min(header.len())..], &data[sent.saturating_sub(header.len())..]);
        match send(socket, header, data, SendFlags::empty()) {
            Ok(more) => sent += more,
            Err(Errno::AGAIN) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn send(socket: BorrowedFd<'_>, header: &[u8], data: &[u8], flags: SendFlags) -> Result<usize, Errno> {
    let flags = flags | SendFlags::NOSIGNAL;
    rustix::io::retry_on_intr(|| {
        if data.is_empty() {
            return rustix::net::send(socket, header, flags);
        }
        let pieces = [IoSlice::new(header), IoSlice::new(data)];
        sendmsg(socket.as_fd(), &pieces, &mut SendAncillaryBuffer::default(), flags)
    })
}
