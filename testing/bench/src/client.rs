//! A client that does no more than the protocol asks, so that the time measured is the helper's.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use scsi_pr::{Cdb, Command, Completion};
use scsi_pr_helper::descriptor::{self, IoMode};
use scsi_pr_helper::wire::{ResponseDecoder, feature_word};

/// A descriptor that refuses at once.
pub(crate) fn null() -> Result<File> {
    File::options().read(true).write(true).open("/dev/null").context("open /dev/null")
}

/// PERSISTENT RESERVE IN, READ KEYS, with room for 8 KiB.
fn read_keys() -> Cdb {
    let mut bytes = [0; 16];
    (bytes[0], bytes[7]) = (0x5e, 0x20);
    Cdb::new(bytes).expect("the opcode and the length are in range")
}

/// One connection to a helper, the handshake done.
pub(crate) struct Connection {
    socket: UnixStream,
    cdb: Cdb,
}

impl Connection {
    /// Connects and shakes hands.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let socket = UnixStream::connect(path).with_context(|| format!("connect to {}", path.display()))?;
        Self::greet(socket)
    }

    /// Shakes hands on a socket that is connected.
    pub(crate) fn greet(mut socket: UnixStream) -> Result<Self> {
        let mut offered = [0; 4];
        socket.read_exact(&mut offered).context("read the feature word of the helper")?;
        socket.write_all(&feature_word(0)).context("send the feature word")?;
        Ok(Self { socket, cdb: read_keys() })
    }

    /// Limits each further wait for an answer. A new connection has no limit, as a time-out costs 0.4 µs a command.
    pub(crate) fn set_receive_timeout(&self, timeout: Option<Duration>) -> Result<()> {
        Ok(self.socket.set_read_timeout(timeout)?)
    }

    /// Sends a command for `device` and does not wait for the answer.
    pub(crate) fn send(&self, device: BorrowedFd<'_>) -> Result<()> {
        self.send_bytes(self.cdb.bytes(), device)
    }

    /// Sends any command without a parameter list, and does not wait for the answer.
    pub(crate) fn send_command(&self, command: Command<'_>, device: BorrowedFd<'_>) -> Result<()> {
        self.send_bytes(command.cdb().bytes(), device)
    }

    fn send_bytes(&self, bytes: &[u8], device: BorrowedFd<'_>) -> Result<()> {
        let sent =
            descriptor::send(&self.socket, bytes, device, IoMode::Blocking).context("send a command to the helper")?;
        ensure!(sent == bytes.len(), "the helper's socket took {sent} bytes of a command");
        Ok(())
    }

    /// Waits for the answer to the command that was sent; any refusal will do, as every device here refuses.
    pub(crate) fn receive(&mut self) -> Result<()> {
        match self.completion(self.cdb)? {
            Completion::CheckCondition(_) => Ok(()),
            other => bail!("the helper answered {other:?} for a device that cannot do reservations"),
        }
    }

    fn completion(&mut self, cdb: Cdb) -> Result<Completion> {
        let mut decoder = ResponseDecoder::new(&cdb);
        loop {
            let count = self.socket.read(decoder.wanted()).context("wait for the helper's answer")?;
            ensure!(count > 0, "the helper closed the connection instead of answering");
            if let Some(completion) = decoder.advance(count)? {
                return Ok(completion);
            }
        }
    }

    /// Any command and its answer; and the time both took, in µs.
    pub(crate) fn run(&mut self, command: Command<'_>, device: BorrowedFd<'_>) -> Result<(Completion, f64)> {
        let bytes = [command.cdb().bytes(), command.parameter_list()].concat();
        let start = Instant::now();
        self.send_bytes(&bytes, device)?;
        let completion = self.completion(*command.cdb())?;
        Ok((completion, start.elapsed().as_secs_f64() * 1e6))
    }

    /// One command and its answer; the time both took, in µs.
    pub(crate) fn round_trip(&mut self, device: BorrowedFd<'_>) -> Result<f64> {
        let start = Instant::now();
        self.send(device)?;
        self.receive()?;
        Ok(start.elapsed().as_secs_f64() * 1e6)
    }

    /// `count` commands, one after the other, with `silence` before each; the time that each took, in µs.
    pub(crate) fn round_trips(&mut self, device: BorrowedFd<'_>, count: usize, silence: Duration) -> Result<Vec<f64>> {
        (0..count)
            .map(|_| {
                if !silence.is_zero() {
                    std::thread::sleep(silence);
                }
                self.round_trip(device)
            })
            .collect()
    }
}
