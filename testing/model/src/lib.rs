//! A second implementation of the rules of persistent reservations, and random histories to compare others with it.
//!
//! * [`Model`] follows the tables of SPC-4, with plain lists and clones. It shares no types, parsers or layouts with
//!   `scsi_pr`. It works on the bytes of CDBs, parameter lists and returned data. If two implementations share no code and
//!   agree on many thousand histories, the same error in both is unlikely.
//! * [`history`] generates such histories: few initiators with few keys, so that their commands conflict. The generators
//!   are strategies of proptest, which shrinks a failing history.
//!
//! `crates/scsi-pr/tests/histories.rs` compares `scsi_pr::Reservations` with the model. The scenario `histories` of the lab
//! compares a real target with it.
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
