//! Two hosts and one shared disk: `scsi-pr disk` moves from one host to the other, with and without a fence.
//!
//! **Real:** the medium is a unit of LIO with two initiators. Each host has a disk of its own (`/dev/sdX`, `/dev/sdY`), so
//! that no lock, no O_EXCL and no page cache of one host reaches the other. The fence is a persistent reservation of
//! that unit, as fence_scsi makes it: LIO refuses the commands of the fenced host, also those in flight.
//!
//! **Imitated:** both hosts are one kernel. A host is a set of namespaces (mounts, host name, processes) with a machine id and
//! a boot id of its own. Both share the network, so that the address of the portal does not move. The store is a directory
//! or a database of one file system, with the locks of one kernel, and not of a network file system.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use nix::sys::signal::Signal;
use scsi_pr::{Key, Type};
use testing_support::iscsi::{Initiator, ScsiCommand, Unit};

use crate::commands::{Request, clear, preempt_and_abort, register_ignoring, reserve};
use crate::disk_server::{DiskServer, DiskSettings, Host};
use crate::fixture::{GOOD as GOOD_COMPLETION, past_the_helper};
use crate::lab::Lab;
use crate::report::Report;
use crate::scenario::Scenario;
use crate::stamps::{
    Durability, GOOD, LOSER, LOSERS_KEY, PREEMPT, REGISTER_AND_IGNORE, RESERVE, WINNER, WINNERS_KEY, WRITERS, Writer,
    address, command, read_stamps, reservations, reserve_in, reserve_out, unit, wait_for_writes, write_stamp,
};
use crate::system::wait_for;

/// A takeover of the unit by the second host, while the first one stands still.
pub(super) const TAKEOVER: Scenario = Scenario {
    name: "disk-takeover",
    boot: "takeover",
    purpose: "a second host takes the unit over by --takeover=EPOCH alone, and the first one, fenced, changes nothing any more",
    run: |lab, report| {
        for round in ROUNDS {
            let hosts = Hosts::new(lab, round)?;
            Checks { report, round, hosts }.run()?;
        }
        Ok(())
    },
};

const ROUNDS: &[Round] = &[
    Round {
        name: "directory",
        store: "dir:/run/takeover",
        cache: "none",
        durability: Durability::Volatile,
        preempt: Preempt::Later,
        fence: Fence::Reservation,
    },
    Round {
        name: "sqlite",
        store: "sqlite:/run/takeover.db",
        cache: "writeback",
        durability: Durability::Durable,
        preempt: Preempt::InFlight,
        fence: Fence::Reservation,
    },
    Round {
        name: "unfenced",
        store: "dir:/run/takeover",
        cache: "none",
        durability: Durability::Volatile,
        preempt: Preempt::Later,
        fence: Fence::None,
    },
];

/// A takeover.
struct Round {
    /// The name of the unit.
    name: &'static str,
    store: &'static str,
    cache: &'static str,
    /// That of the writes to the first host.
    durability: Durability,
    preempt: Preempt,
    fence: Fence,
}

/// When the first host gets a PREEMPT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Preempt {
    /// While it stands still.
    InFlight,
    /// After the writes that it had received.
    Later,
}

/// The fence of the first host, before the second one takes the unit over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fence {
    /// None: what an administrator must not do.
    None,
    /// PREEMPT AND ABORT of the first host's registration on the shared disk.
    Reservation,
}

/// The first block that no writer writes.
const SURVIVORS_BLOCK: u16 = WRITERS;
/// Keys of the hosts on the shared disk.
const KEYS: [Key; 2] = [Key(0xa), Key(0xb)];
const EXCLUSIVE: Type = Type::ExclusiveAccessRegistrantsOnly;

/// Both hosts: the settings of their servers, and their disks.
struct Hosts {
    settings: [DiskSettings; 2],
    disks: [PathBuf; 2],
    units: [Unit; 2],
}

impl Hosts {
    fn new(lab: &mut Lab, round: &Round) -> Result<Self> {
        let disks = lab.target()?.unit()?.disks;
        let addresses = [address(3270), address(3271)];
        let settings = |host: &'static str, index: usize| -> Result<DiskSettings> {
            Ok(DiskSettings {
                program: lab.scsi_pr(),
                name: round.name.to_owned(),
                store: round.store.to_owned(),
                medium: disks[index].clone(),
                cache: round.cache,
                address: addresses[index],
                host: Some(Host::new(host)?),
                takeover: None,
            })
        };
        let settings = [settings("node-a", 0)?, settings("node-b", 1)?];
        Ok(Self { settings, disks, units: addresses.map(|address| unit(round.name, address)) })
    }

    /// Sends a reservation command to the shared disk.
    fn reserve_disk(&self, host: usize, request: &Request) -> Result<()> {
        let answer = past_the_helper(&File::open(&self.disks[host])?, request)?;
        ensure!(answer == GOOD_COMPLETION, "{request} of host {host}: {answer}");
        Ok(())
    }

    fn log_in(&self, host: usize, name: &str) -> Result<Initiator> {
        wait_for("login", || Initiator::log_in(&self.units[host], name, 100))
    }

    fn with_takeover(&self, host: usize, epoch: u64) -> DiskSettings {
        DiskSettings { takeover: Some(epoch), ..self.settings[host].clone() }
    }
}

struct Checks<'a> {
    report: &'a mut Report,
    round: &'static Round,
    hosts: Hosts,
}

impl Checks<'_> {
    fn check(&mut self, what: &str, outcome: Result<()>) {
        self.report.check(format!("{}: {what}", self.round.name), outcome.map_err(|error| format!("{error:#}")));
    }

    fn run(&mut self) -> Result<()> {
        for (host, key) in KEYS.into_iter().enumerate() {
            self.hosts.reserve_disk(host, &register_ignoring(key))?;
        }
        self.hosts.reserve_disk(0, &reserve(KEYS[0], EXCLUSIVE))?;
        let first = self.hosts.settings[0].start()?;
        let mut loser = self.hosts.log_in(0, LOSER)?;
        let mut winner = self.hosts.log_in(0, WINNER)?;
        reserve_out(&mut loser, REGISTER_AND_IGNORE, 0, LOSERS_KEY)?;
        reserve_out(&mut winner, REGISTER_AND_IGNORE, 0, WINNERS_KEY)?;
        reserve_out(&mut loser, RESERVE, LOSERS_KEY, 0)?;
        let before = reservations(&mut winner)?;

        self.refuses(1, "the second host does not start without a takeover", None, "node-a", 1);
        self.refuses(1, "the second host does not start with another epoch", Some(7), "node-a", 1);

        let writers: Vec<_> = (0..WRITERS)
            .map(|number| Writer::start(self.hosts.units[0].clone(), number, self.round.durability))
            .collect();
        wait_for_writes(&writers, 2)?;
        first.signal(Signal::SIGSTOP)?;
        let (cdb, list) = command(PREEMPT, WINNERS_KEY, LOSERS_KEY);
        let preempt = ScsiCommand { cdb, data: &list, expected: 0 };
        if self.round.preempt == Preempt::InFlight {
            winner.start(preempt)?;
        }
        if self.round.fence == Fence::Reservation {
            self.hosts.reserve_disk(1, &preempt_and_abort(KEYS[1], KEYS[0], EXCLUSIVE))?;
        }
        let second = self.hosts.with_takeover(1, 1).start()?;
        let mut survivor = self.hosts.log_in(1, WINNER)?;
        let after = reservations(&mut survivor)?;
        self.check(
            "the second host has the registrations and the reservation of the first",
            equal("READ RESERVATION and READ FULL STATUS", &before, &after),
        );
        ensure!(write_stamp(&mut survivor, SURVIVORS_BLOCK, 77, Durability::Durable)? == GOOD, "a write failed");

        let stamps = read_stamps(&mut survivor, SURVIVORS_BLOCK + 1)?;
        first.signal(Signal::SIGCONT)?;
        self.former_host_writes(&writers, &stamps, &mut survivor)?;
        let (status, _) = match self.round.preempt {
            Preempt::InFlight => winner.finish(preempt)?,
            Preempt::Later => winner.run(preempt)?,
        };
        self.check("a preempt that the first host gets is not GOOD", not_good(status));
        let (status, _) = winner.run(reserve_in(0))?;
        self.check("READ KEYS of the first host is not GOOD from then on", not_good(status));
        drop(writers);
        self.hands_over(first, second, survivor, &before)?;
        self.hosts.reserve_disk(1, &clear(KEYS[1]))
    }

    /// The message of a server that must not start.
    fn refuses(&mut self, host: usize, what: &str, takeover: Option<u64>, owner: &str, epoch: u64) {
        let settings = DiskSettings { takeover, ..self.hosts.settings[host].clone() };
        let outcome = settings.refusal().and_then(|message| {
            for part in [owner, &format!("(epoch {epoch})"), "fenced", &format!("--takeover={epoch}")] {
                ensure!(message.contains(part), "no {part:?} in: {message}");
            }
            Ok(())
        });
        self.check(what, outcome);
    }

    /// The first host goes on. `stamps` are those that the second one has found.
    fn former_host_writes(&mut self, writers: &[Writer], stamps: &[u64], survivor: &mut Initiator) -> Result<()> {
        let answers: Vec<_> = writers.iter().map(Writer::answers).collect();
        wait_for("answers to every session", || {
            let is_enough = writers.iter().zip(&answers).all(|(writer, before)| writer.answers() >= before + 5);
            ensure!(is_enough, "not yet");
            Ok(())
        })?;
        std::thread::sleep(Duration::from_millis(500));
        let later = read_stamps(survivor, SURVIVORS_BLOCK + 1)?;
        if self.round.fence == Fence::None {
            let landed = if later == stamps { Err(anyhow!("no stamp has changed")) } else { Ok(()) };
            self.check("the writes that the first host had received land: only a fence keeps them away", landed);
            return Ok(());
        }
        self.check("no write of the first host changes the disk", equal("stamps", &stamps.to_vec(), &later));
        // A write may have ended before the fence, and its answer comes late.
        let good: Vec<_> = writers.iter().map(Writer::last_good).collect();
        let outcome = match good.iter().zip(stamps).all(|(good, stamp)| good <= stamp) {
            true => Ok(()),
            false => Err(anyhow!("the last stamps with GOOD are {good:?}, those on the disk {stamps:?}")),
        };
        self.check("no write of the first host is GOOD but those that the second one has found", outcome);
        Ok(())
    }

    /// The first host ends and starts again, and the unit returns to it after an orderly end of the second one.
    fn hands_over(
        &mut self,
        mut first: DiskServer,
        mut second: DiskServer,
        mut survivor: Initiator,
        before: &[Vec<u8>; 2],
    ) -> Result<()> {
        first.signal(Signal::SIGTERM)?;
        first.wait()?;
        let after = reservations(&mut survivor)?;
        let what = "the second host still has the registrations when the first one has ended";
        self.check(what, equal("READ RESERVATION and READ FULL STATUS", before, &after));
        let log = first.log();
        let outcome = if log.contains("stays owned") { Ok(()) } else { Err(anyhow!("its log: {log}")) };
        self.check("the first host has not released the unit of the second one", outcome);
        reserve_out(&mut survivor, PREEMPT, WINNERS_KEY, LOSERS_KEY)?;
        let preempted = reservations(&mut survivor)?;

        self.hosts.settings[0].host.as_ref().expect("an imitated host").start_again()?;
        self.refuses(0, "the first host does not start again without a takeover", None, "node-b", 2);
        self.refuses(0, "the first host does not start again with the epoch that it had", Some(1), "node-b", 2);

        second.signal(Signal::SIGTERM)?;
        let status = second.wait()?;
        ensure!(status.success(), "the second host ended with {status}: {}", second.log());
        self.hosts.reserve_disk(0, &register_ignoring(KEYS[0]))?;
        let _first = self.hosts.settings[0].start()?;
        let returned = reservations(&mut self.hosts.log_in(0, WINNER)?)?;
        let what = "after an orderly end of the second host, the first one serves the unit without a takeover";
        self.check(what, equal("READ RESERVATION and READ FULL STATUS", &preempted, &returned));
        Ok(())
    }
}

fn equal<T: PartialEq + std::fmt::Debug>(what: &str, expected: &T, actual: &T) -> Result<()> {
    ensure!(expected == actual, "{what}: expected {expected:?}, got {actual:?}");
    Ok(())
}

fn not_good(status: u8) -> Result<()> {
    ensure!(status != GOOD, "GOOD");
    Ok(())
}
