//! [`UnitId`]: which logical unit a record is about.

use std::fmt;
use std::sync::Arc;

/// Identifies a logical unit. Cheap to clone.
///
/// Its text is made of ASCII letters, digits and `.`, `_`, `:`, `+`, `-`, `%` alone, begins with a letter and has at most
/// [`UnitId::MAX_LENGTH`] bytes: it can be (a part of) a file name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnitId(Arc<str>);

impl UnitId {
    /// The most bytes of an identifier.
    pub const MAX_LENGTH: usize = 200;

    /// The unit that an administrator calls `name`: `name.NAME`.
    ///
    /// # Errors
    ///
    /// [`InvalidNaming::Name`] unless it is 1 to 128 ASCII letters, digits and `.`, `_`, `:`, `+`, `-`.
    pub fn named(name: &str) -> Result<Self, InvalidNaming> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._:+-".contains(&byte);
        if (1..=128).contains(&name.len()) && name.bytes().all(plain) {
            Ok(Self(format!("name.{name}").into()))
        } else {
            Err(InvalidNaming::Name(name.to_owned()))
        }
    }

    /// The text: `name.disk1`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UnitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A name that an administrator may not give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InvalidNaming {
    /// It has characters that are not allowed, or too many or too few.
    Name(String),
}

impl fmt::Display for InvalidNaming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Name(name) = self;
        write!(f, "the name of a unit has 1 to 128 letters, digits and . _ : + -, unlike {name:?}")
    }
}

impl std::error::Error for InvalidNaming {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_and_bounded() {
        assert_eq!(UnitId::named("A-1").map(|unit| unit.to_string()), Ok("name.A-1".to_owned()));
        for name in ["", "a b", "a/b", "é", &"x".repeat(129)] {
            assert_eq!(UnitId::named(name), Err(InvalidNaming::Name(name.to_owned())), "{name:?}");
        }
    }
}
