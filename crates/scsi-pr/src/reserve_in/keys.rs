//! The data of READ KEYS (SPC-4 6.15.2).

use std::fmt;

use zerocopy::FromBytes;
use zerocopy::byteorder::big_endian::U64;

use super::{Body, Encoder, InvalidData, Parsed};
use crate::{Generation, Key};

/// The registered keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keys {
    /// PRGENERATION.
    pub generation: Generation,
    /// One for each registered nexus: a key that several share is there several times.
    pub keys: Vec<Key>,
}

impl Keys {
    /// Reads returned data; a key that was cut is left out.
    ///
    /// # Errors
    ///
    /// [`InvalidData::Short`] under 8 bytes, [`InvalidData::Length`] when ADDITIONAL LENGTH is no multiple of 8.
    pub fn parse(data: &[u8]) -> Result<Parsed<Self>, InvalidData> {
        let body = Body::parse(data)?;
        if body.additional_length % 8 != 0 {
            return Err(InvalidData::Length(body.additional_length));
        }
        let whole = &body.bytes[..body.bytes.len() / 8 * 8];
        let keys = <[U64]>::ref_from_bytes(whole).unwrap_or_default();
        let keys = keys.iter().map(|key| Key(key.get())).collect();
        Ok(body.parsed(Self { generation: body.generation, keys }))
    }

    /// The data to be returned, before they are cut to the allocation length.
    pub fn encode(&self) -> Vec<u8> {
        encode(self.generation, self.keys.iter().copied(), usize::MAX)
    }
}

/// The data of READ KEYS, at most `limit` bytes.
pub(crate) fn encode(generation: Generation, keys: impl ExactSizeIterator<Item = Key>, limit: usize) -> Vec<u8> {
    let mut encoder = Encoder::new(generation, keys.len() * size_of::<Key>(), limit);
    for key in keys {
        if encoder.is_full() {
            break;
        }
        encoder.push(&key.0.to_be_bytes());
    }
    encoder.finish()
}

impl fmt::Display for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "generation {}, ", self.generation)?;
        match &self.keys[..] {
            [] => f.write_str("no keys"),
            [first, others @ ..] => {
                write!(f, "keys {first}")?;
                others.iter().try_for_each(|key| write!(f, ", {key}"))
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn values() -> impl Strategy<Value = Keys> {
        (any::<u32>(), prop::collection::vec(any::<u64>().prop_map(Key), 0..6))
            .prop_map(|(generation, keys)| Keys { generation: Generation(generation), keys })
    }

    #[test]
    fn keys_follow_generation_and_length() {
        let keys = Keys { generation: Generation(0x0102_0304), keys: vec![Key(0x0a0b_0c0d_0e0f_1011), Key(1)] };
        let data = [1, 2, 3, 4, 0, 0, 0, 16, 0x0a, 0x0b, 0x0c, 0x0d, 0x0e, 0x0f, 0x10, 0x11, 0, 0, 0, 0, 0, 0, 0, 1];
        assert_eq!(keys.encode(), data);
        assert_eq!(Keys::parse(&data), Ok(Parsed { value: keys.clone(), length: 24, truncated: false }));
        assert_eq!(keys.to_string(), "generation 16909060, keys 0x0a0b0c0d0e0f1011, 0x0000000000000001");
        assert_eq!(Keys::default().to_string(), "generation 0, no keys");
        // Cut inside the second key.
        let first = Keys { generation: keys.generation, keys: vec![keys.keys[0]] };
        assert_eq!(Keys::parse(&data[..23]), Ok(Parsed { value: first, length: 24, truncated: true }));
        let cut = Keys::parse(&data[..23]).unwrap().to_string();
        assert_eq!(cut, "generation 16909060, keys 0x0a0b0c0d0e0f1011 (cut: there are 24 bytes)");
        assert_eq!(Keys::parse(&data[..7]), Err(InvalidData::Short { needed: 8, actual: 7 }));
    }

    #[test]
    fn a_length_that_is_no_multiple_of_a_key_is_refused() {
        assert_eq!(Keys::parse(&[0, 0, 0, 0, 0, 0, 0, 9]), Err(InvalidData::Length(9)));
    }

    #[test]
    fn the_greatest_length_is_only_a_number() {
        let parsed = Keys::parse(&[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xf8]).unwrap();
        assert!(parsed.truncated && parsed.value.keys.is_empty());
    }
}
