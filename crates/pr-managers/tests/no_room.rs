//! What a manager answers while this process may open no more files. A test program of its own, because the limit is the
//! process's.

use std::fs;
use std::os::fd::AsFd;

use pr_managers::SgIo;
use pr_managers::device::{Device, Sysfs};
use pr_managers::policy::WholeUnit;
use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use scsi_pr::{Cdb, Command, Completion, PrManager, SenseCode, Status};

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

    let manager = WholeUnit::new(SgIo::new(), Sysfs::at(sysfs.path()));
    let mut cdb = [0; 16];
    (cdb[0], cdb[1], cdb[8]) = (0x5f, 1, 24);
    let reserve = || manager.execute(disk.as_fd(), Command::new(Cdb::new(cdb).unwrap(), &[0; 24]).unwrap()).unwrap();
    // No ioctl can be made on a descriptor of this kind; but the policy let it through.
    let let_through = Completion::check(SenseCode::IO_PROCESS_TERMINATED);
    assert_eq!(reserve(), let_through);

    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(0), ..before }).unwrap();
    let answer = reserve();
    setrlimit(Resource::Nofile, before).unwrap();
    assert_eq!(answer, Completion::Status(Status::BUSY));
    assert_eq!(reserve(), let_through);
}
