//! `scsi-pr serve`: puts the parts in order. The order is that of what must not happen before what.

use std::os::fd::AsFd;
use std::sync::Arc;

use anyhow::{Context, Result};
use rustix::thread::{CapabilitySet, CapabilitySets};
use scsi_pr_daemon::notify::ServiceManager;
use scsi_pr_daemon::{limits, reason, signals};
use scsi_pr_helper::Limits;
use scsi_pr_linux::policy::Counters;
use scsi_pr_store::{SharedReservations, Units};
use tracing::{info, warn};

use crate::devices::{self, Devices};
use crate::listen::{self, Door};
use crate::managers::Common;
use crate::options::Serve;
use crate::{activation, log};

/// Serves until a signal says stop; then until what runs is answered.
pub(crate) fn run(options: &Serve) -> Result<()> {
    signals::block()?;
    // While nothing is open that could be taken for what was passed.
    let passed = activation::take()?;
    let stop = signals::stop()?;
    log::start(options.log_level());
    let service_manager = ServiceManager::from_environment();
    let doors = listen::open(options, passed)?;
    // A client, its command's device, and its connection to the helper.
    let each = if options.pass.is_some() { 3 } else { 2 };
    // A socket, its file, and the directory of that. A store has a few connections, of several files each.
    let own = 3 * doors.len() as u64 + 32;
    let room = limits::raise(each, own);
    // Before the first thread: in Linux capabilities belong to threads.
    drop_privileges().context("cannot drop privileges")?;
    let store = scsi_pr_store::open(&options.store)?;
    tell(options, &doors);

    let counters = Arc::new(Counters::new());
    let units = Units::new(options.unit.iter().cloned());
    let common = Common {
        kept: SharedReservations::new(store, units, doors[0].initiator.clone())
            .with_room_for(usize::from(options.registrants)),
        devices: Arc::new(Devices::new(options.keep.clone(), options.pass.is_some())),
        pass: options.pass.clone(),
        counters: Arc::clone(&counters),
    };
    let mut files = Vec::new();
    let sockets = doors.into_iter().map(|Door { initiator, listener, file }| {
        files.extend(file);
        (listener, common.manager_for(&initiator))
    });
    let sockets = sockets.collect();
    service_manager.ready();
    let mut limits = Limits::default();
    limits.connections = limits.connections.min(room);
    let running = scsi_pr_helper::serve_all(sockets, limits, stop.as_fd())
        .map_err(|error| anyhow::anyhow!("cannot serve: {}", reason(error)))?;
    // Nobody is to come to a socket that nobody listens on while commands still run.
    drop(files);
    service_manager.stopping();
    running.wait();
    info!("{}", counters.counts());
    Ok(())
}

/// Gives up every capability, for good. What is left is what the user may do: there is nothing here that takes more.
fn drop_privileges() -> rustix::io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    let empty = CapabilitySet::empty();
    let none = CapabilitySets { effective: empty, permitted: empty, inheritable: empty };
    // A sandbox may forbid the call even to who has nothing to give up.
    if rustix::thread::capabilities(None)? == none { Ok(()) } else { rustix::thread::set_capabilities(None, none) }
}

/// Says what is served, and what that does not mean.
fn tell(options: &Serve, doors: &[Door]) {
    info!("keeping reservations in {}", options.store);
    for Door { initiator, file, .. } in doors {
        match file {
            Some(file) => info!("initiator {initiator} at {}", file.path.display()),
            None => info!("initiator {initiator} at a socket that was passed"),
        }
    }
    match &options.pass {
        Some(helper) => info!("devices that have reservations of their own go to the helper at {}", helper.display()),
        None => info!("devices that have reservations of their own are refused, unless --keep names them"),
    }
    for naming in &options.unit {
        if let Some(path) = naming.missing() {
            warn!(
                "nothing is at {}, which is to be called {}: a unit that is found by another path is not called so",
                path.display(),
                naming.unit()
            );
        }
    }
    for path in options.keep.iter().filter(|path| !devices::is_device(path)) {
        warn!("no device is at {}: what is to be kept there is not", path.display());
    }
    info!(
        "whoever asks here is told who may write; nobody is kept from writing: reads and writes do not come this way"
    );
}
