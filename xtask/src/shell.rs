//! [`Shell`]: a guest whose second serial port is a shell.

use std::fmt;
use std::io::Write;
use std::path::Path;
use std::process::{ChildStdin, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::guest::{Boot, Guest, Init, end_of};
use crate::kernel::Kernel;

/// The longest wait for a command. Emulation on a busy machine is slow.
const TIMEOUT: Duration = Duration::from_secs(5 * 60);

/// Runs each line of the serial port, and prints its exit status. A line runs in a shell of its own.
const SCRIPT: &str = "\
exec </dev/ttyS1 2>&1
stty -echo -onlcr
cd /tmp
echo ready
while read -r line; do
sh -c \"$line\"
echo \"exit $?\"
done
";

/// A running guest. It ends when dropped.
pub(crate) struct Shell {
    guest: Guest,
    input: ChildStdin,
}

/// The result of a command in the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ending {
    /// The exit status.
    pub(crate) status: i32,
    /// Standard output and standard error.
    pub(crate) output: String,
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}exit status {}", self.output, self.status)
    }
}

impl Shell {
    /// Starts a guest in `qemu` with these arguments for memory and devices. It may still be booting.
    pub(crate) fn start(qemu: &Path, kernel: &Kernel, lab: &Path, name: &str, devices: &[String]) -> Result<Self> {
        let program = ["/bin/sh", "-c", SCRIPT].map(str::to_owned);
        let boot = Boot { name, program: &program, qemu, devices, deadline: TIMEOUT, init: Init::Script };
        Self::of(boot.start(kernel, lab, Stdio::piped())?)
    }

    /// The shell of a guest that runs [`SCRIPT`] or the like.
    pub(crate) fn of(mut guest: Guest) -> Result<Self> {
        let input = guest.qemu.0.stdin.take().context("QEMU has no input")?;
        Ok(Self { guest, input })
    }

    /// Waits until the guest has booted. Input that arrives earlier is lost.
    pub(crate) fn wait_until_ready(&mut self) -> Result<()> {
        self.until("ready").map(drop)
    }

    /// Runs a line of shell in the guest, and waits until it ends.
    pub(crate) fn run(&mut self, line: &str) -> Result<Ending> {
        self.start_line(line)?;
        self.ending().with_context(|| format!("run {line:?}"))
    }

    /// Starts a line of shell in the guest.
    pub(crate) fn start_line(&mut self, line: &str) -> Result<()> {
        Ok(writeln!(self.input, "{line}")?)
    }

    /// Waits until the line that was started ends.
    pub(crate) fn ending(&mut self) -> Result<Ending> {
        let (mut output, last) = self.until("exit ")?;
        let status = last.strip_prefix("exit ").and_then(|status| status.parse().ok()).context("no exit status")?;
        output.iter_mut().for_each(|line| line.push('\n'));
        Ok(Ending { status, output: output.concat() })
    }

    /// Reads lines up to the first one that begins with `prefix`. Returns the lines before it, and that line.
    fn until(&mut self, prefix: &str) -> Result<(Vec<String>, String)> {
        let deadline = Instant::now() + TIMEOUT;
        let mut before = Vec::new();
        loop {
            match self.guest.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if line.starts_with(prefix) => return Ok((before, line)),
                Ok(line) => before.push(line),
                Err(error) => {
                    let output = before.join("\n");
                    bail!("no answer from the guest ({error}); its output: {output}\n{}", end_of(&self.guest.console))
                }
            }
        }
    }
}
