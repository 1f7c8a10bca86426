//! `qemu-pr-helper`: runs SCSI persistent reservation commands for virtual machines, which may not run them themselves.
//!
//! A drop-in replacement of QEMU's helper of that name. This file only puts the parts in order, and the order matters:
//! signals are blocked from the first moment, the pid file's lock comes before anything is touched, and privileges are
//! dropped before the first thread, because in Linux they belong to threads.
#![forbid(unsafe_code)]

mod activation;
mod background;
mod help;
mod identity;
mod managers;
mod message;
mod metrics;
mod monitor;
mod monitor_channel;
mod number;
mod options;
mod pidfile;
mod trace;
mod worker;
mod workers;

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use background::Launcher;
use message::{Message, Result, reason};
use metrics::Metrics;
use monitor::SocketGuard;
use options::{Options, Request};
use pidfile::PidFile;
use scsi_pr_daemon::notify::ServiceManager;
use scsi_pr_daemon::privileges::{Capability, Privileges};
use scsi_pr_daemon::sandbox::Sandbox;
use scsi_pr_daemon::socket::{self, Access};
use scsi_pr_daemon::{limits, signals};
use scsi_pr_helper::{Server, ServerCounters};
use scsi_pr_linux::policy::Counters;
use workers::Pool;

/// The time in which commands must end once the helper has received a signal to stop.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(60);

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
    // The launcher has printed the warnings.
    let mut warn = |warning: Message| {
        if !launched {
            warning.print()
        }
    };
    let options = match options::parse(std::env::args_os().skip(1), &mut warn)? {
        Request::Run(options) => *options,
        Request::Help => return Ok(print(&help::help())),
        Request::Version => return Ok(print(&help::version())),
        Request::TraceEvents => return Ok(print(&trace::list())),
    };
    if options.daemon && launched {
        let (launcher, listener) = Launcher::of_this_process()?;
        return serve(&options, Some(launcher), listener);
    }
    // Before anything is opened that could be taken for a passed descriptor.
    let listener = activation::take(options.given_socket().is_some())?;
    if options.daemon { background::launch(listener) } else { serve(&options, None, listener) }
}

fn print(text: &str) -> ExitCode {
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

/// Starts, serves, and ends.
fn serve(options: &Options, launcher: Option<Launcher>, activated: Option<OwnedFd>) -> Result<ExitCode> {
    let stop = signals::stop()?;
    let log = trace::start(options.log_level(), &options.trace)?;
    let mut pid_file = options.pid_file().map(|path| PidFile::lock(&path)).transpose()?;
    let mut socket_guard = SocketGuard::default();
    let mut listen = |path: &Path, access| -> Result<OwnedFd> {
        let (listener, file) = socket::listen(path, access)?;
        socket_guard.add(path.to_owned(), file);
        Ok(listener)
    };
    let listener = match activated {
        Some(listener) => listener,
        None => listen(options.socket(), Access::Umask)?,
    };
    let metrics_listener = options.metrics.as_deref().map(|path| listen(path, metrics::ACCESS)).transpose()?;
    if let Some(launcher) = &launcher {
        launcher.leave()?;
    }
    if let Some(pid_file) = &mut pid_file {
        pid_file.write()?;
    }
    socket_guard.start_monitor();
    // A connection, and two descriptors: the device of its command, and a second one that breaks the protocol.
    let room = limits::raise(3, 0);
    let service_manager = ServiceManager::from_environment();
    // SG_IO takes this capability for commands that the kernel does not permit to everyone, such as these.
    let privileges = Privileges::none().with([Capability::SysRawIo]);
    let (user, group) = identity::to_run_as(options.user, options.group);
    privileges
        .user(user)
        .group(group)
        .keep_only_these()
        .map_err(|error| Message::new(format!("Failed to drop privileges: {}", reason(error))))?;
    if let Some(launcher) = launcher {
        launcher.ready(&log)?;
    }
    if options.sandbox {
        // Without a monitor this process removes the files of the sockets itself.
        let directories = socket_guard.own_directories();
        let sandbox = Sandbox::new().permit_removing_from(&directories);
        sandbox.enter().iter().for_each(|missing| tracing::warn!("{missing}"));
    }
    service_manager.ready();

    let mut limits = options.limits();
    limits.connections = limits.connections.min(room);
    let pool = Arc::new(Pool::new(socket_guard.channel()));
    let mut server = Server::new(limits);
    let counters = match metrics_listener {
        None => Arc::new(Counters::new()),
        Some(listener) => {
            let counters = Arc::new(Counters::with_metrics());
            let connections = Arc::new(ServerCounters::default());
            server = server.with_counters(Arc::clone(&connections));
            metrics::serve(listener, Metrics::new(Arc::clone(&counters), connections, Arc::clone(&pool)))?;
            counters
        }
    };
    let manager_for = managers::manager_for(options.manager, options.deny, Arc::clone(&counters), &pool);
    let allowed = options.allowed_peers();
    if !allowed.is_everyone() {
        server = server.with_admission(move |socket| allowed.permit(socket).unwrap_or(false));
    }
    let running = server
        .serve(vec![(listener, manager_for)], stop.as_fd())
        .map_err(|error| Message::new(format!("Failed to serve: {}", reason(error))))?;
    // Commands may run for minutes from here on, and clients must not find a socket that does not accept.
    socket_guard.remove_sockets();
    service_manager.stopping();
    let left = running.wait(SHUTDOWN_TIMEOUT);
    if left > 0 {
        tracing::warn!("{left} commands still run after {} s, and have no answer", SHUTDOWN_TIMEOUT.as_secs());
    }
    tracing::info!("{}", counters.counts());
    Ok(ExitCode::SUCCESS)
}
