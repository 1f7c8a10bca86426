//! [`Stage`]: a multipath map, a manager for it, and another host of the same unit.

use std::os::fd::AsFd;
use std::sync::Arc;

use anyhow::{Result, bail};
use pr_managers::MapIn;
use pr_managers::device::Sysfs;
use scsi_pr::{Command, Completion, FullStatus, InitiatorPort, Key, PrManager, SenseKey, Status, Type};

use crate::commands::{Request, clear, read_full_status, register_ignoring};
use crate::disk::{self, is_conflict};
use crate::map::{Disk, Map};
use crate::report::Report;
use crate::scenarios::Lab;
use crate::sg_raw::SgRaw;
use crate::system::{run, wait_for};
use crate::worker::Worker;

pub(crate) const OURS: Key = Key(0xaaa);
pub(crate) const OTHER: Key = Key(0xbbb);
pub(crate) const THEIRS: Key = Key(0xccc);
pub(crate) const RO: Type = Type::WriteExclusiveRegistrantsOnly;
pub(crate) const AR: Type = Type::WriteExclusiveAllRegistrants;

pub(crate) const GOOD: Completion = Completion::Good(Vec::new());
pub(crate) const CONFLICT: Completion = Completion::Status(Status::RESERVATION_CONFLICT);

/// Two hosts and what they share.
pub(crate) struct Stage<'a> {
    pub(crate) map: &'a Map,
    pub(crate) report: &'a mut Report,
    manager: Box<dyn PrManager>,
    /// What was logged since this was last asked.
    log: Box<dyn Fn() -> Vec<String>>,
    pub(crate) device: disk::Disk,
    /// The other host's disk.
    pub(crate) theirs: disk::Disk,
}

/// A registration as READ FULL STATUS has it: whose and with which key; held?
pub(crate) type Registration = (String, Key, bool);

impl<'a> Stage<'a> {
    /// A map of so many paths.
    pub(crate) fn new(lab: &'a mut Lab, report: &'a mut Report, paths: usize) -> Result<Self> {
        let worker = Arc::new(Worker::new(lab.programs.join("lab-multipath")));
        let manager = Box::new(MapIn::new(worker.clone(), Sysfs::default()));
        Self::with(lab, report, paths, manager, Box::new(move || worker.log()))
    }

    fn with(
        lab: &'a mut Lab,
        report: &'a mut Report,
        paths: usize,
        manager: Box<dyn PrManager>,
        log: Box<dyn Fn() -> Vec<String>>,
    ) -> Result<Self> {
        let map = lab.multipath()?.map(paths, 0)?;
        let device = disk::Disk::open(&map.device)?;
        let theirs = disk::Disk::open(&map.other_host.path())?;
        let mut stage = Self { map, report, manager, log, device, theirs };
        stage.reset()?;
        Ok(stage)
    }

    /// Nothing is registered, reserved or waiting to be told.
    pub(crate) fn reset(&mut self) -> Result<()> {
        self.map.configure("reservation_key file")?;
        self.theirs(&register_ignoring(THEIRS))?;
        self.theirs(&clear(THEIRS))?;
        run("multipathd", &["unsetprkey", "map", &self.map.name()])?;
        run("multipathd", &["unsetprstatus", "map", &self.map.name()])?;
        for disk in self.map.paths.iter().chain([&self.map.other_host]) {
            self.ready(disk)?;
        }
        (self.log)();
        Ok(())
    }

    /// Hears what the unit has to tell a disk's initiator.
    pub(crate) fn ready(&self, disk: &Disk) -> Result<()> {
        wait_for(&format!("ready {}", disk.name), || run("sg_turs", &[&disk.path().to_string_lossy()])).map(drop)
    }

    /// What the map answers.
    pub(crate) fn answer(&self, request: &Request) -> Completion {
        self.execute(request.command())
    }

    /// What was logged since this was last asked.
    pub(crate) fn logged(&self) -> Vec<String> {
        (self.log)()
    }

    pub(crate) fn execute(&self, command: Command<'_>) -> Completion {
        self.manager.execute(self.device.file().as_fd(), command).expect("there is always an answer")
    }

    /// What the other host's disk answers, without us; what the unit has to tell first is heard before.
    pub(crate) fn theirs(&self, request: &Request) -> Result<Completion> {
        self.ready(&self.map.other_host)?;
        Ok(SgRaw.execute(self.theirs.file().as_fd(), request.command())?)
    }

    /// Does what the map should answer so; nothing is logged about it.
    pub(crate) fn expect(&mut self, request: &Request, expected: &Completion) {
        let answer = self.answer(request);
        let log = self.logged();
        let outcome = match answer == *expected {
            true if log.is_empty() => Ok(()),
            true => Err(format!("logged {log:#?}")),
            false => Err(format!("expected {expected}, got {answer}; logged {log:#?}")),
        };
        self.report.check(format!("{request}: {expected}"), outcome);
    }

    /// Does what should be answered so, and a line in the log must have all these parts.
    pub(crate) fn expect_told(&mut self, request: &Request, expected: &Completion, parts: &[&str]) {
        let answer = self.answer(request);
        let log = self.logged();
        let told = |line: &String| parts.iter().all(|part| line.contains(part));
        let outcome = match answer == *expected && log.iter().any(told) && log.len() == 1 {
            true => Ok(()),
            false => Err(format!("expected {expected} and {parts:?}, got {answer} and {log:#?}")),
        };
        self.report.check(format!("{request}: {expected}, and the log says {parts:?}"), outcome);
    }

    /// What the map returns is, byte for byte, what the unit returns to the other host.
    pub(crate) fn expect_same(&mut self, request: &Request) -> Result<()> {
        let expected = self.theirs(request)?;
        let is_attention = |answer: &Completion| {
            matches!(answer, Completion::CheckCondition(sense)
                if sense.code().is_some_and(|code| code.key == SenseKey::UNIT_ATTENTION))
        };
        // Each path may have something to tell first.
        let mut answer = self.answer(request);
        for _ in 0..4 {
            if is_attention(&answer) {
                answer = self.answer(request);
            }
        }
        let log = self.logged();
        let outcome = match answer == expected && log.is_empty() {
            true => Ok(()),
            false => Err(format!("expected {expected:?}, got {answer:?}; logged {log:#?}")),
        };
        self.report.check(format!("{request}: what the other host gets, {expected}"), outcome);
        Ok(())
    }

    /// Who is registered, read by the other host.
    pub(crate) fn registrations(&self) -> Result<Vec<Registration>> {
        let data = match self.theirs(&read_full_status())? {
            Completion::Good(data) => data,
            other => bail!("the registrations cannot be read: {other}"),
        };
        let mut registrations = Vec::new();
        for descriptor in FullStatus::parse(&data)?.value.descriptors {
            let id = descriptor.transport_id()?;
            let InitiatorPort::Iscsi { name, .. } = id.port() else { bail!("an unknown initiator, {id}") };
            registrations.push((name.to_owned(), descriptor.key, descriptor.held.is_some()));
        }
        registrations.sort_unstable();
        Ok(registrations)
    }

    pub(crate) fn expect_registered(&mut self, what: &str, expected: &[(&Disk, Key, bool)]) -> Result<()> {
        let mut expected: Vec<Registration> =
            expected.iter().map(|(disk, key, held)| (disk.initiator.clone(), *key, *held)).collect();
        expected.sort_unstable();
        let registrations = self.registrations()?;
        let outcome = match registrations == expected {
            true => Ok(()),
            false => Err(format!("expected {expected:?}, got {registrations:?}")),
        };
        self.report.check(what, outcome);
        Ok(())
    }

    /// Registrations of every path with `key`.
    pub(crate) fn all(&self, key: Key) -> Vec<(&'a Disk, Key, bool)> {
        self.map.paths.iter().map(|disk| (disk, key, false)).collect()
    }

    /// The same, where the reservation is held by `holder`.
    pub(crate) fn all_with_holder(&self, key: Key, holder: &Disk) -> Vec<(&'a Disk, Key, bool)> {
        self.map.paths.iter().map(|disk| (disk, key, disk.name == holder.name)).collect()
    }

    /// The path that holds the reservation, and those that do not.
    pub(crate) fn holder_and_rest(&self) -> Result<(&'a Disk, Vec<&'a Disk>)> {
        let registrations = self.registrations()?;
        let holds =
            |disk: &&Disk| registrations.iter().any(|(initiator, _, held)| *held && *initiator == disk.initiator);
        let (holders, rest): (Vec<_>, Vec<_>) = self.map.paths.iter().partition(holds);
        match holders[..] {
            [holder] => Ok((holder, rest)),
            _ => bail!("not one path holds the reservation: {registrations:?}"),
        }
    }

    pub(crate) fn expect_key(&mut self, expected: &str) -> Result<()> {
        let key = run("multipathd", &["getprkey", "map", &self.map.name()])?;
        let outcome = if key.trim() == expected { Ok(()) } else { Err(format!("it is {key:?}")) };
        self.report.check(format!("multipathd knows the key: {expected}"), outcome);
        Ok(())
    }

    /// A write of the other host passes or is refused.
    pub(crate) fn expect_their_write(&mut self, passes: bool) -> Result<()> {
        let outcome = match (self.theirs.write(1), passes) {
            (Ok(()), true) => Ok(()),
            (Err(error), false) if is_conflict(&error) => Ok(()),
            (other, _) => Err(format!("{other:?}")),
        };
        self.report
            .check(format!("a write of the other host {}", if passes { "passes" } else { "is refused" }), outcome);
        Ok(())
    }

    pub(crate) fn expect_our_write(&mut self, what: &str) {
        let outcome = self.device.write(2).map_err(|error| error.to_string());
        self.report.check(format!("a write to the map passes, {what}"), outcome);
    }

    pub(crate) fn wait_for_registrations(&mut self, what: &str, expected: &[(&Disk, Key, bool)]) -> Result<()> {
        let mut wanted: Vec<Registration> =
            expected.iter().map(|(disk, key, held)| (disk.initiator.clone(), *key, *held)).collect();
        wanted.sort_unstable();
        let outcome = wait_for("such registrations", || {
            let registrations = self.registrations()?;
            if registrations == wanted { Ok(()) } else { bail!("{registrations:?}, not {wanted:?}") }
        });
        self.report.check(what, outcome.map_err(|error| format!("{error:#}")));
        Ok(())
    }
}
