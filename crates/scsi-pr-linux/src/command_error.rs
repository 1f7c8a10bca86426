//! [`CommandError`]: why a manager that translates commands to ioctls ends a command early.

use std::time::Duration;

use rustix::io::Errno;
use scsi_pr::{Command, Completion, SenseCode, Status};
use scsi_pr_daemon::RateLimiter;
use tracing::warn;

use crate::sg_io;

/// The kernel does not permit a command to this process, and **has done nothing**. A process with more privileges may run
/// the command as if this one had never tried.
///
/// Either the thread lacks CAP_SYS_ADMIN, or the descriptor is not open for writing, or it is of a partition. The kernel
/// lets no process reserve a disk by one of its partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the kernel does not permit it ({0}): it takes the capability CAP_SYS_ADMIN and a device that is no partition; \
     newer kernels may take a descriptor open for writing instead"
)]
pub struct NotPermitted(pub(crate) Errno);

impl NotPermitted {
    /// The answer to the command where no other process can run it: CHECK CONDITION 0B/00/06, as by
    /// [`SgIo`](crate::SgIo) without CAP_SYS_RAWIO.
    pub fn completion(self) -> Completion {
        Completion::check(SenseCode::IO_PROCESS_TERMINATED)
    }
}

/// The meaning of the errno of an ioctl for a reservation command: IOC_PR's and NVMe's alike.
pub(crate) fn of_errno(errno: Errno) -> Result<Completion, NotPermitted> {
    Ok(match errno {
        Errno::PERM | Errno::ACCESS => return Err(NotPermitted(errno)),
        // The driver has no reservations; device mapper has none for a table of several targets.
        Errno::NOTTY | Errno::OPNOTSUPP => Completion::check(SenseCode::INVALID_OPCODE),
        // A suspended device-mapper device, or an NVMe namespace without a path. Nothing was sent.
        Errno::AGAIN => Completion::Status(Status::BUSY),
        // Also EINTR: an NVMe controller was reset under the command, which may have run.
        errno => sg_io::outcome::of_errno(errno),
    })
}

/// Why a command ends early.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CommandError {
    /// This is the answer.
    Answer(Completion),
    /// The kernel does not permit it to this process, and has changed nothing.
    NotPermitted(NotPermitted),
    /// CHECK CONDITION with this sense code. The log has the reason.
    Refused(SenseCode, &'static str),
}

impl From<NotPermitted> for CommandError {
    fn from(not_permitted: NotPermitted) -> Self {
        Self::NotPermitted(not_permitted)
    }
}

/// Logs why commands end early: each reason once a minute.
#[derive(Debug)]
pub(crate) struct CommandErrorLog(RateLimiter<&'static str>);

impl CommandErrorLog {
    pub(crate) const fn new() -> Self {
        Self(RateLimiter::new(1, 60, Duration::from_secs(60)))
    }

    /// The completion, unless a process with more privileges may run the command.
    pub(crate) fn resolve(
        &self,
        command: Command<'_>,
        answer: Result<Completion, CommandError>,
    ) -> Result<Completion, NotPermitted> {
        match answer {
            Ok(completion) | Err(CommandError::Answer(completion)) => Ok(completion),
            Err(CommandError::NotPermitted(not_permitted)) => Err(not_permitted),
            Err(CommandError::Refused(code, why)) => {
                if let Some(suppressed) = self.0.check(why) {
                    warn!("{command}, answered with {code}: {why}{suppressed}");
                }
                Ok(Completion::check(code))
            }
        }
    }

    /// The completion of a command that the kernel does not permit to this process.
    pub(crate) fn not_permitted(&self, command: Command<'_>, not_permitted: NotPermitted) -> Completion {
        if let Some(suppressed) = self.0.check("") {
            warn!("{command}, not run: {not_permitted}{suppressed}");
        }
        not_permitted.completion()
    }
}

/// For tests: checks what an ioctl for a reservation command makes of every errno; `None` leaves one out.
#[cfg(test)]
pub(crate) fn check_every_errno(of_errno: impl Fn(Errno) -> Option<Result<Completion, NotPermitted>>) {
    for raw in 1..=4095 {
        let errno = Errno::from_raw_os_error(raw);
        let expected = match errno {
            Errno::PERM | Errno::ACCESS => Err(NotPermitted(errno)),
            Errno::NOTTY | Errno::OPNOTSUPP => Ok(Completion::check(SenseCode::INVALID_OPCODE)),
            Errno::AGAIN => Ok(Completion::Status(Status::BUSY)),
            errno => Ok(sg_io::outcome::of_errno(errno)),
        };
        if let Some(completion) = of_errno(errno) {
            assert_eq!(completion, expected, "{errno:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Log;

    #[test]
    fn each_reason_is_logged_once() {
        let error_log = CommandErrorLog::new();
        let command = Command::cleanup();
        let log = Log::at(tracing::Level::WARN);
        log.during(|| {
            for why in ["one", "two", "one"] {
                let stop = Err(CommandError::Refused(SenseCode::INVALID_OPCODE, why));
                assert_eq!(error_log.resolve(command, stop), Ok(Completion::check(SenseCode::INVALID_OPCODE)));
            }
            let good = Completion::Good(Vec::new());
            assert_eq!(error_log.resolve(command, Ok(good.clone())), Ok(good.clone()));
            assert_eq!(error_log.resolve(command, Err(CommandError::Answer(good.clone()))), Ok(good.clone()));
            let not_permitted = NotPermitted(Errno::PERM);
            for _ in 0..2 {
                let settled = error_log.resolve(command, Err(not_permitted.into()));
                assert_eq!(settled, Err(not_permitted));
                assert_eq!(error_log.not_permitted(command, not_permitted), not_permitted.completion());
            }
        });
        let lines: Vec<_> = log.events().into_iter().map(|event| event.message).collect();
        let [one, two, last] = &lines[..] else { panic!("{lines:?}") };
        assert!(one.ends_with(": one") && one.contains("05/20/00") && two.ends_with(": two"), "{lines:?}");
        assert!(last.contains("CAP_SYS_ADMIN"), "{last}");
    }
}
