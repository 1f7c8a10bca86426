//! A disk in memory with initiators that send it commands.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use scsi_pr::{Completion, InitiatorPort, Nexus, Reservations, Sense, SenseCode, Status, TransportId};
use scsi_pr_disk::{
    Allocation, DataIn, Disk, DiskOptions, Durability, Extent, Identity, Medium, MediumError, Port, ReservationStore,
    SessionId, StoreError,
};

/// The size of the disk in blocks of 512 bytes.
pub(crate) const BLOCKS: u64 = 4096;
pub(crate) const BLOCK: usize = 512;

/// Far more than anything takes.
const LONG: Duration = Duration::from_secs(60);

pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A medium in memory whose writes can be held up and made to fail.
#[derive(Clone)]
pub(crate) struct Memory(Arc<MemoryState>);

struct MemoryState {
    bytes: Mutex<Vec<u8>>,
    mapped: Mutex<Vec<bool>>,
    failure: Mutex<Option<MediumError>>,
    is_held: Mutex<bool>,
    moved: Condvar,
    waiting: AtomicU64,
    size: AtomicU64,
    durable_writes: AtomicU64,
    flushes: AtomicU64,
}

impl Memory {
    pub(crate) fn new() -> Self {
        let size = BLOCKS * BLOCK as u64;
        Self(Arc::new(MemoryState {
            bytes: Mutex::new(vec![0; size as usize]),
            mapped: Mutex::new(vec![false; BLOCKS as usize]),
            failure: Mutex::new(None),
            is_held: Mutex::new(false),
            moved: Condvar::new(),
            waiting: AtomicU64::new(0),
            size: AtomicU64::new(size),
            durable_writes: AtomicU64::new(0),
            flushes: AtomicU64::new(0),
        }))
    }

    pub(crate) fn fail(&self, error: Option<MediumError>) {
        *self.0.failure.lock().unwrap() = error;
    }

    /// From now on writes wait until [`release`](Self::release).
    pub(crate) fn hold(&self) {
        *self.0.is_held.lock().unwrap() = true;
    }

    pub(crate) fn release(&self) {
        *self.0.is_held.lock().unwrap() = false;
        self.0.moved.notify_all();
    }

    /// The number of writes that wait.
    pub(crate) fn waiting(&self) -> u64 {
        self.0.waiting.load(Ordering::SeqCst)
    }

    pub(crate) fn resize(&self, size: u64) {
        self.0.bytes.lock().unwrap().resize(size as usize, 0);
        self.0.size.store(size, Ordering::SeqCst);
    }

    pub(crate) fn durable_writes(&self) -> u64 {
        self.0.durable_writes.load(Ordering::SeqCst)
    }

    pub(crate) fn flushes(&self) -> u64 {
        self.0.flushes.load(Ordering::SeqCst)
    }

    pub(crate) fn block(&self, lba: usize) -> Vec<u8> {
        self.0.bytes.lock().unwrap()[lba * BLOCK..][..BLOCK].to_vec()
    }

    fn check(&self) -> Result<(), MediumError> {
        self.0.failure.lock().unwrap().map_or(Ok(()), Err)
    }
}

impl Medium for Memory {
    fn size(&self) -> u64 {
        self.0.size.load(Ordering::SeqCst)
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), MediumError> {
        self.check()?;
        buffer.copy_from_slice(&self.0.bytes.lock().unwrap()[offset as usize..][..buffer.len()]);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8], durability: Durability) -> Result<(), MediumError> {
        let mut held = self.0.is_held.lock().unwrap();
        if *held {
            self.0.waiting.fetch_add(1, Ordering::SeqCst);
            while *held {
                held = self.0.moved.wait(held).unwrap();
            }
            self.0.waiting.fetch_sub(1, Ordering::SeqCst);
        }
        drop(held);
        self.check()?;
        if durability == Durability::Durable {
            self.0.durable_writes.fetch_add(1, Ordering::SeqCst);
        }
        self.0.bytes.lock().unwrap()[offset as usize..][..data.len()].copy_from_slice(data);
        self.0.mapped.lock().unwrap()[offset as usize / BLOCK..][..data.len() / BLOCK].fill(true);
        Ok(())
    }

    fn flush(&self) -> Result<(), MediumError> {
        self.check()?;
        self.0.flushes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn zero(&self, offset: u64, length: u64, allocation: Allocation, _: Durability) -> Result<(), MediumError> {
        self.check()?;
        self.0.bytes.lock().unwrap()[offset as usize..][..length as usize].fill(0);
        let is_mapped = allocation == Allocation::Keep;
        self.0.mapped.lock().unwrap()[offset as usize / BLOCK..][..length as usize / BLOCK].fill(is_mapped);
        Ok(())
    }

    fn extent(&self, offset: u64, length: u64) -> Result<Extent, MediumError> {
        let mapped = self.0.mapped.lock().unwrap();
        let blocks = &mapped[offset as usize / BLOCK..][..length as usize / BLOCK];
        let same = blocks.iter().take_while(|is_mapped| **is_mapped == blocks[0]).count();
        Ok(Extent { is_mapped: blocks[0], length: (same * BLOCK) as u64 })
    }
}

/// A store in memory that can be made to fail, or to hang.
#[derive(Clone)]
pub(crate) struct MemoryStore(Arc<StoreState>);

struct StoreState {
    stored: Mutex<(u64, Reservations)>,
    failure: Mutex<Option<(StoreError, Stored)>>,
    loads_fail: Mutex<bool>,
}

/// Whether a change is stored although the store reports a failure.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stored {
    Yes,
    No,
}

impl MemoryStore {
    pub(crate) fn new() -> Self {
        Self(Arc::new(StoreState {
            stored: Mutex::new((0, Reservations::new())),
            failure: Mutex::new(None),
            loads_fail: Mutex::new(false),
        }))
    }

    pub(crate) fn fail(&self, failure: Option<(StoreError, Stored)>) {
        *self.0.failure.lock().unwrap() = failure;
    }

    pub(crate) fn fail_loads(&self, fail: bool) {
        *self.0.loads_fail.lock().unwrap() = fail;
    }

    pub(crate) fn stored(&self) -> Reservations {
        self.0.stored.lock().unwrap().1.clone()
    }
}

impl ReservationStore for MemoryStore {
    fn load(&self) -> Result<(u64, Reservations), StoreError> {
        match *self.0.loads_fail.lock().unwrap() {
            true => Err(StoreError::Unchanged("the test says so".to_owned())),
            false => Ok(self.0.stored.lock().unwrap().clone()),
        }
    }

    fn replace(&self, expected: u64, new: &Reservations) -> Result<u64, StoreError> {
        let failure = self.0.failure.lock().unwrap().clone();
        let mut stored = self.0.stored.lock().unwrap();
        assert_eq!(stored.0, expected, "the disk knows the version");
        if failure.as_ref().is_none_or(|(_, kept)| *kept == Stored::Yes) {
            *stored = (expected + 1, new.clone());
        }
        failure.map_or(Ok(expected + 1), |(error, _)| Err(error))
    }
}

pub(crate) struct Fixture {
    pub(crate) disk: Arc<Disk>,
    pub(crate) medium: Memory,
    pub(crate) store: MemoryStore,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Self::with(|options| options)
    }

    pub(crate) fn with(change: impl FnOnce(DiskOptions) -> DiskOptions) -> Self {
        let (medium, store) = (Memory::new(), MemoryStore::new());
        let options = change(DiskOptions::new(Identity::from_uuid(*b"0123456789abcdef")));
        let disk = Disk::open(options, Box::new(medium.clone()), Box::new(store.clone())).unwrap();
        Self { disk: Arc::new(disk), medium, store }
    }

    /// A session whose unit attention of the power on is taken.
    pub(crate) fn initiator(&self, name: &str) -> Initiator {
        let initiator = self.new_session(name);
        assert_eq!(initiator.sense(&[0; 6]), "06/29/00");
        initiator
    }

    pub(crate) fn new_session(&self, name: &str) -> Initiator {
        let port = InitiatorPort::Iscsi { name, isid: Some([0; 6]) };
        let nexus = Nexus::new(TransportId::new(port).unwrap(), 1);
        let session = self.disk.open_session(nexus);
        Initiator { disk: Arc::clone(&self.disk), session, tag: Arc::default() }
    }
}

/// An initiator with one session.
#[derive(Clone)]
pub(crate) struct Initiator {
    pub(crate) disk: Arc<Disk>,
    pub(crate) session: SessionId,
    tag: Arc<AtomicU64>,
}

impl Initiator {
    /// Sends a command; `None` when it was aborted.
    pub(crate) fn try_send(&self, cdb: &[u8], data: &[u8]) -> Option<(Completion, Vec<u8>)> {
        let task = self.disk.add_task(self.session, self.tag.fetch_add(1, Ordering::Relaxed)).unwrap();
        let port = Port { relative_target_port: [0, 1], name: "iqn.2026-11.test:disk,t,0x0001".to_owned() };
        let mut data_in = DataIn::new();
        let response = self.disk.execute(&task, &port, cdb, data, &mut data_in);
        Some((response.completion?, data_in.bytes().to_vec()))
    }

    pub(crate) fn send(&self, cdb: &[u8], data: &[u8]) -> (Completion, Vec<u8>) {
        self.try_send(cdb, data).expect("the command was not aborted")
    }

    /// The data of a command that is GOOD.
    pub(crate) fn good(&self, cdb: &[u8], data: &[u8]) -> Vec<u8> {
        match self.send(cdb, data) {
            (Completion::Good(_), data) => data,
            (other, _) => panic!("{cdb:02x?}: {other}"),
        }
    }

    /// The sense code of a command that fails, as key/ASC/ASCQ.
    pub(crate) fn sense_of(&self, cdb: &[u8], data: &[u8]) -> String {
        match self.send(cdb, data) {
            (Completion::CheckCondition(sense), returned) => {
                assert!(returned.is_empty(), "a command that fails returns no data");
                text(sense.code().unwrap())
            }
            (other, _) => panic!("{cdb:02x?}: {other}"),
        }
    }

    pub(crate) fn sense(&self, cdb: &[u8]) -> String {
        self.sense_of(cdb, &[])
    }

    pub(crate) fn conflicts(&self, cdb: &[u8], data: &[u8]) -> bool {
        self.send(cdb, data).0 == Completion::Status(Status::RESERVATION_CONFLICT)
    }

    pub(crate) fn read(&self, lba: u32, blocks: u16) -> Vec<u8> {
        self.good(&read10(lba, blocks), &[])
    }

    pub(crate) fn write(&self, lba: u32, data: &[u8]) {
        self.good(&write10(lba, (data.len() / BLOCK) as u16), data);
    }

    pub(crate) fn reserve_out(
        &self,
        action: u8,
        reservation_type: u8,
        key: u64,
        service_action_key: u64,
    ) -> Completion {
        let (cdb, list) = reserve_out(action, reservation_type, key, service_action_key);
        self.send(&cdb, &list).0
    }

    pub(crate) fn keys(&self) -> Vec<u64> {
        let data = self.good(&[0x5e, 0, 0, 0, 0, 0, 0, 0x10, 0, 0], &[]);
        data[8..].chunks_exact(8).map(|key| u64::from_be_bytes(key.try_into().unwrap())).collect()
    }
}

fn text(code: SenseCode) -> String {
    format!("{:02x}/{:02x}/{:02x}", code.key.byte(), code.asc, code.ascq)
}

pub(crate) fn sense_text(sense: &Sense) -> String {
    text(sense.code().unwrap())
}

pub(crate) fn read10(lba: u32, blocks: u16) -> [u8; 10] {
    ten(0x28, lba, blocks)
}

pub(crate) fn write10(lba: u32, blocks: u16) -> [u8; 10] {
    ten(0x2a, lba, blocks)
}

pub(crate) fn ten(opcode: u8, lba: u32, blocks: u16) -> [u8; 10] {
    let mut cdb = [0; 10];
    cdb[0] = opcode;
    cdb[2..6].copy_from_slice(&lba.to_be_bytes());
    cdb[7..9].copy_from_slice(&blocks.to_be_bytes());
    cdb
}

pub(crate) fn sixteen(opcode: u8, byte1: u8, lba: u64, length: u32) -> [u8; 16] {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1]) = (opcode, byte1);
    cdb[2..10].copy_from_slice(&lba.to_be_bytes());
    cdb[10..14].copy_from_slice(&length.to_be_bytes());
    cdb
}

pub(crate) fn reserve_out(action: u8, reservation_type: u8, key: u64, service_action_key: u64) -> ([u8; 10], Vec<u8>) {
    let cdb = [0x5f, action, reservation_type, 0, 0, 0, 0, 0, 24, 0];
    let list = [&key.to_be_bytes()[..], &service_action_key.to_be_bytes(), &[0; 8]].concat();
    (cdb, list)
}

pub(crate) fn is_good(completion: &Completion) -> bool {
    matches!(completion, Completion::Good(_))
}

pub(crate) const REGISTER: u8 = 0;
pub(crate) const RESERVE: u8 = 1;
pub(crate) const RELEASE: u8 = 2;
pub(crate) const PREEMPT: u8 = 4;
pub(crate) const PREEMPT_AND_ABORT: u8 = 5;
pub(crate) const WRITE_EXCLUSIVE: u8 = 1;
pub(crate) const WRITE_EXCLUSIVE_REGISTRANTS_ONLY: u8 = 5;
