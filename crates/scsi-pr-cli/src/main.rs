//! `scsi-pr`: persistent reservations in a store, for virtual machines and other clients of QEMU's helper protocol.
//!
//! * `scsi-pr disk` serves disks that enforce reservations, over iSCSI.
//! * `scsi-pr serve` keeps reservations in a store, and serves them on a socket for each initiator.
#![forbid(unsafe_code)]

mod activation;
mod devices;
mod disk;
mod helper_pool;
mod listen;
mod log;
mod managers;
#[cfg(test)]
mod manual;
mod options;
mod serve;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

use options::{Options, Task};

fn main() -> ExitCode {
    let result = match Options::parse().task {
        Task::Serve(options) => serve::run(&options),
        Task::Disk(options) => disk::run(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The reader may be gone.
            let _ = writeln!(std::io::stderr(), "scsi-pr: {error:#}");
            ExitCode::FAILURE
        }
    }
}
