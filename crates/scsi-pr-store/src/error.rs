//! [`StoreError`]: the error of a store, and its meaning for the requested change.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;

/// The error of a store: the attempt, the path, the cause, and the remedy.
#[derive(Debug)]
pub struct StoreError {
    fault: Fault,
    attempted: String,
    remedy: Option<Cow<'static, str>>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// The meaning of a [`StoreError`] for the requested change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Nothing was changed. The store is full, read-only or out of reach, and may serve again later.
    Unavailable,
    /// Nothing was changed, because other writers kept changing the unit.
    Contended,
    /// Nothing was changed. The files are not a store of this program, are damaged, or have a newer version. An
    /// administrator must act.
    Refused,
    /// The change may have been made or not: the store took it, and does not know whether it is durable. The store has
    /// the state before the change or the one after it.
    OutcomeUnknown,
}

impl StoreError {
    /// An error that is [`Fault::Unavailable`]. `attempted` names the act and its object: "open the store /var/pr.db".
    pub fn unavailable(attempted: impl Into<String>) -> Self {
        Self::new(Fault::Unavailable, attempted.into())
    }

    /// An error that is [`Fault::Contended`].
    pub fn contended(attempted: impl Into<String>) -> Self {
        Self::new(Fault::Contended, attempted.into())
    }

    /// An error that is [`Fault::Refused`].
    pub fn refused(attempted: impl Into<String>) -> Self {
        Self::new(Fault::Refused, attempted.into())
    }

    /// An error that is [`Fault::OutcomeUnknown`].
    pub fn outcome_unknown(attempted: impl Into<String>) -> Self {
        Self::new(Fault::OutcomeUnknown, attempted.into())
    }

    fn new(fault: Fault, attempted: String) -> Self {
        Self { fault, attempted, remedy: None, source: None }
    }

    /// Adds the cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Adds the action by which an administrator can remove the cause.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<Cow<'static, str>>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// The meaning for the requested change.
    pub fn fault(&self) -> Fault {
        self.fault
    }
}

impl fmt::Display for StoreError {
    /// One line for a log, with the cause.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}", self.attempted)?;
        if let Some(source) = &self.source {
            write!(f, ": {source}")?;
        }
        if self.fault == Fault::OutcomeUnknown {
            f.write_str(" (the change may have been made)")?;
        }
        self.remedy.as_ref().map_or(Ok(()), |remedy| write!(f, "; {remedy}"))
    }
}

// No `source()`: the text includes the cause, and a reporter that walks the chain would print it twice.
impl StdError for StoreError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line() {
        let error = StoreError::outcome_unknown("store naa.5 in /var/pr.db")
            .because(std::io::Error::other("fsync failed"))
            .remedy("check the disk");
        assert_eq!(error.fault(), Fault::OutcomeUnknown);
        assert_eq!(
            error.to_string(),
            "cannot store naa.5 in /var/pr.db: fsync failed (the change may have been made); check the disk"
        );
    }
}
