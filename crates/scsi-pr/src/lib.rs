//! SCSI persistent reservations as the standard has them, without any I/O.
//!
//! * [`Command`]: a checked PERSISTENT RESERVE IN or OUT, or QEMU's private CLEANUP, byte for byte as the guest sent it.
//! * [`Completion`]: the answer of the logical unit, with [`Status`] and [`Sense`].
//! * [`ReserveIn`], [`ReserveOut`]: the meaning of a command. [`Keys`], [`Reservation`], [`Capabilities`] and [`FullStatus`]: the
//!   returned data. All are parsed and encoded.
//! * [`Key`], [`Type`], [`TransportId`] …: the fields of these.
//! * [`Reservations`]: the rules as a value. It answers the commands of each [`Nexus`], and decides which reads and writes the
//!   unit permits.
//! * [`PrManager`]: the trait of everything that runs reservation commands for one initiator.
//!
//! `examples/target.rs` is a disk that enforces reservations.
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

pub use command::{Cdb, Command, CommandBuf, InvalidCommand, Opcode};
pub use completion::{Completion, Status};
pub use key::{Generation, InvalidKey, Key};
#[cfg(unix)]
pub use manager::PrManager;
pub use manager::{Error, ErrorKind};
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
