//! [`Nexus`]: the initiator port of a command, and its target port.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::{Arc, LazyLock};

use crate::{InitiatorPort, TransportId};

/// Guests choose TransportIDs. They do not know the hash key of this process, so they cannot make many hashes equal.
static HASHES: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// An I_T nexus: an initiator port and the target port that it uses (SAM-5 4.8.4).
///
/// Equal by what the TransportID names and by the target port. Cheap to clone; its hash is computed when it is made.
#[derive(Clone)]
pub struct Nexus {
    hash: u64,
    ports: Arc<Ports>,
}

struct Ports {
    /// As [`TransportId::new`] makes it, so that the bytes are equal when the ports are.
    initiator: TransportId,
    relative_target_port: u16,
}

impl Nexus {
    /// The nexus of `initiator` and the target port with this RELATIVE TARGET PORT IDENTIFIER.
    ///
    /// `initiator` should name a port: one of iSCSI should have an ISID, for parameter lists cannot name the other kind.
    /// Only the name in the TransportID counts: reserved bytes become zero, padding becomes as short as possible, and an ISID
    /// becomes lower case.
    ///
    /// A device server that knows iSCSI initiators by their names alone makes all their nexuses with the ISID zero. A parameter
    /// list that comes from such a nexus names an initiator by any ISID.
    pub fn new(initiator: TransportId, relative_target_port: u16) -> Self {
        let initiator = TransportId::new(initiator.port()).expect("what was read is well-formed");
        let hash = HASHES.hash_one((initiator.bytes(), relative_target_port));
        Self { hash, ports: Arc::new(Ports { initiator, relative_target_port }) }
    }

    /// The initiator port.
    pub fn initiator(&self) -> &TransportId {
        &self.ports.initiator
    }

    /// RELATIVE TARGET PORT IDENTIFIER of the target port.
    pub fn relative_target_port(&self) -> u16 {
        self.ports.relative_target_port
    }

    pub(super) fn has_isid_zero(&self) -> bool {
        matches!(self.initiator().port(), InitiatorPort::Iscsi { isid: Some([0, 0, 0, 0, 0, 0]), .. })
    }

    /// Whether both are of the same initiator port.
    pub(super) fn is_same_initiator(&self, other: &Self) -> bool {
        self.initiator().bytes() == other.initiator().bytes()
    }

    /// The nexus of the same initiator port with another target port.
    pub(super) fn at(&self, relative_target_port: u16) -> Self {
        match self.relative_target_port() == relative_target_port {
            true => self.clone(),
            false => Self::new(self.initiator().clone(), relative_target_port),
        }
    }
}

impl PartialEq for Nexus {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash
            && (Arc::ptr_eq(&self.ports, &other.ports)
                || self.relative_target_port() == other.relative_target_port() && self.is_same_initiator(other))
    }
}

impl Eq for Nexus {}

impl Hash for Nexus {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl PartialOrd for Nexus {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Nexus {
    fn cmp(&self, other: &Self) -> Ordering {
        let key = |nexus: &Self| nexus.relative_target_port();
        self.initiator().cmp(other.initiator()).then_with(|| key(self).cmp(&key(other)))
    }
}

impl fmt::Display for Nexus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on target port {}", self.initiator(), self.relative_target_port())
    }
}

impl fmt::Debug for Nexus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Nexus({self})")
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::transport_id::tests::transport_ids;
    use proptest::prelude::*;

    /// Any nexus.
    pub(crate) fn nexuses() -> impl Strategy<Value = Nexus> {
        (transport_ids(), any::<u16>()).prop_map(|(id, port)| Nexus::new(id, port))
    }

    #[test]
    fn what_names_the_same_ports_is_the_same_nexus() {
        let port = InitiatorPort::Iscsi { name: "n", isid: Some([0xab; 6]) };
        let id = TransportId::new(port).unwrap();
        let upper = TransportId::from_bytes(b"\x45\0\0\x1cn,i,0xABABABABABAB\0\0\0\0\0\0\0\0\0\0").unwrap();
        assert_ne!(upper.bytes(), id.bytes());
        let (a, b) = (Nexus::new(id.clone(), 1), Nexus::new(upper, 1));
        assert_eq!(a, b);
        assert_eq!(a.initiator().bytes(), b.initiator().bytes());
        assert_eq!(HASHES.hash_one(&a), HASHES.hash_one(&b));
        assert_ne!(a, Nexus::new(id, 2));
        assert_eq!(a.to_string(), "n,i,0xabababababab on target port 1");
    }

    proptest! {
        #[test]
        fn equality_hash_and_order_are_by_the_ports(a in nexuses(), b in nexuses()) {
            let same = a.initiator() == b.initiator() && a.relative_target_port() == b.relative_target_port();
            prop_assert_eq!(a == b, same);
            prop_assert_eq!(a.cmp(&b) == Ordering::Equal, same);
            let again = Nexus::new(a.initiator().clone(), a.relative_target_port());
            prop_assert_eq!(&again, &a);
            prop_assert_eq!(HASHES.hash_one(&again), HASHES.hash_one(&a));
            prop_assert_eq!(a.at(b.relative_target_port()).at(a.relative_target_port()), a);
        }
    }
}
