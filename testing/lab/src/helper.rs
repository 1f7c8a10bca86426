//! Helpers as an administrator starts them.

use std::cell::Cell;
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use scsi_pr_helper::HelperClient;

use crate::system::wait_for;

/// A running helper; killed when dropped.
pub(crate) struct Helper {
    process: Child,
    name: String,
    socket: PathBuf,
    /// How much of its log was asked for.
    heard: Cell<usize>,
}

impl Helper {
    /// Starts `program` with a socket named after `name`, and waits until it can be connected to. What it logs is in
    /// /run/NAME.log.
    pub(crate) fn start(program: &Path, name: &str, options: &[&str]) -> Result<Self> {
        let socket = PathBuf::from(format!("/run/{name}.sock"));
        let log = File::create(format!("/run/{name}.log"))?;
        let mut command = Command::new(program);
        command.arg("-k").arg(&socket).args(options).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let process = command.spawn().with_context(|| format!("start {}", program.display()))?;
        let mut helper = Self { process, name: name.to_owned(), socket, heard: Cell::new(0) };
        let ended =
            wait_for(&format!("helper at {}", helper.socket.display()), || match helper.process.try_wait()? {
                None => UnixStream::connect(&helper.socket).map(|_| None),
                // It will never listen.
                Some(status) => Ok(Some(status)),
            })?;
        match ended {
            None => Ok(helper),
            Some(status) => bail!("{} ended ({status}), and said: {}", program.display(), log_of(name)),
        }
    }

    /// A client of it.
    pub(crate) fn client(&self) -> HelperClient {
        HelperClient::new(&self.socket)
    }

    /// The lines that it has logged since this was last asked.
    pub(crate) fn logged(&self) -> Vec<String> {
        let log = log_of(&self.name);
        let lines = log.get(self.heard.get()..).unwrap_or_default().lines().map(str::to_owned).collect();
        self.heard.set(log.len());
        lines
    }

    /// Its process.
    pub(crate) fn process(&self) -> u32 {
        self.process.id()
    }

    /// Where it listens.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// What /proc says of its process: the words of a line, by its name.
    pub(crate) fn status(&self) -> Result<impl Fn(&str) -> String> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        Ok(move |name: &str| {
            let words = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            words.split_whitespace().collect::<Vec<_>>().join(" ")
        })
    }

    /// Leaves it to the end of the guest: a process in the middle of a call that the kernel does not end cannot be killed.
    pub(crate) fn abandon(self) {
        std::mem::forget(self);
    }

    /// Kills it as a crash would: nothing is tidied up.
    pub(crate) fn kill(mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }
}

/// What the helper called `name` has logged.
pub(crate) fn log_of(name: &str) -> String {
    std::fs::read_to_string(format!("/run/{name}.log")).unwrap_or_default()
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
