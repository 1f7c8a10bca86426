//! A SCSI disk (SBC-4) that enforces persistent reservations, for storage that has none.
//!
//! * [`Disk`]: the device server of one logical unit: any CDB in; status, sense data and data out.
//! * [`Medium`]: stores the blocks. [`ReservationStore`]: makes reservations durable.
//! * [`Target`]: the logical units behind one target, by number.
//!
//! The crate does no I/O. A transport (iSCSI) calls [`Target`] or [`Disk`] from as many threads as it likes.
#![forbid(unsafe_code)]

mod administration;
mod blocks;
mod call;
mod commands;
mod condition;
mod data;
mod disk;
mod gate;
mod geometry;
mod identity;
mod inquiry;
mod medium;
mod mode;
mod range_lock;
mod report;
pub mod sense_code;
mod store;
mod target;

pub use call::Port;
pub use condition::{ChangeCondition, UnmetCondition};
pub use data::DataIn;
pub use disk::{Disk, DiskOptions, OpenError, Response, TaskManagement};
pub use gate::{SessionId, Task};
pub use geometry::MAX_TRANSFER;
pub use identity::{Identity, InvalidIdentity};
pub use medium::{Allocation, Durability, Extent, Medium, MediumError};
pub use store::{ReservationStore, StoreError};
pub use target::{Lun, Target, TargetSession, TargetTask};
