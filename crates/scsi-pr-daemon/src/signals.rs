//! The signals that end a daemon, read from a descriptor.

use std::io;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::{Failure, reason};

fn stopping() -> SigSet {
    SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP])
}

fn failed(error: Errno) -> Failure {
    Failure(format!("Failed to prepare for signals: {}", reason(io::Error::from(error))))
}

/// Blocks the signals that mean "stop", for the calling thread and those that it starts. Whatever comes from here on is
/// kept until somebody looks, so none is lost while the daemon still starts.
///
/// SIGUSR1, which QEMU's C helper uses for itself, has no effect either; SIGPIPE is ignored in every Rust program.
///
/// # Errors
///
/// Those of pthread_sigmask(3).
pub fn block() -> Result<(), Failure> {
    (stopping() | SigSet::from(Signal::SIGUSR1)).thread_block().map_err(failed)
}

/// The descriptor that is readable when a signal that means "stop" has come.
///
/// # Errors
///
/// Those of signalfd(2).
pub fn stop() -> Result<SignalFd, Failure> {
    SignalFd::with_flags(&stopping(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(failed)
}
