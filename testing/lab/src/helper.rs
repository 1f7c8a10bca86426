//! Helper processes, started as an administrator starts them.

use std::cell::Cell;
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use scsi_pr_helper::HelperClient;

use crate::system::wait_for;

/// A running helper. It is killed when dropped.
pub(crate) struct Helper {
    process: Child,
    name: String,
    socket: PathBuf,
    /// How many bytes of its log the lab has read.
    read: Cell<usize>,
}

impl Helper {
    /// Starts `program` with the socket /run/NAME.sock and the log /run/NAME.log, and waits until it accepts connections.
    pub(crate) fn start(program: &Path, name: &str, options: &[&str]) -> Result<Self> {
        let socket = PathBuf::from(format!("/run/{name}.sock"));
        let log = File::create(format!("/run/{name}.log"))?;
        let mut command = Command::new(program);
        command.arg("-k").arg(&socket).args(options).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let process = command.spawn().with_context(|| format!("start {}", program.display()))?;
        let mut helper = Self { process, name: name.to_owned(), socket, read: Cell::new(0) };
        let ended =
            wait_for(&format!("helper at {}", helper.socket.display()), || match helper.process.try_wait()? {
                None => UnixStream::connect(&helper.socket).map(|_| None),
                Some(status) => Ok(Some(status)),
            })?;
        match ended {
            None => Ok(helper),
            Some(status) => bail!("{} ended ({status}); its log: {}", program.display(), log_of(name)),
        }
    }

    /// A new client.
    pub(crate) fn client(&self) -> HelperClient {
        HelperClient::new(&self.socket)
    }

    /// The lines that it has logged since the last call.
    pub(crate) fn logged(&self) -> Vec<String> {
        let log = log_of(&self.name);
        let lines = log.get(self.read.get()..).unwrap_or_default().lines().map(str::to_owned).collect();
        self.read.set(log.len());
        lines
    }

    /// Its process ID.
    pub(crate) fn process(&self) -> u32 {
        self.process.id()
    }

    /// The path of its socket.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Reads /proc/PID/status. The result returns the values of a line, by the name of the line.
    pub(crate) fn status(&self) -> Result<impl Fn(&str) -> String> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        Ok(move |name: &str| {
            let values = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            values.split_whitespace().collect::<Vec<_>>().join(" ")
        })
    }

    /// Leaves the process running until the guest ends. SIGKILL has no effect on a process in an uninterruptible call.
    pub(crate) fn abandon(self) {
        std::mem::forget(self);
    }

    /// Kills it with SIGKILL, so that it cannot clean up.
    pub(crate) fn kill(mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }
}

/// The log of the helper `name`.
pub(crate) fn log_of(name: &str) -> String {
    std::fs::read_to_string(format!("/run/{name}.log")).unwrap_or_default()
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
