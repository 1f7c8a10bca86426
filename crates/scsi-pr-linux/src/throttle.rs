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

/// Permits so many events a period, whatever they are, and counts the others.
#[derive(Debug)]
pub(crate) struct Budget {
    most: u32,
    period: Duration,
    spent: Mutex<Spent>,
}

#[derive(Debug)]
struct Spent {
    /// The beginning of the period.
    since: Option<Instant>,
    /// How many events passed in it.
    passed: u32,
    /// How many did not, since one did.
    left_out: u64,
}

impl Budget {
    pub(crate) const fn new(most: u32, period: Duration) -> Self {
        Self { most, period, spent: Mutex::new(Spent { since: None, passed: 0, left_out: 0 }) }
    }

    /// `None` when an event may not pass now, else how many did not since the last one that did.
    pub(crate) fn spend(&self) -> Option<u64> {
        self.spend_for(0)
    }

    /// The same for an event that stands for so many besides, which another budget did not let pass.
    pub(crate) fn spend_for(&self, besides: u64) -> Option<u64> {
        self.spend_at(Instant::now(), besides)
    }

    fn spend_at(&self, now: Instant, besides: u64) -> Option<u64> {
        let mut spent = self.spent.lock().unwrap_or_else(PoisonError::into_inner);
        if spent.since.is_none_or(|since| now.saturating_duration_since(since) >= self.period) {
            (spent.since, spent.passed) = (Some(now), 0);
        }
        if spent.passed < self.most {
            spent.passed += 1;
            Some(std::mem::take(&mut spent.left_out) + besides)
        } else {
            spent.left_out += 1 + besides;
            None
        }
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

    #[test]
    fn what_is_over_the_budget_is_counted() {
        let budget = Budget::new(2, PERIOD);
        let start = Instant::now();
        assert_eq!([start; 5].map(|now| budget.spend_at(now, 0)), [Some(0), Some(0), None, None, None]);
        let next = start + PERIOD;
        assert_eq!([next; 3].map(|now| budget.spend_at(now, 0)), [Some(3), Some(0), None]);
        assert_eq!(budget.spend_at(next, 7), None);
        assert_eq!(budget.spend_at(next + PERIOD, 5), Some(1 + 8 + 5));
    }
}
