//! What happens when several want to change one unit at the same time: who was not first begins again.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::thread;
use std::time::{Duration, Instant};

use scsi_pr::Reservations;

use crate::{Store, StoreError, Swap, UnitId};

/// How long a change is tried for, waiting included. Initiators give a command up after 30 s or more.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_millis(2);

/// The compare-and-swap loop. Whoever loses has lost to somebody who got something done, so all get on together; random
/// pauses that grow keep any one from losing again and again.
pub(crate) fn update<S: Store + ?Sized>(
    store: &S,
    unit: &UnitId,
    change: &mut dyn FnMut(&mut Reservations) -> bool,
) -> Result<(), StoreError> {
    let deadline = Instant::now() + PATIENCE;
    for attempt in 1.. {
        let loaded = store.load(unit)?;
        let mut reservations = (*loaded.reservations).clone();
        if !change(&mut reservations) {
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
    StoreError::contended(format!("change the reservations of {unit}"))
        .because(format!("others were changing them for {} s", PATIENCE.as_secs()))
        .remedy("look for a process that stands still while it uses the store")
}

/// How long to wait before attempt number `attempt + 1`: up to a tenth of a millisecond for each attempt so far.
pub(crate) fn pause(attempt: u32) -> Duration {
    let longest = LONGEST_PAUSE.min(Duration::from_micros(100).saturating_mul(attempt));
    // The hasher's keys are the standard library's source of chance.
    let chance = RandomState::new().build_hasher().finish();
    longest.mul_f64(chance as f64 / u64::MAX as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_bound() {
        for attempt in [0, 1, 10, 1_000, u32::MAX] {
            assert!(pause(attempt) <= LONGEST_PAUSE.min(Duration::from_micros(100).saturating_mul(attempt)));
        }
    }
}
