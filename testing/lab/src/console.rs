//! [`Console`]: the shell on the serial port of a virtual machine.

use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// The longest wait. The machine is emulated by an emulated machine.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// A shell that runs each line, then prints `exit STATUS`.
pub(crate) struct Console {
    input: Box<dyn Write>,
    output: Receiver<String>,
}

/// The result of a command in the machine.
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

impl Console {
    pub(crate) fn new(input: impl Write + 'static, output: impl Read + Send + 'static) -> Self {
        Self { input: Box::new(input), output: lines(output) }
    }

    /// Waits until the shell of a machine that boots accepts lines.
    pub(crate) fn wait_until_ready(&mut self) -> Result<()> {
        self.until(|line| line == "ready").context("boot the virtual machine")?;
        Ok(())
    }

    /// Runs a line of shell in the machine, and waits until it ends.
    pub(crate) fn run(&mut self, line: &str) -> Result<Ending> {
        writeln!(self.input, "{line}")?;
        let (mut output, last) =
            self.until(|line| line.starts_with("exit ")).with_context(|| format!("run {line:?}"))?;
        let status = last.strip_prefix("exit ").and_then(|status| status.parse().ok()).context("no exit status")?;
        output.iter_mut().for_each(|line| line.push('\n'));
        Ok(Ending { status, output: output.concat() })
    }

    /// Reads lines up to the first one that `is_last` accepts. Returns the lines before it, and that line.
    fn until(&mut self, is_last: impl Fn(&str) -> bool) -> Result<(Vec<String>, String)> {
        let deadline = Instant::now() + TIMEOUT;
        let mut before = Vec::new();
        loop {
            match self.output.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if is_last(&line) => return Ok((before, line)),
                Ok(line) => before.push(line),
                Err(error) => bail!("no answer from the virtual machine ({error}); its output: {}", before.join("\n")),
            }
        }
    }
}

/// The lines of a stream, while it is open.
pub(crate) fn lines(stream: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                break;
            }
        }
    });
    receiver
}
