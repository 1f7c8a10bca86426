//! A server in this process, for an initiator that shares no encoder with the crate.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use scsi_pr::Reservations;
use scsi_pr_disk::{
    Allocation, Disk, DiskOptions, Durability, Identity, Lun, Medium, MediumError, ReservationStore, StoreError, Target,
};
use scsi_pr_iscsi::directory::{Account, Allowed, Directory, TargetEntry};
use scsi_pr_iscsi::{Portal, Server, ServerOptions};
pub(crate) use testing_support::Initiator;

pub(crate) const TARGET: &str = "iqn.2026-11.test:target";
pub(crate) const BLOCK: usize = 512;

struct Memory {
    bytes: Mutex<Vec<u8>>,
    /// The time that a write takes.
    delay: Duration,
}

impl Medium for Memory {
    fn size(&self) -> u64 {
        self.bytes.lock().unwrap().len() as u64
    }

    fn is_quick(&self) -> bool {
        self.delay.is_zero()
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), MediumError> {
        buffer.copy_from_slice(&self.bytes.lock().unwrap()[offset as usize..][..buffer.len()]);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8], _: Durability) -> Result<(), MediumError> {
        std::thread::sleep(self.delay);
        self.bytes.lock().unwrap()[offset as usize..][..data.len()].copy_from_slice(data);
        Ok(())
    }

    fn flush(&self) -> Result<(), MediumError> {
        Ok(())
    }

    fn zero(&self, offset: u64, length: u64, _: Allocation, _: Durability) -> Result<(), MediumError> {
        self.bytes.lock().unwrap()[offset as usize..][..length as usize].fill(0);
        Ok(())
    }
}

struct Store(AtomicU64);

impl ReservationStore for Store {
    fn load(&self) -> Result<(u64, Reservations), StoreError> {
        Ok((0, Reservations::new()))
    }

    fn replace(&self, _: u64, _: &Reservations) -> Result<u64, StoreError> {
        Ok(self.0.fetch_add(1, Ordering::Relaxed))
    }
}

pub(crate) struct Fixture {
    pub(crate) address: SocketAddr,
    stop: Option<std::io::PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Fixture {
    pub(crate) fn start(accounts: Vec<Account>, allowed: Allowed) -> Self {
        Self::with(accounts, allowed, Duration::ZERO, ServerOptions::default())
    }

    /// With a medium whose writes take so long.
    pub(crate) fn with_delay(accounts: Vec<Account>, allowed: Allowed, delay: Duration) -> Self {
        Self::with(accounts, allowed, delay, ServerOptions::default())
    }

    pub(crate) fn with_options(server: ServerOptions) -> Self {
        Self::with(Vec::new(), Allowed::All, Duration::ZERO, server)
    }

    /// With a medium whose writes take so long, and a bound of memory in bytes.
    pub(crate) fn with_memory(delay: Duration, memory: usize) -> Self {
        Self::with(Vec::new(), Allowed::All, delay, ServerOptions::default().with_memory(memory))
    }

    fn with(accounts: Vec<Account>, allowed: Allowed, delay: Duration, server: ServerOptions) -> Self {
        let mut options = DiskOptions::new(Identity::from_uuid(*b"0123456789abcdef"));
        options.physical_block_size = 512;
        let medium = Memory { bytes: Mutex::new(vec![0; 64 << 20]), delay };
        let disk = Disk::open(options, Box::new(medium), Box::new(Store(AtomicU64::new(1)))).unwrap();
        let target = Target::new();
        target.add(Lun(0), Arc::new(disk));
        let mut directory = Directory::default();
        directory.targets.push(TargetEntry { name: TARGET.to_owned(), target: Arc::new(target), allowed });
        directory.accounts = accounts;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = Server::new(vec![Portal { listener, group: 1 }], directory, server).unwrap();
        let (stopped, stop) = std::io::pipe().unwrap();
        let thread = std::thread::spawn(move || server.run(stopped.as_fd()).unwrap());
        Self { address, stop: Some(stop), thread: Some(thread) }
    }

    pub(crate) fn connect(&self) -> Initiator {
        Initiator::connect(self.address, TARGET)
    }
}

impl Fixture {
    /// Begins to stop the server.
    pub(crate) fn stop(&mut self) {
        drop(self.stop.take());
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
