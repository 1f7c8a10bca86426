//! Printing.

use std::io::Write;

/// Prints a line. A closed pipe is no error.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}
