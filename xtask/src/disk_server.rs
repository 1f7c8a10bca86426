//! [`DiskServer`]: `scsi-pr disk` with one unit, as an administrator starts it.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use testing_support::{DEADLINE, Launcher, Program};

use crate::command;

/// The name of the target of the unit `shared`.
pub(crate) const TARGET: &str = "iqn.2026-11.io.scsi-pr:shared";

/// A server with a unit. It ends with the value.
pub(crate) struct DiskServer {
    command: Command,
    program: Program,
    /// The portal.
    pub(crate) address: SocketAddr,
    /// The image file of the unit.
    pub(crate) image: PathBuf,
}

impl DiskServer {
    /// Starts `program` with an image file of `size` bytes and a new store, both in `directory`.
    pub(crate) fn start(program: &Path, directory: &Path, size: u64) -> Result<Self> {
        let image = directory.join("shared.img");
        File::create_new(&image)?.set_len(size)?;
        let address = free_address()?;
        let mut command = Command::new(program);
        command.args(["disk", "--quiet"]);
        command.arg(format!("--control={}", directory.join("control.sock").display()));
        command.arg(format!("--unit=shared={}", image.display()));
        command.arg(format!("--store=sqlite:{}", directory.join("reservations.db").display()));
        command.arg(format!("--listen={address}"));
        let started = Launcher::new(program).args(command.get_args()).try_spawn();
        let program = started.with_context(|| format!("start {}", command::line(&command)))?;
        let mut server = Self { command, program, address, image };
        server.wait_until_served()?;
        Ok(server)
    }

    /// The command line that a user types.
    pub(crate) fn command_line(&self) -> String {
        let shown = self.command.get_args().map(|argument| command::quoted(&argument.to_string_lossy()));
        let shown = shown.filter(|argument| argument != "--quiet" && !argument.starts_with("--control="));
        let line = shown.collect::<Vec<_>>().join(" ").replace(" --", " \\\n        --");
        format!("scsi-pr {line}")
    }

    /// Kills the server, without a chance to put anything in order, and starts it again.
    pub(crate) fn restart(&mut self) -> Result<()> {
        self.program.restart();
        self.wait_until_served()
    }

    /// Ends the server as systemd does.
    pub(crate) fn stop(mut self) -> Result<()> {
        let status = self.program.stop();
        if status.success() { Ok(()) } else { bail!("the server ended with {status}: {}", self.program.stderr()) }
    }

    fn wait_until_served(&mut self) -> Result<()> {
        let start = Instant::now();
        while let Err(error) = TcpStream::connect(self.address) {
            let line = || command::line(&self.command);
            if let Some(status) = self.program.try_wait() {
                bail!("{} ended with {status}: {}", line(), self.program.stderr());
            }
            if start.elapsed() > DEADLINE {
                bail!("{} does not serve after {DEADLINE:?}: {error}", line());
            }
            sleep(Duration::from_millis(2));
        }
        Ok(())
    }
}

/// An address of loopback with a port that no program uses now.
fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
