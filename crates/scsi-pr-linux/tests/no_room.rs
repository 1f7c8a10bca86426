//! What a manager answers while this process may open no more files. A test program of its own, because the limit is the
//! process's.

use std::fs;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use scsi_pr::{Cdb, Command, Completion, PrManager, SenseCode, Status};
use scsi_pr_linux::SgIo;
use scsi_pr_linux::device::{Device, Sysfs};
use scsi_pr_linux::policy::{ByDevice, Routes, WholeUnit};

#[test]
fn a_unit_that_cannot_be_looked_at_is_busy_and_not_unable() {
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

    let sg_io: Arc<dyn PrManager> = Arc::new(SgIo::new());
    let [multipath, nvme, block] = [(); 3].map(|()| Arc::clone(&sg_io));
    let by_device = ByDevice::new(Routes { sg_io, multipath, nvme, block }, Sysfs::at(sysfs.path()));
    let whole_unit = WholeUnit::new(SgIo::new(), Sysfs::at(sysfs.path()));
    let managers: [&dyn PrManager; 2] = [&by_device, &whole_unit];

    let mut cdb = [0; 16];
    (cdb[0], cdb[1], cdb[8]) = (0x5f, 1, 24);
    let reserve = Command::new(Cdb::new(cdb).unwrap(), &[0; 24]).unwrap();
    let answers = || managers.map(|manager| manager.execute(disk.as_fd(), reserve).unwrap());
    // No ioctl can be made on a descriptor of this kind; but the policies let it through.
    let let_through = || Completion::check(SenseCode::IO_PROCESS_TERMINATED);
    assert_eq!(answers(), [let_through(), let_through()]);

    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(0), ..before }).unwrap();
    let without_room = answers();
    setrlimit(Resource::Nofile, before).unwrap();
    assert_eq!(without_room, [Completion::Status(Status::BUSY), Completion::Status(Status::BUSY)]);
    assert_eq!(answers(), [let_through(), let_through()]);
}
