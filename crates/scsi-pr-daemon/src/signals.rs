//! The signals that end a daemon, read from a descriptor.

use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SfdFlags;
pub use nix::sys::signalfd::SignalFd;

use rustix::event::{PollFd, PollFlags, poll};

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
    descriptor(&stopping())
}

/// The same without SIGHUP, for a daemon that [reads its settings again](reload).
///
/// # Errors
///
/// Those of signalfd(2).
pub fn terminate() -> Result<SignalFd, StartError> {
    descriptor(&SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]))
}

/// The descriptor that becomes readable with SIGHUP.
///
/// # Errors
///
/// Those of signalfd(2).
pub fn reload() -> Result<SignalFd, StartError> {
    descriptor(&SigSet::from(Signal::SIGHUP))
}

fn descriptor(signals: &SigSet) -> Result<SignalFd, StartError> {
    SignalFd::with_flags(signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(failed)
}

/// The event that [`wait`] has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// A signal, which is read.
    Signal,
    /// The other descriptor is readable, or poll(2) has failed.
    Ended,
}

/// Waits for a signal of `signals`, or until `ended` is readable or has no writer any more.
pub fn wait(signals: &SignalFd, ended: impl AsFd) -> Wait {
    loop {
        let mut events = [PollFd::new(signals, PollFlags::IN), PollFd::new(&ended, PollFlags::IN)];
        match poll(&mut events, None) {
            Ok(_) if !events[1].revents().is_empty() => return Wait::Ended,
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return Wait::Ended,
        }
        if let Ok(Some(_)) = signals.read_signal() {
            return Wait::Signal;
        }
    }
}
