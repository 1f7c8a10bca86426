use super::*;
use rustix::fs::{Mode, OFlags, open};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::Path;
use testing_support::SysfsTree;

/// A directory laid out as sysfs is, read by [`Sysfs`].
#[derive(Default)]
pub(crate) struct Tree(SysfsTree);

impl Deref for Tree {
    type Target = SysfsTree;

    fn deref(&self) -> &SysfsTree {
        &self.0
    }
}

impl Tree {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn sysfs(&self) -> Sysfs {
        Sysfs::at(self.path())
    }

    /// The state of a SCSI device or of an NVMe controller.
    pub(crate) fn state(&self, path: &str, state: &str) {
        self.write(&format!("{path}/device/state"), format!("{state}\n"));
    }

    /// The device goes, and its number may be another's.
    pub(crate) fn unplug(&self, path: &str, number: &str) {
        self.remove(path);
        fs::remove_file(self.path().join("dev/block").join(number)).unwrap();
    }

    pub(crate) fn explain(&self, major: u32, minor: u32) -> Device {
        self.sysfs().block(Number { major, minor }).unwrap()
    }
}

/// A descriptor of a block device and its number, if there is one here. Any will do: nothing is sent to it, and the trees
/// of the tests call it what they like.
pub(crate) fn block_device() -> Option<(OwnedFd, String)> {
    let device = ["loop0", "vda", "sda", "nvme0n1", "zram0"]
        .iter()
        .find_map(|name| open(format!("/dev/{name}"), OFlags::PATH, Mode::empty()).ok())?;
    let number = Device::of(device.as_fd()).unwrap().number()?;
    Some((device, number.to_string()))
}

const DISK: &str = "devices/pci0/host0/0:0:0:0/block/sda";
const OTHER_DISK: &str = "devices/pci0/host1/1:0:0:0/block/sdb";
const MAP: &str = "devices/virtual/block/dm-0";

/// Two paths to one unit, and the map over them.
fn multipath() -> Tree {
    let tree = Tree::new();
    for (path, number) in [(DISK, "8:0"), (OTHER_DISK, "8:16")] {
        tree.block(path, number, &[]);
        tree.subsystem(path, "scsi");
    }
    tree.device_mapper(MAP, "252:0", ["mpatha", "mpath-3600140500000001"], &[DISK, OTHER_DISK]);
    tree
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn scsi_disk_and_its_partition_are_classified() {
    let tree = multipath();
    let disk = tree.explain(8, 0);
    assert_eq!((disk.class(), disk.name()), (&DeviceClass::ScsiBlock, Some("sda")));
    assert_eq!(disk.to_string(), "8:0 (sda), a SCSI device");
    tree.partition(&format!("{DISK}/sda1"), "8:1");
    let partition = tree.explain(8, 1);
    assert_eq!(partition.class(), &DeviceClass::Partition { disk: "sda".to_owned() });
    assert_eq!(partition.to_string(), "8:1 (sda1), a partition of sda");
}

#[test]
fn multipath_map_is_classified() {
    let map = multipath().explain(252, 0);
    assert_eq!(
        map.class(),
        &DeviceClass::Multipath { map: "mpatha".to_owned(), uuid: "mpath-3600140500000001".to_owned() }
    );
    assert_eq!(map.to_string(), "252:0 (dm-0), the multipath map mpatha");
    assert_eq!(map.number(), Some(Number { major: 252, minor: 0 }));
}

#[test]
fn device_mapper_over_a_partition_of_a_map_is_classified() {
    let tree = multipath();
    let part = "devices/virtual/block/dm-1";
    tree.device_mapper(part, "252:1", ["mpatha-part1", "part1-mpath-3600140500000001"], &[MAP]);
    tree.device_mapper("devices/virtual/block/dm-2", "252:2", ["vg-lv", "LVM-abc"], &[part]);
    for (minor, map, uuid) in [(1, "mpatha-part1", "part1-mpath-3600140500000001"), (2, "vg-lv", "LVM-abc")] {
        let expected =
            DeviceClass::DeviceMapper { map: map.to_owned(), uuid: uuid.to_owned(), over: names(&["mpatha"]) };
        assert_eq!(tree.explain(252, minor).class(), &expected);
    }
}

#[test]
fn device_mapper_over_partitions_of_disks_is_classified() {
    let tree = multipath();
    let parts = [format!("{DISK}/sda1"), format!("{OTHER_DISK}/sdb2")];
    tree.partition(&parts[0], "8:1");
    tree.partition(&parts[1], "8:18");
    tree.device_mapper("devices/virtual/block/dm-3", "252:3", ["linear", ""], &[&parts[0], &parts[1]]);
    let linear = tree.explain(252, 3);
    assert_eq!(linear.to_string(), "252:3 (dm-3), the device-mapper device linear over sda, sdb");
    // One without a table has nothing beneath it.
    tree.device_mapper("devices/virtual/block/dm-4", "252:4", ["empty", ""], &[]);
    assert_eq!(tree.explain(252, 4).to_string(), "252:4 (dm-4), the device-mapper device empty over nothing");
}

#[test]
fn other_device_over_devices_is_stacked() {
    let tree = multipath();
    tree.block("devices/virtual/block/md0", "9:0", &[DISK, OTHER_DISK]);
    assert_eq!(tree.explain(9, 0).class(), &DeviceClass::Stacked { over: names(&["sda", "sdb"]) });
    assert_eq!(tree.explain(9, 0).to_string(), "9:0 (md0), a device over sda, sdb");
}

#[test]
fn other_disk_is_classified_by_its_subsystem() {
    let tree = Tree::new();
    for (minor, subsystem, kind) in [
        (0, "nvme", DeviceClass::NvmeNamespace),
        (1, "nvme-subsystem", DeviceClass::NvmeNamespace),
        (2, "virtio", DeviceClass::OtherBlock),
        (3, "scsi", DeviceClass::ScsiBlock),
    ] {
        let path = format!("devices/block/disk{minor}");
        tree.block(&path, &format!("259:{minor}"), &[]);
        tree.subsystem(&path, subsystem);
        assert_eq!(tree.explain(259, minor).class(), &kind);
    }
    tree.block("devices/virtual/block/cciss!c0d0", "104:0", &[]);
    assert_eq!(tree.explain(104, 0).to_string(), "104:0 (cciss/c0d0), a block device that is not SCSI");
}

/// Whether the device is not explained, and the reason names this.
fn unexplained(device: &Device, part: &str) -> bool {
    matches!(device.class(), DeviceClass::Unexplained { reason } if reason.contains(part)) && device.name().is_none()
}

#[test]
fn device_unknown_to_sysfs_is_unexplained() {
    let tree = multipath();
    assert!(unexplained(&tree.explain(8, 32), "dev/block/8:32: No such file"));
    let nowhere = Sysfs::at("/nonexistent").block(Number { major: 8, minor: 0 }).unwrap();
    assert!(unexplained(&nowhere, "/nonexistent/dev/block/8:0"));

    // The directory of another device.
    symlink(Path::new("../..").join(DISK), tree.path().join("dev/block/8:48")).unwrap();
    assert!(unexplained(&tree.explain(8, 48), "is of device 8:0"));

    // A device that goes while it is looked at: its directory is emptied from the end or from the beginning.
    tree.block("devices/gone", "8:64", &[]);
    fs::remove_file(tree.path().join("devices/gone/dev")).unwrap();
    assert!(unexplained(&tree.explain(8, 64), "gone/dev"));
    tree.block("devices/going", "8:80", &[]);
    fs::remove_dir(tree.path().join("devices/going/slaves")).unwrap();
    assert!(unexplained(&tree.explain(8, 80), "going/slaves"));

    // A map without a name, and a slave that leads nowhere.
    tree.device_mapper("devices/virtual/block/dm-8", "252:8", ["x", "mpath-x"], &[]);
    fs::remove_file(tree.path().join("devices/virtual/block/dm-8/dm/name")).unwrap();
    assert!(unexplained(&tree.explain(252, 8), "dm/name"));
    tree.device_mapper("devices/virtual/block/dm-9", "252:9", ["y", ""], &["devices/no/such"]);
    assert!(unexplained(&tree.explain(252, 9), "slaves/such"));
}

#[test]
fn circle_of_devices_is_unexplained() {
    let tree = multipath();
    tree.device_mapper("devices/dm-5", "252:5", ["a", ""], &["devices/dm-6"]);
    tree.device_mapper("devices/dm-6", "252:6", ["b", ""], &["devices/dm-5"]);
    assert!(unexplained(&tree.explain(252, 5), "too many devices"));
}

#[test]
fn descriptor_of_another_type_is_classified() {
    let kind = |descriptor: BorrowedFd<'_>| Device::of(descriptor).unwrap().class().clone();
    assert_eq!(kind(tempfile::tempfile().unwrap().as_fd()), DeviceClass::NotADevice(FileType::RegularFile));
    assert_eq!(kind(File::open("/").unwrap().as_fd()), DeviceClass::NotADevice(FileType::Directory));
    assert_eq!(kind(std::io::pipe().unwrap().0.as_fd()), DeviceClass::NotADevice(FileType::Fifo));
    assert_eq!(kind(UnixStream::pair().unwrap().0.as_fd()), DeviceClass::NotADevice(FileType::Socket));
    let null = Device::of(File::open("/dev/null").unwrap().as_fd()).unwrap();
    assert_eq!((null.class(), null.number()), (&DeviceClass::OtherCharacter, Some(Number { major: 1, minor: 3 })));
}

#[test]
fn scsi_generic_device_is_classified() {
    let tree = Tree::new();
    fs::create_dir_all(tree.path().join("dev/char")).unwrap();
    symlink("../../devices/host0/0:0:0:0/scsi_generic/sg0", tree.path().join("dev/char/21:0")).unwrap();
    let sg0 = tree.sysfs().character(Number { major: 21, minor: 0 });
    assert_eq!(sg0.to_string(), "21:0 (sg0), a SCSI generic device");
    // Without sysfs it is a character device like others.
    let unknown = tree.sysfs().character(Number { major: 21, minor: 1 });
    assert_eq!(unknown.to_string(), "21:1, a character device");
}

/// Every block device of the machine that the tests run on is explained, and by the name that it goes by.
#[test]
fn every_device_of_this_machine_is_explained() {
    let Ok(entries) = fs::read_dir("/sys/dev/block") else { return };
    for entry in entries {
        let entry = entry.unwrap();
        let number = entry.file_name().into_string().unwrap();
        let (major, minor) = number.split_once(':').unwrap();
        let number = Number { major: major.parse().unwrap(), minor: minor.parse().unwrap() };
        let device = Sysfs::default().block(number).unwrap();
        // It may go at any time, as loop devices do.
        if entry.path().exists() {
            let uevent = fs::read_to_string(entry.path().join("uevent")).unwrap_or_default();
            let called = device.name().is_some_and(|name| uevent.lines().any(|line| line == format!("DEVNAME={name}")));
            assert!(called, "{device}: {uevent}");
        }
    }
}

#[test]
fn device_over_nvme_reaches_nvme() {
    let tree = multipath();
    let namespace = "devices/virtual/nvme-subsystem/nvme-subsys0/nvme0n1";
    tree.block(namespace, "259:0", &[]);
    tree.subsystem(namespace, "nvme-subsystem");
    tree.partition(&format!("{namespace}/nvme0n1p1"), "259:1");
    tree.block("devices/virtual/block/loop0", "7:0", &[]);
    let partition = format!("{namespace}/nvme0n1p1");
    tree.device_mapper("devices/virtual/block/dm-1", "252:1", ["vg-lv", "LVM-a"], &[&partition]);
    let (map, volume) = (MAP, "devices/virtual/block/dm-1");
    tree.device_mapper("devices/virtual/block/dm-2", "252:2", ["both", ""], &[map, volume]);
    for (major, minor, expected) in [
        (8, 0, Some(false)),
        (252, 0, Some(false)),
        (7, 0, Some(false)),
        (259, 0, Some(true)),
        (259, 1, Some(true)),
        (252, 1, Some(true)),
        (252, 2, Some(true)),
        // sysfs does not know this one.
        (99, 9, None),
    ] {
        let number = Number { major, minor };
        assert_eq!(tree.sysfs().reaches_nvme(number).unwrap(), expected, "{number}");
    }
}

#[test]
fn only_a_class_that_cannot_change_is_permanent() {
    let tree = multipath();
    tree.partition(&format!("{DISK}/sda1"), "8:1");
    tree.block("devices/virtio/block/vda", "254:0", &[]);
    tree.subsystem("devices/virtio/block/vda", "virtio");
    tree.block("devices/virtual/block/loop0", "7:0", &[]);
    tree.block("devices/virtual/block/md0", "9:0", &[DISK]);
    tree.device_mapper("devices/virtual/block/dm-1", "252:1", ["vg-lv", "LVM-a"], &[DISK]);
    tree.device_mapper("devices/virtual/block/dm-2", "252:2", ["nameless", ""], &[DISK]);
    for (major, minor, expected) in [
        (8, 0, true),
        (8, 1, true),
        (252, 0, true),
        (252, 1, true),
        (254, 0, true),
        // It may be given a UUID, get or lose what is beneath, or be explained later.
        (252, 2, false),
        (7, 0, false),
        (9, 0, false),
        (99, 9, false),
    ] {
        assert_eq!(tree.explain(major, minor).is_permanent(), expected, "{major}:{minor}");
    }
}

#[test]
fn each_disk_has_its_own_sequence_number() {
    assert!(BlockDevice::of(File::open("/dev/null").unwrap().as_fd()).unwrap().is_none());
    assert!(BlockDevice::of(tempfile::tempfile().unwrap().as_fd()).unwrap().is_none());
    let mut seen = BTreeSet::new();
    for minor in 0..8 {
        // Not every machine has them, and not everybody may open them.
        let Ok(file) = File::open(format!("/dev/loop{minor}")) else { continue };
        let device = BlockDevice::of(file.as_fd()).unwrap().unwrap();
        assert_eq!(device.number(), Number { major: 7, minor });
        let diskseq = fs::read_to_string(format!("/sys/block/loop{minor}/diskseq")).ok();
        let diskseq: Option<u64> = diskseq.map(|text| text.trim().parse().unwrap());
        assert_eq!(device.sequence_number(), diskseq, "loop{minor}");
        assert!(diskseq.is_none_or(|number| seen.insert(number)), "loop{minor}");
    }
    let Some((path_only, _)) = block_device() else { return };
    assert_eq!(BlockDevice::of(path_only.as_fd()).unwrap().unwrap().sequence_number(), None);
}
