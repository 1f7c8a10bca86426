//! Persistent reservations that are kept in a store and shared by everyone who uses it.
//!
//! * [`UnitId`]: which logical unit.
//! * [`StoreError`]: what a store could not do.
//!
//! Shared reservations inform everyone who asks the store. They stop nobody: reads and writes that do not ask are carried
//! out all the same.
#![forbid(unsafe_code)]

mod error;
mod unit;

pub use error::{Fault, StoreError};
pub use unit::{InvalidNaming, UnitId};
