//! What is wrong with a peer or a device, said without flooding the log.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How many complaints are said at once, in each [`WINDOW`].
const BURST: u32 = 10;
const WINDOW: Duration = Duration::from_secs(5);

/// Complaints of one kind.
#[derive(Debug)]
pub(super) struct Complaints {
    /// What they are about, for the line that counts those not said.
    about: &'static str,
    window: Mutex<Window>,
}

#[derive(Debug)]
struct Window {
    start: Option<Instant>,
    said: u32,
    suppressed: u64,
}

impl Complaints {
    pub(super) const fn new(about: &'static str) -> Self {
        Self { about, window: Mutex::new(Window { start: None, said: 0, suppressed: 0 }) }
    }

    /// Has it said, or counts it; `true` when it is the first one that is only counted.
    pub(super) fn say(&self, complaint: impl FnOnce(), now: Instant) -> bool {
        let mut window = self.lock();
        let suppressed = window.renew(now);
        let speak = window.said < BURST;
        if speak {
            window.said += 1;
        } else {
            window.suppressed += 1;
        }
        let first = window.suppressed == 1;
        // A log may be slow: whoever else complains need not wait for it.
        drop(window);
        self.tell(suppressed);
        if speak {
            complaint();
        }
        !speak && first
    }

    /// When [`count`](Self::count) has something to say.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let window = self.lock();
        window.start.filter(|_| window.suppressed > 0).map(|start| start + WINDOW)
    }

    /// Says how many were not said, once their window is over.
    pub(super) fn count(&self, now: Instant) {
        let suppressed = self.lock().renew(now);
        self.tell(suppressed);
    }

    fn tell(&self, suppressed: u64) {
        if suppressed > 0 {
            tracing::event!(
                name: "pr_helper_complaints",
                tracing::Level::WARN,
                suppressed,
                "{suppressed} more messages about {}",
                self.about
            );
        }
    }

    fn lock(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Window {
    /// Begins a new window when this one is over; how many were suppressed in it.
    fn renew(&mut self, now: Instant) -> u64 {
        if self.start.is_some_and(|start| now.saturating_duration_since(start) < WINDOW) {
            return 0;
        }
        let suppressed = self.suppressed;
        *self = Self { start: Some(now), said: 0, suppressed: 0 };
        suppressed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_counted() {
        let complaints = Complaints::new("anything");
        let start = Instant::now();
        let mut said = 0;
        let mut first_suppressed = 0;
        for _ in 0..100 {
            first_suppressed += u32::from(complaints.say(|| said += 1, start));
        }
        assert_eq!((said, first_suppressed), (BURST, 1));
        assert_eq!(complaints.deadline(), Some(start + WINDOW));
        complaints.count(start + WINDOW / 2);
        assert_eq!(complaints.deadline(), Some(start + WINDOW), "the window is not over");
        complaints.count(start + WINDOW);
        assert_eq!(complaints.deadline(), None);
        complaints.say(|| said += 1, start + WINDOW);
        assert_eq!(said, BURST + 1);
    }
}
