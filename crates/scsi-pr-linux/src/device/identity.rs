//! [`Identity`]: which logical unit a device or a file is, by the identifiers that it has itself.

mod file;
mod mounts;
mod stack;
mod vpd;

use std::fmt;

use super::SysfsError;

pub use mounts::FileSystems;
pub use stack::Identified;
pub use vpd::{Designator, unit_designators};

/// An identifier that a device or a file has itself: `naa.600140500000001`.
///
/// The text has ASCII letters, digits and `.`, `_`, `:`, `+`, `-`, `%` alone, begins with a letter, and has at most
/// [`Identity::MAX_LENGTH`] bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Identity {
    text: String,
    scope: Scope,
}

/// Where an identifier means the same disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// On this host, until it restarts.
    Boot,
    /// On this host.
    Host,
    /// On every host.
    Global,
}

impl Identity {
    /// The most bytes of an identifier.
    pub const MAX_LENGTH: usize = 200;

    /// Writes other bytes as `%` and two hexadecimal digits.
    fn new(text: impl AsRef<[u8]>, scope: Scope) -> Result<Self, SysfsError> {
        Self::fit(text, scope).ok_or_else(too_long)
    }

    /// `None` where the text is too long.
    fn fit(text: impl AsRef<[u8]>, scope: Scope) -> Option<Self> {
        let mut plain = String::new();
        for byte in text.as_ref() {
            match is_plain(*byte) {
                true => plain.push(char::from(*byte)),
                false => plain.push_str(&format!("%{byte:02x}")),
            }
        }
        (plain.len() <= Self::MAX_LENGTH).then_some(Self { text: plain, scope })
    }

    /// The identity of a part of this one.
    fn part(&self, suffix: &str) -> Result<Self, SysfsError> {
        let text = format!("{}{suffix}", self.text);
        match text.len() <= Self::MAX_LENGTH {
            true => Ok(Self { text, scope: self.scope }),
            false => Err(too_long()),
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Where it means the same disk.
    pub const fn scope(&self) -> Scope {
        self.scope
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Whether a byte is in the text of an identifier as it is.
const fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b':' | b'+' | b'-')
}

fn too_long() -> SysfsError {
    SysfsError::Unexplained(format!("its identifier would be over {} bytes long", Identity::MAX_LENGTH))
}
