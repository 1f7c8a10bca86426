//! The server of the demo: `scsi-pr serve`, as an administrator starts it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use testing_support::{Launcher, Program};

use super::NODES;
use crate::command;

/// A server. It ends with the value.
pub(super) struct Server {
    command: Command,
    program: Program,
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
        let mut launcher = Launcher::new(program);
        let started = launcher.args(command.get_args()).try_spawn();
        let program = started.with_context(|| format!("start {}", command::line(&command)))?;
        let mut server = Self { command, program, sockets };
        server.wait_until_served()?;
        Ok(server)
    }

    /// The command line that a user types.
    pub(super) fn command_line(&self) -> String {
        let line = command::line(&self.command);
        let program = self.command.get_program().to_string_lossy();
        line.replacen(&*program, "scsi-pr", 1).replace(" --quiet", "").replace(" --", " \\\n        --")
    }

    /// The socket of each node.
    pub(super) fn sockets(&self) -> [PathBuf; 2] {
        self.sockets.clone()
    }

    /// Kills the server, without a chance to put anything in order, and starts it again.
    pub(super) fn restart(&mut self) -> Result<()> {
        self.program.restart();
        self.wait_until_served()
    }

    /// Ends the server as systemd does.
    pub(super) fn stop(mut self) -> Result<()> {
        let status = self.program.stop();
        if !status.success() {
            bail!("the server should have ended well, but: {status}");
        }
        match self.sockets.iter().find(|socket| socket.exists()) {
            None => Ok(()),
            Some(socket) => bail!("the server left {} behind", socket.display()),
        }
    }

    fn wait_until_served(&mut self) -> Result<()> {
        for socket in &self.sockets {
            self.program.try_wait_until_served(socket).with_context(|| command::line(&self.command))?;
        }
        Ok(())
    }
}
