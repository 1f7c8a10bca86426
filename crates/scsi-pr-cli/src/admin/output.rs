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
    let text = serde_json::to_string(value)
        .map_err(|error| Failure::new(Code::Failure, format!("cannot write JSON: {error}")))?;
    let text = without_control_characters(&text) + "\n";
    HAS_PRINTED_JSON.store(true, Ordering::Relaxed);
    print(&text)
}

/// JSON without U+007F to U+009F, which a terminal may obey. serde_json escapes the other control characters.
fn without_control_characters(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for character in json.chars() {
        match character.is_control() {
            // Only strings have them.
            true => text += &format!("\\u{:04x}", u32::from(character)),
            false => text.push(character),
        }
    }
    text
}

/// Writes a line to standard error. Its reader may be gone.
pub(crate) fn report_failure(failure: &Failure) {
    let _ = writeln!(io::stderr(), "scsi-pr: {failure}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn json_has_no_control_characters_and_the_same_meaning(text: String, controls in "[\u{7f}-\u{9f}]{0,4}") {
            let value = json!({ "name": format!("{text}{controls}") });
            let written = without_control_characters(&value.to_string());
            prop_assert!(!written.contains(char::is_control), "{written:?}");
            prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&written).unwrap(), value);
        }
    }
}
