//! The data of READ RESERVATION (SPC-4 6.15.3).

use std::fmt;

use zerocopy::byteorder::big_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Body, Encoder, Header, InvalidData, Parsed};
use crate::{Generation, Key, ScopeType, Type};

/// The reservation, if there is one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reservation {
    /// PRGENERATION.
    pub generation: Generation,
    /// `None`: the unit is not reserved.
    pub held: Option<Held>,
}

/// A reservation of the whole unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// The holder's key; zero if every registrant is a holder.
    pub key: Key,
    /// TYPE.
    pub reservation_type: Type,
}

/// The bytes after the header, without the two obsolete bytes at the end.
#[derive(Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Layout {
    key: U64,
    obsolete: [u8; 4],
    reserved: u8,
    scope_type: u8,
}

/// The value of ADDITIONAL LENGTH when the unit is reserved.
const LENGTH: u32 = 16;

impl Reservation {
    /// Reads returned data.
    ///
    /// # Errors
    ///
    /// [`InvalidData::Short`] when the type has been cut off, [`InvalidData::Length`] when ADDITIONAL LENGTH is neither
    /// 0 nor 16, [`InvalidData::ScopeType`].
    pub fn parse(data: &[u8]) -> Result<Parsed<Self>, InvalidData> {
        let body = Body::parse(data)?;
        let held = match body.additional_length {
            0 => None,
            LENGTH => {
                // The type is the last that counts; the two obsolete bytes after it may have been cut.
                let needed = size_of::<Header>() + size_of::<Layout>();
                let short = InvalidData::Short { needed, actual: data.len() };
                let (Layout { key, scope_type, .. }, _) = Layout::ref_from_prefix(body.bytes).map_err(|_| short)?;
                let reservation_type = ScopeType(*scope_type).reservation_type();
                let reservation_type = reservation_type.ok_or(InvalidData::ScopeType(*scope_type))?;
                Some(Held { key: Key(key.get()), reservation_type })
            }
            length => return Err(InvalidData::Length(length)),
        };
        Ok(body.parsed(Self { generation: body.generation, held }))
    }

    /// The data to be returned, before they are cut to the allocation length.
    pub fn encode(&self) -> Vec<u8> {
        let body = self.held.map_or_else(Vec::new, |Held { key, reservation_type }| {
            let scope_type = ScopeType::from(reservation_type).0;
            let layout = Layout { key: key.0.into(), scope_type, ..Layout::default() };
            [layout.as_bytes(), &[0; 2]].concat()
        });
        let mut encoder = Encoder::new(self.generation, body.len(), usize::MAX);
        encoder.push(&body);
        encoder.finish()
    }
}

impl fmt::Display for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "generation {}, ", self.generation)?;
        match self.held {
            None => f.write_str("not reserved"),
            Some(held) => held.fmt(f),
        }
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reservation_type.fmt(f)?;
        // No key is the holder's where every registrant is one.
        if self.reservation_type.is_all_registrants() && self.key.is_zero() {
            return Ok(());
        }
        write!(f, ", held with key {}", self.key)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::reservation_type::tests::types;
    use proptest::prelude::*;

    pub(crate) fn values() -> impl Strategy<Value = Reservation> {
        let held = (any::<u64>(), types()).prop_map(|(key, reservation_type)| Held { key: Key(key), reservation_type });
        (any::<u32>(), prop::option::of(held))
            .prop_map(|(generation, held)| Reservation { generation: Generation(generation), held })
    }

    #[test]
    fn a_reservation_has_24_bytes_and_none_has_8() {
        let none = Reservation { generation: Generation(9), held: None };
        assert_eq!(none.encode(), [0, 0, 0, 9, 0, 0, 0, 0]);
        let held = Some(Held { key: Key(0x1234), reservation_type: Type::ExclusiveAccessRegistrantsOnly });
        let reserved = Reservation { generation: Generation(9), held };
        let mut data = [0; 24];
        (data[3], data[7], data[14], data[15], data[21]) = (9, 16, 0x12, 0x34, 6);
        assert_eq!(reserved.encode(), data);
        assert_eq!(Reservation::parse(&data), Ok(Parsed { value: reserved, length: 24, truncated: false }));
        // The obsolete bytes at the end are not missed, the type is.
        assert_eq!(Reservation::parse(&data[..22]), Ok(Parsed { value: reserved, length: 24, truncated: true }));
        assert_eq!(Reservation::parse(&data[..21]), Err(InvalidData::Short { needed: 22, actual: 21 }));
        assert_eq!(none.to_string(), "generation 9, not reserved");
        let text = "generation 9, Exclusive Access - Registrants Only, held with key 0x0000000000001234";
        assert_eq!(reserved.to_string(), text);
        let all = Held { key: Key::ZERO, reservation_type: Type::WriteExclusiveAllRegistrants };
        assert_eq!(all.to_string(), "Write Exclusive - All Registrants");
        data[21] = 0x16;
        assert_eq!(Reservation::parse(&data), Err(InvalidData::ScopeType(0x16)));
        data[7] = 32;
        assert_eq!(Reservation::parse(&data), Err(InvalidData::Length(32)));
    }
}
