//! Connects to the socket of a helper, and takes the first half of its handshake.

use std::fmt;
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use scsi_pr_helper::wire::{FEATURE_CLEANUP, decode_features, feature_word};

/// How long a helper may take to send its features.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The file at the path of a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum SocketState {
    /// The path cannot be examined; the reason.
    Missing(String),
    NotASocket,
    Present {
        mode: u32,
        user: u32,
        group: u32,
        peer: Result<Listener, Unreachable>,
    },
}

/// The process that called listen(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Listener {
    pub(super) pid: i32,
}

/// Why the peer is not a helper that serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unreachable {
    /// No process listens.
    Refused,
    /// This process may not connect.
    NotPermitted,
    /// The queue of connections is full: the helper accepts none.
    QueueFull,
    /// It sent no features in time.
    Silent,
    /// It closed the connection: it serves other users only, or too many clients.
    Closed,
    /// These features are not those of a helper.
    Nonsense(u32),
    Other(String),
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused => f.write_str("no process listens"),
            Self::NotPermitted => f.write_str("this user may not connect: run as root"),
            Self::QueueFull => f.write_str("its process accepts no connections: the queue is full"),
            Self::Silent => f.write_str("its process is no helper, or hangs: it sends no features"),
            Self::Closed => {
                f.write_str("its process closes the connection: it does not serve this user, or is no helper")
            }
            Self::Nonsense(features) => write!(f, "its process is no helper: it sends the features {features:#010x}"),
            Self::Other(why) => f.write_str(why),
        }
    }
}

/// The state of a socket. It connects, and waits for two seconds at most.
pub(super) fn probe(path: &Path) -> SocketState {
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) => return SocketState::Missing(error.to_string()),
    };
    if !metadata.file_type().is_socket() {
        return SocketState::NotASocket;
    }
    let (mode, user, group) = (metadata.mode() & 0o777, metadata.uid(), metadata.gid());
    SocketState::Present { mode, user, group, peer: shake_hands(path) }
}

fn shake_hands(path: &Path) -> Result<Listener, Unreachable> {
    let other = |error: &dyn fmt::Display| Unreachable::Other(error.to_string());
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(|error| other(&error))?;
    let address = SocketAddrUnix::new(path).map_err(|error| other(&error))?;
    connect(&socket, &address).map_err(|errno| match errno {
        Errno::CONNREFUSED => Unreachable::Refused,
        Errno::ACCESS | Errno::PERM => Unreachable::NotPermitted,
        Errno::AGAIN => Unreachable::QueueFull,
        errno => other(&errno),
    })?;
    let mut stream = UnixStream::from(socket);
    let peer = socket_peercred(&stream).map_err(|error| other(&error))?;
    let prepare = stream.set_nonblocking(false).and_then(|()| stream.set_read_timeout(Some(TIMEOUT)));
    prepare.map_err(|error| other(&error))?;
    let mut word = [0; 4];
    stream.read_exact(&mut word).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Unreachable::Silent,
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => Unreachable::Closed,
        _ => other(&error),
    })?;
    match decode_features(word) {
        features if features & !FEATURE_CLEANUP == 0 => {
            // A helper logs a client that leaves without an answer.
            let _ = stream.write_all(&feature_word(0));
            Ok(Listener { pid: peer.pid.as_raw_nonzero().get() })
        }
        features => Err(Unreachable::Nonsense(features)),
    }
}
