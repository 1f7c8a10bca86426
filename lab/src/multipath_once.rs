//! Runs one command on a multipath map, as root, and ends: what a worker process does.
//!
//! ```text
//! lab-multipath CDB [PARAMETER LIST]    both in hexadecimal; the map is standard input
//! ```
//!
//! Standard output gets the SCSI status (one byte), the sense data (96 bytes) and the data; standard error what is logged.
#![forbid(unsafe_code)]

use std::fmt::Debug;
use std::io::Write;
use std::os::fd::AsFd;

use anyhow::{Context, Result, anyhow};
use pr_managers::Multipath;
use scsi_pr::{Cdb, CommandBuf, Completion, PrManager, Sense};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

fn main() -> Result<()> {
    tracing::subscriber::set_global_default(Lines)?;
    let mut arguments = std::env::args().skip(1);
    let cdb = bytes(&arguments.next().context("the CDB is missing")?)?;
    let list = bytes(&arguments.next().unwrap_or_default())?;
    let command = CommandBuf::new(Cdb::from_slice(&cdb)?, list)?;
    let (status, sense, data) = match Multipath::new().execute(std::io::stdin().as_fd(), command.command())? {
        Completion::Good(data) => (0x00, Sense::from_bytes(&[]), data),
        Completion::CheckCondition(sense) => (0x02, sense, Vec::new()),
        Completion::Status(status) => (status.byte(), Sense::from_bytes(&[]), Vec::new()),
    };
    let mut output = std::io::stdout().lock();
    output.write_all(&[status])?;
    output.write_all(sense.bytes())?;
    output.write_all(&data)?;
    Ok(output.flush()?)
}

fn bytes(text: &str) -> Result<Vec<u8>> {
    let digits: Option<Vec<u32>> = text.chars().map(|digit| digit.to_digit(16)).collect();
    let digits = digits.filter(|digits| digits.len() % 2 == 0).ok_or_else(|| anyhow!("{text:?} is not hexadecimal"))?;
    digits.chunks(2).map(|pair| Ok(u8::try_from(pair[0] << 4 | pair[1])?)).collect()
}

/// Writes the messages of warnings, one a line.
struct Lines;

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::WARN
    }

    fn event(&self, event: &Event<'_>) {
        event.record(&mut Message);
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

struct Message;

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            eprintln!("log: {value:?}");
        }
    }
}
