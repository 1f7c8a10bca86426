//! PREEMPT AND ABORT while the loser has commands in flight on a medium that takes 1 ms.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use scsi_pr::{Completion, InitiatorPort, Nexus, Reservations, TransportId};
use scsi_pr_disk::{Allocation, DataIn, Disk, DiskOptions, Durability, Identity, Medium, MediumError, Port, SessionId};

use super::null::MemoryStore;
use super::summary;
use crate::report::{Row, value};

const IN_FLIGHT: usize = 128;
const ROUNDS: u64 = 50;
/// The time of a write.
const WRITE: Duration = Duration::from_millis(1);
const REGISTER: u8 = 0;
const RESERVE: u8 = 1;
const PREEMPT_AND_ABORT: u8 = 5;
const GOOD: Option<Completion> = Some(Completion::Good(Vec::new()));

/// A medium whose writes take [`WRITE`].
struct Slow;

impl Medium for Slow {
    fn size(&self) -> u64 {
        1 << 30
    }

    fn read(&self, _: u64, _: &mut [u8]) -> Result<(), MediumError> {
        Ok(())
    }

    fn write(&self, _: u64, _: &[u8], _: Durability) -> Result<(), MediumError> {
        thread::sleep(WRITE);
        Ok(())
    }

    fn flush(&self) -> Result<(), MediumError> {
        Ok(())
    }

    fn zero(&self, _: u64, _: u64, _: Allocation, _: Durability) -> Result<(), MediumError> {
        Ok(())
    }
}

/// A session with the disk.
struct Session {
    disk: Arc<Disk>,
    id: SessionId,
    port: Port,
    tag: AtomicU64,
}

impl Session {
    fn open(disk: &Arc<Disk>, name: &str) -> Result<Self> {
        let id = TransportId::new(InitiatorPort::Iscsi { name, isid: Some([0; 6]) })?;
        let session = disk.open_session(Nexus::new(id, 1));
        let port = Port { relative_target_port: [0, 1], name: "iqn.2026-11.example:disk,t,0x0001".to_owned() };
        Ok(Self { disk: Arc::clone(disk), id: session, port, tag: AtomicU64::new(0) })
    }

    fn run(&self, cdb: &[u8], data: &[u8]) -> Option<Completion> {
        let task = self.disk.add_task(self.id, self.tag.fetch_add(1, Ordering::Relaxed))?;
        self.disk.execute(&task, &self.port, cdb, data, &mut DataIn::new()).completion
    }

    /// Repeats the command while a unit attention is the answer.
    fn reserve_out(&self, action: u8, key: u64, service_action_key: u64) -> Result<()> {
        let cdb = [0x5f, action, 5, 0, 0, 0, 0, 0, 24, 0];
        let list = [&key.to_be_bytes()[..], &service_action_key.to_be_bytes(), &[0; 8]].concat();
        for _ in 0..10 {
            match self.run(&cdb, &list) {
                good if good == GOOD => return Ok(()),
                Some(Completion::CheckCondition(_)) => {}
                other => bail!("PERSISTENT RESERVE OUT {action:#04x}: {other:?}"),
            }
        }
        bail!("PERSISTENT RESERVE OUT {action:#04x} has a unit attention again and again")
    }
}

pub(super) fn measure() -> Result<Vec<Row>> {
    let options = DiskOptions::new(Identity::from_uuid(*b"scsi-pr slow dev"));
    let disk = Arc::new(Disk::open(options, Box::new(Slow), Box::new(MemoryStore(Reservations::new())))?);
    let loser = Session::open(&disk, "iqn.2026-11.example:loser")?;
    let winner = Session::open(&disk, "iqn.2026-11.example:winner")?;
    winner.reserve_out(REGISTER, 0, 2)?;
    let is_over = AtomicBool::new(false);
    let in_flight = AtomicU64::new(0);
    let times = thread::scope(|scope| {
        for _ in 0..IN_FLIGHT {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    in_flight.fetch_add(1, Ordering::Relaxed);
                    let answer = loser.run(&[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[0; 512]);
                    in_flight.fetch_sub(1, Ordering::Relaxed);
                    if answer != GOOD {
                        thread::sleep(WRITE);
                    }
                }
            });
        }
        let times = (0..ROUNDS).map(|_| {
            loser.reserve_out(REGISTER, 0, 1)?;
            // The preempt of the round before has given the winner the reservation.
            if disk_is_free(&winner)? {
                winner.reserve_out(RESERVE, 2, 0)?;
            }
            while in_flight.load(Ordering::Relaxed) < IN_FLIGHT as u64 {
                thread::yield_now();
            }
            let start = Instant::now();
            winner.reserve_out(PREEMPT_AND_ABORT, 2, 1)?;
            Ok(start.elapsed().as_secs_f64() * 1e3)
        });
        let times: Result<Vec<f64>> = times.collect();
        is_over.store(true, Ordering::Relaxed);
        times
    })?;
    let time = summary(times)?;
    let figure = format!("PREEMPT AND ABORT with {IN_FLIGHT} writes of 1 ms in flight");
    let ratio = summary(vec![time.median / (WRITE.as_secs_f64() * 1e3)])?;
    Ok(vec![Row {
        figure,
        c: "1 ms".to_owned(),
        scsi_pr: value(time, "ms"),
        ratio,
        against: "the medium",
        bound: Some(3.0),
    }])
}

/// Whether there is no reservation.
fn disk_is_free(session: &Session) -> Result<bool> {
    for _ in 0..10 {
        let Some(task) = session.disk.add_task(session.id, session.tag.fetch_add(1, Ordering::Relaxed)) else {
            bail!("the session has ended");
        };
        let mut data = DataIn::new();
        let cdb = [0x5e, 1, 0, 0, 0, 0, 0, 0, 255, 0];
        if session.disk.execute(&task, &session.port, &cdb, &[], &mut data).completion == GOOD {
            return Ok(data.bytes().len() == 8);
        }
    }
    bail!("READ RESERVATION has a unit attention again and again")
}
