//! [`Fixture`]: a multipath map, the helper of this project, and another host of the same unit.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use anyhow::{Result, bail};
use scsi_pr::{Command, Completion, FullStatus, InitiatorPort, Key, PrManager, Sense, SenseKey, Status, Type};
use scsi_pr_helper::HelperClient;
use scsi_pr_helper::descriptor::{self, IoMode};
use scsi_pr_linux::SgIo;

use crate::commands::{Request, clear, read_full_status, read_keys, register, register_ignoring, reserve};
use crate::disk::{self, is_conflict};
use crate::helper::Helper;
use crate::lab::Lab;
use crate::map::{Disk, Map};
use crate::report::Report;
use crate::sg_raw::SgRaw;
use crate::system::{run, wait_for};

pub(crate) const OURS: Key = Key(0xaaa);
pub(crate) const OTHER: Key = Key(0xbbb);
pub(crate) const THEIRS: Key = Key(0xccc);
pub(crate) const RO: Type = Type::WriteExclusiveRegistrantsOnly;
pub(crate) const AR: Type = Type::WriteExclusiveAllRegistrants;

pub(crate) const GOOD: Completion = Completion::Good(Vec::new());
pub(crate) const CONFLICT: Completion = Completion::Status(Status::RESERVATION_CONFLICT);

/// Two hosts and what they share.
pub(crate) struct Fixture<'a> {
    pub(crate) map: &'a Map,
    pub(crate) report: &'a mut Report,
    /// The helper that serves the map.
    pub(crate) helper: Helper,
    client: HelperClient,
    pub(crate) device: disk::Disk,
    /// The other host's disk.
    pub(crate) theirs: disk::Disk,
}

/// A registration as READ FULL STATUS has it: whose and with which key; held?
pub(crate) type Registration = (String, Key, bool);

impl<'a> Fixture<'a> {
    /// A map of so many paths, and scsi-pr's helper as an ordinary user.
    pub(crate) fn new(lab: &'a mut Lab, report: &'a mut Report, paths: usize) -> Result<Self> {
        let helper = Helper::start(&lab.helper(), "fixture", &["-u", "nobody"])?;
        let map = lab.multipath()?.map(paths, 0)?;
        let device = disk::Disk::open(&map.device)?;
        let theirs = disk::Disk::open(&map.other_host.path())?;
        let mut fixture = Self { map, report, client: helper.client(), helper, device, theirs };
        fixture.reset()?;
        Ok(fixture)
    }

    /// Removes every registration, reservation and pending unit attention.
    pub(crate) fn reset(&mut self) -> Result<()> {
        self.map.configure("reservation_key file")?;
        self.theirs(&register_ignoring(THEIRS))?;
        self.theirs(&clear(THEIRS))?;
        run("multipathd", &["unsetprkey", "map", &self.map.name()])?;
        run("multipathd", &["unsetprstatus", "map", &self.map.name()])?;
        for disk in self.map.paths.iter().chain([&self.map.other_host]) {
            past_the_helper(&File::open(disk.path())?, &read_keys())?;
        }
        self.logged();
        Ok(())
    }

    /// The map's answer.
    pub(crate) fn answer(&self, request: &Request) -> Completion {
        self.client.execute(self.device.file().as_fd(), request.command()).expect("there is always an answer")
    }

    /// The lines that were logged since the last call.
    pub(crate) fn logged(&self) -> Vec<String> {
        self.helper.logged()
    }

    /// The map's answer to CLEANUP, sent as QEMU sends it: without feature negotiation.
    pub(crate) fn send_cleanup(&self) -> Result<Completion> {
        let mut socket = UnixStream::connect(self.helper.socket())?;
        let mut features = [0; 4];
        socket.read_exact(&mut features)?;
        socket.write_all(&[0; 4])?;
        descriptor::send(&socket, Command::cleanup().cdb().bytes(), self.device.file().as_fd(), IoMode::Blocking)?;
        answer(&mut socket)
    }

    /// The answer of the other host's disk, without the helper and after pending unit attentions.
    pub(crate) fn theirs(&self, request: &Request) -> Result<Completion> {
        past_the_helper(self.theirs.file(), request)
    }

    /// Sends a request: the answer must be this, and the log stays empty.
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

    /// Sends a request: the answer must be this, and a line in the log must have all these parts.
    pub(crate) fn expect_and_log(&mut self, request: &Request, expected: &Completion, parts: &[&str]) {
        let answer = self.answer(request);
        let log = self.logged();
        let logged = |line: &String| parts.iter().all(|part| line.contains(part));
        let outcome = match answer == *expected && log.iter().filter(|line| logged(line)).count() == 1 {
            true => Ok(()),
            false => Err(format!("expected {expected} and {parts:?}, got {answer} and {log:#?}")),
        };
        self.report.check(format!("{request}: {expected}, and the log says {parts:?}"), outcome);
    }

    /// The map returns, byte for byte, the data that the unit returns to the other host.
    pub(crate) fn expect_same(&mut self, request: &Request) -> Result<()> {
        self.theirs(&read_keys())?;
        // Without any code of this project.
        let expected = SgRaw.execute(self.theirs.file().as_fd(), request.command())?;
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

    /// The registrations, read by the other host.
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

    /// Every path is registered with our key, and the other host with its own; multipathd knows. Nothing is reserved.
    /// It is done past the helper, and quickly.
    pub(crate) fn register_all(&mut self) -> Result<()> {
        self.register_them()?;
        run("multipathd", &["setprkey", "map", &self.map.name(), "key", &format!("{:x}", OURS.0)])?;
        run("multipathd", &["setprstatus", "map", &self.map.name()])?;
        for path in &self.map.paths {
            by_path(path, &register_ignoring(OURS))?;
        }
        self.logged();
        Ok(())
    }

    /// Only the other host is registered.
    pub(crate) fn register_them(&mut self) -> Result<()> {
        for path in &self.map.paths {
            path.set_alive(true)?;
        }
        run("multipathd", &["unsetprstatus", "map", &self.map.name()])?;
        run("multipathd", &["unsetprkey", "map", &self.map.name()])?;
        self.theirs(&register_ignoring(THEIRS))?;
        self.theirs(&clear(THEIRS))?;
        self.theirs(&register(Key::ZERO, THEIRS))?;
        for path in &self.map.paths {
            wait_for(&path.name, || past_the_helper(&File::open(path.path())?, &read_keys()))?;
        }
        self.logged();
        Ok(())
    }

    /// The same as [`register_all`](Self::register_all), and the first path holds a reservation.
    pub(crate) fn hold(&mut self) -> Result<()> {
        self.register_all()?;
        by_path(&self.map.paths[0], &reserve(OURS, RO))
    }

    /// A line in the log since it was last looked at has all these parts.
    pub(crate) fn expect_logged(&mut self, parts: &[&str]) {
        let log = self.logged();
        let logged = log.iter().any(|line| parts.iter().all(|part| line.contains(part)));
        self.report.check(format!("the log says {parts:?}"), if logged { Ok(()) } else { Err(format!("{log:#?}")) });
    }

    /// One of our paths holds the reservation, or no path does.
    pub(crate) fn expect_reserved(&mut self, reserved: bool) -> Result<()> {
        let registrations = self.registrations()?;
        let ours = registrations.iter().any(|(_, key, held)| *held && *key == OURS);
        let outcome = match (reserved, ours) {
            (true, true) => Ok(()),
            (false, false) if registrations.iter().all(|(.., held)| !held) => Ok(()),
            _ => Err(format!("{registrations:?}")),
        };
        self.report.check(if reserved { "we hold the reservation" } else { "no path holds a reservation" }, outcome);
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

/// Reads an answer without data from a helper.
pub(crate) fn answer(socket: &mut UnixStream) -> Result<Completion> {
    let mut answer = [0; 8 + Sense::LENGTH];
    socket.read_exact(&mut answer)?;
    let status = u8::try_from(i32::from_be_bytes(answer[..4].try_into()?))?;
    Ok(match (status, Status::from_byte(status)) {
        (_, Some(status)) => Completion::Status(status),
        (0, None) => GOOD,
        (_, None) => Completion::CheckCondition(Sense::from_bytes(&answer[8..])),
    })
}

/// Does what is GOOD by a path.
fn by_path(path: &Disk, request: &Request) -> Result<()> {
    let answer = past_the_helper(&File::open(path.path())?, request)?;
    if answer == GOOD { Ok(()) } else { bail!("{request} by {}: {answer}", path.name) }
}

/// The answer of a disk to SG_IO, after pending unit attentions.
pub(crate) fn past_the_helper(disk: &File, request: &Request) -> Result<Completion> {
    let sg_io = SgIo::new();
    while is_attention(&sg_io.execute(disk.as_fd(), read_keys().command())?) {}
    Ok(sg_io.execute(disk.as_fd(), request.command())?)
}

fn is_attention(answer: &Completion) -> bool {
    matches!(answer, Completion::CheckCondition(sense)
        if sense.code().is_some_and(|code| code.key == SenseKey::UNIT_ATTENTION))
}
