//! A point in time up to which something is waited for. Every wait of the client has one.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// The end of a wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    end: Instant,
    /// How long the wait was meant to be; for messages.
    allowed: Duration,
}

impl Deadline {
    /// The longest wait, because an `Instant` plus any `Duration` can overflow.
    const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

    pub(crate) fn after(allowed: Duration) -> Self {
        let allowed = allowed.min(Self::LONGEST);
        Self { end: Instant::now() + allowed, allowed }
    }

    /// The time that is left; zero once it is over.
    pub(crate) fn left(&self) -> Duration {
        self.end.saturating_duration_since(Instant::now())
    }

    /// The error that says that it is over.
    pub(crate) fn expired(&self) -> io::Error {
        io::Error::new(io::ErrorKind::TimedOut, format!("timed out after {:?}", self.allowed))
    }

    /// Waits until `socket` is ready for one of `events`, or has failed.
    pub(crate) fn wait(&self, socket: impl AsFd, events: PollFlags) -> io::Result<()> {
        loop {
            // A moment is always granted: what is there already is taken however late it is.
            match poll(&mut [PollFd::new(&socket, events)], Some(&timespec(self.left()))) {
                Ok(0) => return Err(self.expired()),
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    // At most LONGEST: the seconds fit.
    Timespec { tv_sec: duration.as_secs() as i64, tv_nsec: duration.subsec_nanos().into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn any_duration_makes_a_deadline() {
        assert!(Deadline::after(Duration::MAX).left() > Duration::from_secs(3600));
        assert_eq!(Deadline::after(Duration::ZERO).left(), Duration::ZERO);
    }

    #[test]
    fn a_wait_ends_with_its_deadline_and_takes_what_is_there_after_it() {
        let (a, b) = UnixStream::pair().unwrap();
        let over = Deadline::after(Duration::ZERO);
        assert_eq!(over.wait(&a, PollFlags::IN).unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(b);
        over.wait(&a, PollFlags::IN).unwrap();
    }
}
