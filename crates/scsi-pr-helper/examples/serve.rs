//! A helper that serves its own manager: every unit is without registrants, and no command can change that.
//!
//! `cargo run -p scsi-pr-helper --example serve -- /tmp/pr-helper.sock` serves until a line is typed.

use std::env::args_os;
use std::error::Error as StdError;
use std::fs::remove_file;
use std::io::stdin;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use scsi_pr::{Command, Completion, Error, Opcode, PrManager, SenseCode};
use scsi_pr_helper::{Limits, Peer, serve};

/// Answers READ KEYS and refuses all other commands.
struct NoReservations;

impl PrManager for NoReservations {
    fn execute(&self, _device: BorrowedFd<'_>, command: Command<'_>) -> Result<Completion, Error> {
        Ok(match (command.opcode(), command.cdb().service_action()) {
            // PRgeneration 0, and a list of 0 bytes. The server cuts the data to the allocation length.
            (Opcode::ReserveIn, 0) => Completion::Good(vec![0; 8]),
            _ => Completion::check(SenseCode::INVALID_OPCODE),
        })
    }
}

fn main() -> Result<(), Box<dyn StdError>> {
    let path = args_os().nth(1).ok_or("usage: serve SOCKET")?;
    let listener = UnixListener::bind(&path)?;
    let manager: Arc<dyn PrManager> = Arc::new(NoReservations);
    let draining = serve(listener.into(), |_: &Peer| Arc::clone(&manager), Limits::default(), stdin().as_fd())?;
    remove_file(&path)?;
    let running = draining.wait(Duration::from_secs(60));
    println!("{running} commands still run");
    Ok(())
}
