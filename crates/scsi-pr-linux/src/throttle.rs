//! Log lines that a client can cause at will are written now and then only.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Permits one event per key and period.
#[derive(Debug)]
pub(crate) struct Throttle<K> {
    period: Duration,
    /// A list: it is short, and a map for each kind of key would be most of the program's code.
    permitted: Mutex<Vec<(K, Instant)>>,
}

/// How many keys are remembered. While that many were permitted within one period, no other is: a flood is a flood
/// whatever its keys.
const MOST_KEYS: usize = 256;

impl<K: PartialEq> Throttle<K> {
    pub(crate) const fn new(period: Duration) -> Self {
        Self { period, permitted: Mutex::new(Vec::new()) }
    }

    /// Whether an event with this key may pass now.
    pub(crate) fn permits(&self, key: K) -> bool {
        self.permits_at(key, Instant::now())
    }

    fn permits_at(&self, key: K, now: Instant) -> bool {
        let recent = |then: Instant| now.saturating_duration_since(then) < self.period;
        let mut permitted = self.permitted.lock().unwrap_or_else(PoisonError::into_inner);
        let known = permitted.iter().position(|(known, _)| *known == key);
        if let Some(index) = known {
            let (_, then) = &mut permitted[index];
            let passes = !recent(*then);
            if passes {
                *then = now;
            }
            return passes;
        }
        if permitted.len() >= MOST_KEYS {
            permitted.retain(|(_, then)| recent(*then));
        }
        let room = permitted.len() < MOST_KEYS;
        if room {
            permitted.push((key, now));
        }
        room
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Duration = Duration::from_secs(60);

    #[test]
    fn one_event_per_key_and_period() {
        let throttle = Throttle::new(PERIOD);
        let start = Instant::now();
        assert!(throttle.permits_at(1, start));
        assert!(!throttle.permits_at(1, start + PERIOD / 2));
        assert!(throttle.permits_at(2, start + PERIOD / 2));
        assert!(throttle.permits_at(1, start + PERIOD));
        assert!(!throttle.permits_at(2, start + PERIOD));
    }

    #[test]
    fn a_flood_of_keys_is_stopped_and_forgotten() {
        let throttle = Throttle::new(PERIOD);
        let start = Instant::now();
        let passed = (0..10 * MOST_KEYS).filter(|key| throttle.permits_at(*key, start)).count();
        assert_eq!(passed, MOST_KEYS);
        assert!(throttle.permits_at(usize::MAX, start + PERIOD));
        assert!(throttle.permitted.lock().unwrap().len() <= MOST_KEYS);
    }
}
