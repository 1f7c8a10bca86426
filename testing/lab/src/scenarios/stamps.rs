//! The stamp test: a loser writes numbered blocks without pause to `scsi-pr disk` on a medium whose writes take long, and a
//! winner takes its registration away. From the winner's GOOD on, no block may change. The same holds from the first READ KEYS
//! without the loser's key.

use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use testing_support::iscsi::{Initiator, ScsiCommand, Unit};

use crate::disk_server::{DiskServer, DiskSettings};
use crate::lab::Lab;
use crate::layer::{Layer, Mount, load_memory_disks, make_ext4};
use crate::report::Report;
use crate::scenario::Scenario;
use crate::stamps::{
    Durability, LOSER, LOSERS_KEY, PREEMPT, PREEMPT_AND_ABORT, REGISTER_AND_IGNORE, RESERVE, WINNER, WINNERS_KEY,
    WRITERS, Writer, address, command, keys, read_stamps, reserve_out, unit, wait_for_writes,
};
use crate::system::wait_for;

/// On a device-mapper device that delays writes.
pub(super) const STAMPS: Scenario = Scenario {
    name: "disk-stamps",
    boot: "stamps",
    purpose: "after GOOD to a preempt, no write of the loser changes a block: beside kill -9, SIGSTOP, an aborted preempt and a store that hangs",
    run: stamps,
};

/// The time that the medium takes for a write.
const WRITE: Duration = Duration::from_millis(300);

/// The event between the loser's writes and the winner's GOOD.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Disturbance {
    Nothing,
    /// The server is killed, and started again.
    Kill,
    /// The server stops for a second.
    Stop,
    /// The winner aborts its preempt, and reads the keys until the loser's is gone.
    Abort,
    /// The disk of the store hangs for some time.
    Hang,
    /// It hangs, and the winner aborts its preempt meanwhile.
    HangAndAbort,
    /// It hangs, and the server is killed meanwhile, and started again.
    HangAndKill,
}

/// The time for which the disk of the store hangs.
const HANG: Duration = Duration::from_secs(2);

/// An initiator that is not registered, and reads the keys.
const OBSERVER: &str = "iqn.2026-11.lab:observer";

const STORE: &str = "/run/stamps";

fn stamps(lab: &mut Lab, report: &mut Report) -> Result<()> {
    load_memory_disks()?;
    let medium = Layer::delayed(Path::new("/dev/ram0"), WRITE)?;
    let store_disk = Layer::linear(Path::new("/dev/ram1"))?;
    make_ext4(&store_disk.path)?;
    let _mount = Mount::ext4(&store_disk.path, STORE)?;
    for (name, store, rounds) in [
        (
            "sqlite",
            "sqlite:/run/stamps/store.db",
            &[
                (PREEMPT, Disturbance::Nothing),
                (PREEMPT_AND_ABORT, Disturbance::Nothing),
                (PREEMPT, Disturbance::Stop),
                (PREEMPT_AND_ABORT, Disturbance::Abort),
                (PREEMPT, Disturbance::Kill),
                (PREEMPT_AND_ABORT, Disturbance::Kill),
                (PREEMPT, Disturbance::Hang),
                (PREEMPT_AND_ABORT, Disturbance::HangAndAbort),
                (PREEMPT, Disturbance::HangAndKill),
            ][..],
        ),
        (
            "directory",
            "dir:/run/stamps/store",
            &[
                (PREEMPT_AND_ABORT, Disturbance::Hang),
                (PREEMPT, Disturbance::HangAndAbort),
                (PREEMPT_AND_ABORT, Disturbance::HangAndKill),
            ],
        ),
    ] {
        let settings = DiskSettings {
            program: lab.scsi_pr(),
            name: name.to_owned(),
            store: store.to_owned(),
            medium: medium.path.clone(),
            cache: "none",
            address: address(3260),
            host: None,
            takeover: None,
        };
        let unit = unit(name, settings.address);
        let mut fences = Fences { unit, server: settings.start()?, settings, store_disk: &store_disk };
        for (action, disturbance) in rounds {
            let outcome = fences.fence(*action, *disturbance);
            let what = format!("{name}, service action {action}, {disturbance:?}: no stamp changes after GOOD");
            report.check(what, outcome.map_err(|error| format!("{error:#}")));
        }
    }
    Ok(())
}

struct Fences<'a> {
    unit: Unit,
    settings: DiskSettings,
    server: DiskServer,
    store_disk: &'a Layer,
}

impl Fences<'_> {
    /// The loser writes, the winner fences it.
    fn fence(&mut self, action: u8, disturbance: Disturbance) -> Result<()> {
        let mut loser = Initiator::log_in(&self.unit, LOSER, WRITERS)?;
        let mut winner = self.log_in(WINNER)?;
        reserve_out(&mut winner, REGISTER_AND_IGNORE, 0, WINNERS_KEY)?;
        reserve_out(&mut loser, REGISTER_AND_IGNORE, 0, LOSERS_KEY)?;
        // After the first time the winner holds it already, which permits registrants as well.
        let _ = reserve_out(&mut loser, RESERVE, LOSERS_KEY, 0);

        let writers: Vec<_> =
            (0..WRITERS).map(|number| Writer::start(self.unit.clone(), number, Durability::Volatile)).collect();
        wait_for_writes(&writers, 2)?;
        let at_good = match disturbance {
            Disturbance::Nothing => self.preempt(winner, action)?,
            Disturbance::Kill => {
                // Writes are on the medium.
                self.server.kill()?;
                self.server = self.settings.start()?;
                self.preempt(self.log_in(WINNER)?, action)?
            }
            Disturbance::Stop => {
                self.server.signal(Signal::SIGSTOP)?;
                let pid = self.server.pid();
                let go_on = thread::spawn(move || {
                    thread::sleep(Duration::from_secs(1));
                    kill(pid, Signal::SIGCONT)
                });
                let stamps = self.preempt(winner, action)?;
                go_on.join().expect("a thread that sends a signal")?;
                stamps
            }
            Disturbance::Abort => {
                let (cdb, list) = command(action, WINNERS_KEY, LOSERS_KEY);
                winner.start(ScsiCommand { cdb, data: &list, expected: 0 })?;
                thread::sleep(WRITE / 4);
                winner.abort_task_set()?;
                stamps_without_loser(winner)?
            }
            Disturbance::Hang => self.hang(winner, action, &writers)?,
            Disturbance::HangAndAbort | Disturbance::HangAndKill => {
                self.hang_and_give_up(winner, action, disturbance)?
            }
        };
        thread::sleep(WRITE * 5);
        let later = read_stamps(&mut self.log_in(WINNER)?, WRITERS)?;
        let refused = writers.iter().all(|writer| writer.conflicts() > 0);
        drop(writers);
        ensure!(at_good.iter().any(|stamp| *stamp > 0), "the loser has written nothing");
        ensure!(at_good == later, "stamps at GOOD: {at_good:?}, later: {later:?}");
        ensure!(refused, "a session of the loser was not refused");
        Ok(())
    }

    /// The winner preempts. Returns the stamps from then on.
    fn preempt(&self, mut winner: Initiator, action: u8) -> Result<Vec<u64>> {
        reserve_out(&mut winner, action, WINNERS_KEY, LOSERS_KEY)?;
        read_stamps(&mut winner, WRITERS)
    }

    /// While the store hangs, no initiator learns of a change, and the loser goes on to write.
    fn hang(&self, winner: Initiator, action: u8, writers: &[Writer]) -> Result<Vec<u64>> {
        let observer = self.log_in(OBSERVER)?;
        let suspended = self.store_disk.suspend()?;
        thread::scope(|scope| {
            let preempts = scope.spawn(move || self.preempt(winner, action));
            thread::sleep(HANG / 4);
            let observes = scope.spawn(move || stamps_without_loser(observer));
            let during = wait_for_writes(writers, 2);
            thread::sleep(HANG);
            let is_answered = [preempts.is_finished(), observes.is_finished()];
            drop(suspended);
            let at_good = preempts.join().expect("a thread that preempts")?;
            let at_keys = observes.join().expect("a thread that reads the keys")?;
            during.context("the loser may write until the change is durable")?;
            ensure!(is_answered == [false, false], "answers to the preempt and to READ KEYS: {is_answered:?}");
            ensure!(at_good == at_keys, "stamps at GOOD: {at_good:?}, at READ KEYS: {at_keys:?}");
            Ok(at_good)
        })
    }

    /// The store hangs, and the preempt gets no answer. Afterwards the winner reads the keys, and preempts again if the loser
    /// is registered. Returns the stamps from then on.
    fn hang_and_give_up(&mut self, mut winner: Initiator, action: u8, disturbance: Disturbance) -> Result<Vec<u64>> {
        let (cdb, list) = command(action, WINNERS_KEY, LOSERS_KEY);
        let suspended = self.store_disk.suspend()?;
        winner.start(ScsiCommand { cdb, data: &list, expected: 0 })?;
        thread::sleep(HANG);
        if disturbance == Disturbance::HangAndKill {
            self.server.signal(Signal::SIGKILL)?;
            thread::sleep(HANG / 2);
            drop(suspended);
            self.server.wait()?;
            self.server = self.settings.start()?;
        } else {
            thread::scope(|scope| {
                let aborts = scope.spawn(|| winner.abort_task_set());
                thread::sleep(HANG / 2);
                drop(suspended);
                aborts.join().expect("a thread that aborts")
            })?;
        }
        let mut winner = self.log_in(WINNER)?;
        if keys(&mut winner)?.contains(&LOSERS_KEY) {
            return self.preempt(winner, action);
        }
        read_stamps(&mut winner, WRITERS)
    }

    fn log_in(&self, name: &str) -> Result<Initiator> {
        wait_for("login", || Initiator::log_in(&self.unit, name, 0))
    }
}

/// Reads the keys until the loser's is gone. Returns the stamps from then on.
fn stamps_without_loser(mut initiator: Initiator) -> Result<Vec<u64>> {
    wait_for("keys without the loser's", || match keys(&mut initiator)?.contains(&LOSERS_KEY) {
        true => bail!("the loser is registered"),
        false => Ok(()),
    })?;
    read_stamps(&mut initiator, WRITERS)
}
