//! [`Load`]: clients that send commands to a helper while it is replaced.

use std::fs::OpenOptions;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use scsi_pr::{Completion, Key, PrManager};
use scsi_pr_helper::HelperClient;

use crate::commands::{read_keys, register_ignoring};
use crate::system::wait_for;

/// How many clients there are.
const CLIENTS: usize = 8;

/// The time between two commands of a client: dpkg needs a processor too.
const PAUSE: Duration = Duration::from_millis(2);

/// The clients. As QEMU, each one connects again before a command, and never sends a command twice.
pub(crate) struct Load {
    clients: Vec<JoinHandle<Result<()>>>,
    is_stopping: Arc<AtomicBool>,
    answers: Arc<AtomicUsize>,
}

impl Load {
    /// Starts the clients, and waits until each had an answer.
    pub(crate) fn start(socket: &Path, device: &Path) -> Result<Self> {
        let (is_stopping, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            let device = OpenOptions::new().read(true).write(true).open(device).context("open the disk")?;
            let client = HelperClient::new(socket);
            let (is_stopping, answers) = (Arc::clone(&is_stopping), Arc::clone(&answers));
            clients.push(std::thread::spawn(move || {
                let requests = [read_keys(), register_ignoring(Key(0xabc))];
                for request in requests.iter().cycle() {
                    if is_stopping.load(Ordering::Relaxed) {
                        break;
                    }
                    match client.execute(device.as_fd(), request.command()) {
                        Ok(Completion::Good(_)) => answers.fetch_add(1, Ordering::Relaxed),
                        Ok(other) => return Err(anyhow!("{request} was answered with {other}")),
                        Err(error) => return Err(anyhow!(error).context(format!("send {request}"))),
                    };
                    std::thread::sleep(PAUSE);
                }
                Ok(())
            }));
        }
        let load = Self { clients, is_stopping, answers };
        load.wait_for_answers()?;
        Ok(load)
    }

    /// Waits for as many further answers as there are clients.
    pub(crate) fn wait_for_answers(&self) -> Result<()> {
        let before = self.answers();
        wait_for("answers", || if self.answers() >= before + CLIENTS { Ok(()) } else { Err(self.answers()) })
    }

    fn answers(&self) -> usize {
        self.answers.load(Ordering::Relaxed)
    }

    /// Ends the clients. Returns how many commands succeeded, and the failures.
    pub(crate) fn end(self) -> (usize, Vec<String>) {
        self.is_stopping.store(true, Ordering::Relaxed);
        let mut failures = Vec::new();
        for client in self.clients {
            match client.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => failures.push(format!("{error:#}")),
                Err(_) => failures.push("a client panicked".to_owned()),
            }
        }
        (self.answers.load(Ordering::Relaxed), failures)
    }
}
