//! [`Checks`]: the outcomes of the checks on guests.

use std::fmt::Display;
use std::time::Duration;

use crate::lab::Tally;
use crate::shell::Ending;

/// The longest wait for I/O of a guest. Emulation on a busy machine is slow.
pub(super) const TIMEOUT: Duration = Duration::from_secs(180);

/// The checks, and a line for each.
pub(super) struct Checks<'a> {
    tally: Tally,
    line: &'a mut dyn FnMut(&str),
}

impl<'a> Checks<'a> {
    pub(super) fn new(line: &'a mut dyn FnMut(&str)) -> Self {
        Self { tally: Tally::default(), line }
    }

    pub(super) fn tally(&self) -> Tally {
        self.tally
    }

    /// Adds a line to the report.
    pub(super) fn print(&mut self, line: &str) {
        (self.line)(line);
    }

    pub(super) fn check(&mut self, what: impl Display, outcome: Result<(), String>) {
        match outcome {
            Ok(()) => {
                self.tally.passed += 1;
                (self.line)(&format!("  ok      {what}"));
            }
            Err(reason) => {
                self.tally.failed += 1;
                (self.line)(&format!("  FAILED  {what}: {}", reason.replace('\n', "\n          ")));
            }
        }
    }

    /// The command ended with this status and printed this text.
    pub(super) fn ended(&mut self, what: impl Display, ending: &Ending, status: i32, containing: &str) {
        let is_expected = ending.status == status && ending.output.contains(containing);
        let expected = format!("expected exit status {status} and {containing:?}, got\n{ending}");
        self.check(what, if is_expected { Ok(()) } else { Err(expected) });
    }
}
