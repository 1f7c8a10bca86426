//! Waiting for conditions: never for a time that should be enough.

use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long anything that must happen may take. Far more than it needs, for a machine that does other work too.
pub const DEADLINE: Duration = Duration::from_secs(60);

const PAUSE: Duration = Duration::from_millis(2);

/// Waits until `condition` gives a value.
///
/// # Panics
///
/// After [`DEADLINE`], saying `what` did not happen.
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

/// Whether `condition` is true all through `time`. Only for what nothing can announce, such as that nothing happens: too
/// short a time can make such a check blind, but never make it fail.
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
