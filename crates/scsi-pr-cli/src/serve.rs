//! `scsi-pr serve`: starts and stops the parts of the server in the order that each needs.

pub(crate) mod settings;

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use scsi_pr_daemon::notify::ServiceManager;
use scsi_pr_daemon::privileges::Privileges;
use scsi_pr_daemon::{limits, reason, signals};
use scsi_pr_helper::{Limits, Server};
use scsi_pr_linux::policy::Counters;
use scsi_pr_store::{InitiatorName, SharedReservations, Units};
use tracing::{info, warn};

use crate::devices::{self, Devices};
use crate::helper_pool::MAX_CONNECTIONS;
use crate::listen::{self, Listener};
use crate::managers::ServerContext;
use crate::options::Serve;
use crate::{activation, log};
use settings::Settings;

/// The time in which commands must end once the server has received a signal to stop.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(60);

/// Serves until a signal ends it, and then answers the commands that still run.
pub(crate) fn run(options: &Serve) -> Result<()> {
    signals::block()?;
    // Before this process opens anything: a service manager passes sockets by their numbers.
    let passed = activation::take()?;
    let stop = signals::stop()?;
    log::start(options.log_level());
    let service_manager = ServiceManager::from_environment();
    let settings = Settings::read(options)?;
    let listeners = listen::open(&settings, passed)?;
    let initiators: HashSet<&InitiatorName> = listeners.iter().map(|listener| &listener.initiator).collect();
    let helper_connections = if settings.pass.is_some() { initiators.len() * MAX_CONNECTIONS } else { 0 };
    // For each socket: the socket, its file, and the directory of the file. A store has a few connections, of several files each.
    let own = (3 * listeners.len() + helper_connections + 32) as u64;
    // For each client: its connection, and two descriptors: the device of its command, and a second one that breaks the
    // protocol.
    let room = limits::raise(3, own);
    // Before the first thread: in Linux capabilities belong to threads.
    Privileges::none().keep_only_these().context("cannot drop privileges")?;
    let store = scsi_pr_store::open(&settings.store)?;
    log_start(&settings, &listeners);

    let counters = Arc::new(Counters::new());
    let units = Units::new(settings.unit.iter().cloned());
    let reservations = SharedReservations::new(store, units, listeners[0].initiator.clone())
        .with_room_for(usize::from(settings.registrants));
    let devices = Devices::new(settings.keep.clone(), settings.pass.is_some());
    let context =
        ServerContext::new(reservations, devices, settings.pass.as_deref(), initiators, Arc::clone(&counters))
            .context("cannot start a thread")?;
    let mut files = Vec::new();
    let sockets = listeners.into_iter().map(|Listener { initiator, socket, file }| {
        files.extend(file);
        (socket, context.manager_for(&initiator))
    });
    let sockets = sockets.collect();
    service_manager.ready();
    let limits = Limits::default();
    let limits = limits.with_connections(limits.connections.min(room));
    let running = Server::new(limits)
        .serve(sockets, stop.as_fd())
        .map_err(|error| anyhow::anyhow!("cannot serve: {}", reason(error)))?;
    // Before the running commands end, so that no client connects to a socket that this process no longer serves.
    drop(files);
    service_manager.stopping();
    let left = running.wait(SHUTDOWN_TIMEOUT);
    if left > 0 {
        warn!("{left} commands still run after {} s, and have no answer", SHUTDOWN_TIMEOUT.as_secs());
    }
    info!("{}", counters.counts());
    Ok(())
}

/// Logs the sockets, the owners of reservations, options without effect, and that reads and writes are not blocked.
fn log_start(settings: &Settings, listeners: &[Listener]) {
    info!("keeping reservations in {}", settings.store);
    for Listener { initiator, file, .. } in listeners {
        match file {
            Some(file) => info!("initiator {initiator} at {}", file.path.display()),
            None => info!("initiator {initiator} at a socket that the service manager passed"),
        }
    }
    match &settings.pass {
        Some(helper) => info!("devices that have reservations of their own go to the helper at {}", helper.display()),
        None => info!("devices that have reservations of their own are refused, unless --keep names them"),
    }
    for naming in &settings.unit {
        if let Some(path) = naming.missing() {
            warn!(
                "--unit names {} as {}, and nothing is there: the unit has another name if it is found by another path",
                path.display(),
                naming.unit()
            );
        }
    }
    for path in settings.keep.iter().filter(|path| !devices::is_device(path)) {
        warn!("--keep names {}, and no device is there: the option has no effect", path.display());
    }
    info!("reservations are advisory here: reads and writes are not blocked");
}
