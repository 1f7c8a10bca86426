//! [`Key`] and [`Generation`]: the two numbers that every persistent reservation is about.

use std::fmt;
use std::str::FromStr;

/// A reservation key: 64 bits that a registrant chose. Zero is no registrant's key; it stands for "none"
/// where a key is expected.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub u64);

impl Key {
    /// Zero: no key.
    pub const ZERO: Self = Self(0);

    /// Whether this is zero, no key.
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#018x}", self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({self})")
    }
}

impl FromStr for Key {
    type Err = InvalidKey;

    /// Reads 1 to 16 hexadecimal digits, after `0x` or not: what `sg_persist` and the fence agents take.
    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).unwrap_or(text);
        // `from_str_radix` alone would take a sign.
        if digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            u64::from_str_radix(digits, 16).map(Self).map_err(|_| InvalidKey)
        } else {
            Err(InvalidKey)
        }
    }
}

/// A text that is no [`Key`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a reservation key has 1 to 16 hexadecimal digits, as in 0x123abc")]
pub struct InvalidKey;

/// PRGENERATION (SPC-4 6.15.2): how often registrations have changed, counted in 32 bits that wrap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Generation(pub u32);

impl Generation {
    /// The generation after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_are_read_with_and_without_a_prefix() {
        for text in ["0x123abc", "0X123ABC", "123abc", "0000000000123abc"] {
            assert_eq!(text.parse(), Ok(Key(0x12_3abc)), "{text}");
        }
        assert_eq!(Key(0x12_3abc).to_string(), "0x0000000000123abc");
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for text in ["", "0x", "+1", "-1", "0x+1", " 1", "1 ", "0x0x1", "g", "1_0", "10000000000000000"] {
            assert_eq!(text.parse::<Key>(), Err(InvalidKey), "{text:?}");
        }
    }

    #[test]
    fn generations_wrap() {
        assert_eq!(Generation(u32::MAX).next(), Generation(0));
    }

    proptest! {
        #[test]
        fn keys_survive_their_text(key: u64) {
            prop_assert_eq!(Key(key).to_string().parse(), Ok(Key(key)));
        }

        #[test]
        fn any_text_is_a_key_or_refused(text: String) {
            let _ = text.parse::<Key>();
        }
    }
}
