//! [`NotPermitted`]: a command that this process may not have run, told apart from one that was answered by a manager
//! that is an [`Attempt`]; and what an errno says of it.

use std::fmt;
use std::time::Duration;

use rustix::io::Errno;
use scsi_pr::{Command, Completion, SenseCode, Status};
use scsi_pr_daemon::RateLimiter;
use tracing::warn;

use crate::sg_io;

/// The kernel lets this process not do what a command needs, and **nothing has been done**: a process with more
/// privileges may run the command as if it had never been tried.
///
/// The reasons are that the thread lacks CAP_SYS_ADMIN, that the descriptor is not open for writing, or that it is of a
/// partition, of which the kernel lets nobody reserve the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotPermitted(pub(crate) Errno);

impl NotPermitted {
    /// What the command is answered with when nobody else can be asked: CHECK CONDITION 0B/00/06, as
    /// [`SgIo`](crate::SgIo) answers without CAP_SYS_RAWIO.
    pub fn completion(self) -> Completion {
        Completion::check(SenseCode::IO_PROCESS_TERMINATED)
    }
}

impl fmt::Display for NotPermitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the kernel does not permit it ({}): it takes the capability CAP_SYS_ADMIN and a device that is no partition; \
             newer kernels may take a descriptor open for writing instead",
            self.0
        )
    }
}

impl std::error::Error for NotPermitted {}

/// What the errno of an ioctl that carries a reservation command means, IOC_PR's and NVMe's alike.
pub(crate) fn of_errno(errno: Errno) -> Result<Completion, NotPermitted> {
    Ok(match errno {
        Errno::PERM | Errno::ACCESS => return Err(NotPermitted(errno)),
        // The driver has no reservations; device mapper has none for a table of several targets.
        Errno::NOTTY | Errno::OPNOTSUPP => Completion::check(SenseCode::INVALID_OPCODE),
        // A suspended device-mapper device, and an NVMe namespace whose paths are all away. Nothing was sent.
        Errno::AGAIN => Completion::Status(Status::BUSY),
        // EINTR, too: an NVMe controller was reset under the command, which may have been done or not.
        errno => sg_io::outcome::of_errno(errno),
    })
}

/// Why a command goes no further.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// It is answered.
    With(Completion),
    /// This process may not ask it, and has changed nothing.
    NotPermitted(NotPermitted),
    /// It is answered with this sense, for this reason, which the log should have.
    Because(SenseCode, &'static str),
}

impl From<NotPermitted> for Stop {
    fn from(not_permitted: NotPermitted) -> Self {
        Self::NotPermitted(not_permitted)
    }
}

/// Tells the log about commands that were stopped; each reason once a minute.
#[derive(Debug)]
pub(crate) struct Complaints(RateLimiter<&'static str>);

impl Complaints {
    pub(crate) const fn new() -> Self {
        Self(RateLimiter::new(1, 60, Duration::from_secs(60)))
    }

    /// The completion, unless another process may try.
    pub(crate) fn settle(
        &self,
        command: Command<'_>,
        answer: Result<Completion, Stop>,
    ) -> Result<Completion, NotPermitted> {
        match answer {
            Ok(completion) | Err(Stop::With(completion)) => Ok(completion),
            Err(Stop::NotPermitted(not_permitted)) => Err(not_permitted),
            Err(Stop::Because(code, why)) => {
                if let Some(suppressed) = self.0.check(why) {
                    warn!("{command}, answered with {code}: {why}{suppressed}");
                }
                Ok(Completion::check(code))
            }
        }
    }

    /// The completion of a command that the kernel does not permit to this process.
    pub(crate) fn give_up(&self, command: Command<'_>, not_permitted: NotPermitted) -> Completion {
        if let Some(suppressed) = self.0.check("") {
            warn!("{command}, not run: {not_permitted}{suppressed}");
        }
        not_permitted.completion()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Log;

    #[test]
    fn each_reason_is_logged_once() {
        let complaints = Complaints::new();
        let command = Command::cleanup();
        let log = Log::at(tracing::Level::WARN);
        log.during(|| {
            for why in ["one", "two", "one"] {
                let stop = Err(Stop::Because(SenseCode::INVALID_OPCODE, why));
                assert_eq!(complaints.settle(command, stop), Ok(Completion::check(SenseCode::INVALID_OPCODE)));
            }
            let good = Completion::Good(Vec::new());
            assert_eq!(complaints.settle(command, Ok(good.clone())), Ok(good.clone()));
            assert_eq!(complaints.settle(command, Err(Stop::With(good.clone()))), Ok(good.clone()));
            let not_permitted = NotPermitted(Errno::PERM);
            for _ in 0..2 {
                let settled = complaints.settle(command, Err(not_permitted.into()));
                assert_eq!(settled, Err(not_permitted));
                assert_eq!(complaints.give_up(command, not_permitted), not_permitted.completion());
            }
        });
        let lines: Vec<_> = log.events().into_iter().map(|event| event.message).collect();
        let [one, two, last] = &lines[..] else { panic!("{lines:?}") };
        assert!(one.ends_with(": one") && one.contains("05/20/00") && two.ends_with(": two"), "{lines:?}");
        assert!(last.contains("CAP_SYS_ADMIN"), "{last}");
    }
}
