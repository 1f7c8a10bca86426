//! The stamp test: a loser writes numbered blocks without pause to `scsi-pr disk` on a medium whose writes take long, and a
//! winner takes its registration away. From the winner's GOOD on, no block may change.

use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use testing_support::iscsi::{Initiator, ScsiCommand, Unit};

use crate::disk_server::{DiskServer, DiskSettings};
use crate::lab::Lab;
use crate::layer::Layer;
use crate::report::Report;
use crate::scenario::Scenario;
use crate::stamps::{
    Durability, GOOD, LOSER, LOSERS_KEY, PREEMPT, PREEMPT_AND_ABORT, REGISTER_AND_IGNORE, RESERVE, WINNER, WINNERS_KEY,
    WRITERS, Writer, address, command, keys, read_stamps, reserve_out, unit, wait_for_writes,
};
use crate::system::{run, wait_for};

/// On a device-mapper device that delays writes.
pub(super) const STAMPS: Scenario = Scenario {
    name: "disk-stamps",
    boot: "stamps",
    purpose: "after GOOD to a preempt, no write of the loser changes a block: beside kill -9, SIGSTOP and an aborted preempt",
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
}

fn stamps(lab: &mut Lab, report: &mut Report) -> Result<()> {
    run("modprobe", &["--all", "brd", "dm-delay"])?;
    let medium = Layer::delayed(Path::new("/dev/ram0"), WRITE)?;
    let settings = DiskSettings {
        program: lab.scsi_pr(),
        name: "stamps".to_owned(),
        store: "sqlite:/run/stamps.db".to_owned(),
        medium: medium.path.clone(),
        cache: "none",
        address: address(3260),
        host: None,
        takeover: None,
    };
    let unit = unit(&settings.name, settings.address);
    let mut server = settings.start()?;
    for (action, disturbance) in [
        (PREEMPT, Disturbance::Nothing),
        (PREEMPT_AND_ABORT, Disturbance::Nothing),
        (PREEMPT, Disturbance::Stop),
        (PREEMPT_AND_ABORT, Disturbance::Abort),
        (PREEMPT, Disturbance::Kill),
        (PREEMPT_AND_ABORT, Disturbance::Kill),
    ] {
        let outcome = fence(&unit, &settings, &mut server, action, disturbance);
        let what = format!("service action {action}, {disturbance:?}: no stamp changes after GOOD");
        report.check(what, outcome.map_err(|error| format!("{error:#}")));
    }
    Ok(())
}

/// The loser writes, the winner fences it.
fn fence(
    unit: &Unit,
    settings: &DiskSettings,
    server: &mut DiskServer,
    action: u8,
    disturbance: Disturbance,
) -> Result<()> {
    let mut loser = Initiator::log_in(unit, LOSER, WRITERS)?;
    let mut winner = Initiator::log_in(unit, WINNER, 0)?;
    reserve_out(&mut winner, REGISTER_AND_IGNORE, 0, WINNERS_KEY)?;
    reserve_out(&mut loser, REGISTER_AND_IGNORE, 0, LOSERS_KEY)?;
    // After the first time the winner holds it already, which permits registrants as well.
    let _ = reserve_out(&mut loser, RESERVE, LOSERS_KEY, 0);

    let writers: Vec<_> =
        (0..WRITERS).map(|number| Writer::start(unit.clone(), number, Durability::Volatile)).collect();
    wait_for_writes(&writers, 2)?;
    if disturbance == Disturbance::Kill {
        // Writes are on the medium.
        server.kill()?;
        *server = settings.start()?;
        winner = wait_for("login of the winner", || Initiator::log_in(unit, WINNER, 0))?;
    }
    let (cdb, list) = command(action, WINNERS_KEY, LOSERS_KEY);
    let preempt = ScsiCommand { cdb, data: &list, expected: 0 };
    match disturbance {
        Disturbance::Stop => {
            server.signal(Signal::SIGSTOP)?;
            let pid = server.pid();
            let go_on = thread::spawn(move || {
                thread::sleep(Duration::from_secs(1));
                kill(pid, Signal::SIGCONT)
            });
            let status = winner.run(preempt)?.0;
            go_on.join().expect("a thread that sends a signal")?;
            ensure!(status == GOOD, "the preempt ended with status {status:#04x}");
        }
        Disturbance::Abort => {
            winner.start(preempt)?;
            thread::sleep(WRITE / 4);
            winner.abort_task_set()?;
            wait_for("keys without the loser's", || match keys(&mut winner)?.contains(&LOSERS_KEY) {
                true => bail!("the loser is registered"),
                false => Ok(()),
            })?;
        }
        Disturbance::Nothing | Disturbance::Kill => reserve_out(&mut winner, action, WINNERS_KEY, LOSERS_KEY)?,
    }
    let at_good = read_stamps(&mut winner, WRITERS)?;
    thread::sleep(WRITE * 5);
    let later = read_stamps(&mut winner, WRITERS)?;
    let refused = writers.iter().all(|writer| writer.conflicts() > 0);
    drop(writers);
    ensure!(at_good.iter().any(|stamp| *stamp > 0), "the loser has written nothing");
    ensure!(at_good == later, "stamps at GOOD: {at_good:?}, later: {later:?}");
    ensure!(refused, "a session of the loser was not refused");
    Ok(())
}
