//! The administrator's commands: they read and change the reservations of units.
//!
//! | module | contents |
//! | --- | --- |
//! | `options` | the command line |
//! | `access` | the ways to a unit: each runs commands, and gives completions |
//! | `read` | readings of a unit, whole and of one moment |
//! | `report`, `text` | readings as values for JSON, and as text |
//! | `show`, `list`, `watch` | the commands that read |
//! | `change`, `evict`, `consent` | the commands that change something |
//! | `check` | whether clusters would work on a unit |
//! | `doctor` | faults of this host |
//! | `failure` | the exit codes, and the lines that explain them |
//! | `causes`, `output` | log lines that explain failures, and standard output |

mod access;
mod causes;
mod change;
mod check;
mod consent;
mod doctor;
mod evict;
pub(crate) mod failure;
mod list;
pub(crate) mod options;
mod output;
mod read;
mod report;
mod show;
mod text;
mod watch;

use std::process::ExitCode;

use clap::CommandFactory;

use failure::{Code, Failure};
use options::AdminTask;

/// The exit code of a wrong command line.
pub(crate) const USAGE: u8 = Code::Usage as u8;

/// Runs one command.
pub(crate) fn run(task: &AdminTask) -> ExitCode {
    let output = task.output();
    causes::start(output.map_or(0, |output| output.verbose));
    let result = match task {
        AdminTask::Show(options) => show::run(options, &show::STATE),
        AdminTask::Keys(options) => show::run(options, &show::KEYS),
        AdminTask::Reservation(options) => show::run(options, &show::RESERVATION),
        AdminTask::Capabilities(options) => show::run(options, &show::CAPABILITIES),
        AdminTask::Status(options) => show::run(options, &show::STATUS),
        AdminTask::Completions { shell } => print_completions(*shell),
        AdminTask::List(options) => list::run(options),
        AdminTask::Watch(options) => watch::run(options),
        AdminTask::Register(options) => change::register(options),
        AdminTask::Unregister(options) => change::unregister(options),
        AdminTask::Reserve(options) => change::reserve(options),
        AdminTask::Release(options) => change::release(options),
        AdminTask::Clear(options) => change::clear(options),
        AdminTask::Preempt(options) => change::preempt(options),
        AdminTask::Move(options) => change::hand_over(options),
        AdminTask::ReplaceLost(options) => change::replace_lost(options),
        AdminTask::Evict(options) => evict::run(options),
        AdminTask::Check(target) => check::run(target),
        AdminTask::Doctor(options) => doctor::run(options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let failure = causes::explain(failure);
            if output.is_some_and(|output| output.json) {
                output::print_json_of(&failure);
            }
            output::report_failure(&failure);
            ExitCode::from(failure.code() as u8)
        }
    }
}

fn print_completions(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut crate::options::Options::command(), "scsi-pr", &mut script);
    output::print(&String::from_utf8_lossy(&script)).map(drop)
}
