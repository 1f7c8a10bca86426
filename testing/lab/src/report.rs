//! What came of it: one line a check, on standard output, which in the guest is a serial port of its own.

use std::fmt::Display;
use std::io::Write;

/// Prints checks as they are made; the host counts them.
pub(crate) struct Report;

impl Report {
    /// Says what comes.
    pub(crate) fn scenario(&self, name: &str, purpose: &str) {
        line(&format!("scenario {name}: {purpose}"));
    }

    /// One check: `Err` says what was expected and what came instead.
    pub(crate) fn check(&mut self, what: impl Display, outcome: Result<(), String>) {
        match outcome {
            Ok(()) => line(&format!("  ok      {what}")),
            Err(why) => line(&format!("  FAILED  {what}: {}", why.replace('\n', "\n          "))),
        }
    }

    /// Says that the next checks show what `docs/reference/differences.md` has under this name: where QEMU's helper, built with
    /// libmpathpersist, would do otherwise. The conformance suite sees to it that the names are the same.
    pub(crate) fn differs(&mut self, name: &str) {
        line(&format!("  differs {name}"));
    }

    /// The check that `actual` is `expected`.
    pub(crate) fn equal<T: PartialEq + Display + ?Sized>(&mut self, what: impl Display, expected: &T, actual: &T) {
        let outcome = if expected == actual { Ok(()) } else { Err(format!("expected {expected}, got {actual}")) };
        self.check(format!("{what}: {expected}"), outcome);
    }

    /// Says that all is said; whoever reads the port knows then that nothing is missing.
    pub(crate) fn end(&self) {
        line("end of report");
    }
}

/// Prints one line, and does not mind when nobody reads it.
pub(crate) fn line(text: &str) {
    let mut output = std::io::stdout().lock();
    let _ = writeln!(output, "{text}").and_then(|()| output.flush());
}
