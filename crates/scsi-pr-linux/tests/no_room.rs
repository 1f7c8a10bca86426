//! The answers of the router while this process may open no more files. It is a test program of its own, because the limit
//! is the process's.

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use scsi_pr::{Cdb, Command, Completion, PrManager, SenseCode, Status};
use scsi_pr_linux::device::{Device, Sysfs};
use scsi_pr_linux::routing::Workers;
use scsi_pr_linux::{DeviceRouter, SgIo};

#[test]
fn unit_that_cannot_be_looked_up_is_busy_and_not_unable() {
    let Some(disk) = ["loop0", "vda", "sda", "nvme0n1", "zram0"]
        .iter()
        .find_map(|name| open(format!("/dev/{name}"), OFlags::PATH, Mode::empty()).ok())
    else {
        return;
    };
    let number = Device::of(disk.as_fd()).unwrap().number().unwrap();
    let sysfs = tempfile::tempdir().unwrap();
    let directory = sysfs.path().join(format!("dev/block/{number}"));
    fs::create_dir_all(directory.join("slaves")).unwrap();
    fs::write(directory.join("dev"), format!("{number}\n")).unwrap();

    let worker: Arc<dyn PrManager> = Arc::new(SgIo::new());
    let [multipath, nvme, block_ioctl] = [(); 3].map(|()| Arc::clone(&worker));
    let router = DeviceRouter::with_sysfs(Workers { multipath, nvme, block_ioctl }, Sysfs::at(sysfs.path()));

    let mut cdb = [0; 16];
    (cdb[0], cdb[8]) = (0x5e, 24);
    let read_keys = Command::new(Cdb::new(cdb).unwrap(), &[]).unwrap();
    (cdb[0], cdb[1]) = (0x5f, 1);
    let reserve = Command::new(Cdb::new(cdb).unwrap(), &[0; 24]).unwrap();
    // Not every user may open the disk for writing.
    let path = format!("/proc/self/fd/{}", disk.as_raw_fd());
    let writable = open(path, OFlags::RDWR | OFlags::NONBLOCK, Mode::empty());
    let devices = [(Some(&disk), read_keys), (writable.as_ref().ok(), reserve)];
    let answers =
        || devices.map(|(device, command)| device.map(|device| router.execute(device.as_fd(), command).unwrap()));
    // No ioctl can be made on a descriptor with O_PATH, but the router lets the command through.
    let let_through = Some(Completion::check(SenseCode::IO_PROCESS_TERMINATED));
    let before_limit = answers();
    assert_eq!(before_limit[0], let_through);

    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(0), ..before }).unwrap();
    let without_room = answers();
    setrlimit(Resource::Nofile, before).unwrap();
    let busy = Some(Completion::Status(Status::BUSY));
    assert_eq!(without_room, [busy.clone(), writable.as_ref().ok().and(busy.clone())]);
    assert_ne!(before_limit[1], busy);
    assert_eq!(answers(), before_limit);
}
