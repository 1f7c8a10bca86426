//! The server of the demo: `scsi-pr serve`, as an administrator would start it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use scsi_pr_helper::HelperClient;

use super::NODES;
use crate::command;

/// Far longer than it takes.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A running server, which ends with the value.
pub(super) struct Server {
    command: Command,
    process: Child,
    sockets: [PathBuf; 2],
}

impl Server {
    /// Starts `program`, with its database and a socket for each node in `directory`.
    pub(super) fn start(program: &Path, directory: &Path) -> Result<Self> {
        let sockets = NODES.map(|node| directory.join(node).with_extension("sock"));
        let mut command = Command::new(program);
        command.arg("serve").arg("--quiet");
        command.arg(format!("--store=sqlite:{}", directory.join("reservations.db").display()));
        for (node, socket) in NODES.iter().zip(&sockets) {
            command.arg(format!("--listen={node}={}", socket.display()));
        }
        command.stdin(Stdio::null());
        let process = spawn(&mut command)?;
        let mut server = Self { command, process, sockets };
        server.wait_until_it_serves()?;
        Ok(server)
    }

    /// The command line, as a user would type it.
    pub(super) fn command_line(&self) -> String {
        let line = command::line(&self.command);
        let program = self.command.get_program().to_string_lossy();
        line.replacen(&*program, "scsi-pr", 1).replace(" --quiet", "").replace(" --", " \\\n        --")
    }

    /// A client for each node. It connects again by itself when the server was started again.
    pub(super) fn clients(&self) -> [HelperClient; 2] {
        self.sockets.each_ref().map(HelperClient::new)
    }

    /// Kills it, without a chance to put anything in order, and starts it again.
    pub(super) fn restart(&mut self) -> Result<()> {
        self.process.kill().context("kill the server")?;
        self.process.wait().context("wait for the end of the server")?;
        self.process = spawn(&mut self.command)?;
        self.wait_until_it_serves()
    }

    /// Ends it as systemd would.
    pub(super) fn stop(mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.process), Signal::TERM).context("stop the server")?;
        let status = self.process.wait().context("wait for the end of the server")?;
        if !status.success() {
            bail!("the server should have ended well, but: {status}");
        }
        match self.sockets.iter().find(|socket| socket.exists()) {
            None => Ok(()),
            Some(socket) => bail!("the server left {} behind", socket.display()),
        }
    }

    /// Until every socket greets who connects: before, another one may just have been removed as left over.
    fn wait_until_it_serves(&mut self) -> Result<()> {
        let start = Instant::now();
        for socket in &self.sockets {
            while HelperClient::new(socket).connect().is_err() {
                if let Some(status) = self.process.try_wait()? {
                    bail!("{} ended: {status}", command::line(&self.command));
                }
                if start.elapsed() > START_TIMEOUT {
                    bail!("{} does not listen at {}", command::line(&self.command), socket.display());
                }
                sleep(Duration::from_millis(5));
            }
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn spawn(command: &mut Command) -> Result<Child> {
    command.spawn().with_context(|| format!("start {}", command::line(command)))
}
