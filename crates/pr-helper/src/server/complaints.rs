//! What is wrong with a peer or a device, said without flooding the log.

use std::fmt::Display;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Peer;

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

    /// Says it, or counts it; `true` when it is the first one that is counted only.
    pub(super) fn say(&self, peer: &Peer, complaint: &dyn Display, now: Instant) -> bool {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if window.start.is_none_or(|start| now.saturating_duration_since(start) >= WINDOW) {
            self.open(&mut window, now);
        }
        if window.said == BURST {
            window.suppressed += 1;
            return window.suppressed == 1;
        }
        window.said += 1;
        drop(window);
        tracing::event!(
            name: "pr_helper_complain",
            tracing::Level::WARN,
            pid = peer.pid,
            uid = peer.uid,
            "{complaint}"
        );
        false
    }

    /// When [`count`](Self::count) has something to say.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        window.start.filter(|_| window.suppressed > 0).map(|start| start + WINDOW)
    }

    /// Says how many were not said, once their window is over.
    pub(super) fn count(&self, now: Instant) {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if window.suppressed > 0 && window.start.is_some_and(|start| now.saturating_duration_since(start) >= WINDOW) {
            self.open(&mut window, now);
        }
    }

    fn open(&self, window: &mut Window, now: Instant) {
        let suppressed = window.suppressed;
        *window = Window { start: Some(now), said: 0, suppressed: 0 };
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
}
