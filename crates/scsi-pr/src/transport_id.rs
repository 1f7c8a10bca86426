//! TransportIDs: how initiator ports are named in parameter lists and returned data (SPC-4 7.6.4).
//!
//! A [`TransportId`] keeps its bytes, so that what is passed on is what came; [`TransportId::port`] says what they name,
//! and only that decides whether two are equal. Protocols other than those of [`InitiatorPort`] are refused: how
//! long their TransportIDs are, and so where the next one begins, cannot be known.

mod parse;

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};

use zerocopy::byteorder::big_endian::{U16, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// How long every TransportID is but those of iSCSI, and the least that those are.
const LENGTH: usize = 24;
/// The bytes before the name in an iSCSI TransportID.
const ISCSI_HEADER_LENGTH: usize = 4;
/// The most bytes after that header. QEMU's helper refuses more, too.
const ISCSI_MAX_ADDITIONAL_LENGTH: usize = 252;
/// The most bytes of an iSCSI name (RFC 7143 4.2.7.1).
const ISCSI_MAX_NAME: usize = 223;
/// The text between the name and the ISID of an iSCSI initiator port.
const ISID_SEPARATOR: &str = ",i,0x";
/// TPID FORMAT 01b: an iSCSI name with an ISID.
const FORMAT_NAME_AND_ISID: u8 = 0x40;

/// An initiator port, as a [`TransportId`] names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum InitiatorPort<'a> {
    /// Fibre Channel, protocol 0h: N_Port_Name.
    FibreChannel {
        /// N_PORT NAME, the worldwide port name.
        port_name: u64,
    },
    /// Parallel SCSI, protocol 1h.
    ParallelScsi {
        /// SCSI ADDRESS.
        address: u16,
        /// RELATIVE TARGET PORT IDENTIFIER: the target port to which the address belongs.
        relative_target_port: u16,
    },
    /// IEEE 1394 (SBP), protocol 3h.
    Sbp {
        /// EUI-64 NAME.
        eui64: u64,
    },
    /// RDMA (SRP), protocol 4h.
    Srp {
        /// INITIATOR PORT IDENTIFIER.
        port_identifier: u128,
    },
    /// iSCSI, protocol 5h.
    Iscsi {
        /// ISCSI NAME of the node: 1 to 223 bytes without commas, white space and control characters.
        name: &'a str,
        /// The ISID of one port (TPID FORMAT 01b); `None` names every port of the node (TPID FORMAT 00b).
        isid: Option<[u8; 6]>,
    },
    /// SAS, protocol 6h.
    Sas {
        /// SAS ADDRESS.
        address: u64,
    },
    /// SCSI over PCIe (SOP), protocol Ah.
    Sop {
        /// ROUTING ID.
        routing_id: u16,
    },
}

impl InitiatorPort<'_> {
    /// PROTOCOL IDENTIFIER.
    pub const fn protocol(&self) -> u8 {
        match self {
            Self::FibreChannel { .. } => 0x0,
            Self::ParallelScsi { .. } => 0x1,
            Self::Sbp { .. } => 0x3,
            Self::Srp { .. } => 0x4,
            Self::Iscsi { .. } => 0x5,
            Self::Sas { .. } => 0x6,
            Self::Sop { .. } => 0xa,
        }
    }
}

impl fmt::Display for InitiatorPort<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FibreChannel { port_name } => write!(f, "Fibre Channel port {port_name:#018x}"),
            Self::ParallelScsi { address, relative_target_port } => {
                write!(f, "parallel SCSI address {address} at target port {relative_target_port}")
            }
            Self::Sbp { eui64 } => write!(f, "SBP node {eui64:#018x}"),
            Self::Srp { port_identifier } => write!(f, "SRP port {port_identifier:#034x}"),
            // Escaped because it is a guest's text and ends up in logs.
            Self::Iscsi { name, isid: None } => write!(f, "{}", name.escape_debug()),
            Self::Iscsi { name, isid: Some(isid) } => {
                write!(f, "{}{ISID_SEPARATOR}", name.escape_debug())?;
                isid.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
            Self::Sas { address } => write!(f, "SAS address {address:#018x}"),
            Self::Sop { routing_id } => write!(f, "SOP routing id {routing_id:#06x}"),
        }
    }
}

/// A TransportID, well-formed and byte for byte as it came.
///
/// Reserved bytes, the padding of an iSCSI name and the case of its ISID are kept and passed on, and say nothing: two
/// TransportIDs that name the same initiator port are equal.
#[derive(Clone)]
pub struct TransportId(Box<[u8]>);

impl TransportId {
    /// The TransportID of `port`, no longer than it must be.
    ///
    /// # Errors
    ///
    /// [`InvalidTransportId::IscsiName`] when the name breaks the rules of [`InitiatorPort::Iscsi`].
    pub fn new(port: InitiatorPort<'_>) -> Result<Self, InvalidTransportId> {
        let protocol = port.protocol();
        let bytes: [u8; LENGTH] = match port {
            InitiatorPort::FibreChannel { port_name: name } | InitiatorPort::Sbp { eui64: name } => {
                zerocopy::transmute!(NameLayout { protocol, name: name.into(), ..NameLayout::default() })
            }
            InitiatorPort::ParallelScsi { address, relative_target_port } => zerocopy::transmute!(ParallelLayout {
                protocol,
                address: address.into(),
                relative_target_port: relative_target_port.into(),
                ..ParallelLayout::default()
            }),
            InitiatorPort::Srp { port_identifier } => zerocopy::transmute!(SrpLayout {
                protocol,
                port_identifier: port_identifier.into(),
                ..SrpLayout::default()
            }),
            InitiatorPort::Sas { address } => {
                zerocopy::transmute!(SasLayout { protocol, address: address.into(), ..SasLayout::default() })
            }
            InitiatorPort::Sop { routing_id } => {
                zerocopy::transmute!(SopLayout { protocol, routing_id: routing_id.into(), ..SopLayout::default() })
            }
            InitiatorPort::Iscsi { name, isid } => return Self::iscsi(protocol, name, isid),
        };
        Ok(Self(bytes.into()))
    }

    fn iscsi(protocol: u8, name: &str, isid: Option<[u8; 6]>) -> Result<Self, InvalidTransportId> {
        check_iscsi_name(name)?;
        let format = if isid.is_some() { FORMAT_NAME_AND_ISID } else { 0 };
        let mut bytes = vec![format | protocol, 0, 0, 0];
        bytes.extend_from_slice(name.as_bytes());
        if let Some(isid) = isid {
            bytes.extend_from_slice(ISID_SEPARATOR.as_bytes());
            // No format!: this is most of the time that it takes to read a record.
            let digit = |nibble: u8| char::from_digit(nibble.into(), 16).map_or(b'0', |digit| digit as u8);
            isid.iter().for_each(|byte| bytes.extend([digit(byte >> 4), digit(byte & 0xf)]));
        }
        // With the NUL at its end.
        bytes.resize((bytes.len() + 1).next_multiple_of(4).max(LENGTH), 0);
        let additional = u16::try_from(bytes.len() - ISCSI_HEADER_LENGTH).expect("the name is short");
        bytes[2..4].copy_from_slice(&additional.to_be_bytes());
        Ok(Self(bytes.into()))
    }

    /// Reads one TransportID that fills `bytes`.
    ///
    /// # Errors
    ///
    /// The fault of the bytes. In a parameter list, the answer is INVALID FIELD IN PARAMETER LIST.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, InvalidTransportId> {
        match Self::split_first(bytes)? {
            (id, []) => Ok(id),
            (id, _) => Err(InvalidTransportId::Length { expected: id.0.len(), actual: bytes.len() }),
        }
    }

    /// Reads a list of TransportIDs, without gaps, that fills `bytes`. An empty list is one.
    ///
    /// # Errors
    ///
    /// The fault of the first invalid one.
    pub fn list_from_bytes(mut bytes: &[u8]) -> Result<Vec<Self>, InvalidTransportId> {
        let mut list = Vec::new();
        while !bytes.is_empty() {
            let (id, rest) = Self::split_first(bytes)?;
            list.push(id);
            bytes = rest;
        }
        Ok(list)
    }

    /// Reads the TransportID that `bytes` begin with; and what comes after it.
    fn split_first(bytes: &[u8]) -> Result<(Self, &[u8]), InvalidTransportId> {
        let expected = length(bytes)?;
        let (id, rest) =
            bytes.split_at_checked(expected).ok_or(InvalidTransportId::Length { expected, actual: bytes.len() })?;
        read(id)?;
        Ok((Self(id.into()), rest))
    }

    /// The bytes, as they came.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The initiator port that is named.
    pub fn port(&self) -> InitiatorPort<'_> {
        read(&self.0).expect("checked when it was made")
    }
}

impl PartialEq for TransportId {
    fn eq(&self, other: &Self) -> bool {
        self.port() == other.port()
    }
}

impl Eq for TransportId {}

impl PartialOrd for TransportId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for TransportId {
    fn cmp(&self, other: &Self) -> Ordering {
        self.port().cmp(&other.port())
    }
}

impl Hash for TransportId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.port().hash(state);
    }
}

impl fmt::Debug for TransportId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TransportId").field(&self.port()).finish()
    }
}

impl fmt::Display for TransportId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.port().fmt(f)
    }
}

/// Why bytes are no TransportID, or a name is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidTransportId {
    /// It is cut off, or other bytes follow it.
    #[error("a TransportID of {expected} bytes in {actual} bytes")]
    Length {
        /// How long it says that it is.
        expected: usize,
        /// How many bytes there are.
        actual: usize,
    },
    /// A first byte (TPID FORMAT and PROTOCOL IDENTIFIER) that names no known layout.
    #[error("a TransportID of the unknown format {0:#04x}")]
    Format(u8),
    /// An ADDITIONAL LENGTH that is under 20, over 252 or no multiple of 4.
    #[error(
        "an iSCSI TransportID of additional length {0}, which must be a multiple of 4 from 20 to {ISCSI_MAX_ADDITIONAL_LENGTH}"
    )]
    IscsiLength(usize),
    /// An iSCSI name of no or more than 223 bytes, with a comma, white space or control characters, that is not UTF-8
    /// or not ended by NULs.
    #[error(
        "an iSCSI name must have 1 to {ISCSI_MAX_NAME} bytes of UTF-8 without commas, white space and control characters, \
         then only NULs"
    )]
    IscsiName,
    /// An iSCSI name that lacks its `,i,0x` and twelve hexadecimal digits.
    #[error("an iSCSI port name must end in {ISID_SEPARATOR} and 12 hexadecimal digits")]
    IscsiIsid,
    /// A text that names no initiator port.
    #[error(
        "an initiator port is an iSCSI name, with or without its ISID (iqn.2001-04.com.example:a,i,0x00023d000001), \
         or the text of another protocol (SAS address 0x5000c50012345678)"
    )]
    Text,
}

/// Fibre Channel and SBP.
#[derive(Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct NameLayout {
    protocol: u8,
    reserved: [u8; 7],
    name: U64,
    reserved_after: [u8; 8],
}

#[derive(Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct ParallelLayout {
    protocol: u8,
    reserved: u8,
    address: U16,
    obsolete: [u8; 2],
    relative_target_port: U16,
    reserved_after: [u8; 16],
}

#[derive(Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct SrpLayout {
    protocol: u8,
    reserved: [u8; 7],
    port_identifier: U128,
}

#[derive(Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct SasLayout {
    protocol: u8,
    reserved: [u8; 3],
    address: U64,
    reserved_after: [u8; 12],
}

#[derive(Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct SopLayout {
    protocol: u8,
    reserved: u8,
    routing_id: U16,
    reserved_after: [u8; 20],
}

/// How long the TransportID is that `bytes` begin with, by its first four of them.
fn length(bytes: &[u8]) -> Result<usize, InvalidTransportId> {
    // Even an iSCSI TransportID is not shorter.
    let [first, _, high, low, ..] = *bytes else {
        return Err(InvalidTransportId::Length { expected: LENGTH, actual: bytes.len() });
    };
    match first {
        0x00 | 0x01 | 0x03 | 0x04 | 0x06 | 0x0a => Ok(LENGTH),
        0x05 | 0x45 => match usize::from(u16::from_be_bytes([high, low])) {
            additional @ 20..=ISCSI_MAX_ADDITIONAL_LENGTH if additional % 4 == 0 => {
                Ok(ISCSI_HEADER_LENGTH + additional)
            }
            additional => Err(InvalidTransportId::IscsiLength(additional)),
        },
        other => Err(InvalidTransportId::Format(other)),
    }
}

/// The port that `bytes` name. There are as many bytes as [`length`] says.
fn read(bytes: &[u8]) -> Result<InitiatorPort<'_>, InvalidTransportId> {
    fn layout<T: FromBytes + KnownLayout + Immutable + Unaligned>(bytes: &[u8]) -> Result<&T, InvalidTransportId> {
        T::ref_from_bytes(bytes).map_err(|_| InvalidTransportId::Length { expected: LENGTH, actual: bytes.len() })
    }
    Ok(match bytes.first() {
        Some(0x00) => InitiatorPort::FibreChannel { port_name: layout::<NameLayout>(bytes)?.name.get() },
        Some(0x01) => {
            let ParallelLayout { address, relative_target_port, .. } = layout(bytes)?;
            InitiatorPort::ParallelScsi { address: address.get(), relative_target_port: relative_target_port.get() }
        }
        Some(0x03) => InitiatorPort::Sbp { eui64: layout::<NameLayout>(bytes)?.name.get() },
        Some(0x04) => InitiatorPort::Srp { port_identifier: layout::<SrpLayout>(bytes)?.port_identifier.get() },
        Some(0x06) => InitiatorPort::Sas { address: layout::<SasLayout>(bytes)?.address.get() },
        Some(0x0a) => InitiatorPort::Sop { routing_id: layout::<SopLayout>(bytes)?.routing_id.get() },
        Some(0x05) => InitiatorPort::Iscsi { name: check_iscsi_name(text(bytes)?)?, isid: None },
        Some(0x45) => {
            let (name, isid) = text(bytes)?.split_once(ISID_SEPARATOR).ok_or(InvalidTransportId::IscsiIsid)?;
            InitiatorPort::Iscsi { name: check_iscsi_name(name)?, isid: Some(read_isid(isid)?) }
        }
        Some(other) => return Err(InvalidTransportId::Format(*other)),
        None => return Err(InvalidTransportId::Length { expected: LENGTH, actual: 0 }),
    })
}

/// The text of an iSCSI TransportID, up to the NULs that must end it.
fn text(bytes: &[u8]) -> Result<&str, InvalidTransportId> {
    let field = bytes.get(ISCSI_HEADER_LENGTH..).unwrap_or_default();
    let end = field.iter().position(|byte| *byte == 0).ok_or(InvalidTransportId::IscsiName)?;
    let (text, padding) = field.split_at(end);
    if padding.iter().any(|byte| *byte != 0) {
        return Err(InvalidTransportId::IscsiName);
    }
    str::from_utf8(text).map_err(|_| InvalidTransportId::IscsiName)
}

fn check_iscsi_name(name: &str) -> Result<&str, InvalidTransportId> {
    let fits = (1..=ISCSI_MAX_NAME).contains(&name.len());
    if fits && !name.contains(|c: char| c == ',' || c.is_control() || c.is_whitespace()) {
        Ok(name)
    } else {
        Err(InvalidTransportId::IscsiName)
    }
}

fn read_isid(digits: &str) -> Result<[u8; 6], InvalidTransportId> {
    if digits.len() != 12 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(InvalidTransportId::IscsiIsid);
    }
    let number = u64::from_str_radix(digits, 16).map_err(|_| InvalidTransportId::IscsiIsid)?;
    let [_, _, isid @ ..] = number.to_be_bytes();
    Ok(isid)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    fn iscsi_names() -> impl Strategy<Value = String> {
        prop_oneof![
            "iqn\\.2026-11\\.org\\.example:[a-z0-9.-]{1,190}",
            "[!-+--~\u{a1}-\u{ff}]{1,100}",
            Just("n".repeat(223))
        ]
    }

    /// Any initiator port.
    pub(crate) fn transport_ids() -> impl Strategy<Value = TransportId> {
        prop_oneof![
            any::<u64>().prop_map(|port_name| TransportId::new(InitiatorPort::FibreChannel { port_name })),
            any::<(u16, u16)>().prop_map(|(address, relative_target_port)| {
                TransportId::new(InitiatorPort::ParallelScsi { address, relative_target_port })
            }),
            any::<u64>().prop_map(|eui64| TransportId::new(InitiatorPort::Sbp { eui64 })),
            any::<u128>().prop_map(|port_identifier| TransportId::new(InitiatorPort::Srp { port_identifier })),
            (iscsi_names(), any::<Option<[u8; 6]>>())
                .prop_map(|(name, isid)| TransportId::new(InitiatorPort::Iscsi { name: &name, isid })),
            any::<u64>().prop_map(|address| TransportId::new(InitiatorPort::Sas { address })),
            any::<u16>().prop_map(|routing_id| TransportId::new(InitiatorPort::Sop { routing_id })),
        ]
        .prop_map(|id| id.unwrap())
    }

    /// The layouts of SPC-4 7.6.4, byte by byte.
    #[test]
    fn each_protocol_has_its_layout() {
        let at = |protocol: u8, offset: usize, field: &[u8]| {
            let mut bytes = vec![0; 24];
            bytes[0] = protocol;
            bytes[offset..offset + field.len()].copy_from_slice(field);
            bytes
        };
        let name = 0x2100_0024_ff3d_5a1c_u64;
        let port_identifier = 0xfe80_0000_0000_0000_0002_c903_0000_0001_u128;
        let mut parallel = at(0x01, 2, &[0, 7]);
        parallel[6..8].copy_from_slice(&[0, 2]);
        for (port, bytes) in [
            (InitiatorPort::FibreChannel { port_name: name }, at(0x00, 8, &name.to_be_bytes())),
            (InitiatorPort::ParallelScsi { address: 7, relative_target_port: 2 }, parallel),
            (InitiatorPort::Sbp { eui64: name }, at(0x03, 8, &name.to_be_bytes())),
            (InitiatorPort::Srp { port_identifier }, at(0x04, 8, &port_identifier.to_be_bytes())),
            (InitiatorPort::Sas { address: name }, at(0x06, 4, &name.to_be_bytes())),
            (InitiatorPort::Sop { routing_id: 0x1234 }, at(0x0a, 2, &[0x12, 0x34])),
        ] {
            let id = TransportId::new(port).unwrap();
            assert_eq!(id.bytes(), bytes, "{port}");
            assert_eq!(TransportId::from_bytes(&bytes).unwrap().port(), port);
        }
    }

    #[test]
    fn iscsi_names_are_padded_to_a_multiple_of_four_and_at_least_24_bytes() {
        for (length, expected) in [(1, 24), (19, 24), (20, 28), (23, 28), (24, 32), (223, 228)] {
            let name = "n".repeat(length);
            let id = TransportId::new(InitiatorPort::Iscsi { name: &name, isid: None }).unwrap();
            assert_eq!(id.bytes().len(), expected, "{length}");
            assert_eq!(usize::from(id.bytes()[3]), expected - 4);
            assert_eq!(TransportId::from_bytes(id.bytes()).unwrap(), id);
        }
        let port = InitiatorPort::Iscsi { name: "iqn.1994-05.com.redhat:a", isid: Some([0, 2, 0x3d, 0, 0, 1]) };
        let id = TransportId::new(port).unwrap();
        assert_eq!(id.bytes(), b"\x45\x00\x00\x2ciqn.1994-05.com.redhat:a,i,0x00023d000001\0\0\0");
        assert_eq!(id.to_string(), "iqn.1994-05.com.redhat:a,i,0x00023d000001");
    }

    #[test]
    fn names_that_are_none_are_refused() {
        for name in ["", "a b", "a\nb", "a\0", "a\u{7f}", "a,i,0x000000000001", &"n".repeat(224)] {
            let port = InitiatorPort::Iscsi { name, isid: None };
            assert_eq!(TransportId::new(port), Err(InvalidTransportId::IscsiName), "{name:?}");
        }
    }

    fn iscsi(first: u8, additional: u8, text: &[u8]) -> Result<TransportId, InvalidTransportId> {
        let mut bytes = vec![first, 0, 0, additional];
        bytes.extend_from_slice(text);
        bytes.resize(4 + usize::from(additional), 0);
        TransportId::from_bytes(&bytes)
    }

    #[test]
    fn malformed_iscsi_ids_are_refused() {
        for length in [0, 16, 19, 21, 22, 255] {
            assert_eq!(iscsi(0x05, length, b""), Err(InvalidTransportId::IscsiLength(length.into())));
        }
        assert!(iscsi(0x05, 252, b"iqn.x").is_ok());
        // No name, no NUL, text after the NUL, no UTF-8.
        for text in [&b""[..], &[b'n'; 20], b"iqn.x\0y", b"iqn.\xff"] {
            assert_eq!(iscsi(0x05, 20, text), Err(InvalidTransportId::IscsiName), "{text:?}");
        }
        let good = iscsi(0x45, 24, b"n,i,0x0123456789aB").unwrap();
        let isid = Some([0x01, 0x23, 0x45, 0x67, 0x89, 0xab]);
        assert_eq!(good.port(), InitiatorPort::Iscsi { name: "n", isid });
        for text in
            ["n", "n,i,0x", "n,i,0x0123456789a", "n,i,0x0123456789abc", "n,i,0x+123456789ab", "n,i,0x0123456789ag"]
        {
            assert_eq!(iscsi(0x45, 24, text.as_bytes()), Err(InvalidTransportId::IscsiIsid), "{text}");
        }
        assert_eq!(iscsi(0x45, 24, b",i,0x0123456789ab"), Err(InvalidTransportId::IscsiName));
    }

    #[test]
    fn unknown_formats_are_refused() {
        for first in 0..=u8::MAX {
            let mut bytes = [0; 24];
            bytes[0] = first;
            let known = [0x00, 0x01, 0x03, 0x04, 0x06, 0x0a].contains(&first);
            match TransportId::from_bytes(&bytes) {
                Ok(id) => assert!(known && id.port().protocol() == first),
                Err(InvalidTransportId::IscsiLength(0)) => assert!(first == 0x05 || first == 0x45),
                Err(error) => assert!(!known && error == InvalidTransportId::Format(first)),
            }
        }
    }

    #[test]
    fn what_names_the_same_port_is_equal_and_keeps_its_bytes() {
        let short = iscsi(0x45, 24, b"n,i,0x0123456789ab").unwrap();
        let long = iscsi(0x45, 32, b"n,i,0x0123456789AB").unwrap();
        assert_eq!(short, long);
        assert_ne!(short.bytes(), long.bytes());
        let mut bytes = TransportId::new(InitiatorPort::Sas { address: 1 }).unwrap().bytes().to_vec();
        bytes[23] = 1;
        let reserved = TransportId::from_bytes(&bytes).unwrap();
        assert_eq!(reserved, TransportId::new(InitiatorPort::Sas { address: 1 }).unwrap());
        assert_eq!(reserved.bytes(), bytes);
        assert_ne!(short, iscsi(0x05, 20, b"n").unwrap());
    }

    proptest! {
        #[test]
        fn a_port_survives_its_bytes(id in transport_ids()) {
            let again = TransportId::from_bytes(id.bytes()).unwrap();
            prop_assert_eq!(&again, &id);
            prop_assert_eq!(again.bytes(), id.bytes());
            let encoded = TransportId::new(again.port()).unwrap();
            prop_assert_eq!(encoded.bytes(), id.bytes());
            prop_assert!(id.bytes().len() >= 24 && id.bytes().len() % 4 == 0);
        }

        #[test]
        fn lists_are_consumed_to_the_byte(ids in prop::collection::vec(transport_ids(), 0..5), cut in 1usize..24) {
            let bytes = ids.iter().map(TransportId::bytes).collect::<Vec<_>>().concat();
            prop_assert_eq!(TransportId::list_from_bytes(&bytes), Ok(ids));
            if let Some(last) = bytes.len().checked_sub(cut) {
                prop_assert!(TransportId::list_from_bytes(&bytes[..last]).is_err());
            }
            prop_assert!(TransportId::list_from_bytes(&[&bytes[..], &[0; 3]].concat()).is_err());
        }

        #[test]
        fn any_bytes_are_kept_or_refused(
            id in transport_ids(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            length in 0usize..300,
        ) {
            let mut bytes = id.bytes().to_vec();
            for (index, byte) in changes {
                *index.get_mut(&mut bytes) = byte;
            }
            bytes.resize(if length < 30 { length } else { bytes.len() }, 0);
            if let Ok(id) = TransportId::from_bytes(&bytes) {
                prop_assert_eq!(id.bytes(), bytes);
                prop_assert_eq!(TransportId::new(id.port()).unwrap(), id);
            }
        }

        #[test]
        fn noise_is_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(ids) = TransportId::list_from_bytes(&bytes) {
                prop_assert_eq!(ids.iter().map(TransportId::bytes).collect::<Vec<_>>().concat(), bytes);
            }
        }
    }
}
