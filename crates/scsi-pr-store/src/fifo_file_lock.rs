//! [`FifoFileLock`]: a lock on a file that serves processes, also of several hosts, in their order of arrival.
//!
//! No change rests on this lock: compare-and-swap makes a change safe. The lock saves attempts that would lose. It also keeps a
//! process that has made a change from making the next one while others wait. So if locking fails, or the holder hangs, the
//! change is tried without the lock.
//!
//! The queue is a row of open file description locks (fcntl(2)), which NFS and cluster file systems pass on to all hosts. Each
//! process locks the byte behind all locked bytes, and waits until no byte before it is locked. A process that ends loses its
//! position. The file stays empty and is never replaced.

use std::fs::File;
use std::ops::Deref;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use crate::contention::pause;

/// The byte that a process locks while it looks for the end of the queue.
const GATE: i64 = 0;

/// The first position. It is not next to the gate, because the kernel merges two adjacent locks.
const FIRST: i64 = 2;

/// The longest wait for the lock. A holder that hangs may never unlock.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(5);

/// The shortest time between two looks at the queue.
const MIN_PAUSE: Duration = Duration::from_micros(20);

/// The lock, until this is dropped.
#[derive(Debug)]
pub(crate) struct FifoFileLock<F: Deref<Target = File>> {
    file: F,
    position: i64,
}

impl<F: Deref<Target = File>> FifoFileLock<F> {
    /// Waits for the lock. `None` if locking fails, or after [`QUEUE_TIMEOUT`].
    ///
    /// An open file has one position at a time. Each thread opens the file for itself, or threads share it behind a mutex.
    pub(crate) fn lock(file: F) -> Option<Self> {
        Self::lock_within(file, QUEUE_TIMEOUT)
    }

    fn lock_within(file: F, timeout: Duration) -> Option<Self> {
        let deadline = Instant::now() + timeout;
        let enter = || match lock_byte(&file, GATE) {
            Ok(()) => Ok(None),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(Some(1)),
            Err(errno) => Err(errno),
        };
        wait(deadline, enter)?;
        let position = enqueue(&file);
        let unlocked = unlock_byte(&file, GATE);
        let lock = Self { file, position: position.ok()? };
        unlocked.ok()?;
        wait(deadline, || lock.distance())?;
        Some(lock)
    }

    /// The distance to the nearest position before this one, `None` at the head.
    fn distance(&self) -> Result<Option<i64>, Errno> {
        match self.position - FIRST {
            0 => Ok(None),
            length => Ok(locked(&self.file, FIRST, length)?.map(|ahead| self.position - ahead)),
        }
    }
}

impl<F: Deref<Target = File>> Drop for FifoFileLock<F> {
    fn drop(&mut self) {
        // If this fails, the lock ends when the file is closed.
        let _ = unlock_byte(&self.file, self.position);
    }
}

/// Locks the byte behind all locked bytes.
fn enqueue(file: &File) -> Result<i64, Errno> {
    let mut position = FIRST;
    while let Some(taken) = locked(file, position, 0)? {
        position = position.max(taken) + 1;
    }
    lock_byte(file, position).map(|()| position)
}

/// Waits until `distance` returns `None`. Returns `None` after `deadline`, or if `distance` fails.
fn wait(deadline: Instant, mut distance: impl FnMut() -> Result<Option<i64>, Errno>) -> Option<()> {
    while let Some(distance) = distance().ok()? {
        if Instant::now() >= deadline {
            return None;
        }
        thread::sleep(MIN_PAUSE + pause(u32::try_from(distance).unwrap_or(u32::MAX)));
    }
    Some(())
}

fn range(kind: i32, start: i64, length: i64) -> libc::flock {
    // Small constants of the system's header.
    libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: start, l_len: length, l_pid: 0 }
}

fn lock_byte(file: &File, byte: i64) -> Result<(), Errno> {
    fcntl(file, FcntlArg::F_OFD_SETLK(&range(libc::F_WRLCK, byte, 1))).map(drop)
}

fn unlock_byte(file: &File, byte: i64) -> Result<(), Errno> {
    fcntl(file, FcntlArg::F_OFD_SETLK(&range(libc::F_UNLCK, byte, 1))).map(drop)
}

/// The first byte of one lock that others have in this range. A length of 0 means all bytes from `start` on.
fn locked(file: &File, start: i64, length: i64) -> Result<Option<i64>, Errno> {
    let mut found = range(libc::F_WRLCK, start, length);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut found))?;
    Ok((i32::from(found.l_type) != libc::F_UNLCK).then_some(found.l_start))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use tempfile::NamedTempFile;

    const LONG: Duration = Duration::from_secs(60);
    const SHORT: Duration = Duration::from_millis(5);

    fn queue(file: &NamedTempFile, timeout: Duration) -> Option<FifoFileLock<Box<File>>> {
        FifoFileLock::lock_within(Box::new(file.reopen().expect("the file")), timeout)
    }

    /// Waits until `count` positions are taken, the first included.
    fn wait_for(file: &NamedTempFile, count: i64) {
        let file = file.reopen().expect("the file");
        while locked(&file, FIRST + count - 1, 0) == Ok(None) {
            thread::yield_now();
        }
    }

    #[test]
    fn processes_get_the_lock_in_their_order_of_arrival() {
        let (file, came) = (NamedTempFile::new().expect("a file"), Mutex::new(Vec::new()));
        thread::scope(|scope| {
            let first = queue(&file, LONG);
            for position in 0..20 {
                let (file, came) = (&file, &came);
                scope.spawn(move || {
                    let _lock = queue(file, LONG).expect("the lock");
                    came.lock().expect("no panic").push(position);
                });
                wait_for(file, i64::from(position) + 2);
            }
            assert!(came.lock().expect("no panic").is_empty());
            drop(first);
        });
        assert_eq!(*came.lock().expect("no panic"), (0..20).collect::<Vec<_>>());
        assert_eq!(queue(&file, LONG).map(|lock| lock.position), Some(FIRST), "the queue is empty");
    }

    #[test]
    fn process_that_gives_up_or_ends_does_not_stop_the_others() {
        let file = NamedTempFile::new().expect("a file");
        let open = file.reopen().expect("the file");
        let first = FifoFileLock::lock_within(&open, LONG).expect("the lock");
        assert!(queue(&file, SHORT).is_none());
        // As when a process ends: nothing is unlocked, the file is closed.
        std::mem::forget(first);
        drop(open);
        assert_eq!(queue(&file, LONG).map(|lock| lock.position), Some(FIRST));
    }

    #[test]
    fn file_can_be_locked_again() {
        let file = NamedTempFile::new().expect("a file");
        let open = file.reopen().expect("the file");
        for _ in 0..3 {
            assert_eq!(FifoFileLock::lock_within(&open, LONG).map(|lock| lock.position), Some(FIRST));
        }
    }

    #[test]
    fn without_locks_there_is_no_lock() {
        // Not open for writing, so it cannot be locked.
        let file = NamedTempFile::new().expect("a file");
        let open = File::open(file.path()).expect("the file");
        assert!(FifoFileLock::lock_within(&open, LONG).is_none());
    }
}
