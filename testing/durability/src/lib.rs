//! Proves that a store of shared reservations loses nothing that it has acknowledged.
//!
//! A program of its own (`changer`) opens a store, makes changes, and reports each one as soon as it is acknowledged. It
//! runs under ptrace(2), so that at any of its system calls
//!
//! * it can be killed;
//! * the call can be made to fail, as on a disk that is full or broken;
//! * what the call does to files can be written down, to work out what a power cut at that point may leave: whatever was
//!   fsynced, and any part of the rest ([`disk`]).
//!
//! After each of these the store is opened again: nothing acknowledged is lost, what was begun is there wholly or not at
//! all, and the store can be changed.
//!
//! Only for x86-64: the registers of a system call differ between machines, what the stores do does not.
#![forbid(unsafe_code)]
#![cfg(target_arch = "x86_64")]

use std::path::{Path, PathBuf};

use scsi_pr::{InitiatorPort, Key, Nexus, Reservations, ReserveOut, TransportId};
use scsi_pr_store::{Store, StoreError, UnitId, open};
use tempfile::TempDir;

pub mod changer;
pub mod disk;
pub mod tracer;

/// The stores that keep something.
pub const KINDS: [&str; 2] = ["sqlite", "dir"];

/// The unit that is changed.
pub fn unit() -> UnitId {
    UnitId::named("disk").expect("a valid name")
}

/// Makes change number `generation + 1`: one of a few initiators registers with a key of its own.
pub fn change(reservations: &mut Reservations) -> bool {
    let number = u64::from(reservations.generation().0) + 1;
    let port = InitiatorPort::Sas { address: number % 8 };
    let nexus = Nexus::new(TransportId::new(port).expect("a valid address"), 1);
    let command =
        ReserveOut::RegisterAndIgnoreExistingKey { service_action_key: Key(number), all_tg_pt: false, aptpl: true };
    reservations.reserve_out(&nexus, &command).changed
}

/// What the reservations are after so many changes.
pub fn after(changes: u32) -> Reservations {
    let mut reservations = Reservations::new();
    (0..changes).for_each(|_| assert!(change(&mut reservations), "each change is one"));
    reservations
}

/// One change, by way of a store.
///
/// # Errors
///
/// Those of the store.
pub fn change_in(store: &dyn Store) -> Result<(), StoreError> {
    store.update(&unit(), &mut change)
}

/// Opens the store and checks that it has had `acknowledged` changes, and may be one or more of the next `pending`, and
/// that it can be changed.
///
/// # Errors
///
/// What is wrong.
pub fn check(address: &str, acknowledged: u32, pending: u32) -> Result<(), String> {
    let look = || -> Result<_, StoreError> {
        let store = open(address)?;
        let kept = store.load(&unit())?.reservations;
        Ok((store, kept))
    };
    let (store, kept) = look().map_err(|error| error.to_string())?;
    let changes = kept.generation().0;
    if !(acknowledged..=acknowledged + pending).contains(&changes) {
        return Err(format!(
            "{acknowledged} changes were acknowledged, {pending} more were begun, {changes} are there"
        ));
    }
    if *kept != after(changes) {
        return Err(format!("what is there is not the state after {changes} changes"));
    }
    change_in(&*store).map_err(|error| error.to_string())?;
    drop(store);
    let (_, kept) = look().map_err(|error| error.to_string())?;
    if *kept != after(changes + 1) {
        return Err("the next change is not there".to_owned());
    }
    Ok(())
}

/// A directory for stores, where fsync(2) costs nothing if there is such a place: what it is worth is worked out, not
/// tried.
#[derive(Debug)]
pub struct Place(TempDir);

impl Place {
    /// An empty one.
    pub fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let directory = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        Self(directory.expect("a place for a store"))
    }

    /// Its path.
    pub fn path(&self) -> PathBuf {
        self.0.path().canonicalize().expect("the place")
    }

    /// The address of the store in it.
    pub fn store(&self, kind: &str) -> String {
        format!("{kind}:{}", self.path().join("store").display())
    }
}

impl Default for Place {
    fn default() -> Self {
        Self::new()
    }
}
