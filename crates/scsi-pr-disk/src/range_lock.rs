//! [`RangeLocks`]: keep a command that must be atomic apart from every other command on the same blocks.

use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Locks of ranges of bytes: any number of shared ones, or a single exclusive one, on each byte.
///
/// Locks are granted in the order in which they were asked for, as far as they overlap, so that no command starves.
#[derive(Debug, Default)]
pub(crate) struct RangeLocks {
    state: Mutex<State>,
    released: Condvar,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// In the order in which they were asked for; those that wait included.
    locks: Vec<Lock>,
    /// The number of commands that wait: a notification of none would be a system call for each command.
    waiting: u32,
}

#[derive(Debug)]
struct Lock {
    id: u64,
    range: Range<u64>,
    mode: Mode,
}

/// Whether others may lock the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Reads and writes, which need not be atomic.
    Shared,
    /// COMPARE AND WRITE, WRITE SAME, ORWRITE.
    Exclusive,
}

impl Lock {
    fn conflicts(&self, other: &Self) -> bool {
        let overlap = self.range.start < other.range.end && other.range.start < self.range.end;
        overlap && (self.mode == Mode::Exclusive || other.mode == Mode::Exclusive)
    }
}

/// A lock; dropping it releases the range.
#[derive(Debug)]
pub(crate) struct RangeGuard<'a> {
    locks: &'a RangeLocks,
    id: u64,
}

impl RangeLocks {
    /// Waits until `range` is free.
    pub(crate) fn lock(&self, range: Range<u64>, mode: Mode) -> RangeGuard<'_> {
        let mut state = self.state();
        let id = state.next;
        state.next += 1;
        state.locks.push(Lock { id, range, mode });
        while state.must_wait(id) {
            state.waiting += 1;
            state = self.released.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
        }
        RangeGuard { locks: self, id }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No operation on the list can panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn must_wait(&self, id: u64) -> bool {
        let index =
            self.locks.iter().position(|lock| lock.id == id).expect("the lock is in the list until it is dropped");
        let lock = &self.locks[index];
        self.locks[..index].iter().any(|earlier| earlier.conflicts(lock))
    }
}

impl Drop for RangeGuard<'_> {
    fn drop(&mut self) {
        let mut state = self.locks.state();
        state.locks.retain(|lock| lock.id != self.id);
        let is_awaited = state.waiting > 0;
        drop(state);
        if is_awaited {
            self.locks.released.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread;
    use std::time::Duration;

    #[test]
    fn shared_locks_of_the_same_range_do_not_wait() {
        let locks = RangeLocks::default();
        let _first = locks.lock(0..10, Mode::Shared);
        let _second = locks.lock(5..15, Mode::Shared);
    }

    #[test]
    fn an_exclusive_lock_of_another_range_does_not_wait() {
        let locks = RangeLocks::default();
        let _first = locks.lock(0..10, Mode::Exclusive);
        let _second = locks.lock(10..20, Mode::Exclusive);
    }

    #[test]
    fn exclusive_locks_of_overlapping_ranges_exclude_each_other() {
        let locks = RangeLocks::default();
        let inside = AtomicU32::new(0);
        thread::scope(|scope| {
            for start in 0..8 {
                let (locks, inside) = (&locks, &inside);
                scope.spawn(move || {
                    for _ in 0..200 {
                        let _guard = locks.lock(start..start + 10, Mode::Exclusive);
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
    }

    #[test]
    fn a_shared_lock_waits_behind_an_exclusive_one_that_came_first() {
        let locks = RangeLocks::default();
        let order = Mutex::new(Vec::new());
        thread::scope(|scope| {
            let first = locks.lock(0..10, Mode::Shared);
            for (number, mode) in [(1, Mode::Exclusive), (2, Mode::Shared)] {
                let (locks, order) = (&locks, &order);
                scope.spawn(move || {
                    let _guard = locks.lock(0..10, mode);
                    order.lock().unwrap().push(number);
                });
                while locks.state().locks.len() < number + 1 {
                    thread::sleep(Duration::from_millis(1));
                }
            }
            drop(first);
        });
        assert_eq!(order.into_inner().unwrap(), [1, 2]);
    }
}
