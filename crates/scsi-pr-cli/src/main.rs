//! `scsi-pr`: persistent reservations for virtual machines and for their administrators.
//!
//! * `scsi-pr show` and its like read and change the reservations of a unit.
//! * `scsi-pr disk` serves disks that enforce reservations, over iSCSI.
//! * `scsi-pr serve` keeps reservations in a store, and serves them on a socket for each initiator.
#![forbid(unsafe_code)]

mod activation;
mod admin;
mod devices;
mod disk;
mod error_text;
mod helper_pool;
mod listen;
mod log;
mod managers;
#[cfg(test)]
mod manual;
mod options;
mod serve;
mod toml_file;

use std::io::Write;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};

use options::{Options, Task};

fn main() -> ExitCode {
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(error) => return usage(&error),
    };
    let result = match options.task {
        Task::Serve(options) => serve::run(&options),
        Task::Disk(options) => disk::run(&options),
        Task::Admin(task) => return admin::run(&task),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The reader may be gone.
            let _ = writeln!(std::io::stderr(), "scsi-pr: {}", error_text::with_causes(&error));
            ExitCode::FAILURE
        }
    }
}

/// Prints the help, or in one line what is wrong with the command line.
fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        // The reader may be gone.
        let _ = error.print();
        return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
    }
    let subcommand = std::env::args().nth(1).filter(|name| Options::command().find_subcommand(name).is_some());
    let program = subcommand.map_or_else(|| "scsi-pr".to_owned(), |name| format!("scsi-pr {name}"));
    let _ = writeln!(std::io::stderr(), "scsi-pr: {}; see \"{program} --help\"", one_line(&error.render().to_string()));
    ExitCode::from(admin::USAGE)
}

/// The text of clap without its usage and its reference to the help, on one line.
fn one_line(text: &str) -> String {
    let text = text.strip_prefix("error: ").unwrap_or(text);
    let is_reason = |part: &&str| !part.starts_with("Usage:") && !part.starts_with("For more information");
    let parts = text.split("\n\n").filter(is_reason).flat_map(str::lines).map(str::trim);
    scsi_pr_daemon::log::escape(&parts.filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" "))
}
