//! [`Memory`]: bounds the data of commands, over all sessions.

use std::cmp::Ordering::{Equal, Greater, Less};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The most bytes of data that the commands of a session hold, in each direction.
pub(crate) const SESSION: usize = 32 << 20;

/// The bytes of data that the commands of all sessions hold.
///
/// A session over its limit has one command at a time, so each one goes on, whatever others hold.
#[derive(Debug)]
pub struct Memory {
    held: AtomicUsize,
    limit: usize,
}

impl Memory {
    /// For so many bytes of all sessions.
    pub const fn new(limit: usize) -> Self {
        Self { held: AtomicUsize::new(0), limit }
    }

    /// Whether a session that holds so many bytes may have a command with `more`.
    pub(crate) fn has_room(&self, held: usize, more: usize) -> bool {
        held == 0 || (held + more <= SESSION && self.held.load(Ordering::Relaxed) + more <= self.limit)
    }

    /// A session that held `before` bytes holds `after`.
    pub(crate) fn update(&self, before: usize, after: usize) {
        // All sessions share the counter. Most answers leave it alone.
        match after.cmp(&before) {
            Greater => _ = self.held.fetch_add(after - before, Ordering::Relaxed),
            Less => _ = self.held.fetch_sub(before - after, Ordering::Relaxed),
            Equal => {}
        }
    }
}
