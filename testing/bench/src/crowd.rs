//! Clients that have asked once and are silent since: processes of their own, because a helper grants each process a
//! share of what it can serve.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::client::{Connection, null};

/// The message of such a process when it has all its connections.
const READY: [u8; 6] = *b"ready\n";

/// One such process. Its connections end when this is dropped.
pub(crate) struct Crowd(Child);

impl Crowd {
    /// Has a process make `count` connections to the socket at `path`, and waits until each has had its answer.
    pub(crate) fn gather(path: &Path, count: usize) -> Result<Self> {
        let bench = std::env::current_exe()?;
        let mut command = Command::new(bench);
        command.arg("crowd").arg(path).arg(count.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut crowd = Self(command.spawn().context("start a process for idle connections")?);
        let mut ready = [0; READY.len()];
        let read = crowd.0.stdout.take().context("its standard output is a pipe")?.read_exact(&mut ready);
        ensure!(read.is_ok() && ready == READY, "a process could not make {count} idle connections");
        Ok(crowd)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Is such a process: until the end of standard input.
pub(crate) fn stand_by(path: &Path, count: usize) -> Result<()> {
    let null = null()?;
    let mut connections = Vec::with_capacity(count);
    for _ in 0..count {
        let mut connection = Connection::open(path)?;
        connection.round_trip(null.as_fd())?;
        connections.push(connection);
    }
    std::io::stdout().write_all(&READY)?;
    std::io::stdout().flush()?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
