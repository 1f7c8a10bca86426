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
    /// The callers that wait, so that a test knows when all have come.
    #[cfg(test)]
    waiting: u32,
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
            #[cfg(test)]
            {
                state.waiting += 1;
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn sync_serves_the_callers_that_wait_for_it_and_only_those() {
        let synchronizer = Synchronizer::default();
        let syncs = AtomicU32::new(0);
        let (release, held) = mpsc::channel::<()>();
        let (begin, begun) = mpsc::channel::<()>();
        thread::scope(|scope| {
            let (synchronizer, syncs) = (&synchronizer, &syncs);
            scope.spawn(move || {
                synchronizer.sync(|| {
                    syncs.fetch_add(1, Ordering::SeqCst);
                    begin.send(()).unwrap();
                    held.recv().map_err(|_| Errno::IO)
                })
            });
            begun.recv().unwrap();
            let followers: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(move || {
                        synchronizer.sync(|| {
                            syncs.fetch_add(1, Ordering::SeqCst);
                            Ok(())
                        })
                    })
                })
                .collect();
            while synchronizer.state().waiting < 8 {
                thread::yield_now();
            }
            assert_eq!(syncs.load(Ordering::SeqCst), 1, "syncs run one after the other");
            release.send(()).unwrap();
            for follower in followers {
                assert_eq!(follower.join().unwrap(), Ok(()));
            }
        });
        // The first sync began before the followers came, so they need a second one, and share it.
        assert_eq!(syncs.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn failure_is_the_answer_to_every_caller_that_waits_and_to_those_that_come_later() {
        let synchronizer = Synchronizer::default();
        let (release, held) = mpsc::channel::<()>();
        let (begin, begun) = mpsc::channel::<()>();
        thread::scope(|scope| {
            let synchronizer = &synchronizer;
            let first = scope.spawn(move || {
                synchronizer.sync(|| {
                    begin.send(()).unwrap();
                    held.recv().unwrap();
                    Err(Errno::NOSPC)
                })
            });
            begun.recv().unwrap();
            let second = scope.spawn(|| synchronizer.sync(|| Ok(())));
            thread::sleep(std::time::Duration::from_millis(50));
            release.send(()).unwrap();
            assert_eq!(first.join().unwrap(), Err(MediumError::NoSpace));
            assert_eq!(second.join().unwrap(), Err(MediumError::Io));
        });
        assert_eq!(synchronizer.sync(|| Ok(())), Err(MediumError::Io));
        assert_eq!(synchronizer.check(), Err(MediumError::Io));
    }
}
