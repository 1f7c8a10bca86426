//! `qemu-pr-helper`: runs SCSI persistent reservation commands for virtual machines, which may not run them themselves.
//!
//! A drop-in replacement of QEMU's helper of that name. This file only puts the parts in order, and the order matters:
//! signals are kept from the first moment, the pid file's lock comes before anything is touched, and privileges are
//! dropped before the first thread, because in Linux they belong to threads.
#![forbid(unsafe_code)]

mod activation;
mod background;
mod help;
mod identity;
mod link;
mod managers;
mod message;
mod monitor;
mod number;
mod options;
mod pidfile;
mod privileges;
mod trace;
mod worker;
mod workers;

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;

use background::Launcher;
use message::{Message, Result, reason};
use monitor::Kept;
use options::{Options, Request};
use pidfile::PidFile;
use rustix::thread::CapabilitySet;
use scsi_pr_daemon::notify::ServiceManager;
use scsi_pr_daemon::socket::{self, Access};
use scsi_pr_daemon::{limits, signals};
use scsi_pr_linux::policy::Counters;

fn main() -> ExitCode {
    let result = if monitor::is_wanted() {
        monitor::run().map(|()| ExitCode::SUCCESS)
    } else if worker::is_wanted() {
        worker::run().map(|()| ExitCode::SUCCESS)
    } else {
        run()
    };
    result.unwrap_or_else(|message| {
        message.print();
        ExitCode::FAILURE
    })
}

fn run() -> Result<ExitCode> {
    signals::block()?;
    let launched = background::was_launched();
    // The launcher has said what there is to warn of.
    let mut warn = |warning: Message| {
        if !launched {
            warning.print()
        }
    };
    let options = match options::parse(std::env::args_os().skip(1), &mut warn)? {
        Request::Run(options) => *options,
        Request::Print(text) => {
            let _ = std::io::stdout().lock().write_all(text.as_bytes());
            return Ok(ExitCode::SUCCESS);
        }
    };
    if options.daemon && launched {
        let (launcher, listener) = Launcher::of_this_process()?;
        return serve(&options, Some(launcher), listener);
    }
    // While nothing is open that could be taken for what was passed.
    let listener = activation::take(options.given_socket().is_some())?;
    if options.daemon { background::launch(listener) } else { serve(&options, None, listener) }
}

/// Starts, serves, and ends. The order is that of what must not happen before what.
fn serve(options: &Options, launcher: Option<Launcher>, activated: Option<OwnedFd>) -> Result<ExitCode> {
    let stop = signals::stop()?;
    let log = trace::start(options.log_level(), &options.trace)?;
    let mut pid_file = options.pid_file().map(|path| PidFile::lock(&path)).transpose()?;
    let (listener, mut kept) = match activated {
        Some(listener) => (listener, Kept::new(None)),
        None => {
            let (listener, file) = socket::listen(options.socket(), Access::Umask)?;
            (listener, Kept::new(Some((options.socket().to_owned(), file))))
        }
    };
    if let Some(launcher) = &launcher {
        launcher.leave()?;
    }
    if let Some(pid_file) = &mut pid_file {
        pid_file.write()?;
    }
    kept.start_monitor();
    // A client, and the device of its command.
    let room = limits::raise(2, 0);
    let service_manager = ServiceManager::from_environment();
    privileges::drop_to(privileges::SG_IO, CapabilitySet::empty(), options.user, options.group)
        .map_err(|error| Message::new(format!("Failed to drop privileges: {}", reason(error))))?;
    if let Some(launcher) = launcher {
        launcher.ready(&log)?;
    }
    service_manager.ready();

    let mut limits = options.limits();
    limits.connections = limits.connections.min(room);
    let counters = Arc::new(Counters::new());
    let manager_for = managers::manager_for(options.manager, Arc::clone(&counters), kept.link());
    let running = scsi_pr_helper::serve(listener, manager_for, limits, stop.as_fd())
        .map_err(|error| Message::new(format!("Failed to serve: {}", reason(error))))?;
    // Nobody is to come to a socket that nobody listens on while commands still run, for minutes perhaps.
    kept.remove_socket();
    service_manager.stopping();
    running.wait();
    tracing::info!("{}", counters.counts());
    Ok(ExitCode::SUCCESS)
}
