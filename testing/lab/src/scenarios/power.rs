//! A power cut under `scsi-pr disk`: medium and store lie on one disk with a volatile cache, and lose what it has.
//!
//! **Real:** ext4, its journal, the flushes and FUA of the kernel, and the server. dm-log-writes records which writes are
//! durable, and when. **Imitated:** the cut itself. The writes that were durable at that time are written to another disk.
//! All others are lost, which is the worst case of a volatile cache. A host with a new boot id mounts that disk.

use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use testing_support::iscsi::Initiator;

use crate::disk_server::{DiskServer, DiskSettings, Host};
use crate::layer::{Layer, Mount, load_memory_disks, make_ext4};
use crate::report::Report;
use crate::scenario::Scenario;
use crate::stamps::{
    Durability, GOOD, LOSER, LOSERS_KEY, PREEMPT, REGISTER_AND_IGNORE, RESERVATION_CONFLICT, RESERVE, WINNER,
    WINNERS_KEY, WRITERS, Writer, address, keys, read_stamps, reservations, reserve_out, synchronize_cache, unit,
    wait_for_writes, write_stamp,
};
use crate::system::wait_for;
use crate::write_log::WriteLog;

/// After the winner's GOOD, and in the middle of its PREEMPT.
pub(super) const POWER_CUT: Scenario = Scenario {
    name: "disk-power-cut",
    boot: "power",
    purpose: "a power cut after GOOD to a preempt keeps the reservation and durable writes, and no later write of the loser",
    run: |lab, report| {
        load_memory_disks()?;
        for (name, store) in [("directory", "dir:/run/power/store"), ("sqlite", "sqlite:/run/power/store.db")] {
            let settings = DiskSettings {
                program: lab.scsi_pr(),
                name: name.to_owned(),
                store: store.to_owned(),
                medium: Path::new(MOUNT).join("disk.img"),
                cache: "none",
                address: address(3260),
                host: Some(Host::new("node")?),
                takeover: None,
            };
            PowerCuts { report, settings }.run()?;
        }
        Ok(())
    },
};

const MOUNT: &str = "/run/power";
/// The disk before the cut, the log of its writes, and the disk after the cut.
const DISKS: [&str; 3] = ["/dev/ram0", "/dev/ram1", "/dev/ram2"];
/// The content of the disk at first.
const AT_FIRST: &str = "/dev/shm/at-first";
/// The time that the disk takes for a write or a flush.
const WRITE: Duration = Duration::from_millis(50);

/// The number of power cuts in the middle of the PREEMPT, at most.
const CUTS: usize = 6;

/// Blocks of the winner, in different blocks of the file system: written with FUA; before SYNCHRONIZE CACHE; without.
const FUA: u16 = 16;
const SYNCHRONIZED: u16 = 24;
const VOLATILE: u16 = 32;
const BLOCKS: u16 = VOLATILE + 1;
/// The stamp of the winner.
const WON: u64 = 1 << 32;

struct PowerCuts<'a> {
    report: &'a mut Report,
    settings: DiskSettings,
}

/// The state at the winner's GOOD.
struct Won {
    stamps: Vec<u64>,
    reservations: [Vec<u8>; 2],
}

impl PowerCuts<'_> {
    fn check(&mut self, what: &str, outcome: Result<()>) {
        self.report.check(format!("{}: {what}", self.settings.name), outcome.map_err(|error| format!("{error:#}")));
    }

    fn run(&mut self) -> Result<()> {
        let [disk, log, _] = DISKS.map(Path::new);
        make_ext4(disk)?;
        fs::write(AT_FIRST, fs::read(disk)?)?;
        let won = {
            let delayed = Layer::delayed(disk, WRITE)?;
            let logged = Layer::logged(&delayed.path, log)?;
            let _mount = Mount::ext4(&logged.path, MOUNT)?;
            self.preempts(&logged)?
        };
        let log = WriteLog::read(log)?;
        for mark in ["good", "written", "later"] {
            let outcome = log.until(mark).and_then(|until| {
                let (server, mount) = self.start_after(&log, until)?;
                let outcome = self.has_won(&won, mark);
                drop((server, mount));
                outcome
            });
            self.check(&format!("the disk after a power cut at the mark {mark:?}"), outcome);
        }
        let mut cuts = log.cuts(log.until("sent")?..log.until("good")?);
        let step = cuts.len().div_ceil(CUTS);
        cuts = cuts.into_iter().step_by(step).collect();
        let outcome = cuts.iter().try_for_each(|until| {
            let (server, mount) = self.start_after(&log, *until)?;
            let outcome = self.is_consistent();
            drop((server, mount));
            outcome
        });
        let what = format!("{} power cuts from the preempt to its GOOD leave the state before or after", cuts.len());
        self.check(&what, outcome);
        Ok(())
    }

    /// The loser writes, the winner fences it and writes, and the loser goes on to try.
    fn preempts(&self, disk: &Layer) -> Result<Won> {
        File::create(&self.settings.medium)?.set_len(16 << 20)?;
        let _server = self.settings.start()?;
        let mut loser = self.log_in(LOSER)?;
        let mut winner = self.log_in(WINNER)?;
        reserve_out(&mut loser, REGISTER_AND_IGNORE, 0, LOSERS_KEY)?;
        reserve_out(&mut winner, REGISTER_AND_IGNORE, 0, WINNERS_KEY)?;
        reserve_out(&mut loser, RESERVE, LOSERS_KEY, 0)?;
        let unit = unit(&self.settings.name, self.settings.address);
        let writers: Vec<_> =
            (0..WRITERS).map(|number| Writer::start(unit.clone(), number, durability_of(number))).collect();
        wait_for_writes(&writers, 3)?;
        disk.mark("sent")?;
        reserve_out(&mut winner, PREEMPT, WINNERS_KEY, LOSERS_KEY)?;
        disk.mark("good")?;
        let stamps = read_stamps(&mut winner, WRITERS)?;
        let reservations = reservations(&mut winner)?;
        for (block, durability) in [(FUA, Durability::Durable), (SYNCHRONIZED, Durability::Volatile)] {
            ensure!(write_stamp(&mut winner, block, WON, durability)? == GOOD, "a write of the winner failed");
        }
        ensure!(synchronize_cache(&mut winner)? == GOOD, "SYNCHRONIZE CACHE failed");
        ensure!(write_stamp(&mut winner, VOLATILE, WON, Durability::Volatile)? == GOOD, "a write of the winner failed");
        disk.mark("written")?;
        wait_for("refused writes of every session", || {
            ensure!(writers.iter().all(|writer| writer.conflicts() > 3), "not yet");
            Ok(())
        })?;
        // So that whatever has reached the disk is in the log.
        ensure!(synchronize_cache(&mut winner)? == GOOD, "SYNCHRONIZE CACHE failed");
        disk.mark("later")?;
        Ok(Won { stamps, reservations })
    }

    /// The host starts again after a power cut: the server serves the disk with the first writes of the log.
    fn start_after(&self, log: &WriteLog, writes: usize) -> Result<(DiskServer, Mount)> {
        let disk = Path::new(DISKS[2]);
        fs::write(disk, fs::read(AT_FIRST)?)?;
        log.replay(writes, disk)?;
        self.settings.host.as_ref().expect("an imitated host").start_again()?;
        let mount = Mount::ext4(disk, MOUNT)?;
        Ok((self.settings.start()?, mount))
    }

    /// The state after a cut at or after the winner's GOOD.
    fn has_won(&self, won: &Won, mark: &str) -> Result<()> {
        let mut winner = self.log_in(WINNER)?;
        // A power loss sets PRGENERATION to zero.
        let found = reservations(&mut winner)?.map(|data| data[4..].to_vec());
        let before = won.reservations.each_ref().map(|data| data[4..].to_vec());
        ensure!(found == before, "the reservations were {before:02x?}, and are {found:02x?}");
        let stamps = read_stamps(&mut winner, BLOCKS)?;
        for (number, at_good) in (0..WRITERS).zip(&won.stamps) {
            let stamp = stamps[usize::from(number)];
            let is_right = match durability_of(number) {
                Durability::Durable => stamp == *at_good,
                Durability::Volatile => stamp <= *at_good,
            };
            ensure!(is_right, "block {number} had {at_good} at GOOD, and has {stamp}");
        }
        let written = [FUA, SYNCHRONIZED, VOLATILE].map(|block| stamps[usize::from(block)]);
        let expected = match mark {
            "good" => [0, 0, 0],
            // Else the cut would have kept a volatile write, and prove nothing.
            "written" => [WON, WON, 0],
            _ => [WON, WON, WON],
        };
        ensure!(written == expected, "the blocks of the winner have {written:?}, and not {expected:?}");
        let status = write_stamp(&mut self.log_in(LOSER)?, 0, WON, Durability::Volatile)?;
        ensure!(status == RESERVATION_CONFLICT, "a write of the loser ends with status {status:#04x}");
        Ok(())
    }

    /// The state after a cut in the middle of the PREEMPT.
    fn is_consistent(&self) -> Result<()> {
        let found = keys(&mut self.log_in(WINNER)?)?;
        let status = write_stamp(&mut self.log_in(LOSER)?, 0, WON, Durability::Volatile)?;
        let is_right = match found[..] {
            [WINNERS_KEY] => status == RESERVATION_CONFLICT,
            [LOSERS_KEY, WINNERS_KEY] | [WINNERS_KEY, LOSERS_KEY] => status == GOOD,
            _ => false,
        };
        ensure!(is_right, "the keys are {found:?}, and a write of the loser ends with status {status:#04x}");
        Ok(())
    }

    fn log_in(&self, name: &str) -> Result<Initiator> {
        let unit = unit(&self.settings.name, self.settings.address);
        wait_for("login", || Initiator::log_in(&unit, name, 100))
    }
}

/// One half of the loser's sessions writes with FUA.
const fn durability_of(writer: u16) -> Durability {
    if writer < WRITERS / 2 { Durability::Durable } else { Durability::Volatile }
}
