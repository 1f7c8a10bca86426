//! The lines that the program prints about itself, and the error that ends it.

use std::fmt;
use std::io::{self, Write};
use std::sync::OnceLock;

use scsi_pr_daemon::StartError;
pub(crate) use scsi_pr_daemon::reason;

/// The result of a function that can end the program.
pub(crate) type Result<T> = std::result::Result<T, Message>;

/// A line for stderr in QEMU's form, `<program>: <text>`. As an error it ends the program with exit code 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    text: String,
    place: Option<String>,
    before: Option<String>,
}

impl Message {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), place: None, before: None }
    }

    pub(crate) fn warning(text: impl fmt::Display) -> Self {
        Self::new(format!("warning: {text}"))
    }

    /// The file, or file and line, that the text is about.
    pub(crate) fn at(mut self, place: impl fmt::Display) -> Self {
        self.place = Some(place.to_string());
        self
    }

    /// A whole line that comes first.
    pub(crate) fn preceded_by(mut self, line: String) -> Self {
        self.before = Some(line);
        self
    }

    /// Writes it to standard error. A standard error without a reader is no reason to fail.
    pub(crate) fn print(&self) {
        let _ = io::stderr().lock().write_all(self.to_string().as_bytes());
    }
}

impl From<StartError> for Message {
    fn from(error: StartError) -> Self {
        Self::new(error.to_string())
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = &self.before {
            writeln!(f, "{line}")?;
        }
        write!(f, "{}:", program_name())?;
        if let Some(place) = &self.place {
            write!(f, "{place}:")?;
        }
        writeln!(f, " {}", self.text)
    }
}

/// The program as it was invoked: the first word of the command line.
pub(crate) fn invoked_as() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| match std::env::args_os().next() {
        Some(name) if !name.is_empty() => name.to_string_lossy().into_owned(),
        _ => env!("CARGO_PKG_NAME").to_owned(),
    })
}

/// The beginning of messages: the last part of [`invoked_as`], as in QEMU.
pub(crate) fn program_name() -> &'static str {
    invoked_as().rsplit('/').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_qemu_s_form() {
        let name = program_name();
        assert_eq!(Message::new("no").to_string(), format!("{name}: no\n"));
        assert_eq!(Message::warning("hm").at("ev:5").to_string(), format!("{name}:ev:5: warning: hm\n"));
        let two = Message::new("two").preceded_by("one".to_owned());
        assert_eq!(two.to_string(), format!("one\n{name}: two\n"));
    }
}
