//! Proves that a store of shared reservations loses nothing that it has acknowledged.
//!
//! A separate program (`changer`) opens a store, makes changes, and reports each one as soon as the store acknowledges it.
//! The tests trace it with ptrace(2), and at any of its system calls they
//!
//! * kill it;
//! * make the call fail, as on a disk that is full or broken;
//! * record the effect of the call on files. From the record they compute the possible contents of the disk after a power
//!   cut: all synced data, and any part of the rest ([`disk`]).
//!
//! Then they open the store again. It has every acknowledged change, it has a pending change completely or not at all, and
//! it accepts another change.
//!
//! The crate supports x86-64 alone, because the registers of a system call differ between machines.
#![forbid(unsafe_code)]
#![cfg(target_arch = "x86_64")]

use std::path::{Path, PathBuf};

use scsi_pr::{InitiatorPort, Key, Nexus, Reservations, ReserveOut, TransportId};
use scsi_pr_store::{Store, StoreError, UnitId, open};
use tempfile::TempDir;

pub mod changer;
pub mod disk;
pub mod tracer;

/// The kinds of stores that survive a restart.
pub const KINDS: [&str; 2] = ["sqlite", "dir"];

/// The unit that the changes are made to.
pub fn unit() -> UnitId {
    UnitId::named("disk").expect("a valid name")
}

/// Makes change number `generation + 1`: one of eight initiators registers a key that no other change uses.
pub fn change(reservations: &mut Reservations) -> bool {
    let number = u64::from(reservations.generation().0) + 1;
    let port = InitiatorPort::Sas { address: number % 8 };
    let nexus = Nexus::new(TransportId::new(port).expect("a valid address"), 1);
    let command =
        ReserveOut::RegisterAndIgnoreExistingKey { service_action_key: Key(number), all_tg_pt: false, aptpl: true };
    reservations.reserve_out(&nexus, &command).changed
}

/// The reservations after so many changes.
pub fn after(changes: u32) -> Reservations {
    let mut reservations = Reservations::new();
    (0..changes).for_each(|_| assert!(change(&mut reservations), "every change changes the reservations"));
    reservations
}

/// Makes one change in a store.
///
/// # Errors
///
/// The store's error.
pub fn change_in(store: &dyn Store) -> Result<(), StoreError> {
    store.update(&unit(), &mut |reservations, _| change(reservations))
}

/// Opens the store and checks that it has the `acknowledged` changes, at most the next `pending` ones too, and that it
/// accepts another change.
///
/// # Errors
///
/// A text that names the failed check.
pub fn check(address: &str, acknowledged: u32, pending: u32) -> Result<(), String> {
    let look = || -> Result<_, StoreError> {
        let store = open(address)?;
        let reservations = store.load(&unit())?.reservations;
        Ok((store, reservations))
    };
    let (store, reservations) = look().map_err(|error| error.to_string())?;
    let changes = reservations.generation().0;
    if !(acknowledged..=acknowledged + pending).contains(&changes) {
        return Err(format!(
            "the store acknowledged {acknowledged} changes, {pending} more are pending, and it has {changes}"
        ));
    }
    if *reservations != after(changes) {
        return Err(format!("the store does not have the state after {changes} changes"));
    }
    change_in(&*store).map_err(|error| error.to_string())?;
    drop(store);
    let (_, reservations) = look().map_err(|error| error.to_string())?;
    if *reservations != after(changes + 1) {
        return Err("the store does not have the next change".to_owned());
    }
    Ok(())
}

/// A temporary directory for a store, in memory where possible. The tests compute the effect of fsync(2), and do not depend
/// on the file system.
#[derive(Debug)]
pub struct StoreDirectory(TempDir);

impl StoreDirectory {
    /// Creates an empty directory.
    pub fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let directory = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        Self(directory.expect("a temporary directory"))
    }

    /// Its path.
    pub fn path(&self) -> PathBuf {
        self.0.path().canonicalize().expect("the directory exists")
    }

    /// The address of the store in it.
    pub fn store(&self, kind: &str) -> String {
        format!("{kind}:{}", self.path().join("store").display())
    }
}

impl Default for StoreDirectory {
    fn default() -> Self {
        Self::new()
    }
}
