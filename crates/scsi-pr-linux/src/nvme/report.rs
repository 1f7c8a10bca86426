//! Reads the data of Reservation Report: the Reservation Status data structure (NVM Express Base Specification 2.0, figures
//! 417 to 420). No I/O.

use scsi_pr::{Generation, InitiatorPort, Key, TransportId, Type};
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::type_number;

/// The format of the structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// With host identifiers of 64 bits.
    Short,
    /// With host identifiers of 128 bits (EDS).
    Extended,
}

/// The registrations of a namespace, and its reservation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Report {
    /// GEN.
    pub(super) generation: Generation,
    /// RTYPE.
    pub(super) reservation_type: Option<Type>,
    /// PTPLS: whether they survive a loss of power at present.
    pub(super) persistent: bool,
    /// One for each registered host, however many controllers it has, in the order of the report.
    pub(super) registrants: Vec<Registrant>,
}

/// A registered host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Registrant {
    pub(super) host: Host,
    /// RKEY.
    pub(super) key: Key,
    /// RCSTS: whether it is a holder of the reservation.
    pub(super) is_holder: bool,
}

/// The identity of a registrant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Host {
    /// HOSTID, not zero. One of 64 bits follows eight zero bytes. A subsystem uses one length for all hosts.
    Named([u8; 16]),
    /// HOSTID is zero: each controller has a host of its own. This is CNTLID.
    Controller(u16),
}

impl Host {
    /// HOSTID: 16 or 8 bytes. `None` for zero, which means nothing without a controller.
    pub(super) fn named(bytes: &[u8]) -> Option<Self> {
        let mut id = [0; 16];
        let start = id.len().checked_sub(bytes.len())?;
        id[start..].copy_from_slice(bytes);
        (id != [0; 16]).then_some(Self::Named(id))
    }

    /// Its initiator port. Of the protocols of SPC-4, only RDMA (SRP) has room for any 128 bits. INITIATOR PORT IDENTIFIER
    /// is HOSTID byte for byte.
    pub(super) fn transport_id(self) -> TransportId {
        let id = match self {
            Self::Named(id) => id,
            Self::Controller(_) => [0; 16],
        };
        let port = InitiatorPort::Srp { port_identifier: u128::from_be_bytes(id) };
        TransportId::new(port).expect("only iSCSI names have rules")
    }
}

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Header {
    generation: U32,
    rtype: u8,
    /// REGCTL: the number of entries that follow.
    entries: U16,
    reserved: [u8; 2],
    ptpls: u8,
    reserved_after: [u8; 14],
}

/// Registered Controller data structure.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Entry {
    controller: U16,
    status: u8,
    reserved: [u8; 5],
    host_id: [u8; 8],
    key: U64,
}

/// Registered Controller Extended data structure.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct ExtendedEntry {
    controller: U16,
    status: u8,
    reserved: [u8; 5],
    key: U64,
    host_id: [u8; 16],
    reserved_after: [u8; 32],
}

/// RCSTS, bit 0.
const HOLDS: u8 = 0x01;

impl Format {
    const fn header(self) -> usize {
        match self {
            Self::Short => size_of::<Header>(),
            Self::Extended => 64,
        }
    }

    const fn entry(self) -> usize {
        match self {
            Self::Short => size_of::<Entry>(),
            Self::Extended => size_of::<ExtendedEntry>(),
        }
    }
}

/// The length of the report that begins with these bytes; `None` where they are too few.
pub(super) fn length(format: Format, bytes: &[u8]) -> Option<usize> {
    let (header, _) = Header::ref_from_prefix(bytes).ok()?;
    Some(format.header() + usize::from(header.entries.get()) * format.entry())
}

/// Whether the data may be an extended report. Controllers of NVMe 1.1 and 1.2 ignore the bit that requests one. They have
/// an entry with a key where the extended header has reserved bytes.
pub(super) fn may_be_extended(bytes: &[u8]) -> bool {
    bytes
        .get(Format::Short.header()..Format::Extended.header())
        .is_some_and(|bytes| bytes.iter().all(|byte| *byte == 0))
}

impl Report {
    /// Reads a whole report; `None` where it is cut off, or has an unknown reservation type.
    pub(super) fn parse(format: Format, bytes: &[u8]) -> Option<Self> {
        let (header, _) = Header::ref_from_prefix(bytes).ok()?;
        let entries = bytes.get(format.header()..length(format, bytes)?)?;
        let reservation_type = match header.rtype {
            0 => None,
            rtype => Some(type_number::named(rtype.into())?),
        };
        let mut registrants: Vec<Registrant> = Vec::new();
        for bytes in entries.chunks_exact(format.entry()) {
            let registrant = registrant(format, bytes)?;
            // A host has one registration, and the report has it once for each of its controllers.
            match registrants.iter_mut().find(|known| known.host == registrant.host) {
                Some(known) => known.is_holder |= registrant.is_holder,
                None => registrants.push(registrant),
            }
        }
        Some(Self {
            generation: Generation(header.generation.get()),
            reservation_type,
            persistent: header.ptpls & 1 != 0,
            registrants,
        })
    }

    /// Whether every registrant is a holder.
    pub(super) fn is_held_by_all(&self) -> bool {
        self.reservation_type.is_some_and(Type::is_all_registrants)
    }

    /// The number of hosts with `key`.
    pub(super) fn count(&self, key: Key) -> usize {
        self.registrants.iter().filter(|registrant| registrant.key == key).count()
    }

    /// The key that `host` has registered.
    pub(super) fn key_of(&self, host: Host) -> Option<Key> {
        self.registrants.iter().find(|registrant| registrant.host == host).map(|registrant| registrant.key)
    }
}

fn registrant(format: Format, bytes: &[u8]) -> Option<Registrant> {
    let (host_id, controller, key, status): (&[u8], _, _, _) = match format {
        Format::Short => {
            let entry = Entry::ref_from_bytes(bytes).ok()?;
            (&entry.host_id, entry.controller, entry.key, entry.status)
        }
        Format::Extended => {
            let entry = ExtendedEntry::ref_from_bytes(bytes).ok()?;
            (&entry.host_id, entry.controller, entry.key, entry.status)
        }
    };
    let host = Host::named(host_id).unwrap_or(Host::Controller(controller.get()));
    Some(Registrant { host, key: Key(key.get()), is_holder: status & HOLDS != 0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LONG: [u8; 16] = [0xa0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

    fn extended() -> Vec<u8> {
        let mut bytes = vec![0; 64 + 3 * 64];
        bytes[..4].copy_from_slice(&[7, 0, 0, 0]);
        (bytes[4], bytes[5], bytes[9]) = (3, 3, 1);
        for (start, controller, holds, key, host) in
            [(64, 1, 0, 0x11, LONG), (128, 2, 1, 0x11, LONG), (192, 3, 0, 0x22, [9; 16])]
        {
            (bytes[start], bytes[start + 2], bytes[start + 8]) = (controller, holds, key);
            bytes[start + 16..start + 32].copy_from_slice(&host);
        }
        bytes
    }

    fn short() -> Vec<u8> {
        let mut bytes = vec![0; 24 + 2 * 24];
        bytes[..4].copy_from_slice(&[1, 2, 0, 0]);
        (bytes[4], bytes[5]) = (6, 2);
        for (start, controller, key, host) in [(24, 1, 0x11, 5), (48, 2, 0x22, 0)] {
            (bytes[start], bytes[start + 2], bytes[start + 8], bytes[start + 16]) = (controller, 1, host, key);
        }
        bytes
    }

    #[test]
    fn an_extended_report() {
        let bytes = extended();
        assert_eq!(length(Format::Extended, &bytes), Some(256));
        assert!(may_be_extended(&bytes));
        let host = |id, key, is_holder| Registrant { host: Host::Named(id), key: Key(key), is_holder };
        let expected = Report {
            generation: Generation(7),
            reservation_type: Some(Type::WriteExclusiveRegistrantsOnly),
            persistent: true,
            // Two controllers of one host are one registrant.
            registrants: vec![host(LONG, 0x11, true), host([9; 16], 0x22, false)],
        };
        assert_eq!(Report::parse(Format::Extended, &bytes), Some(expected));
    }

    #[test]
    fn a_short_report() {
        let bytes = short();
        assert_eq!(length(Format::Short, &bytes), Some(72));
        assert!(!may_be_extended(&bytes));
        let mut named = [0; 16];
        named[8] = 5;
        let expected = Report {
            generation: Generation(0x201),
            reservation_type: Some(Type::ExclusiveAccessAllRegistrants),
            persistent: false,
            registrants: vec![
                Registrant { host: Host::Named(named), key: Key(0x11), is_holder: true },
                Registrant { host: Host::Controller(2), key: Key(0x22), is_holder: true },
            ],
        };
        assert_eq!(Report::parse(Format::Short, &bytes), Some(expected));
    }

    #[test]
    fn what_is_cut_or_of_no_type_is_not_read() {
        let bytes = extended();
        for cut in 0..bytes.len() {
            assert_eq!(Report::parse(Format::Extended, &bytes[..cut]), None, "{cut}");
        }
        for rtype in 7..=u8::MAX {
            let mut bytes = short();
            bytes[4] = rtype;
            assert_eq!(Report::parse(Format::Short, &bytes), None, "{rtype}");
        }
    }

    #[test]
    fn a_uuid_reads_alike_as_a_port() {
        let text = Host::Named(LONG).transport_id().to_string();
        assert_eq!(text, "SRP port 0xa00102030405060708090a0b0c0d0e0f");
        assert_eq!(Host::named(&[0; 16]), None);
        assert_eq!(Host::named(&[0; 8]), None);
        assert_eq!(Host::named(&[1; 17]), None);
    }

    proptest! {
        #[test]
        fn hosts_that_differ_have_ports_that_differ(a: [u8; 16], b: [u8; 16]) {
            let port = |id: [u8; 16]| Host::named(&id).map(|host| host.transport_id());
            prop_assert_eq!(a == b, port(a) == port(b));
        }

        #[test]
        fn any_bytes_are_a_report_or_none(mut bytes in prop::collection::vec(any::<u8>(), 0..400), few in 0_u8..6) {
            if let Some(entries) = bytes.get_mut(5..7) {
                entries.copy_from_slice(&[few, 0]);
            }
            for format in [Format::Short, Format::Extended] {
                let _ = may_be_extended(&bytes);
                if let Some(report) = Report::parse(format, &bytes) {
                    prop_assert!(report.registrants.len() <= few.into());
                    prop_assert!(length(format, &bytes).unwrap() <= bytes.len());
                }
            }
        }
    }
}
