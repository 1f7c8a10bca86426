//! Log lines: where they go, and how they are bounded.
//!
//! A line goes to standard error. When standard error has no reader any more, this line and every later one go to the
//! journal, or to syslog where there is no journal. libvirt needs that: it closes its end of a helper's standard error
//! once the socket exists.
//!
//! systemd says in JOURNAL_STREAM whether standard error is the journal. Lines then go to the journal by its own protocol,
//! which has fields and priorities. An audit record goes to the journal in any case, if there is one.
//!
//! No write waits for a reader: a line that does not fit is lost. A line has at most [`MAX_LINE`] bytes.

mod datagram;
mod stream;
mod subscriber;

use std::path::PathBuf;
use std::sync::{PoisonError, RwLock};

use tracing::Level;

use datagram::Datagram;
use stream::{Stream, Written};
pub use subscriber::{EventFile, Subscriber};

/// The most bytes of a line, with its newline: a write of so many to a pipe is atomic (`PIPE_BUF`, pipe(7)).
pub const MAX_LINE: usize = 4096;

/// The sockets of the journal and of syslog.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Destinations {
    /// Takes datagrams of the journal's native protocol.
    pub journal: PathBuf,
    /// Takes datagrams as syslog(3) writes them.
    pub syslog: PathBuf,
}

impl Default for Destinations {
    /// Those of systemd and of syslog(3).
    fn default() -> Self {
        Self { journal: "/run/systemd/journal/socket".into(), syslog: "/dev/log".into() }
    }
}

/// A line of the log.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// How severe it is.
    pub level: Level,
    /// The line for standard error.
    pub line: &'a str,
    /// The text for the journal and syslog, which add the program's name.
    pub message: &'a str,
}

/// The values of a record for the journal: name and value.
pub type Fields = Vec<(&'static str, String)>;

/// Writes lines to standard error, or to the journal, or to syslog.
///
/// It opens all descriptors when it is made, so it works as well after the process has given up its privileges.
#[derive(Debug)]
pub struct Log {
    /// `None` when standard error has no reader, or is the journal.
    stream: RwLock<Option<Stream>>,
    datagram: Option<Datagram>,
}

/// The receiver of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receiver {
    /// Standard error.
    Stderr,
    /// The journal, or syslog where there is no journal.
    Journal,
}

impl Log {
    /// Writes to standard error. `identifier` is the program's name in the journal and in syslog.
    pub fn to_stderr(identifier: &str, destinations: Destinations) -> Self {
        let variable = std::env::var("JOURNAL_STREAM").unwrap_or_default();
        let is_journal = stream::is_stream(rustix::stdio::stderr(), &variable) && destinations.journal.exists();
        let stream = if is_journal { None } else { Stream::of_stderr() };
        Self::new(stream, identifier, destinations)
    }

    fn new(stream: Option<Stream>, identifier: &str, destinations: Destinations) -> Self {
        let datagram = Datagram::new(identifier, destinations).ok();
        Self { stream: RwLock::new(stream), datagram }
    }

    /// Stops using standard error: the journal or syslog gets every later line.
    pub fn leave_stderr(&self) {
        *self.stream.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Whether there is a journal now.
    pub fn has_journal(&self) -> bool {
        self.datagram.as_ref().is_some_and(Datagram::has_journal)
    }

    /// Writes a line. Only the journal needs `fields`, so they are made for the journal alone.
    pub fn write(&self, record: Record<'_>, fields: impl FnOnce() -> Fields) -> Receiver {
        if self.write_to_stream(record.line) {
            return Receiver::Stderr;
        }
        self.write_to_journal(record, fields());
        Receiver::Journal
    }

    /// Writes a record to the journal, or to syslog where there is no journal.
    pub fn write_to_journal(&self, record: Record<'_>, fields: Fields) {
        if let Some(datagram) = &self.datagram {
            datagram.send(record, fields);
        }
    }

    /// Whether standard error has a reader.
    fn write_to_stream(&self, line: &str) -> bool {
        let stream = self.stream.read().unwrap_or_else(PoisonError::into_inner);
        let Some(open) = &*stream else { return false };
        if open.write_line(line) != Written::NoReader {
            return true;
        }
        drop(stream);
        self.leave_stderr();
        false
    }
}

/// The beginning of `text`, of at most `length` bytes, cut between characters.
pub fn cut(text: &str, length: usize) -> &str {
    &text[..text.floor_char_boundary(length)]
}

/// The text on one line: escapes the characters that act on a terminal, look like another line, or change the direction
/// of writing.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            _ if character.is_control() => escaped.extend(character.escape_default()),
            '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                escaped.extend(character.escape_unicode());
            }
            _ => escaped.push(character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests;
