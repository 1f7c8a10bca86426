//! Process plumbing of this project's daemons.
//!
//! * [`socket`]: the file of a listening socket.
//! * [`signals`]: the signals that end a daemon, read from a descriptor.
//! * [`notify`]: messages to the service manager.
//! * [`limits`]: the limit on open files.
//! * [`privileges`]: giving up privileges for good.
//! * [`sandbox`]: Landlock and a seccomp filter.
//! * [`log`]: log lines to standard error, the journal or syslog, without waiting for a reader.
//! * [`FifoMutex`]: a mutex that serves its contenders in their order of arrival.
//! * [`IdleConnections`]: connections that have no thread. [`spawn_with`]: starts their threads.
//! * [`RateLimiter`], [`RepeatLimiter`]: a bound on the log lines that a client can cause.
#![forbid(unsafe_code)]

mod fifo_mutex;
mod idle;
pub mod limits;
pub mod log;
pub mod notify;
pub mod privileges;
mod rate_limit;
pub mod sandbox;
pub mod signals;
pub mod socket;
mod spawn;

use std::borrow::Borrow;
use std::io;
use std::path::PathBuf;

pub use fifo_mutex::{FifoMutex, FifoMutexGuard};
pub use idle::IdleConnections;
pub use rate_limit::{RateLimiter, RepeatLimiter, Suppressed};
pub use spawn::spawn_with;

/// A daemon cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Those of pthread_sigmask(3) and signalfd(2).
    #[error("Failed to prepare for signals: {}", reason(.0))]
    Signals(#[source] io::Error),
    /// A Unix socket's path has at most 108 bytes.
    #[error("UNIX socket path '{}' is too long\nPath must be less than 108 bytes", .0.display())]
    PathTooLong(PathBuf),
    /// Those of bind(2).
    #[error("Failed to bind socket to {}: {}", path.display(), reason(source))]
    Bind {
        /// The path of the socket.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The path is in use.
    #[error("Failed to bind socket to {}: {occupant}", path.display())]
    Occupied {
        /// The path of the socket.
        path: PathBuf,
        /// The user of the path.
        occupant: Occupant,
    },
    /// The daemon cannot find out whether a program listens on the socket at the path.
    #[error("Failed to bind socket to {}: cannot find out whether a program listens there: {}", path.display(), reason(source))]
    Probe {
        /// The path of the socket.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// Those of unlink(2), on the socket of an earlier instance.
    #[error("Failed to unlink socket {}: {}", path.display(), reason(source))]
    Unlink {
        /// The path of the socket.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// Those of listen(2), chown(2) and chmod(2).
    #[error("Failed to listen on socket {}: {}", path.display(), reason(source))]
    Listen {
        /// The path of the socket.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
}

/// The user of a socket's path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Occupant {
    /// A program listens there.
    #[error("another program listens there; stop it or use another path")]
    Listener,
    /// A program has a datagram socket there.
    #[error("another program uses a socket there; stop it or use another path")]
    Socket,
    /// A file that is not a socket.
    #[error("there is a file that is not a socket; remove it or use another path")]
    File,
}

/// The text of strerror(3), without the number that the standard library adds.
pub fn reason(error: impl Borrow<io::Error>) -> String {
    let mut text = error.borrow().to_string();
    if let Some(end) = text.rfind(" (os error ") {
        text.truncate(end);
    }
    text
}

/// Compiles the examples of README.md.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;

    #[test]
    fn reasons_are_those_of_the_c_library() {
        assert_eq!(reason(io::Error::from(Errno::AGAIN)), "Resource temporarily unavailable");
        assert_eq!(reason(io::Error::from(Errno::NOENT)), "No such file or directory");
        assert_eq!(reason(io::Error::other("other")), "other");
    }
}
