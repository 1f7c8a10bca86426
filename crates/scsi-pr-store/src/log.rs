//! Log lines that a client or a broken disk causes with every command are written now and then only.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::lock::lock;

/// How long nothing is said after something was.
const PERIOD: Duration = Duration::from_secs(60);

/// Says one of many things that mean the same, once a minute.
#[derive(Debug, Default)]
pub(crate) struct Sparse(Mutex<Option<Instant>>);

impl Sparse {
    /// Says it, unless something was said a moment ago.
    pub(crate) fn say(&self, say: impl FnOnce()) {
        if self.is_due(Instant::now()) {
            say();
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        let mut said = lock(&self.0);
        let due = said.is_none_or(|said| now.saturating_duration_since(said) >= PERIOD);
        if due {
            *said = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_minute() {
        let sparse = Sparse::default();
        let start = Instant::now();
        let due = [0, 1, 59, 60, 61, 119, 120].map(|seconds| sparse.is_due(start + Duration::from_secs(seconds)));
        assert_eq!(due, [true, false, false, true, false, false, true]);
    }
}
