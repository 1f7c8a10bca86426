//! The memory of commands that run: READ FULL STATUS of a unit with 10,000 registrants, on 1,024 connections at once.
//!
//! Each client sends commands and reads no answer. Once the buffer of its socket is full, its thread in the server waits with an
//! answer of 8 KiB.

use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use scsi_pr::{ReserveIn, ReserveInAction};
use scsi_pr_helper::MAX_TRANSFER;

use crate::client::Connection;
use crate::programs::{Programs, REGISTRANTS};
use crate::report::{Row, value};
use crate::shared::{Shared, crowded};
use crate::stats::summary;

const CONNECTIONS: usize = 1_024;

/// More answers than the buffer of a socket holds.
const COMMANDS: usize = 64;

/// The memory that a running command may take.
const LIMIT_KIB: f64 = 16.0;

/// The longest time until every thread waits. It is shorter than the server waits for a client that does not read.
const TIMEOUT: Duration = Duration::from_secs(25);

/// The growth of the server's memory for each command that runs, in several servers.
pub(crate) fn measure(programs: &Programs) -> Result<Vec<Row>> {
    const ROUNDS: usize = 7;
    let (mut waiting, mut peak) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let growth = round(programs)?;
        waiting.push(growth.waiting);
        peak.push(growth.peak);
    }
    let row = |what: &str, kib: Vec<f64>| -> Result<Row> {
        let ratios: Vec<f64> = kib.iter().map(|kib| kib / LIMIT_KIB).collect();
        Ok(Row {
            figure: format!(
                "memory ({what}) per running READ FULL STATUS, {CONNECTIONS} at once, {REGISTRANTS} registrants"
            ),
            c: "–".into(),
            scsi_pr: value(summary(&kib)?, "KiB"),
            ratio: summary(&ratios)?,
            against: "16 KiB",
            bound: Some(1.0),
        })
    };
    Ok(vec![row("PSS", waiting)?, row("peak of the resident memory", peak)?])
}

/// The growth of memory for each command, in KiB.
struct Growth {
    /// The PSS, while every command waits for its client.
    waiting: f64,
    /// The greatest resident memory, while the commands run.
    peak: f64,
}

fn round(programs: &Programs) -> Result<Growth> {
    let shared = Shared::start(&programs.shared)?;
    drop(crowded(&shared, REGISTRANTS)?);
    let full_status = ReserveIn::new(ReserveInAction::ReadFullStatus, MAX_TRANSFER).encode();
    // The memory that the first command takes for all others is not counted.
    Connection::open(&shared.running.socket())?.run(full_status.command(), shared.disk.as_fd())?;
    let read_keys = ReserveIn::new(ReserveInAction::ReadKeys, 8).encode();
    let mut connections = Vec::with_capacity(CONNECTIONS);
    for _ in 0..CONNECTIONS {
        let mut connection = Connection::open(&shared.running.socket())?;
        connection.run(read_keys.command(), shared.disk.as_fd())?;
        connections.push(connection);
    }
    let (proportional, resident) = (shared.running.settled_proportional()?, shared.running.settled_resident()?);
    shared.running.reset_peak()?;

    let start = Instant::now();
    for connection in &connections {
        for _ in 0..COMMANDS {
            connection.send_command(full_status.command(), shared.disk.as_fd())?;
        }
    }
    let mut before = shared.running.processor_time()?;
    loop {
        thread::sleep(Duration::from_millis(500));
        let now = shared.running.processor_time()?;
        if now == before {
            break;
        }
        ensure!(start.elapsed() < TIMEOUT, "commands still run after {TIMEOUT:?}");
        before = now;
    }
    let each = |after: f64, before: f64| (after - before) / CONNECTIONS as f64;
    Ok(Growth {
        waiting: each(shared.running.proportional()?, proportional),
        peak: each(shared.running.peak()?, resident),
    })
}
