//! [`Worker`]: a process for each command on a multipath map.

use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::process::{Command as Process, Stdio};
use std::sync::Mutex;

use anyhow::{Result, bail};
use scsi_pr::{Command, Completion, Error, PrManager, Sense, Status};

/// Runs every command with `lab-multipath`.
pub(crate) struct Worker {
    program: PathBuf,
    log: Mutex<Vec<String>>,
}

impl Worker {
    pub(crate) fn new(program: PathBuf) -> Self {
        Self { program, log: Mutex::default() }
    }

    /// What was logged since this was last asked.
    pub(crate) fn log(&self) -> Vec<String> {
        std::mem::take(&mut *self.log.lock().expect("nobody panics with it"))
    }

    fn run(&self, device: BorrowedFd<'_>, command: Command<'_>) -> Result<Completion> {
        let hexadecimal = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let output = Process::new(&self.program)
            .args([hexadecimal(command.cdb().bytes()), hexadecimal(command.parameter_list())])
            .stdin(Stdio::from(device.try_clone_to_owned()?))
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        let logged = said.lines().filter_map(|line| line.strip_prefix("log: ").map(str::to_owned));
        self.log.lock().expect("nobody panics with it").extend(logged);
        let Some((status, rest)) = output.stdout.split_first().filter(|(_, rest)| rest.len() >= Sense::LENGTH) else {
            bail!("the worker ended without an answer ({}): {said}", output.status);
        };
        let (sense, data) = rest.split_at(Sense::LENGTH);
        Ok(match (status, Status::from_byte(*status)) {
            (_, Some(status)) => Completion::Status(status),
            (0, None) => Completion::Good(data.to_vec()),
            (_, None) => Completion::CheckCondition(Sense::from_bytes(sense)),
        })
    }
}

impl PrManager for Worker {
    fn execute(&self, device: BorrowedFd<'_>, command: Command<'_>) -> Result<Completion, Error> {
        self.run(device, command).map_err(|error| Error::outcome_unknown("run a worker").because(error))
    }
}
