//! [`Unit`]: a logical unit of the target, with a session of each initiator.

use std::fs;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::RwLock;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail, ensure};
use model::history::World;
use model::{Answer, Nexus};
use scsi_pr::{Cdb, Command, Completion, FullStatus, PrManager, Sense, Status};
use scsi_pr_linux::SgIo;

use super::INITIATORS;
use crate::disk::Disk;
use crate::sg::{Reply, Sg, Transfer};
use crate::system::run;
use crate::target::Target;

/// Held for writing while a command other than REGISTER may remove its sender's registration. LIO of Linux 6.1 decrements
/// the reference count of that registration after freeing it. If another unit has allocated a registration at the same
/// address by then, the removal of that one waits for ever.
static REGISTERING: RwLock<()> = RwLock::new(());

/// The length of a block in bytes.
pub(super) const BLOCK: usize = 512;

/// A unit, as each initiator sees it.
pub(super) struct Unit {
    disks: Vec<Disk>,
    others: Vec<Sg>,
    manager: SgIo,
    /// The number of logins that the target has accepted.
    accepted_logins: PathBuf,
    /// The initiators and their target port, by the target's names.
    pub(super) world: World,
    /// The number of stamps so far. No two writes to the unit have the same stamp.
    stamps: AtomicU64,
}

impl Unit {
    pub(super) fn new(target: &Target) -> Result<Self> {
        let paths: Vec<PathBuf> =
            INITIATORS.iter().map(|initiator| target.disk(initiator, 0)).collect::<Result<_>>()?;
        let mut unit = Self {
            disks: paths.iter().map(|path| Disk::open(path)).collect::<Result<_>>()?,
            others: paths.iter().map(|path| Sg::open(path)).collect::<Result<_>>()?,
            manager: SgIo::new(),
            accepted_logins: target.accepted_logins(),
            world: World { target_ports: Vec::new(), nexuses: Vec::new() },
            stamps: AtomicU64::new(0),
        };
        unit.world = world(&unit)?;
        Ok(unit)
    }

    /// The contents of a block that was never written before.
    pub(super) fn new_stamp(&self) -> u64 {
        self.stamps.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Sends a persistent reservation command.
    pub(super) fn send(&self, from: usize, cdb: &[u8; 16], list: &[u8]) -> Result<Answer> {
        let command = Command::new(Cdb::new(*cdb)?, list)?;
        let (_exclusive, _shared);
        match (cdb[0], cdb[1] & 0x1f) {
            (0x5f, 3 | 4 | 5 | 7) => _exclusive = REGISTERING.write(),
            (0x5f, _) => _shared = REGISTERING.read(),
            _ => {}
        }
        match self.manager.execute(self.disks[from].file().as_fd(), command)? {
            Completion::Good(data) => Ok(Answer::Good(data)),
            Completion::Status(Status::RESERVATION_CONFLICT) => Ok(Answer::Conflict),
            Completion::CheckCondition(sense) => {
                let code = sense.code().context("the sense data have an unknown format")?;
                // LIO's sense data are the same as the library's, byte by byte.
                ensure!(sense == Sense::fixed(code), "unusual sense data: {sense:?}");
                Ok(Answer::Check(code.key.byte(), code.asc, code.ascq))
            }
            other => bail!("the target answered {other}"),
        }
    }

    /// Sends any other command. The data of a READ are part of the answer, those of other commands are not.
    pub(super) fn send_other(&self, from: usize, cdb: &[u8], transfer: Transfer<'_>) -> Result<Answer> {
        match self.others[from].send(cdb, transfer)? {
            Reply { status: 0x00, data, .. } if cdb[0] == READ => Ok(Answer::Good(stamp_of(&data))),
            Reply { status: 0x00, .. } => Ok(Answer::Good(Vec::new())),
            Reply { status: 0x02, sense, .. } => Ok(Answer::Check(sense[2] & 0xf, sense[12], sense[13])),
            Reply { status: 0x18, .. } => Ok(Answer::Conflict),
            Reply { status, .. } => bail!("the target answered status {status:#04x}"),
        }
    }

    /// RESERVE or RELEASE of SPC-2.
    pub(super) fn send_spc2(&self, from: usize, reserve: bool) -> Result<Answer> {
        self.send_other(from, if reserve { &RESERVE } else { &RELEASE }, Transfer::In(0))
    }

    /// LOGICAL UNIT RESET.
    pub(super) fn reset(&self, from: usize) -> Result<()> {
        self.run_sg_reset(from, "--device")
    }

    /// Ends the session of `from`, and waits for the next one. LIO rejects TARGET WARM RESET, so open-iscsi drops the
    /// connection and logs in again, with the same ISID. After a logout it would take another ISID, and so be another nexus.
    pub(super) fn lose_nexus(&self, from: usize) -> Result<()> {
        let before = self.logins()?;
        self.run_sg_reset(from, "--target")?;
        let logins = self.logins()? - before;
        ensure!(logins == 1, "the initiator has logged in {logins} times, not once");
        Ok(())
    }

    fn logins(&self) -> Result<u64> {
        Ok(fs::read_to_string(&self.accepted_logins)?.trim().parse()?)
    }

    fn run_sg_reset(&self, from: usize, what: &str) -> Result<()> {
        run("sg_reset", &["--no-esc", what, &self.others[from].path().to_string_lossy()]).map(drop)
    }

    /// Takes every pending unit attention of `from`.
    fn drain(&self, from: usize) -> Result<()> {
        while let Answer::Check(6, ..) = self.send_other(from, &[0; 6], Transfer::In(0))? {}
        Ok(())
    }

    /// Removes the state of an earlier history. Returns PRGENERATION.
    pub(super) fn clean(&self) -> Result<u32> {
        for from in 0..INITIATORS.len() {
            self.drain(from)?;
            self.send_spc2(from, false)?;
        }
        // ALL_TG_PT is set, because LIO refuses to change a registration with it by a command without it.
        let mut list = [0; 24];
        (list[15], list[20]) = (1, 4);
        let registered = self.send(0, &out(6), &list)?;
        list[..16].copy_from_slice(&[[0, 0, 0, 0, 0, 0, 0, 1]; 2].concat());
        let cleared = self.send(0, &out(3), &list)?;
        ensure!([registered, cleared] == [const { Answer::Good(Vec::new()) }; 2], "the unit cannot be cleared");
        for from in 0..INITIATORS.len() {
            self.drain(from)?;
        }
        match self.send(0, &read(0), &[])? {
            Answer::Good(data) if data.len() == 8 => Ok(u32::from_be_bytes(data[..4].try_into()?)),
            other => bail!("the unit was cleared, and READ KEYS answered {other:?}"),
        }
    }

    /// Writes a block. The unit has no reservation.
    pub(super) fn write_block(&self, lba: u8, stamp: u64) -> Result<()> {
        let answer = self.send_other(0, &block_cdb(WRITE, lba), Transfer::Out(&block_of(stamp)))?;
        ensure!(answer == Answer::Good(Vec::new()), "a write without a reservation is answered by {answer:?}");
        Ok(())
    }
}

/// READ(10) and WRITE(10).
pub(super) const READ: u8 = 0x28;
pub(super) const WRITE: u8 = 0x2a;

/// READ(10) or WRITE(10) of one block.
pub(super) fn block_cdb(opcode: u8, lba: u8) -> [u8; 10] {
    [opcode, 0, 0, 0, 0, lba, 0, 0, 1, 0]
}

/// The contents of a block with this stamp.
pub(super) fn block_of(stamp: u64) -> Vec<u8> {
    stamp.to_be_bytes().repeat(BLOCK / 8)
}

/// The stamp of a block, or the whole block if it has more than one.
fn stamp_of(block: &[u8]) -> Vec<u8> {
    let (first, rest) = block.split_at(block.len().min(8));
    let whole = block.len() == BLOCK && rest.chunks(8).all(|stamp| stamp == first);
    if whole { first } else { block }.to_vec()
}

/// RELEASE(6) and RESERVE(6) of SPC-2.
const RELEASE: [u8; 6] = [0x17, 0, 0, 0, 0, 0];
const RESERVE: [u8; 6] = [0x16, 0, 0, 0, 0, 0];

/// PERSISTENT RESERVE IN with this service action.
pub(super) fn read(action: u8) -> [u8; 16] {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1], cdb[7]) = (0x5e, action, 0x20);
    cdb
}

fn out(action: u8) -> [u8; 16] {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1], cdb[8]) = (0x5f, action, 24);
    cdb
}

/// The initiators and their target port, by the target's names.
fn world(unit: &Unit) -> Result<World> {
    unit.clean()?;
    let mut nexuses = Vec::new();
    for from in 0..INITIATORS.len() {
        let mut list = [0; 24];
        list[15] = 1;
        unit.send(from, &out(6), &list)?;
        let Answer::Good(data) = unit.send(from, &read(3), &[])? else { bail!("no READ FULL STATUS") };
        let status = FullStatus::parse(&data)?.value;
        let last = status.descriptors.last().context("no nexus is registered")?;
        let initiator =
            model::transport_id(last.transport_id_bytes()).context("the bytes are not a valid TransportID")?;
        nexuses.push(Nexus { initiator, target_port: last.relative_target_port });
    }
    unit.clean()?;
    Ok(World { target_ports: vec![nexuses[0].target_port], nexuses })
}
