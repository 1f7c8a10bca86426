//! [`Synchronizer`]: fdatasync(2) for many callers, whose failure none of them misses.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use scsi_pr_disk::MediumError;

/// Runs one sync at a time. A sync serves every caller that came before it began.
///
/// The kernel marks pages as clean also when it could not write them, and reports that to one sync of an open file.
/// Two syncs at the same time could therefore fail and succeed for the same write. A later one would succeed.
#[derive(Debug, Default)]
pub(super) struct Synchronizer {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The syncs that have begun, and those that have succeeded: at most one less.
    begun: u64,
    succeeded: u64,
    /// Whether a sync has failed. It stays so.
    has_failed: bool,
}

impl Synchronizer {
    /// Makes the writes that have returned durable.
    ///
    /// # Errors
    ///
    /// This sync, or one before it, has failed.
    pub(super) fn sync(&self, fdatasync: impl FnOnce() -> Result<(), Errno>) -> Result<(), MediumError> {
        let mut state = self.state();
        // A sync that runs may have passed by this caller's writes.
        let wanted = state.begun + 1;
        loop {
            if state.has_failed {
                return Err(MediumError::Io);
            }
            if state.succeeded >= wanted {
                return Ok(());
            }
            if state.succeeded == state.begun {
                break;
            }
            state = self.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.begun += 1;
        drop(state);
        let result = fdatasync();
        let mut state = self.state();
        match result {
            Ok(()) => state.succeeded += 1,
            Err(_) => state.has_failed = true,
        }
        drop(state);
        self.ended.notify_all();
        result.map_err(|errno| {
            tracing::error!("fdatasync has failed: {errno}. Every write fails until the medium is opened again");
            super::medium_error(&errno.into())
        })
    }

    /// # Errors
    ///
    /// A sync has failed, so writes may have been lost.
    pub(super) fn check(&self) -> Result<(), MediumError> {
        if self.state().has_failed { Err(MediumError::Io) } else { Ok(()) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
