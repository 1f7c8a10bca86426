//! Stamps: sessions that write increasing numbers to blocks of a disk of `scsi-pr disk`, and the commands that fence them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use testing_support::iscsi::{Initiator, ScsiCommand, Unit};

use crate::system::wait_for;

pub(crate) const LOSER: &str = "iqn.2026-11.lab:loser";
pub(crate) const WINNER: &str = "iqn.2026-11.lab:winner";
pub(crate) const LOSERS_KEY: u64 = 1;
pub(crate) const WINNERS_KEY: u64 = 2;
/// Sessions of the loser; each writes a block of its own.
pub(crate) const WRITERS: u16 = 4;
/// The length of a block in bytes.
pub(crate) const BLOCK: usize = 512;

pub(crate) const GOOD: u8 = 0x00;
const CHECK_CONDITION: u8 = 0x02;
pub(crate) const RESERVATION_CONFLICT: u8 = 0x18;

pub(crate) const RESERVE: u8 = 1;
pub(crate) const PREEMPT: u8 = 4;
pub(crate) const PREEMPT_AND_ABORT: u8 = 5;
pub(crate) const REGISTER_AND_IGNORE: u8 = 6;

/// Whether a write is durable when it is GOOD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Durability {
    /// It may be in a volatile cache.
    Volatile,
    /// FUA.
    Durable,
}

/// An address of this machine for `scsi-pr disk`.
pub(crate) const fn address(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

/// The unit that `scsi-pr disk` serves as `name` at `address`.
pub(crate) fn unit(name: &str, address: SocketAddr) -> Unit {
    Unit { address, target: format!("iqn.2026-11.io.scsi-pr:{name}"), lun: 0 }
}

/// A session of the loser that writes increasing numbers to its block, until this is dropped. It logs in again when the
/// server was killed.
pub(crate) struct Writer {
    counts: Arc<Counts>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// The answers that a writer has got.
#[derive(Default)]
struct Counts {
    good: AtomicU64,
    conflicts: AtomicU64,
    others: AtomicU64,
    /// The stamp of the last write that was GOOD.
    last_good: AtomicU64,
}

impl Writer {
    /// Starts the session of this number. It writes the block of this number.
    pub(crate) fn start(unit: Unit, number: u16, durability: Durability) -> Self {
        let (counts, stop): (Arc<Counts>, Arc<AtomicBool>) = Default::default();
        let (answers, ends) = (Arc::clone(&counts), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            let mut stamp = 0;
            while !ends.load(Ordering::SeqCst) {
                let Ok(mut session) = Initiator::log_in(&unit, LOSER, number) else {
                    thread::sleep(Duration::from_millis(20));
                    continue;
                };
                while !ends.load(Ordering::SeqCst) {
                    stamp += 1;
                    let Ok(status) = write_stamp(&mut session, number, stamp, durability) else { break };
                    let count = match status {
                        GOOD => &answers.good,
                        RESERVATION_CONFLICT => &answers.conflicts,
                        _ => &answers.others,
                    };
                    count.fetch_add(1, Ordering::SeqCst);
                    match status {
                        GOOD => answers.last_good.store(stamp, Ordering::SeqCst),
                        _ => thread::sleep(Duration::from_millis(5)),
                    }
                }
            }
        });
        Self { counts, stop, thread: Some(thread) }
    }

    /// The number of its writes that were GOOD.
    pub(crate) fn good(&self) -> u64 {
        self.counts.good.load(Ordering::SeqCst)
    }

    /// The stamp of its last write that was GOOD.
    pub(crate) fn last_good(&self) -> u64 {
        self.counts.last_good.load(Ordering::SeqCst)
    }

    /// The number of its writes that ended with RESERVATION CONFLICT.
    pub(crate) fn conflicts(&self) -> u64 {
        self.counts.conflicts.load(Ordering::SeqCst)
    }

    /// The number of its writes with an answer.
    pub(crate) fn answers(&self) -> u64 {
        self.good() + self.conflicts() + self.counts.others.load(Ordering::SeqCst)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Waits until every writer has `more` writes that were GOOD.
pub(crate) fn wait_for_writes(writers: &[Writer], more: u64) -> Result<()> {
    let before: Vec<_> = writers.iter().map(Writer::good).collect();
    wait_for("writes of every session", || {
        match writers.iter().zip(&before).all(|(writer, before)| writer.good() >= before + more) {
            true => Ok(()),
            false => bail!("not yet"),
        }
    })
}

/// Writes a stamp to a block, and returns the status.
pub(crate) fn write_stamp(session: &mut Initiator, block: u16, stamp: u64, durability: Durability) -> Result<u8> {
    let mut data = [0; BLOCK];
    data[..8].copy_from_slice(&stamp.to_be_bytes());
    let mut cdb = [0; 16];
    (cdb[0], cdb[8]) = (0x2a, 1);
    cdb[1] = if durability == Durability::Durable { 0x08 } else { 0 };
    cdb[4..6].copy_from_slice(&block.to_be_bytes());
    Ok(session.run(ScsiCommand { cdb, data: &data, expected: 0 })?.0)
}

/// SYNCHRONIZE CACHE. Returns the status.
pub(crate) fn synchronize_cache(session: &mut Initiator) -> Result<u8> {
    let mut cdb = [0; 16];
    cdb[0] = 0x35;
    Ok(session.run(ScsiCommand { cdb, data: &[], expected: 0 })?.0)
}

/// PERSISTENT RESERVE OUT with Write Exclusive – Registrants Only, and with APTPL for a registration: the CDB and the
/// parameter list.
pub(crate) fn command(action: u8, key: u64, service_action_key: u64) -> ([u8; 16], Vec<u8>) {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1], cdb[2], cdb[8]) = (0x5f, action, 5, 24);
    let aptpl = u8::from(action == REGISTER_AND_IGNORE);
    (cdb, [&key.to_be_bytes()[..], &service_action_key.to_be_bytes(), &[0, 0, 0, 0, aptpl, 0, 0, 0]].concat())
}

/// Sends PERSISTENT RESERVE OUT, again after a unit attention. Any status but GOOD is an error.
pub(crate) fn reserve_out(initiator: &mut Initiator, action: u8, key: u64, service_action_key: u64) -> Result<()> {
    let (cdb, list) = command(action, key, service_action_key);
    match run_past_attentions(initiator, ScsiCommand { cdb, data: &list, expected: 0 })? {
        (GOOD, _) => Ok(()),
        (status, _) => bail!("PERSISTENT RESERVE OUT {action} ended with status {status:#04x}"),
    }
}

fn run_past_attentions(initiator: &mut Initiator, command: ScsiCommand<'_>) -> Result<(u8, Vec<u8>)> {
    let mut last = initiator.run(command)?;
    for _ in 0..5 {
        if last.0 != CHECK_CONDITION {
            break;
        }
        last = initiator.run(command)?;
    }
    Ok(last)
}

/// PERSISTENT RESERVE IN with this service action, for at most 256 bytes.
pub(crate) fn reserve_in(action: u8) -> ScsiCommand<'static> {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1], cdb[7]) = (0x5e, action, 1);
    ScsiCommand { cdb, data: &[], expected: 256 }
}

/// The data of PERSISTENT RESERVE IN. Any status but GOOD is an error.
fn reserve_in_data(initiator: &mut Initiator, action: u8) -> Result<Vec<u8>> {
    let (status, data) = run_past_attentions(initiator, reserve_in(action))?;
    ensure!(status == GOOD, "PERSISTENT RESERVE IN {action} ended with status {status:#04x}");
    Ok(data)
}

/// The registered keys.
pub(crate) fn keys(initiator: &mut Initiator) -> Result<Vec<u64>> {
    Ok(reserve_in_data(initiator, 0)?[8..].chunks_exact(8).map(big_endian).collect())
}

/// The data of READ RESERVATION and READ FULL STATUS.
pub(crate) fn reservations(initiator: &mut Initiator) -> Result<[Vec<u8>; 2]> {
    Ok([reserve_in_data(initiator, 1)?, reserve_in_data(initiator, 3)?])
}

/// The stamps of the first `blocks` blocks, by one READ.
pub(crate) fn read_stamps(initiator: &mut Initiator, blocks: u16) -> Result<Vec<u64>> {
    let mut cdb = [0; 16];
    cdb[0] = 0x28;
    cdb[7..9].copy_from_slice(&blocks.to_be_bytes());
    let expected = usize::from(blocks) * BLOCK;
    let (status, data) = run_past_attentions(initiator, ScsiCommand { cdb, data: &[], expected })?;
    ensure!(status == GOOD && data.len() == expected, "a read ended with status {status:#04x}");
    Ok(data.chunks_exact(BLOCK).map(|block| big_endian(&block[..8])).collect())
}

fn big_endian(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}
