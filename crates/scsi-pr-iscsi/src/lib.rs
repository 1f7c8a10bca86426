//! The target side of iSCSI (RFC 7143) for the units of `scsi-pr-disk`.
//!
//! The protocol is in state machines without I/O: [`pdu`], [`text`], [`chap`], [`login`], [`session`] (requests) and
//! [`reply`] (answers). [`Server`] drives them over TCP: a thread for each connection, and a pool for commands that may
//! block.
//!
//! Error recovery level 0, one connection for each session. The I_T nexus is the initiator's *name* and the target port:
//! the ISID does not enter it, so that registrations survive a new session (`docs/reference/standard.md`).
#![forbid(unsafe_code)]

pub mod chap;
pub mod directory;
pub mod login;
pub mod memory;
pub mod pdu;
pub mod reply;
pub mod session;
pub mod text;

mod connection;
mod disconnect;
mod pool;
mod server;
mod server_options;
mod shared;
mod writer;

pub use server::{Portal, Server};
pub use server_options::ServerOptions;
