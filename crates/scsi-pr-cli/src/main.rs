//! `scsi-pr`: persistent reservations of this project's own, for virtual machines and whoever else speaks the protocol of
//! QEMU's helper.
//!
//! * `scsi-pr serve` keeps reservations in a store and serves them on a socket for each initiator.
#![forbid(unsafe_code)]

mod activation;
mod devices;
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
    let Options { task: Task::Serve(options) } = Options::parse();
    match serve::run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody may be reading there any more.
            let _ = writeln!(std::io::stderr(), "scsi-pr: {error:#}");
            ExitCode::FAILURE
        }
    }
}
