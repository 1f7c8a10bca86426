//! The data of READ FULL STATUS (SPC-4 6.15.5).

use std::fmt;

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Body, Encoder, InvalidData, Parsed, prefix};
use crate::{Generation, InvalidTransportId, Key, ScopeType, TransportId, Type};

/// Every registration and, with it, the reservation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FullStatus {
    /// PRGENERATION.
    pub generation: Generation,
    /// One for each registered nexus, or each initiator port that is registered on all target ports.
    pub descriptors: Vec<FullStatusDescriptor>,
}

/// A registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FullStatusDescriptor {
    /// RESERVATION KEY.
    pub key: Key,
    /// ALL_TG_PT: the initiator port is registered on every target port, and `relative_target_port` says nothing.
    pub all_tg_pt: bool,
    /// R_HOLDER, SCOPE and TYPE: of the reservation whose holder this is.
    pub held: Option<Type>,
    /// RELATIVE TARGET PORT IDENTIFIER.
    pub relative_target_port: u16,
    /// TRANSPORTID, as it came.
    transport_id: Vec<u8>,
}

/// A descriptor up to its TransportID.
#[derive(Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Layout {
    key: U64,
    reserved: [u8; 4],
    flags: u8,
    scope_type: u8,
    reserved_after: [u8; 4],
    relative_target_port: U16,
    additional_length: U32,
}

const ALL_TG_PT: u8 = 0x02;
const R_HOLDER: u8 = 0x01;

impl FullStatusDescriptor {
    /// A registration of the initiator port `transport_id`.
    pub fn new(key: Key, transport_id: &TransportId, relative_target_port: u16) -> Self {
        let transport_id = transport_id.bytes().into();
        Self { key, all_tg_pt: false, held: None, relative_target_port, transport_id }
    }

    /// The initiator port.
    ///
    /// # Errors
    ///
    /// The bytes are not a valid TransportID. Some devices return such bytes.
    pub fn transport_id(&self) -> Result<TransportId, InvalidTransportId> {
        TransportId::from_bytes(&self.transport_id)
    }

    /// The bytes of TRANSPORTID, valid or not.
    pub fn transport_id_bytes(&self) -> &[u8] {
        &self.transport_id
    }

    /// Reads the descriptor that `bytes` begin with; and what comes after it. `None` when it is longer than `bytes`.
    fn split_first(bytes: &[u8]) -> Result<Option<(Self, &[u8])>, InvalidData> {
        let Ok((layout, rest)) = prefix::<Layout>(bytes) else { return Ok(None) };
        let length = usize::try_from(layout.additional_length.get()).unwrap_or(usize::MAX);
        let Some((transport_id, rest)) = rest.split_at_checked(length) else { return Ok(None) };
        let held = if layout.flags & R_HOLDER == 0 {
            None
        } else {
            let held = ScopeType(layout.scope_type).reservation_type();
            Some(held.ok_or(InvalidData::ScopeType(layout.scope_type))?)
        };
        let descriptor = Self {
            key: Key(layout.key.get()),
            all_tg_pt: layout.flags & ALL_TG_PT != 0,
            held,
            relative_target_port: layout.relative_target_port.get(),
            transport_id: transport_id.into(),
        };
        Ok(Some((descriptor, rest)))
    }

    /// The number of bytes of the descriptor.
    fn length(&self) -> usize {
        size_of::<Layout>() + self.transport_id.len()
    }
}

/// The number of bytes of `count` descriptors, whose TransportIDs have `transport_id_bytes` bytes together.
pub(crate) fn descriptors_length(count: usize, transport_id_bytes: usize) -> usize {
    count * size_of::<Layout>() + transport_id_bytes
}

/// Appends a descriptor, as far as it fits.
pub(crate) fn push_descriptor(
    encoder: &mut Encoder,
    key: Key,
    all_tg_pt: bool,
    held: Option<Type>,
    relative_target_port: u16,
    transport_id: &[u8],
) {
    let all_tg_pt = if all_tg_pt { ALL_TG_PT } else { 0 };
    let (r_holder, scope_type) = held.map_or((0, 0), |held| (R_HOLDER, ScopeType::from(held).0));
    let layout = Layout {
        key: key.0.into(),
        flags: all_tg_pt | r_holder,
        scope_type,
        relative_target_port: relative_target_port.into(),
        additional_length: u32::try_from(transport_id.len()).expect("it came with a length of 32 bits").into(),
        ..Layout::default()
    };
    encoder.push(layout.as_bytes());
    encoder.push(transport_id);
}

impl FullStatus {
    /// Reads returned data; a descriptor that was cut is left out.
    ///
    /// # Errors
    ///
    /// [`InvalidData::Short`] under 8 bytes, [`InvalidData::Length`] when the descriptors do not fill the data,
    /// [`InvalidData::ScopeType`].
    pub fn parse(data: &[u8]) -> Result<Parsed<Self>, InvalidData> {
        let body = Body::parse(data)?;
        let mut descriptors = Vec::new();
        let mut bytes = body.bytes;
        while !bytes.is_empty() {
            match FullStatusDescriptor::split_first(bytes)? {
                Some((descriptor, rest)) => {
                    descriptors.push(descriptor);
                    bytes = rest;
                }
                None if body.truncated => break,
                None => return Err(InvalidData::Length(body.additional_length)),
            }
        }
        Ok(body.parsed(Self { generation: body.generation, descriptors }))
    }

    /// The data to be returned, before they are cut to the allocation length.
    pub fn encode(&self) -> Vec<u8> {
        let length = self.descriptors.iter().map(FullStatusDescriptor::length).sum();
        let mut encoder = Encoder::new(self.generation, length, usize::MAX);
        for FullStatusDescriptor { key, all_tg_pt, held, relative_target_port, transport_id } in &self.descriptors {
            push_descriptor(&mut encoder, *key, *all_tg_pt, *held, *relative_target_port, transport_id);
        }
        encoder.finish()
    }
}

impl fmt::Display for FullStatus {
    /// On one line; `{:#}` gives each registration a line of its own.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "generation {}", self.generation)?;
        if self.descriptors.is_empty() {
            return f.write_str(", no registrations");
        }
        let separator = if f.alternate() { "\n" } else { "; " };
        self.descriptors.iter().try_for_each(|descriptor| write!(f, "{separator}{descriptor}"))
    }
}

impl fmt::Display for FullStatusDescriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key {} registered by ", self.key)?;
        match self.transport_id() {
            Ok(id) => id.fmt(f)?,
            // Shown in bytes, as many as the shortest TransportID has.
            Err(_) => {
                let shown = self.transport_id.len().min(24);
                write!(f, "an unknown initiator port {:02x?}", &self.transport_id[..shown])?;
            }
        }
        if self.all_tg_pt {
            f.write_str(" on all target ports")?;
        } else {
            write!(f, " on target port {}", self.relative_target_port)?;
        }
        self.held.map_or(Ok(()), |held| write!(f, ", holder, {held}"))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::InitiatorPort;
    use crate::reservation_type::tests::types;
    use crate::transport_id::tests::transport_ids;
    use proptest::prelude::*;

    fn descriptors() -> impl Strategy<Value = FullStatusDescriptor> {
        let ids = prop_oneof![
            9 => transport_ids().prop_map(|id| id.bytes().to_vec()),
            1 => prop::collection::vec(any::<u8>(), 0..40),
        ];
        (any::<(u64, bool, u16)>(), prop::option::of(types()), ids).prop_map(
            |((key, all_tg_pt, relative_target_port), held, transport_id)| FullStatusDescriptor {
                key: Key(key),
                all_tg_pt,
                held,
                relative_target_port,
                transport_id,
            },
        )
    }

    pub(crate) fn values() -> impl Strategy<Value = FullStatus> {
        (any::<u32>(), prop::collection::vec(descriptors(), 0..4))
            .prop_map(|(generation, descriptors)| FullStatus { generation: Generation(generation), descriptors })
    }

    #[test]
    fn a_descriptor_has_24_bytes_and_its_transport_id() {
        let id = TransportId::new(InitiatorPort::Sas { address: 0x5001_4057_0000_0001 }).unwrap();
        let mut descriptor = FullStatusDescriptor::new(Key(0x1234), &id, 0x0102);
        descriptor.all_tg_pt = true;
        descriptor.held = Some(Type::WriteExclusiveAllRegistrants);
        let status = FullStatus { generation: Generation(3), descriptors: vec![descriptor] };
        let mut data = vec![0, 0, 0, 3, 0, 0, 0, 48];
        data.extend(0x1234_u64.to_be_bytes());
        data.extend([0, 0, 0, 0, 0x03, 0x07, 0, 0, 0, 0, 1, 2, 0, 0, 0, 24]);
        data.extend(id.bytes());
        assert_eq!(status.encode(), data);
        let parsed = FullStatus::parse(&data).unwrap();
        assert_eq!(
            format!("{status:#}"),
            "generation 3\nkey 0x0000000000001234 registered by SAS address 0x5001405700000001 on all target ports, \
             holder, Write Exclusive - All Registrants"
        );
        assert_eq!(parsed, Parsed { value: status, length: 56, truncated: false });
        assert_eq!(parsed.value.descriptors[0].transport_id(), Ok(id));

        let mut wrong_type = data.clone();
        wrong_type[8 + 13] = 0x04;
        assert_eq!(FullStatus::parse(&wrong_type), Err(InvalidData::ScopeType(4)));
        // Without R_HOLDER, scope and type mean nothing.
        wrong_type[8 + 12] = 0;
        assert_eq!(FullStatus::parse(&wrong_type).unwrap().value.descriptors[0].held, None);

        let mut beyond = data.clone();
        beyond[8 + 23] = 25;
        assert_eq!(FullStatus::parse(&beyond), Err(InvalidData::Length(48)));

        let cut = FullStatus::parse(&data[..55]).unwrap();
        assert!(cut.truncated && cut.length == 56 && cut.value.descriptors.is_empty());
    }

    #[test]
    fn a_transport_id_that_is_none_is_kept() {
        let mut data = vec![0, 0, 0, 0, 0, 0, 0, 27];
        data.extend([0; 23]);
        data.extend([3, 0xff, 0xff, 0xff]);
        let status = FullStatus::parse(&data).unwrap().value;
        assert_eq!(status.descriptors[0].transport_id_bytes(), [0xff; 3]);
        assert!(status.descriptors[0].transport_id().is_err());
        assert_eq!(status.encode(), data);
        assert_eq!(
            status.to_string(),
            "generation 0; key 0x0000000000000000 registered by an unknown initiator port [ff, ff, ff] on target port 0"
        );
        assert_eq!(FullStatus::default().to_string(), "generation 0, no registrations");
    }
}
