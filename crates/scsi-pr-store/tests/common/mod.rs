//! Commands, and disks with managers.
#![allow(dead_code, unused_imports, reason = "each test uses a part")]

use std::os::fd::AsFd;
use std::sync::Arc;

use scsi_pr::{Cdb, CommandBuf, Completion, Key, Keys, PrManager, Status};
use scsi_pr_store::{SharedReservations, Store, Units};
use tempfile::NamedTempFile;
use testing_support::command;
pub(crate) use testing_support::command::WRITE_EXCLUSIVE_REGISTRANTS_ONLY;
pub(crate) use testing_support::command::action_in::{READ_KEYS, READ_RESERVATION};
pub(crate) use testing_support::command::action_out::{
    CLEAR, PREEMPT, PREEMPT_AND_ABORT, REGISTER, REGISTER_AND_IGNORE_EXISTING_KEY, RELEASE, RESERVE,
};

pub(crate) const GOOD: Completion = Completion::Good(Vec::new());
pub(crate) const CONFLICT: Completion = Completion::Status(Status::RESERVATION_CONFLICT);

pub(crate) fn reserve_in(service_action: u8, allocation_length: u16) -> CommandBuf {
    CommandBuf::new(Cdb::new(command::reserve_in(service_action, allocation_length)).unwrap(), Vec::new()).unwrap()
}

pub(crate) fn reserve_out(service_action: u8, reservation_type: u8, list: Vec<u8>) -> CommandBuf {
    let cdb = command::reserve_out(service_action, reservation_type, list.len());
    CommandBuf::new(Cdb::new(cdb).unwrap(), list).unwrap()
}

/// A basic parameter list.
pub(crate) fn keys(key: u64, service_action_key: u64) -> Vec<u8> {
    command::basic_list(key, service_action_key).to_vec()
}

pub(crate) fn register(key: u64) -> CommandBuf {
    reserve_out(REGISTER_AND_IGNORE_EXISTING_KEY, 0, keys(0, key))
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
