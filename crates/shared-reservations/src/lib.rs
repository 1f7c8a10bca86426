//! Persistent reservations that are kept in a store and shared by everyone who uses it.
//!
//! * [`SharedReservations`]: a [`PrManager`](scsi_pr::PrManager) for one initiator over a store.
//! * [`Store`]: one record for each logical unit, changed by compare-and-swap.
//! * [`UnitId`]: which logical unit; [`Units`] tells it of a descriptor.
//! * [`InitiatorName`]: which virtual machine.
//! * [`StoreError`]: what a store could not do.
//!
//! Shared reservations inform everyone who asks the store. They stop nobody: reads and writes that do not ask are carried
//! out all the same.
#![forbid(unsafe_code)]

mod contention;
mod error;
mod initiator;
mod lock;
mod log;
mod manager;
mod memory;
mod store;
mod unit;

pub use error::{Fault, StoreError};
pub use initiator::{InitiatorName, InvalidInitiatorName};
pub use manager::SharedReservations;
pub use memory::MemoryStore;
pub use store::{Loaded, POLL_INTERVAL, Store, Swap, Version};
pub use unit::{InvalidNaming, Naming, Unidentified, UnitId, Units};
