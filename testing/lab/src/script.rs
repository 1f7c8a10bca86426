//! [`Run`]: a script of commands, reads and writes by two initiators of one unit, and the transcript of what came back.
//!
//! A script says what each answer means to say (a conflict, these keys); the transcript has every byte, so that two
//! ways to the same kind of unit can be compared.

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

/// Which initiator acts.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Node {
    /// The first.
    A,
    /// The second.
    B,
}

use Node::{A, B};

/// What an answer should say.
#[derive(Clone, Debug)]
pub(crate) enum Expect {
    /// GOOD, with whatever data.
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

/// One step: what was done and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    what: String,
    /// What it comes to.
    summary: String,
    /// Every byte of the answer.
    answer: String,
    /// What was expected, where it did not come.
    disappointment: Option<String>,
}

/// A script under way.
pub(crate) struct Run<'a> {
    manager: &'a dyn PrManager,
    disks: [Disk; 2],
    transcript: Vec<Entry>,
    understood: bool,
}

impl<'a> Run<'a> {
    /// Commands go through `manager` to `unit`, which nobody has used yet.
    pub(crate) fn new(manager: &'a dyn PrManager, unit: &Unit) -> Result<Self> {
        let [a, b] = &unit.disks;
        Ok(Self { manager, disks: [Disk::open(a)?, Disk::open(b)?], transcript: Vec::new(), understood: true })
    }

    /// Sends a command. The data of a GOOD answer.
    pub(crate) fn send(&mut self, node: Node, request: &Request, expected: Expect) -> Vec<u8> {
        let answer = self.manager.execute(self.disk(node).file().as_fd(), request.command());
        let disappointed = !matches!(&answer, Ok(completion) if expected.is_met_by(completion));
        if let (Ok(Completion::Good(data)), Ok(read)) = (&answer, ReserveIn::parse(request.command())) {
            self.understood &= is_understood(read.action(), data);
        }
        let (summary, in_full) = match &answer {
            Ok(completion) if disappointed => (completion.to_string(), in_full(completion)),
            Ok(completion) => (expected.to_string(), in_full(completion)),
            Err(error) => ("no answer".to_owned(), error.to_string()),
        };
        self.transcript.push(Entry {
            what: format!("{node:?}: {request}"),
            summary,
            answer: in_full,
            disappointment: disappointed.then(|| expected.to_string()),
        });
        match answer {
            Ok(Completion::Good(data)) => data,
            _ => Vec::new(),
        }
    }

    /// Writes a block, which must pass (`true`) or be refused because of a reservation.
    pub(crate) fn write(&mut self, node: Node, passes: bool) {
        let outcome = self.disk(node).write(0x55);
        self.note_io(node, "writes", outcome, passes);
    }

    /// Reads a block, which must pass (`true`) or be refused because of a reservation.
    pub(crate) fn read(&mut self, node: Node, passes: bool) {
        let outcome = self.disk(node).read().map(drop);
        self.note_io(node, "reads", outcome, passes);
    }

    /// Adds to the transcript something else that is to be seen.
    pub(crate) fn observe(&mut self, what: &str, seen: bool) {
        self.note(what.to_owned(), seen.to_string(), (!seen).then(|| "true".to_owned()));
    }

    /// What happened.
    pub(crate) fn transcript(mut self) -> Vec<Entry> {
        self.observe("all data that were returned are read and written again without a loss", self.understood);
        self.transcript
    }

    /// Reports each step, of a script that has nothing to be compared with.
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

    fn note_io(&mut self, node: Node, does: &str, outcome: io::Result<()>, passes: bool) {
        let text = |refused: bool| if refused { "refused, reservation conflict (EBADE)" } else { "done" }.to_owned();
        let refused = outcome.as_ref().is_err_and(is_conflict);
        let disappointed = if passes { outcome.is_err() } else { !refused };
        let answer = match outcome {
            Err(error) if !refused => error.to_string(),
            _ => text(refused),
        };
        self.note(format!("{node:?} {does}"), answer, disappointed.then(|| text(!passes)));
    }

    fn note(&mut self, what: String, answer: String, disappointment: Option<String>) {
        self.transcript.push(Entry { what, summary: answer.clone(), answer, disappointment });
    }
}

/// Checks each step of a transcript: whether it did what it should, and whether the same step did exactly the same in
/// `reference`.
pub(crate) fn check(report: &mut Report, transcript: &[Entry], reference: &[Entry]) -> Result<()> {
    for (number, entry) in transcript.iter().enumerate() {
        let same = reference.get(number).filter(|other| other.what == entry.what);
        let outcome = match (&entry.disappointment, same) {
            (Some(expected), _) => Err(format!("expected {expected}, got {}", entry.answer)),
            (None, Some(same)) if same.answer == entry.answer => Ok(()),
            (None, Some(same)) => {
                Err(format!("expected, as without a helper,\n{}\ngot\n{}", same.answer, entry.answer))
            }
            (None, None) => Err("this step was not made without a helper".to_owned()),
        };
        report.check(format!("{}: {}", entry.what, entry.summary), outcome);
    }
    if transcript.len() != reference.len() {
        bail!("{} steps were made, and {} without a helper", transcript.len(), reference.len());
    }
    Ok(())
}

impl Expect {
    /// Whether `completion` says so.
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

/// Whether our reading of returned data, written again, gives the same bytes: a real target's are a good test of it.
/// What was cut to the allocation length cannot come whole again.
fn is_understood(action: ReserveInAction, data: &[u8]) -> bool {
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

/// Every byte that a completion has.
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
    fn an_answer_meets_what_was_expected_or_not() {
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
    fn data_that_do_not_come_whole_again_are_noticed() {
        let mut status = Capabilities::default().encode();
        assert!(is_understood(ReserveInAction::ReportCapabilities, &status));
        status[6] = 1;
        assert!(!is_understood(ReserveInAction::ReportCapabilities, &status));
    }

    #[test]
    fn an_answer_is_shown_in_full() {
        assert_eq!(in_full(&Completion::Good(vec![0xab, 1])), "GOOD, 2 bytes: ab 01");
        let check = in_full(&Completion::check(SenseCode::INVALID_FIELD_IN_CDB));
        assert!(check.ends_with(": 70 00 05 00 00 00 00 0a 00 00 00 00 24"), "{check}");
    }
}
