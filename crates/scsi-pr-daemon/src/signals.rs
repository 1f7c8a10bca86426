//! The signals that end a daemon, read from a descriptor.

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::StartError;

fn stopping() -> SigSet {
    SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP])
}

fn failed(error: Errno) -> StartError {
    StartError::Signals(error.into())
}

/// Blocks the signals that end a daemon, for the calling thread and those that it starts. A signal stays pending until
/// [`stop`] reads it, so none is lost during the start.
///
/// SIGUSR1, which QEMU's C helper uses for itself, has no effect either; SIGPIPE is ignored in every Rust program.
///
/// # Errors
///
/// Those of pthread_sigmask(3).
pub fn block() -> Result<(), StartError> {
    (stopping() | SigSet::from(Signal::SIGUSR1)).thread_block().map_err(failed)
}

/// The descriptor that becomes readable with a signal that ends a daemon.
///
/// # Errors
///
/// Those of signalfd(2).
pub fn stop() -> Result<SignalFd, StartError> {
    SignalFd::with_flags(&stopping(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(failed)
}
