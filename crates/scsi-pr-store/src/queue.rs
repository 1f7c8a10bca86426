//! [`Queue`]: those of this process who want the same thing, in the order in which they came.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use crate::lock::lock;

/// A mutex that serves its contenders in the order in which they came, and that can be given up waiting for.
///
/// The standard library's mutex goes to whoever is running when it becomes free, which may be the same thread each time.
#[derive(Debug, Default)]
pub(crate) struct Queue<T> {
    waiting: Mutex<Waiting>,
    value: Mutex<T>,
}

#[derive(Debug, Default)]
struct Waiting {
    next_ticket: u64,
    /// Those who came, the first of whom has the value.
    tickets: VecDeque<(u64, Thread)>,
}

/// The value of a [`Queue`], until this is dropped.
#[derive(Debug)]
pub(crate) struct Turn<'a, T> {
    queue: &'a Queue<T>,
    ticket: u64,
    value: MutexGuard<'a, T>,
}

impl<T> Queue<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { waiting: Mutex::default(), value: Mutex::new(value) }
    }

    /// Waits for this thread's turn. `None` when it has not come after `patience`.
    pub(crate) fn take(&self, patience: Duration) -> Option<Turn<'_, T>> {
        let deadline = Instant::now() + patience;
        let ticket = {
            let mut waiting = lock(&self.waiting);
            waiting.next_ticket += 1;
            let ticket = waiting.next_ticket;
            waiting.tickets.push_back((ticket, thread::current()));
            ticket
        };
        loop {
            if lock(&self.waiting).tickets.front().is_some_and(|(first, _)| *first == ticket) {
                break;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.leave(ticket);
                return None;
            }
            thread::park_timeout(left);
        }
        // Free: who had it before left the queue only after it was dropped.
        Some(Turn { queue: self, ticket, value: lock(&self.value) })
    }

    fn leave(&self, ticket: u64) {
        let mut waiting = lock(&self.waiting);
        waiting.tickets.retain(|(waiting, _)| *waiting != ticket);
        if let Some((_, first)) = waiting.tickets.front() {
            first.unpark();
        }
    }
}

impl<T> std::ops::Deref for Turn<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> std::ops::DerefMut for Turn<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

impl<T> Drop for Turn<'_, T> {
    fn drop(&mut self) {
        // The next one may find the value still locked for as long as this takes to end, and waits for that.
        self.queue.leave(self.ticket);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn turns_come_in_order() {
        let queue = Queue::new(Vec::new());
        let came = AtomicUsize::new(0);
        thread::scope(|scope| {
            let turn = queue.take(LONG);
            for number in 0..20 {
                let (queue, came) = (&queue, &came);
                scope.spawn(move || {
                    while came.load(Ordering::SeqCst) < number {
                        thread::yield_now();
                    }
                    queue.take(LONG).expect("a turn").push(number);
                });
                // The next one may come only once this one stands in the queue.
                while lock(&queue.waiting).tickets.len() < number + 2 {
                    thread::yield_now();
                }
                came.store(number + 1, Ordering::SeqCst);
            }
            drop(turn);
        });
        assert_eq!(*queue.take(LONG).expect("a turn"), (0..20).collect::<Vec<_>>());
    }

    #[test]
    fn who_gives_up_does_not_hold_up_the_others() {
        let queue = Queue::new(0);
        thread::scope(|scope| {
            let turn = queue.take(LONG);
            scope.spawn(|| assert!(queue.take(Duration::from_millis(1)).is_none())).join().expect("gave up");
            let next = scope.spawn(|| *queue.take(LONG).expect("a turn") += 1);
            drop(turn);
            next.join().expect("had its turn");
        });
        assert_eq!(*queue.take(LONG).expect("a turn"), 1);
    }
}
