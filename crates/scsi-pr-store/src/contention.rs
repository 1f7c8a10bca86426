//! The compare-and-swap loop of writers that change one unit at the same time.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::thread;
use std::time::{Duration, Instant};

use crate::{Change, Store, StoreError, Swap, UnitId};

/// The time within which a command gets its turn and its change is made. Initiators give a command up after 30 s or more.
pub(crate) const CHANGE_TIMEOUT: Duration = Duration::from_secs(20);

/// The longest pause between two attempts.
const MAX_PAUSE: Duration = Duration::from_millis(2);

/// Tries a change until it is made, at most for [`CHANGE_TIMEOUT`]. A writer loses only to another writer that made a change,
/// so the writers make progress together. Random pauses that grow keep one writer from losing again and again.
pub(crate) fn update<S: Store + ?Sized>(store: &S, unit: &UnitId, change: &mut Change<'_>) -> Result<(), StoreError> {
    let deadline = Instant::now() + CHANGE_TIMEOUT;
    for attempt in 1.. {
        let loaded = store.load(unit)?;
        loaded.check_not_owned(unit)?;
        let mut reservations = (*loaded.reservations).clone();
        if !change(&mut reservations, loaded.disk.as_deref()) {
            return Ok(());
        }
        match store.replace(unit, loaded.version, &reservations)? {
            Swap::Done(_) => return Ok(()),
            Swap::Lost if Instant::now() < deadline => thread::sleep(pause(attempt)),
            Swap::Lost => break,
        }
    }
    Err(too_long(unit))
}

pub(crate) fn too_long(unit: &UnitId) -> StoreError {
    StoreError::contended(format!("use the reservations of {unit}"))
        .because(format!("other commands used them for {} s", CHANGE_TIMEOUT.as_secs()))
        .remedy("look for a process that hangs while it uses the store")
}

/// The pause before attempt number `attempt + 1`: at most a tenth of a millisecond for each attempt so far.
pub(crate) fn pause(attempt: u32) -> Duration {
    let max = MAX_PAUSE.min(Duration::from_micros(100).saturating_mul(attempt));
    // The standard library has no random numbers but the keys of its hasher.
    let chance = RandomState::new().build_hasher().finish();
    max.mul_f64(chance as f64 / u64::MAX as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_bound() {
        for attempt in [0, 1, 10, 1_000, u32::MAX] {
            assert!(pause(attempt) <= MAX_PAUSE.min(Duration::from_micros(100).saturating_mul(attempt)));
        }
    }
}
