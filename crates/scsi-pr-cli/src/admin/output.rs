//! Standard output, as text or JSON.

use std::io::{self, ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;
use serde_json::json;

use super::failure::{Code, Failure};

/// Prints text or JSON. A reader that has closed its end wants no more, which is no failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Text,
    Json,
}

impl Format {
    /// The format of `--json`.
    pub(crate) const fn of(json: bool) -> Self {
        if json { Self::Json } else { Self::Text }
    }
}

/// Whether the reader of standard output is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reader {
    Present,
    Gone,
}

/// Writes text to standard output.
pub(crate) fn print(text: &str) -> Result<Reader, Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(Reader::Present),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(Reader::Gone),
        Err(error) => Err(Failure::new(Code::Failure, format!("cannot write to standard output: {error}"))),
    }
}

/// Whether a JSON document was printed.
static HAS_PRINTED_JSON: AtomicBool = AtomicBool::new(false);

/// Writes a failure as JSON, unless a document has reported it.
pub(crate) fn print_json_of(failure: &Failure) {
    if !HAS_PRINTED_JSON.load(Ordering::Relaxed) {
        // Standard error has it in any case.
        let _ = print_json(&json!({ "error": failure.to_string(), "exit-code": failure.code() as u8 }));
    }
}

/// Writes a value as one JSON document on one line.
pub(crate) fn print_json(value: &impl Serialize) -> Result<Reader, Failure> {
    let mut text = serde_json::to_string(value)
        .map_err(|error| Failure::new(Code::Failure, format!("cannot write JSON: {error}")))?;
    text.push('\n');
    HAS_PRINTED_JSON.store(true, Ordering::Relaxed);
    print(&text)
}

/// Writes a line to standard error. Its reader may be gone.
pub(crate) fn report_failure(failure: &Failure) {
    let _ = writeln!(io::stderr(), "scsi-pr: {failure}");
}
