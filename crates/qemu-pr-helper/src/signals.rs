//! The signals that end the helper, read from a descriptor.

use std::io;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::message::{Message, Result, reason};

fn stopping() -> SigSet {
    SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP])
}

fn failed(error: Errno) -> Message {
    Message::new(format!("Failed to prepare for signals: {}", reason(io::Error::from(error))))
}

/// Blocks the signals that mean "stop". Whatever comes from here on is kept until somebody looks, so none is lost while
/// the helper still starts.
///
/// SIGUSR1, which the C helper uses for itself, has no effect on either; SIGPIPE is ignored in every Rust program.
pub(crate) fn block() -> Result<()> {
    (stopping() | SigSet::from(Signal::SIGUSR1)).thread_block().map_err(failed)
}

/// The descriptor that is readable when a signal that means "stop" has come.
pub(crate) fn stop() -> Result<SignalFd> {
    SignalFd::with_flags(&stopping(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(failed)
}
