//! [`Run`]: a script of commands, reads and writes by two initiators of one unit, and the transcript of the answers.
//!
//! A script expects the meaning of each answer, such as a conflict or certain keys. The transcript has every byte, so
//! that transcripts of two managers can be compared.

use std::fmt;
use std::io;
use std::os::fd::AsFd;

use anyhow::{Result, bail};
use scsi_pr::{
    Capabilities, Completion, FullStatus, InvalidData, Key, Keys, Parsed, PrManager, Reservation, ReserveIn,
    ReserveInAction, SenseCode, Status, Type,
};

use crate::commands::Request;
use crate::disk::{Disk, is_conflict};
use crate::report::Report;
use crate::target::Unit;

/// An initiator.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Node {
    A,
    B,
}

use Node::{A, B};

/// The expected answer.
#[derive(Clone, Debug)]
pub(crate) enum Expect {
    /// GOOD, with any data.
    Good,
    /// RESERVATION CONFLICT.
    Conflict,
    /// CHECK CONDITION with this sense.
    Sense(SenseCode),
    /// GOOD, and these keys in this order.
    Keys(Vec<Key>),
    /// GOOD, and this reservation: the key that READ RESERVATION shows, and the type.
    Reservation(Option<(Key, Type)>),
}

/// The expected result of a read or a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// It succeeds.
    Permitted,
    /// It fails with a reservation conflict.
    Refused,
}

/// One step and its result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    what: String,
    /// The meaning of the answer.
    summary: String,
    /// Every byte of the answer.
    answer: String,
    /// The expected answer, if the actual one differs.
    missed: Option<String>,
}

/// A running script.
pub(crate) struct Run<'a> {
    manager: &'a dyn PrManager,
    disks: [Disk; 2],
    transcript: Vec<Entry>,
    /// Whether this project's parsers and encoders preserve all data so far.
    preserved: bool,
}

impl<'a> Run<'a> {
    /// Sends commands through `manager` to `unit`, which must be new.
    pub(crate) fn new(manager: &'a dyn PrManager, unit: &Unit) -> Result<Self> {
        let [a, b] = &unit.disks;
        Ok(Self { manager, disks: [Disk::open(a)?, Disk::open(b)?], transcript: Vec::new(), preserved: true })
    }

    /// Sends a command. Returns the data of a GOOD answer.
    pub(crate) fn send(&mut self, node: Node, request: &Request, expected: Expect) -> Vec<u8> {
        let answer = self.manager.execute(self.disk(node).file().as_fd(), request.command());
        let missed = !matches!(&answer, Ok(completion) if expected.is_met_by(completion));
        if let (Ok(Completion::Good(data)), Ok(read)) = (&answer, ReserveIn::parse(request.command())) {
            self.preserved &= is_preserved(read.action(), data);
        }
        let (summary, in_full) = match &answer {
            Ok(completion) if missed => (completion.to_string(), in_full(completion)),
            Ok(completion) => (expected.to_string(), in_full(completion)),
            Err(error) => ("no answer".to_owned(), error.to_string()),
        };
        self.transcript.push(Entry {
            what: format!("{node:?}: {request}"),
            summary,
            answer: in_full,
            missed: missed.then(|| expected.to_string()),
        });
        match answer {
            Ok(Completion::Good(data)) => data,
            _ => Vec::new(),
        }
    }

    /// Writes a block.
    pub(crate) fn write(&mut self, node: Node, expected: Access) {
        let outcome = self.disk(node).write(0x55);
        self.note_io(node, "writes", outcome, expected);
    }

    /// Reads a block.
    pub(crate) fn read(&mut self, node: Node, expected: Access) {
        let outcome = self.disk(node).read().map(drop);
        self.note_io(node, "reads", outcome, expected);
    }

    /// Adds another check to the transcript.
    pub(crate) fn observe(&mut self, what: &str, seen: bool) {
        self.note(what.to_owned(), seen.to_string(), (!seen).then(|| "true".to_owned()));
    }

    /// Ends the script.
    pub(crate) fn transcript(mut self) -> Vec<Entry> {
        self.observe("all returned data are the same after parsing and encoding", self.preserved);
        self.transcript
    }

    /// Ends the script and reports each step, without a comparison.
    pub(crate) fn report(self, report: &mut Report) -> Result<()> {
        let transcript = self.transcript();
        check(report, &transcript, &transcript)
    }

    fn disk(&self, node: Node) -> &Disk {
        match node {
            A => &self.disks[0],
            B => &self.disks[1],
        }
    }

    fn note_io(&mut self, node: Node, does: &str, outcome: io::Result<()>, expected: Access) {
        let (actual, answer) = match outcome {
            Ok(()) => (Some(Access::Permitted), Access::Permitted.to_string()),
            Err(error) if is_conflict(&error) => (Some(Access::Refused), Access::Refused.to_string()),
            Err(error) => (None, error.to_string()),
        };
        let missed = (actual != Some(expected)).then(|| expected.to_string());
        self.note(format!("{node:?} {does}"), answer, missed);
    }

    fn note(&mut self, what: String, answer: String, missed: Option<String>) {
        self.transcript.push(Entry { what, summary: answer.clone(), answer, missed });
    }
}

/// Checks each step of a transcript: the expected answer, and byte by byte the answer to the same step in `reference`.
pub(crate) fn check(report: &mut Report, transcript: &[Entry], reference: &[Entry]) -> Result<()> {
    for (number, entry) in transcript.iter().enumerate() {
        let same = reference.get(number).filter(|other| other.what == entry.what);
        let outcome = match (&entry.missed, same) {
            (Some(expected), _) => Err(format!("expected {expected}, got {}", entry.answer)),
            (None, Some(same)) if same.answer == entry.answer => Ok(()),
            (None, Some(same)) => {
                Err(format!("expected, as without a helper,\n{}\ngot\n{}", same.answer, entry.answer))
            }
            (None, None) => Err("the run without a helper has no such step".to_owned()),
        };
        report.check(format!("{}: {}", entry.what, entry.summary), outcome);
    }
    if transcript.len() != reference.len() {
        bail!("the run had {} steps, and {} without a helper", transcript.len(), reference.len());
    }
    Ok(())
}

impl Access {
    /// Permitted if `condition` holds.
    pub(crate) fn permitted_if(condition: bool) -> Self {
        if condition { Self::Permitted } else { Self::Refused }
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Permitted => "done",
            Self::Refused => "refused, reservation conflict (EBADE)",
        })
    }
}

impl Expect {
    /// Whether `completion` is as expected.
    pub(crate) fn is_met_by(&self, completion: &Completion) -> bool {
        match (self, completion) {
            (Self::Good, Completion::Good(_)) => true,
            (Self::Conflict, Completion::Status(status)) => *status == Status::RESERVATION_CONFLICT,
            (Self::Sense(code), Completion::CheckCondition(sense)) => sense.code() == Some(*code),
            (Self::Keys(keys), Completion::Good(data)) => {
                Keys::parse(data).is_ok_and(|parsed| parsed.value.keys == *keys)
            }
            (Self::Reservation(expected), Completion::Good(data)) => Reservation::parse(data)
                .is_ok_and(|parsed| parsed.value.held.map(|held| (held.key, held.reservation_type)) == *expected),
            _ => false,
        }
    }
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Good => f.write_str("GOOD"),
            Self::Conflict => f.write_str("RESERVATION CONFLICT"),
            Self::Sense(code) => write!(f, "CHECK CONDITION, {code}"),
            Self::Keys(keys) if keys.is_empty() => f.write_str("GOOD, no keys"),
            Self::Keys(keys) => {
                f.write_str("GOOD, keys")?;
                keys.iter().try_for_each(|key| write!(f, " {:#x}", key.0))
            }
            Self::Reservation(None) => f.write_str("GOOD, no reservation"),
            Self::Reservation(Some((key, kind))) if key.is_zero() => write!(f, "GOOD, {kind}"),
            Self::Reservation(Some((key, kind))) => write!(f, "GOOD, {kind}, held by {:#x}", key.0),
        }
    }
}

/// Whether parsing and encoding returned data gives the same bytes. Data that were cut to the allocation length cannot be
/// compared.
fn is_preserved(action: ReserveInAction, data: &[u8]) -> bool {
    fn same<T>(data: &[u8], parsed: Result<Parsed<T>, InvalidData>, encode: fn(&T) -> Vec<u8>) -> bool {
        parsed.is_ok_and(|parsed| parsed.truncated || encode(&parsed.value) == data)
    }
    match action {
        ReserveInAction::ReadKeys => same(data, Keys::parse(data), Keys::encode),
        ReserveInAction::ReadReservation => same(data, Reservation::parse(data), Reservation::encode),
        ReserveInAction::ReportCapabilities => same(data, Capabilities::parse(data), Capabilities::encode),
        ReserveInAction::ReadFullStatus => same(data, FullStatus::parse(data), FullStatus::encode),
        _ => false,
    }
}

/// A completion with every byte.
fn in_full(completion: &Completion) -> String {
    match completion {
        Completion::Good(data) if data.is_empty() => "GOOD".to_owned(),
        Completion::Good(data) => format!("GOOD, {} bytes: {}", data.len(), hexadecimal(data)),
        Completion::CheckCondition(sense) => {
            let bytes = sense.bytes();
            let length = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            format!("{completion}: {}", hexadecimal(&bytes[..length]))
        }
        Completion::Status(status) => status.to_string(),
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_meets_its_own_expectation_only() {
        let one = Keys { keys: vec![Key(7)], ..Keys::default() }.encode();
        assert!(Expect::Keys(vec![Key(7)]).is_met_by(&Completion::Good(one.clone())));
        assert!(!Expect::Keys(vec![]).is_met_by(&Completion::Good(one)));
        let free = Reservation::default().encode();
        assert!(Expect::Reservation(None).is_met_by(&Completion::Good(free.clone())));
        assert!(!Expect::Reservation(Some((Key(7), Type::WriteExclusive))).is_met_by(&Completion::Good(free)));
        assert!(!Expect::Good.is_met_by(&Completion::Status(Status::RESERVATION_CONFLICT)));
        assert!(!Expect::Conflict.is_met_by(&Completion::Status(Status::BUSY)));
    }

    #[test]
    fn data_that_encoding_changes_are_not_preserved() {
        let mut status = Capabilities::default().encode();
        assert!(is_preserved(ReserveInAction::ReportCapabilities, &status));
        status[6] = 1;
        assert!(!is_preserved(ReserveInAction::ReportCapabilities, &status));
    }

    #[test]
    fn transcript_has_every_byte() {
        assert_eq!(in_full(&Completion::Good(vec![0xab, 1])), "GOOD, 2 bytes: ab 01");
        let check = in_full(&Completion::check(SenseCode::INVALID_FIELD_IN_CDB));
        assert!(check.ends_with(": 70 00 05 00 00 00 00 0a 00 00 00 00 24"), "{check}");
    }
}
