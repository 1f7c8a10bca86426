//! Text keys (RFC 7143 6): `key=value` pairs, each ended by a NUL.

use thiserror::Error;

/// The most bytes of text in one negotiation step of a peer.
pub const MAX_TEXT: usize = 16 << 10;

/// The most keys in it.
const MAX_KEYS: usize = 128;

/// The reason why text of a peer is no list of keys.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidText {
    /// A pair has no `=`, or its key is of a form that RFC 7143 6.1 does not allow.
    #[error("a key is not well-formed")]
    Key,
    /// The text is not UTF-8.
    #[error("a value is not UTF-8")]
    Encoding,
    /// A key comes twice.
    #[error("a key comes twice")]
    Duplicate,
    /// There are more keys, or more bytes, than a negotiation needs.
    #[error("the text is too long")]
    TooLong,
}

/// Keys and values in the order in which they came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keys(Vec<(String, String)>);

impl Keys {
    /// No keys.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Parses text.
    ///
    /// # Errors
    ///
    /// [`InvalidText`].
    pub fn parse(text: &[u8]) -> Result<Self, InvalidText> {
        if text.len() > MAX_TEXT {
            return Err(InvalidText::TooLong);
        }
        let mut keys = Self::new();
        for pair in text.split(|byte| *byte == 0).filter(|pair| !pair.is_empty()) {
            let pair = std::str::from_utf8(pair).map_err(|_| InvalidText::Encoding)?;
            let (key, value) = pair.split_once('=').ok_or(InvalidText::Key)?;
            let is_valid = (1..=63).contains(&key.len())
                && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-+@_".contains(&byte));
            if !is_valid {
                return Err(InvalidText::Key);
            }
            if keys.get(key).is_some() {
                return Err(InvalidText::Duplicate);
            }
            if keys.0.len() == MAX_KEYS {
                return Err(InvalidText::TooLong);
            }
            keys.push(key, value);
        }
        Ok(keys)
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
    }

    /// Adds a key.
    pub fn push(&mut self, key: &str, value: impl Into<String>) {
        self.0.push((key.to_owned(), value.into()));
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The keys and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// As text.
    pub fn encode(&self) -> Vec<u8> {
        let mut text = Vec::new();
        for (key, value) in self.iter() {
            text.extend_from_slice(key.as_bytes());
            text.push(b'=');
            text.extend_from_slice(value.as_bytes());
            text.push(0);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn malformed_text_is_refused() {
        assert_eq!(Keys::parse(b"NoValue\0"), Err(InvalidText::Key));
        assert_eq!(Keys::parse(b"a b=1\0"), Err(InvalidText::Key));
        assert_eq!(Keys::parse(b"=1\0"), Err(InvalidText::Key));
        assert_eq!(Keys::parse(b"a=\xff\0"), Err(InvalidText::Encoding));
        assert_eq!(Keys::parse(b"a=1\0a=2\0"), Err(InvalidText::Duplicate));
        assert_eq!(Keys::parse(&[b'a'; MAX_TEXT + 1]), Err(InvalidText::TooLong));
        let many: Vec<u8> = (0..=MAX_KEYS).flat_map(|key| format!("k{key}=1\0").into_bytes()).collect();
        assert_eq!(Keys::parse(&many), Err(InvalidText::TooLong));
    }

    proptest! {
        #[test]
        fn text_that_parses_is_encoded_to_the_same_keys(text in prop::collection::vec(any::<u8>(), 0..400)) {
            if let Ok(keys) = Keys::parse(&text) {
                prop_assert_eq!(Keys::parse(&keys.encode()), Ok(keys));
            }
        }
    }
}
