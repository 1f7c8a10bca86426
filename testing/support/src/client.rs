//! A connection to a helper, written from the description of QEMU's protocol (docs/interop/pr-helper.rst of QEMU).
//!
//! It sends any bytes with any descriptors, so that a test can break the protocol at every point.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recv, sendmsg};

use crate::{DEADLINE, eventually};

/// Length in bytes of the header of a response: status, length of the data, sense data.
pub const RESPONSE_HEADER_LENGTH: usize = 104;

/// The most descriptors that one message may carry (SCM_MAX_FD of Linux).
const MOST_DESCRIPTORS: usize = 253;

/// A response, field by field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The SCSI status, such as 0 for GOOD and 2 for CHECK CONDITION.
    pub status: i32,
    /// The sense data, padded with zeros.
    pub sense: [u8; 96],
    /// The data that followed the header.
    pub data: Vec<u8>,
}

impl Response {
    /// GOOD with data.
    pub fn good(data: &[u8]) -> Self {
        Self { status: 0, sense: [0; 96], data: data.to_vec() }
    }

    /// Another status, without sense data.
    pub fn status(status: u8) -> Self {
        Self { status: status.into(), ..Self::good(&[]) }
    }

    /// CHECK CONDITION with fixed format sense data: sense key, additional sense code and its qualifier.
    pub fn check_condition(key: u8, code: u8, qualifier: u8) -> Self {
        let mut sense = [0; 96];
        (sense[0], sense[2], sense[7], sense[12], sense[13]) = (0x70, key, 10, code, qualifier);
        Self { sense, ..Self::status(2) }
    }

    /// Sense key, additional sense code and its qualifier of CHECK CONDITION.
    pub fn sense_code(&self) -> Option<[u8; 3]> {
        (self.status == 2 && self.sense[0] & 0x7f == 0x70)
            .then(|| [self.sense[2] & 0xf, self.sense[12], self.sense[13]])
    }
}

/// A connection. It ends with the value.
#[derive(Debug)]
pub struct Client {
    /// The socket.
    pub stream: UnixStream,
}

impl Client {
    /// Connects, and reads and sends nothing. Reads and writes then have [`DEADLINE`].
    pub fn connect(path: &Path) -> io::Result<Self> {
        Self::over(UnixStream::connect(path)?)
    }

    /// A connection over a connected socket.
    pub fn over(stream: UnixStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        Ok(Self { stream })
    }

    /// Connects and does the handshake.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut client = Self::connect(path)?;
        client.handshake()?;
        Ok(client)
    }

    /// A connection that the helper serves, once it serves one: it may close others, for there are too many.
    #[track_caller]
    pub fn open_once_served(path: &Path, request: &[u8; 16], device: impl AsFd) -> Self {
        eventually("a connection is served", || {
            let mut client = Self::open(path).ok()?;
            client.run(request, &[], device.as_fd()).ok().map(|_| client)
        })
    }

    /// Reads the features that the helper offers.
    pub fn read_features(&mut self) -> io::Result<u32> {
        self.receive().map(u32::from_be_bytes)
    }

    /// Reads the features that the helper offers, which must be none, and asks for none.
    pub fn handshake(&mut self) -> io::Result<()> {
        match self.read_features()? {
            0 => self.send(&[0; 4], &[]),
            features => Err(io::Error::other(format!("the helper offers the features {features:#x}"))),
        }
    }

    /// Sends all bytes, and the descriptors with the first of them.
    pub fn send(&mut self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io::Error::other("more descriptors than one message can carry"));
        }
        let sent = sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
        self.stream.write_all(&bytes[sent..])
    }

    /// Reads exactly `N` bytes.
    pub fn receive<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).map(|()| bytes)
    }

    /// Reads one response.
    pub fn response(&mut self) -> io::Result<Response> {
        let header = self.receive::<RESPONSE_HEADER_LENGTH>()?;
        let field = |at: usize| i32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let mut sense = [0; 96];
        sense.copy_from_slice(&header[8..]);
        let mut data = vec![0; usize::try_from(field(4)).map_err(io::Error::other)?];
        self.stream.read_exact(&mut data)?;
        Ok(Response { status: field(0), sense, data })
    }

    /// Sends the CDB with the device, then the parameter list, and reads the response.
    pub fn run(&mut self, cdb: &[u8; 16], list: &[u8], device: impl AsFd) -> io::Result<Response> {
        self.send_command(cdb, list, device)?;
        self.response()
    }

    /// Sends the CDB with the device, then the parameter list.
    pub fn send_command(&mut self, cdb: &[u8; 16], list: &[u8], device: impl AsFd) -> io::Result<()> {
        self.send(cdb, &[device.as_fd()])?;
        if list.is_empty() { Ok(()) } else { self.send(list, &[]) }
    }

    /// Ends the sending half.
    pub fn finish_sending(&self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)
    }

    /// Waits until the helper closes the connection. Returns whether nothing more came before.
    pub fn is_closed(&mut self) -> bool {
        match self.stream.read(&mut [0; 1]) {
            Ok(count) => count == 0,
            // A helper that closes with unread bytes resets the connection.
            Err(error) => error.kind() == ErrorKind::ConnectionReset,
        }
    }

    /// Whether the connection is open and nothing has come that was not read.
    pub fn is_silent(&self) -> bool {
        let peeked = recv(&self.stream, &mut [0_u8; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT);
        peeked.is_err_and(|error| error == Errno::AGAIN)
    }
}
