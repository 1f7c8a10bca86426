//! A worker: a process, of the same binary, that the monitor starts as root for one command, or to recover a map after one
//! that died. What it logs goes to its standard error, which is a pipe to the helper.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use nix::sys::signal::SigSet;
use scsi_pr::PrManager;
use scsi_pr_helper::{Served, serve_one};
use scsi_pr_linux::policy::RefuseReadOnly;
use scsi_pr_linux::{BlockIoctl, Multipath, Nvme, multipath};

use crate::link::Duty;
use crate::message::{Message, Result, invoked_as, reason};
use crate::trace;

/// What a worker is called: its first word, by which this binary knows that it is one. Its second says what it is for,
/// its third is the number of the device, its fourth the UUID of the map.
pub(crate) const NAME: &str = "qemu-pr-helper-worker";

/// The second word of one that runs no command.
pub(crate) const RECOVER: &str = "recover";

/// Whether this process was started to be a worker.
pub(crate) fn is_wanted() -> bool {
    invoked_as() == NAME
}

/// Is a worker, for one command. Its exit code tells the monitor whether there is anything to recover.
#[cold]
#[inline(never)]
pub(crate) fn run() -> Result<()> {
    // A command is never broken off: a map may be suspended, or be between two registrations.
    let _ = SigSet::all().thread_block();
    let _ = rustix::thread::set_name(c"qemu-pr-worker");
    trace::start_in_worker();
    let words: Vec<_> = std::env::args().skip(1).collect();
    let [what, device, uuid] = &words[..] else { return Err(Message::new("this program is for the monitor to start")) };
    match Duty::from_word(what) {
        Some(duty) => serve(duty),
        None if what == RECOVER => {
            let number = device.parse().map_err(|()| Message::new(format!("{device} is no device number")))?;
            multipath::recover(number, uuid);
            Ok(())
        }
        None => Err(Message::new(format!("{what} is nothing that a worker does"))),
    }
}

fn serve(duty: Duty) -> Result<()> {
    let failed = |error: io::Error| Message::new(format!("cannot take a command: {}", reason(error)));
    let socket = io::stdin().as_fd().try_clone_to_owned().map_err(failed)?;
    // The helper has asked for this already. But of any device it could have a descriptor that is not for use (O_PATH), and
    // one in the wrong hands must not reach more than what it was given for writing.
    let manager: Arc<dyn PrManager> = match duty {
        Duty::Multipath => Arc::new(RefuseReadOnly::new(Multipath::new())),
        Duty::Block => Arc::new(RefuseReadOnly::new(BlockIoctl::default())),
        Duty::Nvme => Arc::new(RefuseReadOnly::new(Nvme::new())),
    };
    let served = serve_one(socket, Arc::clone(&manager));
    // The process ends now, and with it all that the manager has. To tidy up first takes time that the map's next command
    // waits for, and a library that hangs in it would be taken for one that hangs in a command.
    std::mem::forget(manager);
    if let Served::Unheard(command, completion) = served {
        tracing::warn!("{}, which nobody waited for any more, has been answered: {completion}", command.command());
    }
    Ok(())
}
