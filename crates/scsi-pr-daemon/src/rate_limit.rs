//! A bound on the log lines that a client can cause.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Permits a number of events per period: for each key, and for all keys together.
///
/// A client can cause log lines without end, and must neither fill the host's log nor suppress the lines that other
/// clients cause. The key says who caused the event. The limiter remembers at most 1,024 keys at a time; while all of them
/// are recent, it suppresses the events of any further key.
#[derive(Debug)]
pub struct RateLimiter<K> {
    per_key: u32,
    total: u32,
    period: Duration,
    state: Mutex<State<K>>,
}

#[derive(Debug)]
struct State<K> {
    /// A short list: a map for each type of key would add to the size of every program.
    keys: Vec<(K, Window)>,
    /// The events of all keys. Its count of suppressed events is that of keys that are no longer remembered.
    all: Window,
}

#[derive(Debug, Default)]
struct Window {
    start: Option<Instant>,
    permitted: u32,
    suppressed: u64,
}

const MAX_KEYS: usize = 1024;

/// The number of events that were suppressed before one that was permitted. It displays as the end of a log line: as
/// nothing for 0, else as ` (3 similar messages suppressed)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Suppressed(pub u64);

impl<K: PartialEq> RateLimiter<K> {
    /// Permits `per_key` events of one key, and `total` events of all keys, in each `period`.
    pub const fn new(per_key: u32, total: u32, period: Duration) -> Self {
        let all = Window { start: None, permitted: 0, suppressed: 0 };
        Self { per_key, total, period, state: Mutex::new(State { keys: Vec::new(), all }) }
    }

    /// Whether the next event of `key` is permitted: `None` if it is not, else the number of events that were suppressed
    /// since the last one that was.
    pub fn check(&self, key: K) -> Option<Suppressed> {
        self.check_at(key, Instant::now())
    }

    fn check_at(&self, key: K, now: Instant) -> Option<Suppressed> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { keys, all } = &mut *state;
        all.renew(now, self.period);
        let index = keys.iter().position(|(known, _)| *known == key).or_else(|| {
            if keys.len() >= MAX_KEYS {
                keys.retain(|(_, window)| {
                    let recent = window.is_recent(now, self.period);
                    all.suppressed += if recent { 0 } else { window.suppressed };
                    recent
                });
            }
            (keys.len() < MAX_KEYS).then(|| {
                keys.push((key, Window::default()));
                keys.len() - 1
            })
        });
        let Some(index) = index else {
            all.suppressed += 1;
            return None;
        };
        let window = &mut keys[index].1;
        window.renew(now, self.period);
        if window.permitted >= self.per_key || all.permitted >= self.total {
            window.suppressed += 1;
            return None;
        }
        window.permitted += 1;
        all.permitted += 1;
        Some(Suppressed(std::mem::take(&mut window.suppressed) + std::mem::take(&mut all.suppressed)))
    }
}

/// Permits each kind of event of a source once per period, and bounds the events of a source.
///
/// The bound keeps a source with many kinds of events from filling the memory of the limiter.
#[derive(Debug)]
pub struct RepeatLimiter<S, K> {
    sources: RateLimiter<S>,
    kinds: RateLimiter<(S, K)>,
}

impl<S: PartialEq + Copy, K: PartialEq> RepeatLimiter<S, K> {
    /// Permits one event of each kind of a source, `per_source` events of one source, and `total` events of all sources, in
    /// each `period`.
    pub const fn new(per_source: u32, total: u32, period: Duration) -> Self {
        Self { sources: RateLimiter::new(per_source, u32::MAX, period), kinds: RateLimiter::new(1, total, period) }
    }

    /// As [`RateLimiter::check`], for the next event of `source` and `kind`.
    pub fn check(&self, source: S, kind: K) -> Option<Suppressed> {
        self.check_at(source, kind, Instant::now())
    }

    fn check_at(&self, source: S, kind: K, now: Instant) -> Option<Suppressed> {
        let Suppressed(of_source) = self.sources.check_at(source, now)?;
        let Suppressed(of_kind) = self.kinds.check_at((source, kind), now)?;
        Some(Suppressed(of_source + of_kind))
    }
}

impl Window {
    fn is_recent(&self, now: Instant, period: Duration) -> bool {
        self.start.is_some_and(|start| now.saturating_duration_since(start) < period)
    }

    /// Begins the next period if the last one is over.
    fn renew(&mut self, now: Instant, period: Duration) {
        if !self.is_recent(now, period) {
            (self.start, self.permitted) = (Some(now), 0);
        }
    }
}

impl fmt::Display for Suppressed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            1 => f.write_str(" (1 similar message suppressed)"),
            count => write!(f, " ({count} similar messages suppressed)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Duration = Duration::from_secs(60);

    #[test]
    fn events_over_the_limit_of_a_key_are_suppressed_and_counted() {
        let limiter = RateLimiter::new(2, 100, PERIOD);
        let start = Instant::now();
        let permitted = [start; 5].map(|now| limiter.check_at("a", now));
        assert_eq!(permitted, [Some(Suppressed(0)), Some(Suppressed(0)), None, None, None]);
        assert_eq!(limiter.check_at("a", start + PERIOD), Some(Suppressed(3)));
    }

    #[test]
    fn a_flood_of_one_key_suppresses_no_event_of_another() {
        let limiter = RateLimiter::new(2, 100, PERIOD);
        let start = Instant::now();
        (0..1_000).for_each(|_| _ = limiter.check_at("flood", start));
        assert_eq!(limiter.check_at("other", start), Some(Suppressed(0)));
    }

    #[test]
    fn all_keys_together_have_a_limit() {
        let limiter = RateLimiter::new(2, 10, PERIOD);
        let start = Instant::now();
        assert_eq!((0..100).filter(|key| limiter.check_at(*key, start).is_some()).count(), 10);
        assert!(limiter.check_at(100, start + PERIOD).is_some());
    }

    #[test]
    fn a_flood_of_keys_is_bounded_in_memory_and_counted() {
        let limiter = RateLimiter::new(1, u32::MAX, PERIOD);
        let start = Instant::now();
        let keys = 10 * MAX_KEYS as u64;
        let permitted = (0..keys).filter(|key| limiter.check_at(*key, start).is_some()).count();
        assert_eq!(permitted, MAX_KEYS);
        assert_eq!(limiter.check_at(keys, start + PERIOD), Some(Suppressed(keys - MAX_KEYS as u64)));
        assert!(limiter.state.lock().unwrap().keys.len() <= MAX_KEYS);
    }

    #[test]
    fn the_count_of_a_forgotten_key_is_not_lost() {
        let limiter = RateLimiter::new(1, u32::MAX, PERIOD);
        let start = Instant::now();
        (0..3).for_each(|_| _ = limiter.check_at(0, start));
        (1..MAX_KEYS).for_each(|key| _ = limiter.check_at(key, start));
        assert_eq!(limiter.check_at(MAX_KEYS, start + PERIOD), Some(Suppressed(2)));
    }

    #[test]
    fn each_kind_of_event_of_a_source_is_permitted_once() {
        let limiter = RepeatLimiter::new(10, 100, PERIOD);
        let start = Instant::now();
        let check = |source, kind, now| limiter.check_at(source, kind, now);
        assert_eq!(check('a', 1, start), Some(Suppressed(0)));
        assert_eq!(check('a', 1, start), None);
        assert_eq!((check('a', 2, start), check('b', 1, start)), (Some(Suppressed(0)), Some(Suppressed(0))));
        assert_eq!(check('a', 1, start + PERIOD), Some(Suppressed(1)));
    }

    #[test]
    fn source_with_many_kinds_of_events_suppresses_none_of_another() {
        let limiter = RepeatLimiter::new(10, 100, PERIOD);
        let start = Instant::now();
        let permitted = (0..10_000).filter(|kind| limiter.check_at('a', *kind, start).is_some()).count();
        assert_eq!(permitted, 10);
        assert!(limiter.check_at('b', 0, start).is_some());
    }

    #[test]
    fn suppressed_displays_as_the_end_of_a_line() {
        let display = [0, 1, 3].map(|count| Suppressed(count).to_string());
        assert_eq!(display, ["", " (1 similar message suppressed)", " (3 similar messages suppressed)"]);
    }
}
