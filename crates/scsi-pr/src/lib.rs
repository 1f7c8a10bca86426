//! SCSI persistent reservations: the words of the standard, without any I/O.
//!
//! * [`Command`]: a checked PERSISTENT RESERVE IN or OUT, or QEMU's private CLEANUP, byte for byte as the guest sent it.
//! * [`Completion`]: what the logical unit answered, with [`Status`] and [`Sense`].
//! * [`ReserveIn`], [`ReserveOut`]: what a command means; with [`Keys`], [`Reservation`], [`Capabilities`] and
//!   [`FullStatus`], the data that come back. Both are read and written.
//! * [`Key`], [`Type`], [`TransportId`] …: the words of which these are made.
//! * [`Reservations`]: the rules, as a value: what a unit answers to the commands of each [`Nexus`], and whose reads and
//!   writes it permits.
//! * [`PrManager`]: runs commands for one initiator. Everything that runs reservations implements it.
//!
//! The layouts are those of SPC-4 (T10/BSR INCITS 513); each item names its clause.
#![forbid(unsafe_code)]

mod command;
mod completion;
mod key;
mod manager;
mod reservation_type;
mod reservations;
mod reserve_in;
mod reserve_out;
mod sense;
mod text;
mod transport_id;

pub use command::{Cdb, Command, CommandBuf, InvalidCommand, MAX_TRANSFER, Opcode};
pub use completion::{Completion, Status};
pub use key::{Generation, InvalidKey, Key};
pub use manager::{Error, PrManager};
pub use reservation_type::{ScopeType, Type};
pub use reservations::{Access, InvalidRecord, Nexus, Outcome, Registrant, Reservations, Reserved};
pub use reserve_in::{
    AllowCommands, Capabilities, FullStatus, FullStatusDescriptor, Held, InvalidData, Keys, Parsed, Reservation,
    ReserveIn, ReserveInAction, TypeMask,
};
pub use reserve_out::{ReserveOut, ReserveOutAction};
pub use sense::{Sense, SenseCode, SenseKey};
pub use transport_id::{InitiatorPort, InvalidTransportId, TransportId};

/// Compiles the examples of README.md.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
