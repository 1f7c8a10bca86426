//! Persistent reservations that are kept in a store and shared by everyone who uses it.
//!
//! * [`SharedReservations`]: a [`PrManager`](scsi_pr::PrManager) for one initiator over a store.
//! * [`Store`]: one record for each logical unit, changed by compare-and-swap. [`open`] finds the store of an address:
//!   `memory:`, `sqlite:PATH` or `dir:PATH`.
//! * [`UnitId`]: which logical unit; [`Units`] tells it of a descriptor.
//! * [`InitiatorName`]: which virtual machine.
//! * [`StoreError`]: what a store could not do.
//!
//! Shared reservations inform everyone who asks the store. They stop nobody: reads and writes that do not ask are carried
//! out all the same.
#![forbid(unsafe_code)]

mod address;
mod contention;
mod directory;
mod entries;
mod error;
mod file_system;
mod initiator;
mod lock;
mod log;
mod manager;
mod memory;
mod order;
mod queue;
mod records;
mod sqlite;
mod store;
mod unique;
mod unit;

pub use address::open;
pub use error::{Fault, StoreError};
pub use initiator::{InitiatorName, InvalidInitiatorName};
pub use manager::SharedReservations;
pub use memory::MemoryStore;
pub use store::{Loaded, POLL_INTERVAL, Store, Swap, Version};
pub use unit::{InvalidNaming, Naming, Unidentified, UnitId, Units};

/// Compiles the examples of README.md.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
