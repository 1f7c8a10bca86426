//! The report: one line for each check, on standard output, which is a separate serial port in the guest.

use std::fmt::Display;
use std::io::Write;

/// Prints each check. The host counts them.
pub(crate) struct Report;

impl Report {
    /// Begins a scenario.
    pub(crate) fn scenario(&self, name: &str, purpose: &str) {
        line(&format!("scenario {name}: {purpose}"));
    }

    /// Reports a check. `Err` has the expected and the actual result.
    pub(crate) fn check(&mut self, what: impl Display, outcome: Result<(), String>) {
        match outcome {
            Ok(()) => line(&format!("  ok      {what}")),
            Err(reason) => line(&format!("  FAILED  {what}: {}", reason.replace('\n', "\n          "))),
        }
    }

    /// States that the next checks prove the difference of this name in `docs/reference/differences.md`: QEMU's helper,
    /// built with libmpathpersist, behaves differently. The conformance suite compares the names.
    pub(crate) fn differs(&mut self, name: &str) {
        line(&format!("  differs {name}"));
    }

    /// Checks that `actual` is `expected`.
    pub(crate) fn equal<T: PartialEq + Display + ?Sized>(&mut self, what: impl Display, expected: &T, actual: &T) {
        let outcome = if expected == actual { Ok(()) } else { Err(format!("expected {expected}, got {actual}")) };
        self.check(format!("{what}: {expected}"), outcome);
    }

    /// Ends the report, so that the host can tell a complete report from an interrupted one.
    pub(crate) fn end(&self) {
        line("end of report");
    }
}

/// Prints one line. A closed output is no error.
pub(crate) fn line(text: &str) {
    let mut output = std::io::stdout().lock();
    let _ = writeln!(output, "{text}").and_then(|()| output.flush());
}
