//! A worker: a process of the same binary that the monitor starts as root for one command, or to recover the map of a worker
//! that died. Its standard error is a pipe to the helper, which logs the lines.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use nix::sys::signal::SigSet;
use scsi_pr::PrManager;
use scsi_pr_helper::{Served, serve_one};
use scsi_pr_linux::policy::RefuseReadOnly;
use scsi_pr_linux::{BlockIoctl, Multipath, Nvme, multipath};

use crate::message::{Message, Result, invoked_as, reason};
use crate::monitor_channel::WorkerKind;
use crate::trace;

/// The worker's first argument, by which this binary knows that it is one. The others are a [`WorkerKind`] or
/// [`RECOVER`], the device number, and the UUID of the map.
pub(crate) const NAME: &str = "qemu-pr-helper-worker";

/// In place of a kind: the worker recovers a map.
pub(crate) const RECOVER: &str = "recover";

/// Whether this process was started to be a worker.
pub(crate) fn is_wanted() -> bool {
    invoked_as() == NAME
}

/// Runs one command. From the exit code the monitor sees whether there is anything to recover.
pub(crate) fn run() -> Result<()> {
    // A command is never interrupted: its map may be suspended, or be between two registrations.
    let _ = SigSet::all().thread_block();
    let _ = rustix::thread::set_name(c"qemu-pr-worker");
    trace::start_in_worker(NAME);
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [kind, device, uuid] = &arguments[..] else {
        return Err(Message::new("this program is for the monitor to start"));
    };
    match WorkerKind::from_argument(kind) {
        Some(kind) => serve(kind),
        None if kind == RECOVER => {
            let number = device.parse().map_err(|()| Message::new(format!("{device} is not a device number")))?;
            multipath::recover(number, uuid);
            Ok(())
        }
        None => Err(Message::new(format!("{kind} is not a kind of worker"))),
    }
}

fn serve(kind: WorkerKind) -> Result<()> {
    let failed = |error: io::Error| Message::new(format!("cannot take a command: {}", reason(error)));
    let socket = io::stdin().as_fd().try_clone_to_owned().map_err(failed)?;
    // The helper has checked this. But an attacker who has taken it over could open any device with O_PATH, and must not
    // change a device that they may not write to.
    let manager: Arc<dyn PrManager> = match kind {
        WorkerKind::Multipath => Arc::new(RefuseReadOnly::new(Multipath::new())),
        WorkerKind::Block => Arc::new(RefuseReadOnly::new(BlockIoctl::default())),
        WorkerKind::Nvme => Arc::new(RefuseReadOnly::new(Nvme::new())),
    };
    let served = serve_one(socket, Arc::clone(&manager));
    // The process ends now. To free the library first would delay the next command on the map, and a library that hangs
    // there would look like one that hangs in a command.
    std::mem::forget(manager);
    if let Served::Unheard(command, completion) = served {
        tracing::warn!("{}: {completion}, but the client has gone", command.command());
    }
    Ok(())
}
