//! The rules of persistent reservations a second time, and random histories to hold others against them.
//!
//! * [`Model`] is written straight from the tables of SPC-4, with plain lists and clones, and knows nothing of
//!   `scsi_pr`: not its types, not its parsers, not its layouts. It works on the bytes of CDBs, parameter lists and
//!   returned data. Two pieces of code that share nothing and agree on many thousand histories are hardly both wrong in
//!   the same way.
//! * [`history`] makes such histories: few initiators with few keys who get in each other's way. They are strategies of
//!   proptest, so that what fails is made small.
//!
//! `tests/histories.rs` compares `scsi_pr::Reservations` with it; the scenario `histories` of the lab does the same
//! with a real target.
#![forbid(unsafe_code)]

pub mod access;
mod events;
pub mod history;
mod list;
mod model;
mod ways;

pub use list::{transport_id, transport_ids};
pub use model::{Answer, Done, Holding, Model, Nexus, Registrant};
pub use ways::{WAYS, Way};
