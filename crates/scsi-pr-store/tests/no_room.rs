//! The answers of a manager while this process may open no more files. A test program of its own, because the limit is
//! the
//! process's.

mod common;

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use common::*;
use rustix::fs::major;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use scsi_pr::{Completion, Status};
use scsi_pr_store::{MemoryStore, Store, Units};

#[test]
fn a_unit_that_cannot_be_looked_at_is_busy_and_not_another_one() {
    let mut disk = Disk::new();
    // A file without a block device is identified without sysfs.
    if major(disk.image.as_file().metadata().unwrap().dev()) == 0 {
        return;
    }
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    assert_eq!(disk.run(&disk.manager(&store, "vm"), &register(1)), GOOD);

    // One that has not seen the file system yet.
    disk.units = Units::default();
    let manager = disk.manager(&store, "vm");
    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(0), ..before }).unwrap();
    let without_room = disk.run(&manager, &register(2));
    setrlimit(Resource::Nofile, before).unwrap();
    assert_eq!(without_room, Completion::Status(Status::BUSY));
    assert_eq!(disk.registered(&manager), [scsi_pr::Key(1)]);
}
