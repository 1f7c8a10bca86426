//! The journal's native protocol (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>) and syslog's.
//!
//! The crate `tracing-journald` waits for a journal that is full, so it cannot be used here.

use std::io;
use std::os::unix::net::UnixDatagram;

use tracing::Level;

use super::{Destinations, Fields, MAX_LINE, Record, cut};

/// The most bytes of the value of a field.
const MAX_VALUE: usize = 256;

/// LOG_DAEMON of syslog(3).
const FACILITY: u8 = 3;

/// A datagram socket that names the receiver with each datagram, so a journal may be restarted.
#[derive(Debug)]
pub(super) struct Datagram {
    socket: UnixDatagram,
    identifier: String,
    destinations: Destinations,
}

impl Datagram {
    pub(super) fn new(identifier: &str, destinations: Destinations) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, identifier: identifier.to_owned(), destinations })
    }

    /// Whether the journal's socket is there.
    pub(super) fn has_journal(&self) -> bool {
        self.destinations.journal.exists()
    }

    /// Sends a record to the journal, or to syslog where there is no journal. A record that its receiver has no room for
    /// is lost.
    pub(super) fn send(&self, record: Record<'_>, fields: Fields) {
        let message = cut(record.message, MAX_LINE);
        let native = self.native(record.level, message, &fields);
        if let Err(error) = self.socket.send_to(&native, &self.destinations.journal)
            && error.kind() != io::ErrorKind::WouldBlock
        {
            let _ = self.socket.send_to(self.syslog(record.level, message).as_bytes(), &self.destinations.syslog);
        }
    }

    fn native(&self, level: Level, message: &str, fields: &Fields) -> Vec<u8> {
        let mut datagram = Vec::with_capacity(message.len() + 256);
        let mut field = |name: &str, value: &str| {
            datagram.extend(name.as_bytes());
            if value.contains('\n') {
                datagram.push(b'\n');
                datagram.extend((value.len() as u64).to_le_bytes());
            } else {
                datagram.push(b'=');
            }
            datagram.extend(value.as_bytes());
            datagram.push(b'\n');
        };
        field("MESSAGE", message);
        field("PRIORITY", &priority(level).to_string());
        field("SYSLOG_IDENTIFIER", &self.identifier);
        field("SYSLOG_FACILITY", &FACILITY.to_string());
        field("SYSLOG_PID", &std::process::id().to_string());
        for (name, value) in fields {
            // Names have capital letters, digits and underscores, and do not begin with an underscore.
            let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
            field(&format!("SCSI_PR_{}", name.to_ascii_uppercase()), cut(value, MAX_VALUE));
        }
        datagram
    }

    fn syslog(&self, level: Level, message: &str) -> String {
        let priority = FACILITY << 3 | priority(level);
        format!("<{priority}>{}[{}]: {message}", self.identifier, std::process::id())
    }
}

/// The severity of syslog(3).
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}
