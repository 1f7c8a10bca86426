//! Helpers for the tests of this crate.
#![allow(dead_code, reason = "each test uses a part")]

use std::os::fd::AsFd;
use std::sync::Arc;

use scsi_pr::{Cdb, CommandBuf, Completion, Key, Keys, Opcode, PrManager, Status};
use scsi_pr_store::{SharedReservations, Store, Units};
use tempfile::NamedTempFile;

pub(crate) const GOOD: Completion = Completion::Good(Vec::new());
pub(crate) const CONFLICT: Completion = Completion::Status(Status::RESERVATION_CONFLICT);

pub(crate) const READ_KEYS: u8 = 0;
pub(crate) const READ_RESERVATION: u8 = 1;
pub(crate) const REGISTER: u8 = 0;
pub(crate) const RESERVE: u8 = 1;
pub(crate) const RELEASE: u8 = 2;
pub(crate) const CLEAR: u8 = 3;
pub(crate) const PREEMPT: u8 = 4;
pub(crate) const PREEMPT_AND_ABORT: u8 = 5;
pub(crate) const REGISTER_AND_IGNORE: u8 = 6;
/// TYPE: Write Exclusive - Registrants Only.
pub(crate) const WRITE_EXCLUSIVE_REGISTRANTS_ONLY: u8 = 5;

pub(crate) fn reserve_in(service_action: u8, allocation_length: u16) -> CommandBuf {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1]) = (Opcode::ReserveIn.byte(), service_action);
    cdb[7..9].copy_from_slice(&allocation_length.to_be_bytes());
    CommandBuf::new(Cdb::new(cdb).unwrap(), Vec::new()).unwrap()
}

pub(crate) fn reserve_out(service_action: u8, reservation_type: u8, list: Vec<u8>) -> CommandBuf {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1], cdb[2]) = (Opcode::ReserveOut.byte(), service_action, reservation_type);
    cdb[7..9].copy_from_slice(&u16::try_from(list.len()).unwrap().to_be_bytes());
    CommandBuf::new(Cdb::new(cdb).unwrap(), list).unwrap()
}

/// A basic parameter list: RESERVATION KEY, SERVICE ACTION RESERVATION KEY, and no flags.
pub(crate) fn keys(key: u64, service_action_key: u64) -> Vec<u8> {
    [&key.to_be_bytes()[..], &service_action_key.to_be_bytes(), &[0; 8]].concat()
}

pub(crate) fn register(key: u64) -> CommandBuf {
    reserve_out(REGISTER_AND_IGNORE, 0, keys(0, key))
}

/// A disk of a name of its own, and managers for it.
pub(crate) struct Disk {
    pub(crate) image: NamedTempFile,
    pub(crate) units: Units,
}

impl Disk {
    pub(crate) fn new() -> Self {
        Self { image: NamedTempFile::new().unwrap(), units: Units::default() }
    }

    pub(crate) fn manager(&self, store: &Arc<dyn Store>, initiator: &str) -> SharedReservations {
        SharedReservations::new(Arc::clone(store), self.units.clone(), initiator.parse().unwrap())
    }

    pub(crate) fn run(&self, manager: &SharedReservations, command: &CommandBuf) -> Completion {
        manager.execute(self.image.as_file().as_fd(), command.command()).unwrap()
    }

    /// The registered keys, as this initiator reads them.
    pub(crate) fn registered(&self, manager: &SharedReservations) -> Vec<Key> {
        match self.run(manager, &reserve_in(READ_KEYS, 8192)) {
            Completion::Good(data) => Keys::parse(&data).unwrap().value.keys,
            other => panic!("{other}"),
        }
    }
}
