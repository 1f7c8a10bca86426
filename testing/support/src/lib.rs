//! Support for the tests of the workspace.
//!
//! * [`Launcher`] and [`Program`]: how a program is started; the process, which never outlives its test.
//! * [`Process`]: facts from `/proc` about a process.
//! * [`Client`]: a connection that speaks QEMU's helper protocol as bytes.
//! * [`Initiator`]: a connection that speaks iSCSI as bytes.
//! * [`command`]: commands and parameter lists as bytes.
//! * [`iscsi`]: an initiator for loads: it keeps commands in flight, and returns errors.
//! * [`LibiscsiSuite`]: a conformance suite for iSCSI targets.
//! * [`Recorder`]: a `tracing` subscriber that records events.
//! * [`SysfsTree`] and [`device_identification`]: a directory laid out as sysfs is, and a page of a disk.
//! * [`eventually`]: a wait with a deadline.
//! * [`require_root!`] and [`skip!`]: the reason why a test does not run here.
//!
//! This crate uses no other crate of the workspace. A test that uses it does not repeat an error of the product.
#![forbid(unsafe_code)]

pub mod client;
pub mod command;
pub mod initiator;
pub mod iscsi;
mod launcher;
mod libiscsi;
mod process;
mod recorder;
mod skip;
mod sysfs_tree;
mod wait;

pub use client::{Client, Response};
pub use initiator::Initiator;
pub use launcher::{Launcher, Output, Program};
pub use libiscsi::LibiscsiSuite;
pub use process::Process;
pub use recorder::{RecordedEvent, Recorder};
pub use skip::is_root;
pub use sysfs_tree::{Designator, SysfsTree, device_identification};
pub use wait::{DEADLINE, eventually, holds_for};

use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;

use tempfile::TempDir;

/// A directory that every user may search, for a program that gives up its privileges.
pub fn directory() -> TempDir {
    tempfile::Builder::new().permissions(Permissions::from_mode(0o755)).tempdir().expect("a temporary directory")
}

/// `/dev/null`, open for reading and writing. Every ioctl(2) on it fails with ENOTTY.
pub fn null() -> File {
    File::options().read(true).write(true).open("/dev/null").expect("/dev/null")
}
