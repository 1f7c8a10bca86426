//! [`PrManager`], the one trait of the project, and its error.

use std::error::Error as StdError;
use std::fmt;

#[cfg(unix)]
use std::os::fd::BorrowedFd;
#[cfg(unix)]
use std::sync::Arc;

#[cfg(unix)]
use crate::{Command, Completion};

/// Runs persistent reservation commands for one initiator. A device is a file descriptor, so the trait is for Unix.
///
/// Mechanisms (SG_IO, a helper's socket, …) and policies around them implement it alike, so they nest. The initiator is a
/// property of the manager.
#[cfg(unix)]
pub trait PrManager: Send + Sync {
    /// Runs `command` on the logical unit behind `device`, and blocks until the unit answers.
    ///
    /// A refusal by the unit, the kernel or a policy is a [`Completion`]. So is a command that is not supported.
    ///
    /// # Errors
    ///
    /// There is no answer. [`Error::kind`] says whether the command may have been run all the same. An error is never a
    /// reason to run the command again without the initiator's knowledge.
    fn execute(&self, device: BorrowedFd<'_>, command: Command<'_>) -> Result<Completion, Error>;

    /// Whether a command could be run now (QEMU: `query-pr-managers`).
    fn is_connected(&self) -> bool {
        true
    }
}

#[cfg(unix)]
impl<T: PrManager + ?Sized> PrManager for Arc<T> {
    fn execute(&self, device: BorrowedFd<'_>, command: Command<'_>) -> Result<Completion, Error> {
        (**self).execute(device, command)
    }

    fn is_connected(&self) -> bool {
        (**self).is_connected()
    }
}

/// The state of a command that has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The command was not handed over, and nothing has changed.
    NotRun,
    /// The command was handed over, and its answer was lost: it may have been run or not.
    OutcomeUnknown,
}

/// The error of a command that has no answer: the attempt, its object, the cause, and the remedy.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    attempted: String,
    remedy: Option<&'static str>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of [`ErrorKind::NotRun`]. `attempted` names the act and its object: "connect to /run/pr.sock".
    pub fn not_run(attempted: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotRun, attempted.into())
    }

    /// An error of [`ErrorKind::OutcomeUnknown`].
    pub fn outcome_unknown(attempted: impl Into<String>) -> Self {
        Self::new(ErrorKind::OutcomeUnknown, attempted.into())
    }

    fn new(kind: ErrorKind, attempted: String) -> Self {
        Self { kind, attempted, remedy: None, source: None }
    }

    /// Adds the cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Adds the action by which a user can remove the cause.
    #[must_use]
    pub fn remedy(mut self, remedy: &'static str) -> Self {
        self.remedy = Some(remedy);
        self
    }

    /// Whether the command was run.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether the kind is [`ErrorKind::OutcomeUnknown`].
    pub fn may_have_run(&self) -> bool {
        self.kind == ErrorKind::OutcomeUnknown
    }
}

impl fmt::Display for Error {
    /// One line for a log, with the cause.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}", self.attempted)?;
        if let Some(source) = &self.source {
            write!(f, ": {source}")?;
        }
        if self.kind == ErrorKind::OutcomeUnknown {
            f.write_str(" (the command may have been run)")?;
        }
        self.remedy.map_or(Ok(()), |remedy| write!(f, "; {remedy}"))
    }
}

// No `source()`: the text includes the cause, and a reporter that walks the chain would print it twice.
impl StdError for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_is_one_line() {
        let error = Error::outcome_unknown("read the answer of /run/pr.sock")
            .because(std::io::Error::other("end of file"))
            .remedy("check that the helper runs");
        assert_eq!(
            error.to_string(),
            "cannot read the answer of /run/pr.sock: end of file (the command may have been run); \
             check that the helper runs"
        );
    }
}
