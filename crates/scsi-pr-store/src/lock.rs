//! [`lock`]: a mutex whose value is whole between any two statements.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks what is whole between any two statements, so that a panic elsewhere is no reason to stop.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
