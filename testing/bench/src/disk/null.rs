//! `bench null`: our iSCSI target with a medium that does nothing, the ceiling of what the initiator can measure.

use std::io;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::sync::Arc;

use anyhow::Result;
use scsi_pr::Reservations;
use scsi_pr_disk::{
    Allocation, Disk, DiskOptions, Durability, Identity, Lun, Medium, MediumError, ReservationStore, StoreError, Target,
};
use scsi_pr_iscsi::directory::{Allowed, Directory, TargetEntry};
use scsi_pr_iscsi::{Portal, Server, ServerOptions};

/// A medium whose blocks are whatever the buffer had.
pub(crate) struct Null {
    pub(crate) size: u64,
}

impl Medium for Null {
    fn size(&self) -> u64 {
        self.size
    }

    fn is_quick(&self) -> bool {
        true
    }

    fn read(&self, _: u64, _: &mut [u8]) -> Result<(), MediumError> {
        Ok(())
    }

    fn write(&self, _: u64, _: &[u8], _: Durability) -> Result<(), MediumError> {
        Ok(())
    }

    fn flush(&self) -> Result<(), MediumError> {
        Ok(())
    }

    fn zero(&self, _: u64, _: u64, _: Allocation, _: Durability) -> Result<(), MediumError> {
        Ok(())
    }
}

/// A store in memory.
pub(crate) struct MemoryStore(pub(crate) Reservations);

impl ReservationStore for MemoryStore {
    fn load(&self) -> Result<(u64, Reservations), StoreError> {
        Ok((0, self.0.clone()))
    }

    fn replace(&self, expected: u64, _: &Reservations) -> Result<u64, StoreError> {
        Ok(expected + 1)
    }
}

/// Serves the target `name` at `address` until standard input ends.
pub(crate) fn serve(address: &str, name: &str) -> Result<()> {
    let options = DiskOptions::new(Identity::from_uuid(*b"scsi-pr null dev"));
    let disk = Disk::open(options, Box::new(Null { size: 1 << 30 }), Box::new(MemoryStore(Reservations::new())))?;
    let target = Target::new();
    target.add(Lun(0), Arc::new(disk));
    let mut directory = Directory::default();
    directory.targets.push(TargetEntry { name: name.to_owned(), target: Arc::new(target), allowed: Allowed::All });
    let portal = Portal { listener: TcpListener::bind(address)?, group: 1 };
    Ok(Server::new(vec![portal], directory, ServerOptions::default())?.run(io::stdin().as_fd())?)
}
