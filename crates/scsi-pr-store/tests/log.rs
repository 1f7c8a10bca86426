//! The log lines of a manager: cause and remedy, and not with every command.

mod common;

use std::os::fd::AsFd;
use std::sync::Arc;

use common::*;
use scsi_pr::PrManager;
use scsi_pr_store::{MemoryStore, Store, open};
use testing_support::Recorder;
use tracing::Level;

/// The warnings and errors that `act` logs.
fn messages(act: impl FnOnce()) -> Vec<String> {
    let recorder = Recorder::at(Level::WARN);
    recorder.during(act);
    recorder.messages()
}

#[test]
fn failure_of_the_store_is_logged_once_for_all_initiators() {
    let (disk, place) = (Disk::new(), tempfile::tempdir().unwrap());
    let path = place.path().join("store");
    let manager = disk.manager(&open(&format!("dir:{}", path.display())).unwrap(), "one");
    let other = manager.for_initiator(&"two".parse().unwrap());
    assert_eq!(disk.run(&manager, &register(1)), GOOD);
    std::fs::rename(&path, place.path().join("elsewhere")).unwrap();
    let said = messages(|| {
        for manager in [&manager, &other, &manager] {
            assert_ne!(disk.run(manager, &register(2)), GOOD);
        }
    });
    let [said] = &said[..] else { panic!("{said:#?}") };
    assert!(said.contains("REGISTER") && said.contains(path.to_str().unwrap()), "{said}");
}

#[test]
fn refused_descriptor_is_logged_once_for_each_initiator() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let manager = Disk::new().manager(&store, "one");
    let other = manager.for_initiator(&"two".parse().unwrap());
    let deleted = tempfile::tempfile().unwrap();
    let said = messages(|| {
        for manager in [&manager, &other, &manager] {
            manager.execute(deleted.as_fd(), register(1).command()).unwrap();
        }
    });
    assert_eq!(said.len(), 2, "{said:#?}");
    assert!(said[0].contains("05/20/00") && said[0].contains("--unit=NAME=PATH"), "{said:#?}");
}
