//! [`Place`]: those of several processes, or hosts, who want to change the same thing, in the order in which they came.
//!
//! What makes a change safe is elsewhere: this saves attempts that somebody has to lose, and keeps whoever has just made a
//! change from making the next one while others wait. So whatever goes wrong here, and whoever stands still while it is
//! their turn, the change is tried all the same.
//!
//! The queue is the locks on a file (open file description locks, fcntl(2)), which NFS and cluster file systems hand on to
//! all hosts. Everyone locks one byte, behind all that are locked, and waits until none before it is. A process that ends
//! gives up its place. The file stays empty, and is never replaced.

use std::fs::File;
use std::ops::Deref;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use crate::contention::pause;

/// Held while looking for the end of the queue.
const GATE: i64 = 0;

/// The first place. Not next to the gate: the kernel makes one lock of two that touch.
const FIRST: i64 = 2;

/// How long to wait for a turn. After that a change is tried without: whoever has it may never give it back.
const PATIENCE: Duration = Duration::from_secs(5);

/// The least time between two looks.
const SHORTEST_PAUSE: Duration = Duration::from_micros(20);

/// A place at the head of the queue, until this is dropped.
#[derive(Debug)]
pub(crate) struct Place<F: Deref<Target = File>> {
    file: F,
    number: i64,
}

impl<F: Deref<Target = File>> Place<F> {
    /// Queues, and waits for the turn. `None` if there is no way to queue, or it takes too long.
    ///
    /// A `file` has one place at a time: threads open it each for itself, or take turns.
    pub(crate) fn take(file: F) -> Option<Self> {
        Self::take_within(file, PATIENCE)
    }

    fn take_within(file: F, patience: Duration) -> Option<Self> {
        let deadline = Instant::now() + patience;
        let enter = || match lock(&file, GATE) {
            Ok(()) => Ok(None),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(Some(1)),
            Err(errno) => Err(errno),
        };
        wait(deadline, enter)?;
        let number = stand_behind(&file);
        let left = unlock(&file, GATE);
        let place = Self { file, number: number.ok()? };
        left.ok()?;
        wait(deadline, || place.distance())?;
        Some(place)
    }

    /// How far ahead somebody is, `None` at the head.
    fn distance(&self) -> Result<Option<i64>, Errno> {
        match self.number - FIRST {
            0 => Ok(None),
            length => Ok(locked(&self.file, FIRST, length)?.map(|ahead| self.number - ahead)),
        }
    }
}

impl<F: Deref<Target = File>> Drop for Place<F> {
    fn drop(&mut self) {
        // If that fails, it ends with the file.
        let _ = unlock(&self.file, self.number);
    }
}

/// Locks the byte behind all that are locked.
fn stand_behind(file: &File) -> Result<i64, Errno> {
    let mut number = FIRST;
    while let Some(taken) = locked(file, number, 0)? {
        number = number.max(taken) + 1;
    }
    lock(file, number).map(|()| number)
}

/// Asks `distance` until there is none. `None` after `deadline`, or when it cannot be told.
fn wait(deadline: Instant, mut distance: impl FnMut() -> Result<Option<i64>, Errno>) -> Option<()> {
    while let Some(distance) = distance().ok()? {
        if Instant::now() >= deadline {
            return None;
        }
        thread::sleep(SHORTEST_PAUSE + pause(u32::try_from(distance).unwrap_or(u32::MAX)));
    }
    Some(())
}

fn range(kind: i32, start: i64, length: i64) -> libc::flock {
    // Small constants of the system's header.
    libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: start, l_len: length, l_pid: 0 }
}

fn lock(file: &File, byte: i64) -> Result<(), Errno> {
    fcntl(file, FcntlArg::F_OFD_SETLK(&range(libc::F_WRLCK, byte, 1))).map(drop)
}

fn unlock(file: &File, byte: i64) -> Result<(), Errno> {
    fcntl(file, FcntlArg::F_OFD_SETLK(&range(libc::F_UNLCK, byte, 1))).map(drop)
}

/// The byte of a lock, of any, that others have on these bytes; a length of 0 is all from there on.
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

    fn queue(file: &NamedTempFile, patience: Duration) -> Option<Place<Box<File>>> {
        Place::take_within(Box::new(file.reopen().expect("the file")), patience)
    }

    /// Waits until so many have a place, the first included.
    fn wait_for(file: &NamedTempFile, count: i64) {
        let file = file.reopen().expect("the file");
        while locked(&file, FIRST + count - 1, 0) == Ok(None) {
            thread::yield_now();
        }
    }

    #[test]
    fn turns_come_in_order() {
        let (file, came) = (NamedTempFile::new().expect("a file"), Mutex::new(Vec::new()));
        thread::scope(|scope| {
            let first = queue(&file, LONG);
            for number in 0..20 {
                let (file, came) = (&file, &came);
                scope.spawn(move || {
                    let _place = queue(file, LONG).expect("a turn");
                    came.lock().expect("no panic").push(number);
                });
                wait_for(file, i64::from(number) + 2);
            }
            assert!(came.lock().expect("no panic").is_empty());
            drop(first);
        });
        assert_eq!(*came.lock().expect("no panic"), (0..20).collect::<Vec<_>>());
        assert_eq!(queue(&file, LONG).map(|place| place.number), Some(FIRST), "all is as it was");
    }

    #[test]
    fn who_gives_up_or_ends_does_not_hold_up_the_others() {
        let file = NamedTempFile::new().expect("a file");
        let open = file.reopen().expect("the file");
        let first = Place::take_within(&open, LONG).expect("a turn");
        assert!(queue(&file, SHORT).is_none());
        // As when a process ends: nothing is unlocked, the file is closed.
        std::mem::forget(first);
        drop(open);
        assert_eq!(queue(&file, LONG).map(|place| place.number), Some(FIRST));
    }

    #[test]
    fn a_file_can_be_used_again_and_again() {
        let file = NamedTempFile::new().expect("a file");
        let open = file.reopen().expect("the file");
        for _ in 0..3 {
            assert_eq!(Place::take_within(&open, LONG).map(|place| place.number), Some(FIRST));
        }
    }

    #[test]
    fn without_locks_there_is_no_place() {
        // Not open for writing, so it cannot be locked.
        let file = NamedTempFile::new().expect("a file");
        let open = File::open(file.path()).expect("the file");
        assert!(Place::take_within(&open, LONG).is_none());
    }
}
