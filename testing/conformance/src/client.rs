//! A connection to a helper. It can send any bytes with any descriptors.
//!
//! It is written from the description of the protocol alone. It shares no code with the library under test, nor with the
//! client of `testing-support`, so that an error in one shows in the other.

use std::io::{self, ErrorKind, IoSlice, Read};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recv, sendmsg};

use testing_support::DEADLINE;

/// PERSISTENT RESERVE IN.
pub const IN: u8 = 0x5e;
/// PERSISTENT RESERVE OUT.
pub const OUT: u8 = 0x5f;

/// A CDB of PERSISTENT RESERVE IN.
pub fn in_cdb(service_action: u8, allocation_length: u16) -> [u8; 16] {
    cdb(IN, service_action, allocation_length)
}

/// A CDB of PERSISTENT RESERVE OUT.
pub fn out_cdb(service_action: u8, list_length: u16) -> [u8; 16] {
    cdb(OUT, service_action, list_length)
}

fn cdb(opcode: u8, service_action: u8, length: u16) -> [u8; 16] {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1]) = (opcode, service_action);
    cdb[7..9].copy_from_slice(&length.to_be_bytes());
    cdb
}

/// Fixed format sense data of 18 bytes, zero-padded to the 96 of a response.
pub fn sense(key: u8, code: u8, qualifier: u8) -> [u8; 96] {
    let mut sense = [0; 96];
    (sense[0], sense[2], sense[7], sense[12], sense[13]) = (0x70, key, 10, code, qualifier);
    sense
}

/// A response, field by field.
#[derive(Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status field.
    pub status: i32,
    /// The size field.
    pub size: i32,
    /// The sense field.
    pub sense: [u8; 96],
    /// The data that followed.
    pub data: Vec<u8>,
}

impl Answer {
    /// GOOD with data.
    pub fn good(data: &[u8]) -> Self {
        Self { status: 0, size: i32::try_from(data.len()).unwrap(), sense: [0; 96], data: data.to_vec() }
    }

    /// Any status without sense.
    pub fn status(status: u8) -> Self {
        Self { status: status.into(), ..Self::good(&[]) }
    }

    /// CHECK CONDITION with this sense key, additional sense code and qualifier, fixed format.
    pub fn check(key: u8, code: u8, qualifier: u8) -> Self {
        Self { sense: sense(key, code, qualifier), ..Self::status(0x02) }
    }

    /// The answer to an SG_IO that failed with an errno that has no answer of its own.
    pub fn io_process_terminated() -> Self {
        Self::check(0x0b, 0x00, 0x06)
    }
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let used = self.sense.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        write!(f, "status {:#04x}, size {}, sense {:02x?}", self.status, self.size, &self.sense[..used])?;
        if self.data.iter().any(|byte| *byte != 0) {
            write!(f, ", data {:02x?}", &self.data[..self.data.len().min(64)])?;
        }
        Ok(())
    }
}

/// A connection.
#[derive(Debug)]
pub struct Client(UnixStream);

impl Drop for Client {
    /// Closing alone may take effect late: a program that another test starts has the descriptor until its execve(2).
    fn drop(&mut self) {
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

impl Client {
    /// Connects, and does nothing else.
    pub fn try_connect(path: &Path) -> io::Result<Self> {
        let socket = UnixStream::connect(path)?;
        Ok(Self::new(socket))
    }

    /// A connection over this socket.
    pub fn new(socket: UnixStream) -> Self {
        socket.set_read_timeout(Some(DEADLINE)).expect("a time-out");
        socket.set_write_timeout(Some(DEADLINE)).expect("a time-out");
        Self(socket)
    }

    /// The socket itself.
    pub fn socket(&self) -> &UnixStream {
        &self.0
    }

    /// Reads exactly 4 bytes that offer no features, and sends 4 that want none.
    #[track_caller]
    pub fn handshake(&self) {
        self.try_handshake().unwrap_or_else(|error| panic!("no handshake: {error}"));
    }

    /// The same with a helper that may have closed the connection.
    #[track_caller]
    pub fn try_handshake(&self) -> io::Result<()> {
        let mut features = [0xff; 4];
        (&self.0).read_exact(&mut features)?;
        assert_eq!(features, [0; 4], "the features that are offered");
        self.try_send_with(&[0; 4], &[])
    }

    /// Reads exactly `N` bytes.
    #[track_caller]
    pub fn read<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        (&self.0).read_exact(&mut bytes).unwrap_or_else(|error| panic!("{N} bytes did not come: {error}"));
        bytes
    }

    /// Sends bytes without a descriptor.
    #[track_caller]
    pub fn send(&self, bytes: &[u8]) {
        self.send_with(bytes, &[]);
    }

    /// Sends bytes in one message, with descriptors.
    #[track_caller]
    pub fn send_with(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
        self.try_send_with(bytes, descriptors)
            .unwrap_or_else(|error| panic!("{} bytes not sent: {error}", bytes.len()));
    }

    /// Sends bytes in one message, with descriptors, to a helper that may have closed the connection.
    pub fn try_send_with(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(descriptors.len()))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
        }
        let sent = sendmsg(&self.0, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
        if sent == bytes.len() { Ok(()) } else { Err(ErrorKind::WriteZero.into()) }
    }

    /// Ends the sending half.
    pub fn finish_sending(&self) {
        self.0.shutdown(Shutdown::Write).expect("shutdown");
    }

    /// Sends a request as QEMU does: CDB and descriptor, then the parameter list.
    #[track_caller]
    pub fn request(&self, cdb: &[u8; 16], list: &[u8], device: impl AsFd) {
        self.send_with(cdb, &[device.as_fd()]);
        if !list.is_empty() {
            self.send(list);
        }
    }

    /// Sends a request and reads its answer.
    #[track_caller]
    pub fn run(&self, cdb: &[u8; 16], list: &[u8], device: impl AsFd) -> Answer {
        self.request(cdb, list, device);
        self.answer()
    }

    /// Reads one answer.
    #[track_caller]
    pub fn answer(&self) -> Answer {
        self.try_answer().unwrap_or_else(|error| panic!("no answer: {error}"))
    }

    /// Reads one answer, or how the connection ended.
    pub fn try_answer(&self) -> io::Result<Answer> {
        let mut header = [0; 104];
        (&self.0).read_exact(&mut header)?;
        let field = |at: usize| i32::from_be_bytes(header[at..at + 4].try_into().expect("4 bytes"));
        let (status, size) = (field(0), field(4));
        let mut data = vec![0; usize::try_from(size).map_err(io::Error::other)?];
        (&self.0).read_exact(&mut data)?;
        Ok(Answer { status, size, sense: header[8..].try_into().expect("96 bytes"), data })
    }

    /// Waits until the helper has closed the connection, without having sent anything more.
    #[track_caller]
    pub fn assert_closed(&self) {
        let mut bytes = [0; 1];
        match (&self.0).read(&mut bytes) {
            Ok(0) => {}
            // A helper that closes with unread bytes resets the connection.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            Ok(_) => panic!("a byte {:#04x} came where the connection was to be closed", bytes[0]),
            Err(error) => panic!("the connection was not closed: {error}"),
        }
    }

    /// Whether the connection is open and nothing has come that the test did not read.
    pub fn is_silent(&self) -> bool {
        let peeked = recv(&self.0, &mut [0_u8; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT);
        peeked.is_err_and(|error| error == Errno::AGAIN)
    }
}
