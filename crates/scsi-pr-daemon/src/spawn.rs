//! [`spawn_with`].

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// Calls `work` with `value` on a thread of its own. If no thread can be started, the caller has the value again.
///
/// The value moves to the thread as a whole: the last reference to a socket, whose close may block, must not be dropped
/// on this thread.
///
/// # Errors
///
/// That of pthread_create(3), with the value.
pub fn spawn_with<T: Send + 'static>(name: &str, stack: usize, value: T, work: fn(T)) -> Result<(), (T, io::Error)> {
    let handover = Arc::new(Mutex::new(Some(value)));
    let take = |handover: &Mutex<Option<T>>| handover.lock().unwrap_or_else(PoisonError::into_inner).take();
    let for_thread = Arc::clone(&handover);
    let started = thread::Builder::new().name(name.to_owned()).stack_size(stack).spawn(move || {
        let value = take(&for_thread);
        drop(for_thread);
        value.map(work)
    });
    match started {
        Ok(_) => Ok(()),
        Err(error) => take(&handover).map_or(Ok(()), |value| Err((value, error))),
    }
}
