//! Whose turn it is: the protocol allows one command in flight on a connection, and a multipath map takes one change at a
//! time.
//!
//! Turns are given in the order in which they were asked for. A plain mutex would be unfair, so that a thread could
//! starve, and could not be waited for with a limit.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::deadline::Deadline;

/// Gives turns.
#[derive(Debug, Default)]
pub struct Turns {
    queue: Mutex<Queue>,
    moved: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    /// The ticket of whoever comes next.
    next: u64,
    /// The first one has the turn.
    tickets: VecDeque<u64>,
}

/// The turn; it ends when this is dropped.
#[derive(Debug)]
#[must_use = "the turn ends when this is dropped"]
pub struct Turn<'a>(&'a Turns);

impl Turns {
    /// Waits for the turn, at most for `limit`; `None` when it did not come in time.
    pub fn take(&self, limit: Duration) -> Option<Turn<'_>> {
        self.take_until(&Deadline::after(limit))
    }

    /// Waits for the turn; `None` when it did not come in time.
    pub(crate) fn take_until(&self, deadline: &Deadline) -> Option<Turn<'_>> {
        let mut queue = self.queue();
        let ticket = queue.next;
        queue.next += 1;
        queue.tickets.push_back(ticket);
        while queue.tickets.front() != Some(&ticket) {
            let left = deadline.left();
            if left.is_zero() {
                queue.tickets.retain(|other| *other != ticket);
                return None;
            }
            (queue, _) = self.moved.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner);
        }
        Some(Turn(self))
    }

    /// The queue. Nothing that is done with it can panic half-way, so a poisoned one is whole.
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut queue = self.0.queue();
        queue.tickets.pop_front();
        let someone_waits = !queue.tickets.is_empty();
        drop(queue);
        // Waking is a system call even when there is nobody to wake.
        if someone_waits {
            self.0.moved.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn one_at_a_time_and_everyone_once() {
        let turns = Turns::default();
        let (inside, done) = (AtomicU32::new(0), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let _turn = turns.take(LONG).unwrap();
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        inside.fetch_sub(1, Ordering::SeqCst);
                        done.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(done.into_inner(), 1600);
    }

    #[test]
    fn turns_come_in_the_order_of_asking() {
        let turns = Turns::default();
        let order = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            let first = turns.take(LONG).unwrap();
            for number in 0..5 {
                let (turns, order) = (&turns, &order);
                scope.spawn(move || {
                    let _turn = turns.take(LONG).unwrap();
                    order.lock().unwrap().push(number);
                });
                while turns.queue().tickets.len() < number + 2 {
                    std::thread::yield_now();
                }
            }
            drop(first);
        });
        assert_eq!(order.into_inner().unwrap(), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn who_gives_up_does_not_stop_those_behind() {
        let turns = Turns::default();
        let first = turns.take(LONG).unwrap();
        assert!(turns.take(Duration::from_millis(1)).is_none());
        std::thread::scope(|scope| {
            let behind = scope.spawn(|| turns.take(LONG).is_some());
            drop(first);
            assert!(behind.join().unwrap());
        });
    }

    #[test]
    fn a_holder_that_panics_gives_its_turn_back() {
        let turns = Turns::default();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _turn = turns.take(LONG).unwrap();
            panic!("on purpose");
        }));
        assert!(panicked.is_err());
        assert!(turns.take(Duration::ZERO).is_some());
    }
}
