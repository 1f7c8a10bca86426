//! Persistent reservations in a store that several virtual machines and hosts share.
//!
//! * [`SharedReservations`]: a [`PrManager`](scsi_pr::PrManager) for one initiator over a store.
//! * [`Store`]: one record for each logical unit, changed by compare-and-swap. [`open`] finds the store of an address:
//!   `memory:`, `sqlite:PATH` or `dir:PATH`.
//! * [`execute`]: one command on a unit, for an administrator.
//! * [`Ownership`]: one process, a disk, owns a unit and alone changes its reservations.
//! * [`UnitId`]: the identity of a logical unit. [`Units`] finds it for a descriptor.
//! * [`InitiatorName`]: the identity of a virtual machine.
//! * [`StoreError`]: the error of a store, with its remedy.
//!
//! The store does not see reads and writes, so it blocks none. It answers the commands of the initiators that use it.
#![forbid(unsafe_code)]

mod address;
mod administration;
mod contention;
mod directory;
mod disk_record;
mod entries;
mod error;
mod fifo_file_lock;
mod file_system;
mod initiator;
mod initiators;
mod lock;
mod log;
mod manager;
mod memory;
mod ownership;
mod process;
mod records;
mod sqlite;
mod store;
mod unique;
mod unit;

pub use address::{directory_of, is_address, open, open_existing};
pub use administration::{execute, execute_if};
pub use disk_record::{DiskRecord, Host, Owner};
pub use error::{Fault, StoreError};
pub use file_system::is_on_local_file_system;
pub use initiator::{InitiatorName, InvalidInitiatorName};
pub use manager::SharedReservations;
pub use memory::MemoryStore;
pub use ownership::{Claim, MediumReach, Ownership};
pub use store::{Change, Snapshot, Store, Swap, Version};
pub use unit::{InvalidNaming, Naming, Unidentified, UnitId, Units};

/// Compiles the examples of README.md.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
