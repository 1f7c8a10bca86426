//! QEMU's persistent reservation helper protocol, both ends.
//!
//! * [`wire`]: the bytes, as state machines that are fed and never read or write themselves.
//! * [`descriptor`]: bytes with one passed descriptor, over a Unix stream socket.
//! * [`client`]: [`HelperClient`], a manager that sends its commands to a helper.
//! * [`server`]: [`serve`], which is a helper for any manager; [`Server`] is it on several sockets, [`serve_one`] for
//!   a single command.
//!
//! The protocol is described in QEMU's `docs/interop/pr-helper.rst`; where the C helper does something else, this crate
//! does what the C helper does.
#![forbid(unsafe_code)]

pub mod client;
mod deadline;
pub mod descriptor;
pub mod server;
pub mod wire;

pub use client::HelperClient;
pub use server::{Draining, Limits, Peer, Served, Server, ServerCounters, serve, serve_one};
pub use wire::MAX_TRANSFER;

/// Compiles the examples of README.md.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
