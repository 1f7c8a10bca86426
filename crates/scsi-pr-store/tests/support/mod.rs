//! Changes that can be counted.
#![allow(dead_code, reason = "each test uses some of it")]

use scsi_pr::{InitiatorPort, Key, Nexus, Reservations, ReserveOut, TransportId};
use scsi_pr_store::{Store, StoreError, UnitId};

/// One initiator.
pub(crate) fn nexus(address: u64) -> Nexus {
    Nexus::new(TransportId::new(InitiatorPort::Sas { address }).expect("a valid address"), 1)
}

/// Registers `nexus` anew. PRGENERATION counts it in any case.
pub(crate) fn register(reservations: &mut Reservations, nexus: &Nexus) -> bool {
    let command = ReserveOut::RegisterAndIgnoreExistingKey {
        service_action_key: Key(u64::from(reservations.generation().0) + 1),
        all_tg_pt: false,
        aptpl: true,
    };
    reservations.reserve_out(nexus, &command).changed
}

/// One change of a unit, by way of the store.
pub(crate) fn change(store: &dyn Store, unit: &UnitId) -> Result<(), StoreError> {
    store.update(unit, &mut |reservations, _| register(reservations, &nexus(1)))
}

/// How many changes there were.
pub(crate) fn changes(store: &dyn Store, unit: &UnitId) -> u32 {
    store.load(unit).expect("what is kept").reservations.generation().0
}

/// A unit of this name.
pub(crate) fn unit(name: &str) -> UnitId {
    UnitId::named(name).expect("a valid name")
}
