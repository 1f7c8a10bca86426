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
//! * [`RateLimiter`], [`RepeatLimiter`]: a bound on the log lines that a client can cause.
#![forbid(unsafe_code)]

mod fifo_mutex;
pub mod limits;
pub mod log;
pub mod notify;
pub mod privileges;
mod rate_limit;
pub mod sandbox;
pub mod signals;
pub mod socket;

use std::fmt;
use std::io;

pub use fifo_mutex::{FifoMutex, FifoMutexGuard};
pub use rate_limit::{RateLimiter, RepeatLimiter, Suppressed};

/// Why a daemon cannot start: what was attempted, on what, and why it failed, in words. What a user can do may follow on
/// a line of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure(String);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failure {}

/// The text of strerror(3), without the number that the standard library adds.
pub fn reason(error: impl Into<io::Error>) -> String {
    let mut text = error.into().to_string();
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
        assert_eq!(reason(Errno::AGAIN), "Resource temporarily unavailable");
        assert_eq!(reason(Errno::NOENT), "No such file or directory");
        assert_eq!(reason(io::Error::other("other")), "other");
    }
}
