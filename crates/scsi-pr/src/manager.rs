//! [`PrManager`], the one trait of the project, and the error it may end in.

use std::error::Error as StdError;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use crate::{Command, Completion};

/// Runs persistent reservation commands for one initiator.
///
/// Mechanisms (SG_IO, a helper's socket, …) and policies around them implement it alike, so they nest. Which initiator
/// it is was settled when the manager was made.
pub trait PrManager: Send + Sync {
    /// What the logical unit behind `device` answered; blocks until it does.
    ///
    /// A refusal is an answer: what the unit, the kernel or a policy said no to is a [`Completion`]. So is a command
    /// that could not be run because it is not supported.
    ///
    /// # Errors
    ///
    /// `Err` means that there is no answer, and says whether the command may have been run all the same
    /// ([`Error::may_have_run`]). It is never a reason to run the command again unseen.
    fn execute(&self, device: BorrowedFd<'_>, command: Command<'_>) -> Result<Completion, Error>;

    /// Whether a command could be run now (QEMU: `query-pr-managers`).
    fn is_connected(&self) -> bool {
        true
    }
}

impl<T: PrManager + ?Sized> PrManager for Arc<T> {
    fn execute(&self, device: BorrowedFd<'_>, command: Command<'_>) -> Result<Completion, Error> {
        (**self).execute(device, command)
    }

    fn is_connected(&self) -> bool {
        (**self).is_connected()
    }
}

/// There is no answer to a command: what was attempted, on what, why it failed, and what to do about it.
#[derive(Debug)]
pub struct Error {
    may_have_run: bool,
    attempted: String,
    remedy: Option<&'static str>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// The command was not handed over, and nothing has changed. `attempted` names the act and its object: "connect to
    /// /run/pr.sock".
    pub fn not_run(attempted: impl Into<String>) -> Self {
        Self { may_have_run: false, attempted: attempted.into(), remedy: None, source: None }
    }

    /// The command was handed over, and its answer was lost: it may have been run or not.
    pub fn outcome_unknown(attempted: impl Into<String>) -> Self {
        Self { may_have_run: true, attempted: attempted.into(), remedy: None, source: None }
    }

    /// Adds the cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Adds what a user can do about it.
    #[must_use]
    pub fn remedy(mut self, remedy: &'static str) -> Self {
        self.remedy = Some(remedy);
        self
    }

    /// Whether the command may have been run although there is no answer.
    pub fn may_have_run(&self) -> bool {
        self.may_have_run
    }
}

impl fmt::Display for Error {
    /// Everything on one line, the cause included: it is meant for a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}", self.attempted)?;
        if let Some(source) = &self.source {
            write!(f, ": {source}")?;
        }
        if self.may_have_run {
            f.write_str(" (the command may have been run)")?;
        }
        self.remedy.map_or(Ok(()), |remedy| write!(f, "; {remedy}"))
    }
}

// No `source()`: the text has the cause already, and a reporter that walks the chain would print it twice.
impl StdError for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line() {
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
