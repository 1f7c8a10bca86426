//! A disk in memory, served over iSCSI: `cargo run --release -p scsi-pr-iscsi --example ramdisk -- 127.0.0.1:3260 [MiB]`.
//!
//! Its blocks and its reservations end with the program.

use std::io;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

use scsi_pr::Reservations;
use scsi_pr_disk::{
    Allocation, Disk, DiskOptions, Durability, Identity, Lun, Medium, MediumError, ReservationStore, StoreError, Target,
};
use scsi_pr_iscsi::directory::{Allowed, Directory, TargetEntry};
use scsi_pr_iscsi::{Portal, Server, ServerOptions};

struct Memory(RwLock<Vec<u8>>);

impl Medium for Memory {
    fn size(&self) -> u64 {
        self.0.read().unwrap().len() as u64
    }

    fn is_quick(&self) -> bool {
        true
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), MediumError> {
        let bytes = self.0.read().unwrap();
        buffer.copy_from_slice(&bytes[offset as usize..][..buffer.len()]);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8], _: Durability) -> Result<(), MediumError> {
        let mut bytes = self.0.write().unwrap();
        bytes[offset as usize..][..data.len()].copy_from_slice(data);
        Ok(())
    }

    fn flush(&self) -> Result<(), MediumError> {
        Ok(())
    }

    fn zero(&self, offset: u64, length: u64, _: Allocation, _: Durability) -> Result<(), MediumError> {
        let mut bytes = self.0.write().unwrap();
        bytes[offset as usize..][..length as usize].fill(0);
        Ok(())
    }
}

struct Forgetful(AtomicU64);

impl ReservationStore for Forgetful {
    fn load(&self) -> Result<(u64, Reservations), StoreError> {
        Ok((0, Reservations::new()))
    }

    fn replace(&self, _: u64, _: &Reservations) -> Result<u64, StoreError> {
        Ok(self.0.fetch_add(1, Ordering::Relaxed))
    }
}

fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:3260".to_owned());
    let mebibytes: usize = arguments.next().and_then(|size| size.parse().ok()).unwrap_or(64);

    let medium = Memory(RwLock::new(vec![0; mebibytes << 20]));
    let identity = Identity::from_uuid(*b"scsi-pr ram disk");
    let mut options = DiskOptions::new(identity);
    options.physical_block_size = options.block_size;
    let store = Forgetful(AtomicU64::new(1));
    let disk = Disk::open(options, Box::new(medium), Box::new(store)).map_err(io::Error::other)?;
    let target = Target::new();
    target.add(Lun(0), Arc::new(disk));

    let mut directory = Directory::default();
    let name = "iqn.2026-11.example:ramdisk".to_owned();
    directory.targets.push(TargetEntry { name, target: Arc::new(target), allowed: Allowed::All });
    let listener = TcpListener::bind(&address)?;
    println!("iscsi://{}/iqn.2026-11.example:ramdisk/0", listener.local_addr()?);
    let server = Server::new(vec![Portal { listener, group: 1 }], directory, ServerOptions::default())?;
    // The end of standard input stops the server.
    server.run(io::stdin().as_fd())
}
