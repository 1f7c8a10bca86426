use std::fs::{self, File};
use std::ops::Deref;
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::fs::{AtFlags, MemfdFlags, Mode, OFlags, Statx, StatxFlags, memfd_create, open, statx};
use tempfile::NamedTempFile;
use testing_support::{Designator, SysfsTree, device_identification as page};

use scsi_pr_linux::device::{Node, Number, Sysfs, SysfsError};

use super::*;

fn stat(file: &File) -> Statx {
    statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS).unwrap()
}

/// A directory laid out as sysfs is.
#[derive(Default)]
struct Tree(SysfsTree);

const DISK: &str = "devices/pci0/host0/0:0:0:0/block/sda";
const OTHER_DISK: &str = "devices/pci0/host1/1:0:0:0/block/sdb";
const MAP: &str = "devices/virtual/block/dm-0";
const NVME: &str = "devices/pci0/nvme/nvme0/nvme0n1";
const NAA: [u8; 16] = [0x60, 1, 0x40, 5, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
const NAA_TEXT: &str = "naa.6001400501020304050607080 90a0b0c";

impl Deref for Tree {
    type Target = SysfsTree;

    fn deref(&self) -> &SysfsTree {
        &self.0
    }
}

impl Tree {
    fn new() -> Self {
        Self::default()
    }

    fn scsi(&self, path: &str, number: &str, designators: &[Designator<'_>]) {
        self.block(path, number, &[]);
        self.subsystem(path, "scsi");
        self.write(&format!("{path}/device/vpd_pg83"), page(designators));
    }

    fn partition(&self, disk: &str, partition: u32, number: &str) {
        let name = Path::new(disk).file_name().unwrap().to_str().unwrap();
        self.0.partition(&format!("{disk}/{name}p{partition}"), number);
    }

    fn device_mapper(&self, path: &str, number: &str, uuid: &str, slaves: &[&str]) {
        self.0.device_mapper(path, number, ["name", uuid], slaves);
    }

    fn unit(&self, major: u32, minor: u32) -> Result<UnitId, SysfsError> {
        Sysfs::at(self.path()).identify_block(Number { major, minor }).identity.map(UnitId::from)
    }

    /// The text of the identifier, and whether it is global.
    fn identifier(&self, major: u32, minor: u32) -> (String, bool) {
        let unit = self.unit(major, minor).unwrap();
        assert!(unit.is_stable());
        (unit.to_string(), unit.is_global())
    }

    fn refused(&self, major: u32, minor: u32) -> String {
        match self.unit(major, minor) {
            Err(SysfsError::NoIdentity(reason)) => reason.to_owned(),
            Err(SysfsError::Unexplained(reason)) => reason,
            other => panic!("{other:?}"),
        }
    }
}

fn global(text: &str) -> (String, bool) {
    (text.replace(' ', ""), true)
}

fn local(text: &str) -> (String, bool) {
    (text.to_owned(), false)
}

#[test]
fn a_disk_is_one_by_whichever_way_it_is_reached() {
    let tree = Tree::new();
    for (path, number) in [(DISK, "8:0"), (OTHER_DISK, "8:16")] {
        tree.scsi(path, number, &[(1, 0x3, &NAA), (2, 0x1, b"LIO-ORG disk")]);
    }
    let generic = "devices/pci0/host0/0:0:0:0/scsi_generic/sg0";
    tree.write(&format!("{generic}/dev"), "21:0\n");
    tree.write(&format!("{generic}/device/vpd_pg83"), page(&[(1, 0x3, &NAA)]));
    tree.number("char", generic, "21:0");
    tree.device_mapper(MAP, "252:0", "mpath-360014005010203040506070809 0a0b0c", &[DISK, OTHER_DISK]);
    for (major, minor) in [(8, 0), (8, 16), (252, 0)] {
        assert_eq!(tree.identifier(major, minor), global(NAA_TEXT));
    }
    let generic = Sysfs::at(tree.path()).identify_generic(Number { major: 21, minor: 0 }).unwrap();
    assert_eq!(generic.identity.unwrap().as_str(), global(NAA_TEXT).0);
    assert_eq!(generic.name.as_deref(), Some("sg0"));
}

#[test]
fn a_map_over_different_disks_or_none_is_refused() {
    let tree = Tree::new();
    tree.scsi(DISK, "8:0", &[(1, 0x3, &NAA)]);
    tree.scsi(OTHER_DISK, "8:16", &[(1, 0x2, &NAA[..8])]);
    tree.device_mapper(MAP, "252:0", "mpath-3", &[DISK, OTHER_DISK]);
    assert!(tree.refused(252, 0).contains("different disks"), "{}", tree.refused(252, 0));
    tree.device_mapper("devices/virtual/block/dm-1", "252:1", "mpath-3", &[]);
    assert!(tree.refused(252, 1).contains("no path"));
    // A path that does not tell keeps the map from being something else in the meantime.
    tree.block("devices/virtual/block/vda", "253:0", &[]);
    tree.device_mapper("devices/virtual/block/dm-2", "252:2", "mpath-3", &["devices/virtual/block/vda"]);
    assert!(matches!(tree.unit(252, 2), Err(SysfsError::Unexplained(_))));
}

#[test]
fn a_part_is_a_unit_of_its_own() {
    let tree = Tree::new();
    tree.scsi(DISK, "8:0", &[(1, 0x3, &NAA)]);
    tree.partition(DISK, 3, "8:3");
    tree.device_mapper(MAP, "252:0", "mpath-3", &[DISK]);
    // kpartx makes the same partition of the map.
    tree.device_mapper("devices/virtual/block/dm-1", "252:1", "part3-mpath-3", &[MAP]);
    for (major, minor) in [(8, 3), (252, 1)] {
        assert_eq!(tree.identifier(major, minor), global(&format!("{NAA_TEXT}-part3")));
    }
    let volume = format!("LVM-{}{}", "a".repeat(32), "B".repeat(32));
    tree.device_mapper("devices/virtual/block/dm-2", "252:2", &volume, &[DISK]);
    assert_eq!(tree.identifier(252, 2), global(&format!("dm.{volume}")));
    tree.device_mapper("devices/virtual/block/dm-3", "252:3", &format!("{volume}-real"), &[DISK]);
    assert_eq!(tree.identifier(252, 3), global(&format!("dm.{volume}-real")));
}

#[test]
fn device_mapper_uuids() {
    let tree = Tree::new();
    tree.scsi(DISK, "8:0", &[(1, 0x3, &NAA)]);
    let digits = "0123456789abcdef0123456789abcdef";
    let cases = [
        // The name of the mapping is this host's.
        (format!("CRYPT-LUKS2-{digits}-secret"), global(&format!("dm.CRYPT-LUKS2-{digits}"))),
        (format!("CRYPT-LUKS1-{digits}-x-y"), global(&format!("dm.CRYPT-LUKS1-{digits}"))),
        (format!("CRYPT-LUKS2-{digits}-secret_dif"), local(&format!("dm.CRYPT-LUKS2-{digits}-secret_dif"))),
        (format!("CRYPT-LUKS2-{digits}"), local(&format!("dm.CRYPT-LUKS2-{digits}"))),
        ("CRYPT-PLAIN-secret".to_owned(), local("dm.CRYPT-PLAIN-secret")),
        ("LVM-short".to_owned(), local("dm.LVM-short")),
        ("any/thing at%all".to_owned(), local("dm.any%2fthing%20at%25all")),
        ("partition-x".to_owned(), local("dm.partition-x")),
    ];
    for (minor, (uuid, identifier)) in (0..).zip(&cases) {
        let (path, number) = (format!("devices/virtual/block/dm-{minor}"), format!("252:{minor}"));
        tree.device_mapper(&path, &number, uuid, &[DISK]);
        assert_eq!(tree.identifier(252, minor), *identifier, "{uuid}");
    }
    tree.device_mapper("devices/virtual/block/dm-90", "252:90", "", &[DISK]);
    assert!(tree.refused(252, 90).contains("without a uuid"));
    tree.device_mapper("devices/virtual/block/dm-91", "252:91", "part1-mpath-3", &[DISK, MAP]);
    tree.block(MAP, "252:99", &[]);
    assert!(tree.refused(252, 91).contains("more than one"));
}

#[test]
fn nvme_namespaces_tell_their_wwid() {
    for (wwid, identifier) in [
        ("uuid.6D5C1F8A-0000-4000-8000-000000000001", global("nvme.uuid.6d5c1f8a-0000-4000-8000-000000000001")),
        ("eui.00000000000000018ce38e0300000001", global("nvme.eui.00000000000000018ce38e0300000001")),
        ("nvme.1b36-666f6f-51454d55-00000001", local("nvme.nvme.1b36-666f6f-51454d55-00000001")),
    ] {
        for subsystem in ["nvme", "nvme-subsystem"] {
            let tree = Tree::new();
            tree.block(NVME, "259:0", &[]);
            tree.subsystem(NVME, subsystem);
            tree.write(&format!("{NVME}/wwid"), format!("{wwid}\n"));
            assert_eq!(tree.identifier(259, 0), identifier);
        }
    }
}

#[test]
fn ceph_images_are_known_by_their_ids() {
    let tree = Tree::new();
    let image = "devices/virtual/block/rbd0";
    tree.block(image, "250:0", &[]);
    tree.subsystem(image, "rbd");
    for (name, value) in [("cluster_fsid", "f5"), ("pool_id", "7"), ("image_id", "10ab"), ("current_snap", "-")] {
        tree.write(&format!("{image}/device/{name}"), format!("{value}\n"));
    }
    assert_eq!(tree.identifier(250, 0), global("rbd.f5.7.10ab"));
    tree.write(&format!("{image}/device/pool_ns"), "tenant\n");
    assert_eq!(tree.identifier(250, 0), global("rbd.f5.7.tenant.10ab"));
    tree.write(&format!("{image}/device/current_snap"), "monday\n");
    tree.write(&format!("{image}/device/snap_id"), "4\n");
    assert_eq!(tree.identifier(250, 0), global("rbd.f5.7.tenant.10ab.snap-4"));
    tree.write(&format!("{image}/device/cluster_fsid"), "\n");
    assert!(tree.refused(250, 0).contains("cluster_fsid"));
}

#[test]
fn what_has_no_identity_is_refused() {
    let tree = Tree::new();
    tree.block("devices/virtual/block/vda", "253:0", &[]);
    tree.subsystem("devices/virtual/block/vda", "virtio");
    assert!(matches!(tree.unit(253, 0), Err(SysfsError::NoIdentity(_))));
    tree.scsi(DISK, "8:0", &[(1, 0x13, &NAA)]);
    assert!(matches!(tree.unit(8, 0), Err(SysfsError::NoIdentity(_))));
    tree.block("devices/virtual/block/md0", "9:0", &[DISK]);
    assert!(matches!(tree.unit(9, 0), Err(SysfsError::NoIdentity(_))));
    // Sysfs that does not know the device at all says nothing about it.
    assert!(matches!(tree.unit(8, 99), Err(SysfsError::Unexplained(_))));
}

#[test]
fn a_directory_of_another_device_is_not_believed() {
    let tree = Tree::new();
    tree.scsi(DISK, "8:0", &[(1, 0x3, &NAA)]);
    tree.number("block", DISK, "8:16");
    assert!(tree.refused(8, 16).contains("is of device 8:0, not of 8:16"));
    // Emptied, because its device has gone.
    fs::remove_file(tree.path().join(DISK).join("dev")).unwrap();
    assert!(matches!(tree.unit(8, 0), Err(SysfsError::Unexplained(_))));
}

#[test]
fn a_stack_without_end_is_refused() {
    let tree = Tree::new();
    tree.device_mapper(MAP, "252:0", "mpath-1", &[MAP]);
    assert!(tree.refused(252, 0).contains("too many devices"));
}

#[test]
fn a_loop_device_is_the_file_behind_it() {
    let tree = Tree::new();
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(10 * 512 + 1).unwrap();
    let looped = "devices/virtual/block/loop0";
    tree.block(looped, "7:0", &[]);
    let write = |name: &str, value: &str| tree.write(&format!("{looped}/{name}"), format!("{value}\n"));
    let path = file.path().to_str().unwrap();
    for (name, value) in [("loop/backing_file", path), ("loop/offset", "0"), ("loop/sizelimit", "0"), ("size", "10")] {
        write(name, value);
    }
    // The file's device is one of this machine, of which the tree knows nothing; its number is believed to be another's.
    let on = stat(file.as_file());
    let number = format!("{}:{}", on.stx_dev_major, on.stx_dev_minor);
    if on.stx_dev_major != 0 {
        tree.scsi(DISK, &number, &[(1, 0x3, &NAA)]);
    }
    let units = Units::with_sysfs(tree.path().to_str().unwrap(), []);
    let direct = units.identify(file.as_file().as_fd()).unwrap();
    assert_eq!(tree.unit(7, 0).unwrap(), direct);
    tree.partition(looped, 1, "7:1");
    assert_eq!(tree.unit(7, 1).unwrap().to_string(), format!("{direct}-part1"));

    for (name, value, back) in [
        ("loop/offset", "512", "0"),
        ("loop/sizelimit", "512", "0"),
        ("size", "9", "10"),
        ("loop/backing_file", "/nowhere/at-all", path),
        ("loop/backing_file", &format!("{path} (deleted)"), path),
        ("loop/backing_file", "relative", path),
        ("loop/backing_file", "/dev/null", path),
    ] {
        write(name, value);
        assert!(tree.unit(7, 0).is_err(), "{name} {value}");
        write(name, back);
        assert!(tree.unit(7, 0).is_ok(), "{name} {back}");
    }
}

#[test]
fn what_is_no_disk_is_refused() {
    let units = Units::default();
    let refused = |descriptor: &dyn AsFd| units.identify(descriptor.as_fd()).unwrap_err().to_string();
    let (socket, _other) = UnixStream::pair().unwrap();
    assert_eq!(refused(&socket), "a socket is no disk");
    let (reader, _writer) = std::io::pipe().unwrap();
    assert_eq!(refused(&reader), "a pipe is no disk");
    assert_eq!(refused(&File::open("/").unwrap()), "a directory is no disk");
    assert_eq!(refused(&File::open("/dev/null").unwrap()), "the character device 1:3 is no disk");
    assert!(refused(&memfd_create("disk", MemfdFlags::CLOEXEC).unwrap()).contains("--unit=NAME=PATH"));
    assert!(refused(&tempfile::tempfile().unwrap()).contains("no name"));
    let path = open("/", OFlags::PATH, Mode::empty()).unwrap();
    assert!(refused(&path).contains("O_PATH"));
}

#[test]
fn a_file_is_the_same_by_every_name_and_another_once_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let [one, two] = ["one", "two"].map(|name| directory.path().join(name));
    let units = Units::default();
    let unit = |path: &Path| units.identify(File::open(path).unwrap().as_fd()).unwrap();
    fs::write(&one, "disk").unwrap();
    let first = unit(&one);
    fs::hard_link(&one, &two).unwrap();
    assert_eq!(unit(&two), first);
    assert_eq!(Units::default().identify(File::open(&one).unwrap().as_fd()).unwrap(), first);
    assert!(first.as_str().contains(".inode."), "{first}");
    fs::rename(&two, directory.path().join("three")).unwrap();
    assert_eq!(unit(&directory.path().join("three")), first);
    fs::write(&two, "another disk").unwrap();
    assert_ne!(unit(&two), first);
}

#[test]
fn a_new_file_is_not_taken_for_a_deleted_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    let units = Units::default();
    let create = || {
        let file = File::create(&path).unwrap();
        let number = stat(&file).stx_ino;
        (number, units.identify(file.as_fd()).unwrap())
    };
    let (number, unit) = create();
    fs::remove_file(&path).unwrap();
    // Longer than the clock of any file system takes from one tick to the next.
    std::thread::sleep(std::time::Duration::from_millis(50));
    let (new_number, new_unit) = create();
    let (_, after) = unit.as_str().split_once(".inode.").unwrap();
    let tells_birth = after.contains('.');
    assert!(!tells_birth || new_unit != unit, "{unit} of inode {number}, then {new_unit} of {new_number}");
}

#[test]
fn a_name_is_followed_to_what_is_there_now() {
    let directory = tempfile::tempdir().unwrap();
    let [image, link] = ["image", "link"].map(|name| directory.path().join(name));
    fs::write(&image, "").unwrap();
    symlink(&image, &link).unwrap();
    let names = [Naming::path("disk-1", &link).unwrap(), Naming::path("disk-2", &image).unwrap()];
    let units = Units::new(names.clone());
    assert_eq!(names.each_ref().map(Naming::missing), [None, None]);
    let first = File::open(&image).unwrap();
    let unit = units.identify(first.as_fd()).unwrap();
    assert_eq!((unit.as_str(), unit.is_global()), ("name.disk-1", true));
    fs::remove_file(&link).unwrap();
    assert_eq!(names.each_ref().map(Naming::missing), [Some(&*link), None]);
    assert_eq!(Naming::block("disk", 4095, 4095).unwrap().missing(), None);
    assert_eq!(units.identify(first.as_fd()).unwrap().as_str(), "name.disk-2");
    fs::rename(&image, directory.path().join("old")).unwrap();
    fs::write(&image, "").unwrap();
    assert!(units.identify(first.as_fd()).unwrap().as_str().contains(".inode."));
    assert_eq!(units.identify(File::open(&image).unwrap().as_fd()).unwrap().as_str(), "name.disk-2");
}

#[test]
fn hosts_that_share_a_store_share_only_what_all_of_them_know() {
    let file = NamedTempFile::new().unwrap();
    let tree = Tree::new();
    let on = stat(file.as_file());
    if on.stx_dev_major != 0 {
        tree.block("devices/virtual/block/vda", &format!("{}:{}", on.stx_dev_major, on.stx_dev_minor), &[]);
    }
    let units = |names: &[Naming]| Units::with_sysfs(tree.path().to_str().unwrap(), names.to_vec());
    let local = units(&[]).identify(file.as_file().as_fd()).unwrap();
    assert!(!local.is_global(), "{local}");
    let refused = units(&[]).identify_between_hosts(file.as_file().as_fd()).unwrap_err();
    let (refused, path) = (refused.to_string(), file.path().to_str().unwrap());
    assert!([path, local.as_str(), "--unit=NAME=PATH"].iter().all(|part| refused.contains(part)), "{refused}");
    let named = units(&[Naming::path("disk", path).unwrap()]).identify_between_hosts(file.as_file().as_fd()).unwrap();
    assert_eq!(named.as_str(), "name.disk");
}

#[test]
fn a_file_is_known_as_far_as_its_disk_is() {
    let file = NamedTempFile::new().unwrap();
    let on = stat(file.as_file());
    let number = format!("{}:{}", on.stx_dev_major, on.stx_dev_minor);
    let unit = |tree: &Tree| {
        Units::with_sysfs(tree.path().to_str().unwrap(), []).identify_between_hosts(file.as_file().as_fd())
    };
    // A directory for temporary files that is on no block device has nothing to show here.
    if on.stx_dev_major == 0 {
        return;
    }
    let tree = Tree::new();
    tree.scsi(DISK, &number, &[(1, 0x3, &NAA)]);
    let text = unit(&tree).unwrap().to_string();
    assert!(text.starts_with(&format!("{}.inode.{}", global(NAA_TEXT).0, on.stx_ino)), "{text}");
    // A disk that cannot tell what it is does not make the file another one.
    let tree = Tree::new();
    tree.device_mapper(MAP, &number, "mpath-3", &[]);
    let refused = unit(&tree).unwrap_err().to_string();
    assert!(refused.contains("no path"), "{refused}");
}

/// A file that is named has one truth also by a loop device over it, and the other way round.
#[test]
fn a_name_is_that_of_every_way_to_the_unit() {
    let file = NamedTempFile::new().unwrap();
    let on = stat(file.as_file());
    if on.stx_dev_major == 0 {
        return;
    }
    let tree = Tree::new();
    tree.scsi(DISK, &format!("{}:{}", on.stx_dev_major, on.stx_dev_minor), &[(1, 0x3, &NAA)]);
    let looped = "devices/virtual/block/loop0";
    tree.block(looped, "7:0", &[]);
    for (name, value) in [
        ("loop/backing_file", file.path().to_str().unwrap()),
        ("loop/offset", "0"),
        ("loop/sizelimit", "0"),
        ("size", "0"),
    ] {
        tree.write(&format!("{looped}/{name}"), format!("{value}\n"));
    }
    let units = |naming: Naming| Units::with_sysfs(tree.path().to_str().unwrap(), [naming]);
    let identify = |units: &Units| units.identify(file.as_file().as_fd()).unwrap().to_string();
    let own = identify(&Units::with_sysfs(tree.path().to_str().unwrap(), []));
    for naming in [
        Naming::block("disk", 7, 0).unwrap(),
        Naming::path("disk", file.path()).unwrap(),
        Naming::identifier("disk", &own).unwrap(),
    ] {
        assert_eq!(identify(&units(naming)), "name.disk");
    }
    for naming in [Naming::block("disk", 7, 1).unwrap(), Naming::path("disk", "/nowhere/at/all").unwrap()] {
        assert_eq!(identify(&units(naming)), own);
    }
}

#[test]
fn a_name_makes_no_disk_of_what_is_none() {
    let units = Units::new([Naming::path("null", "/dev/null").unwrap(), Naming::path("root", "/").unwrap()]);
    assert!(units.identify(File::open("/dev/null").unwrap().as_fd()).is_err());
    assert!(units.identify(File::open("/").unwrap().as_fd()).is_err());
}

#[test]
fn block_devices_of_this_machine_are_named_by_number() {
    let Some(device) = ["loop0", "vda", "sda", "nvme0n1", "zram0"]
        .iter()
        .find_map(|name| open(format!("/dev/{name}"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok())
    else {
        return;
    };
    let Number { major, minor } = Node::of(device.as_fd()).unwrap().number;
    let named: Naming = format!("lun={major}:{minor}").parse().unwrap();
    assert_eq!(Units::new([named]).identify(device.as_fd()).unwrap().as_str(), "name.lun");
    if let Err(error) = Units::default().identify(device.as_fd()) {
        let text = error.to_string();
        assert!(text.contains(&format!("{major}:{minor} (")) && text.contains("--unit=NAME=PATH"), "{text}");
    }
}

#[test]
fn namings_are_read() {
    let path: Naming = "disk=/dev/disk/by-id/x=y".parse().unwrap();
    assert_eq!(path, Naming::path("disk", "/dev/disk/by-id/x=y").unwrap());
    assert_eq!(path.unit().as_str(), "name.disk");
    assert_eq!("disk=naa.6001".parse(), Naming::identifier("disk", "naa.6001"));
    assert_eq!("disk=8:16".parse(), Naming::block("disk", 8, 16));
    for (text, error) in [
        ("disk", InvalidNaming::Shape("disk".to_owned())),
        ("disk=image", InvalidNaming::Place("image".to_owned())),
        ("disk=8:", InvalidNaming::Place("8:".to_owned())),
        ("disk=image/a.b", InvalidNaming::Place("image/a.b".to_owned())),
        ("disk=name.other", InvalidNaming::Place("name.other".to_owned())),
        ("=/dev/sda", InvalidNaming::Name(String::new())),
        ("a/b=/dev/sda", InvalidNaming::Name("a/b".to_owned())),
    ] {
        assert_eq!(text.parse::<Naming>(), Err(error));
    }
    for name in ["", "a b", "a/b", "é", &"x".repeat(129)] {
        assert_eq!(UnitId::named(name), Err(InvalidNaming::Name(name.to_owned())), "{name:?}");
    }
}
