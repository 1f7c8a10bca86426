//! A map from [`Nexus`] that keeps the order in which entries came: found, added and removed in constant or logarithmic
//! time.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

use super::Nexus;

/// Values by nexus, in the order in which the nexuses were added.
#[derive(Clone)]
pub(super) struct ByNexus<V> {
    entries: BTreeMap<u64, (Nexus, V)>,
    numbers: HashMap<Nexus, u64, BuildHasherDefault<AsIs>>,
    next: u64,
    /// Of all entries together, so that READ FULL STATUS knows its length without visiting them.
    transport_id_bytes: usize,
}

/// A nexus brings its hash with it.
#[derive(Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("a nexus hashes as one number");
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

impl<V> ByNexus<V> {
    pub(super) fn new() -> Self {
        Self { entries: BTreeMap::new(), numbers: HashMap::default(), next: 0, transport_id_bytes: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.numbers.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    /// The length of the TransportIDs of all entries together.
    pub(super) fn transport_id_bytes(&self) -> usize {
        self.transport_id_bytes
    }

    pub(super) fn contains(&self, nexus: &Nexus) -> bool {
        self.numbers.contains_key(nexus)
    }

    pub(super) fn get(&self, nexus: &Nexus) -> Option<&V> {
        let number = self.numbers.get(nexus)?;
        self.entries.get(number).map(|(_, value)| value)
    }

    pub(super) fn get_mut(&mut self, nexus: &Nexus) -> Option<&mut V> {
        let number = self.numbers.get(nexus)?;
        self.entries.get_mut(number).map(|(_, value)| value)
    }

    /// Sets the value of `nexus`, which keeps its place or gets the last; what it was.
    pub(super) fn insert(&mut self, nexus: Nexus, value: V) -> Option<V> {
        if let Some(old) = self.get_mut(&nexus) {
            return Some(std::mem::replace(old, value));
        }
        self.transport_id_bytes += nexus.initiator().bytes().len();
        self.numbers.insert(nexus.clone(), self.next);
        self.entries.insert(self.next, (nexus, value));
        self.next += 1;
        None
    }

    pub(super) fn remove(&mut self, nexus: &Nexus) -> Option<V> {
        let number = self.numbers.remove(nexus)?;
        let (nexus, value) = self.entries.remove(&number)?;
        self.transport_id_bytes -= nexus.initiator().bytes().len();
        Some(value)
    }

    pub(super) fn pop_first(&mut self) -> Option<(Nexus, V)> {
        let (_, (nexus, value)) = self.entries.pop_first()?;
        self.numbers.remove(&nexus);
        self.transport_id_bytes -= nexus.initiator().bytes().len();
        Some((nexus, value))
    }

    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = (&Nexus, &V)> {
        self.entries.values().map(|(nexus, value)| (nexus, value))
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.entries.values_mut().map(|(_, value)| value)
    }
}
