//! Waits for conditions. A test never sleeps for a time that should be enough.

use std::thread::sleep;
use std::time::{Duration, Instant};

/// Limit for anything that must happen. It is far longer than a busy machine needs.
pub const DEADLINE: Duration = Duration::from_secs(60);

const PAUSE: Duration = Duration::from_millis(2);

/// Waits until `condition` returns a value.
///
/// # Panics
///
/// After [`DEADLINE`], with `what`.
#[track_caller]
pub fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < DEADLINE, "after {DEADLINE:?}, not yet: {what}");
        sleep(PAUSE);
    }
}

/// Whether `condition` holds during all of `time`. It is for events that nothing announces, such as that nothing
/// happens. Too short a time makes such a check blind, but never makes it fail.
pub fn holds_for(time: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        if !condition() {
            return false;
        }
        if start.elapsed() >= time {
            return true;
        }
        sleep(PAUSE);
    }
}
