//! [`FifoMutex`]: a mutex that serves its contenders in their order of arrival.

use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// A mutex that is locked in the order in which threads asked for it. A thread can give up waiting.
///
/// The mutex of the standard library goes to any thread that runs when it becomes free, so that one thread may take it again
/// and again while others wait. A panic of the thread that holds the lock unlocks it; the value is then as that thread left it.
#[derive(Debug, Default)]
pub struct FifoMutex<T> {
    queue: Mutex<Queue>,
    value: Mutex<T>,
}

#[derive(Debug, Default)]
struct Queue {
    next_ticket: u64,
    /// The tickets of the thread that holds the lock, and of those that wait.
    tickets: VecDeque<(u64, Thread)>,
}

/// The value of a [`FifoMutex`]. The lock ends when this is dropped.
#[derive(Debug)]
#[must_use = "the lock ends when this is dropped"]
pub struct FifoMutexGuard<'a, T> {
    mutex: &'a FifoMutex<T>,
    ticket: u64,
    value: MutexGuard<'a, T>,
}

impl<T> FifoMutex<T> {
    /// A mutex that is free.
    pub const fn new(value: T) -> Self {
        Self { queue: Mutex::new(Queue { next_ticket: 0, tickets: VecDeque::new() }), value: Mutex::new(value) }
    }

    /// Waits for the lock. `None` if `timeout` passes first.
    pub fn lock_timeout(&self, timeout: Duration) -> Option<FifoMutexGuard<'_, T>> {
        let start = Instant::now();
        let ticket = {
            let mut queue = self.queue();
            let ticket = queue.next_ticket;
            queue.next_ticket += 1;
            queue.tickets.push_back((ticket, thread::current()));
            ticket
        };
        while !self.is_first(ticket) {
            let left = timeout.saturating_sub(start.elapsed());
            if left.is_zero() {
                self.leave(ticket);
                return None;
            }
            thread::park_timeout(left);
        }
        // At most the thread that has just left the queue still holds this, for a moment.
        let value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        Some(FifoMutexGuard { mutex: self, ticket, value })
    }

    fn is_first(&self, ticket: u64) -> bool {
        self.queue().tickets.front().is_some_and(|(first, _)| *first == ticket)
    }

    fn leave(&self, ticket: u64) {
        let mut queue = self.queue();
        match queue.tickets.front() {
            Some((first, _)) if *first == ticket => {
                queue.tickets.pop_front();
                if let Some((_, next)) = queue.tickets.front() {
                    next.unpark();
                }
            }
            _ => queue.tickets.retain(|(waiting, _)| *waiting != ticket),
        }
    }

    /// No statement under this lock can panic half-way, so a poisoned queue is whole.
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Deref for FifoMutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for FifoMutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

impl<T> Drop for FifoMutexGuard<'_, T> {
    fn drop(&mut self) {
        self.mutex.leave(self.ticket);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    const LONG: Duration = Duration::from_secs(60);

    fn wait_for_tickets<T>(mutex: &FifoMutex<T>, count: usize) {
        while mutex.queue().tickets.len() < count {
            thread::yield_now();
        }
    }

    #[test]
    fn threads_get_the_lock_in_their_order_of_arrival() {
        let mutex = FifoMutex::new(Vec::new());
        thread::scope(|scope| {
            let first = mutex.lock_timeout(LONG);
            for number in 0..20 {
                let mutex = &mutex;
                scope.spawn(move || mutex.lock_timeout(LONG).unwrap().push(number));
                wait_for_tickets(mutex, number + 2);
            }
            drop(first);
        });
        assert_eq!(*mutex.lock_timeout(LONG).unwrap(), (0..20).collect::<Vec<_>>());
    }

    #[test]
    fn thread_that_gives_up_does_not_stop_those_behind_it() {
        let mutex = FifoMutex::new(0);
        thread::scope(|scope| {
            let first = mutex.lock_timeout(LONG);
            let impatient = scope.spawn(|| mutex.lock_timeout(Duration::from_millis(20)).is_none());
            wait_for_tickets(&mutex, 2);
            let behind = scope.spawn(|| *mutex.lock_timeout(LONG).unwrap() += 1);
            wait_for_tickets(&mutex, 3);
            assert!(impatient.join().unwrap());
            drop(first);
            behind.join().unwrap();
        });
        assert_eq!(*mutex.lock_timeout(Duration::ZERO).unwrap(), 1);
    }

    #[test]
    fn panic_of_the_holder_unlocks() {
        let mutex = FifoMutex::new(0);
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let _guard = mutex.lock_timeout(LONG).unwrap();
            panic!("on purpose");
        }));
        assert!(panicked.is_err());
        assert!(mutex.lock_timeout(Duration::ZERO).is_some());
    }

    #[test]
    fn many_threads_exclude_each_other() {
        let mutex = FifoMutex::new(0_u32);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let mut value = mutex.lock_timeout(LONG).unwrap();
                        let before = *value;
                        thread::yield_now();
                        *value = before + 1;
                    }
                });
            }
        });
        assert_eq!(*mutex.lock_timeout(LONG).unwrap(), 1600);
    }
}
