//! Whose the reservations of a device are: the store's, a helper's, or nobody's here.
//!
//! It is decided by what the device is and by what the administrator said, never by trying: a disk that fails for a moment
//! would be kept here from then on, and be two disks to those who reserve it.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, fstat, major, minor};
use scsi_pr::{Command, Completion};
use scsi_pr_linux::device::{Device, DeviceClass, Number, Sysfs};
use scsi_pr_linux::policy::Refusals;
use scsi_pr_store::{Naming, UnitId, Units};

const REMEDY: &str = "--pass=SOCKET sends what has its own reservations to a helper, --keep=PATH keeps them in this store, to \
                      which everybody must come then";

/// What the units of the paths to keep are called among themselves.
const KEPT: &str = "kept";

/// How many loop devices may lie one over another; the kernel has no such limit, and the store identifies no deeper stack.
const DEEPEST: usize = 32;

/// Decides for each command anew: device numbers are reused, and paths lead elsewhere.
#[derive(Debug)]
pub(crate) struct Devices {
    keep: Vec<PathBuf>,
    /// By which the units of the paths to keep have names, whatever leads to them.
    kept: Option<Units>,
    passes: bool,
    sysfs: PathBuf,
    refusals: Refusals,
}

/// Who has the reservations of a device.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// Our store.
    Store,
    /// The device itself: a helper reaches them.
    Helper,
    /// Nobody whom we may ask: the answer to every command.
    Nobody(Completion),
}

impl Devices {
    /// `keep` are the paths of devices whose reservations are kept in the store whatever they are; `passes` says whether
    /// there is a helper.
    pub(crate) fn new(keep: Vec<PathBuf>, passes: bool) -> Self {
        Self::with_sysfs("/sys", keep, passes)
    }

    fn with_sysfs(root: impl Into<PathBuf>, keep: Vec<PathBuf>, passes: bool) -> Self {
        let sysfs = root.into();
        let name = |path: &PathBuf| Naming::path(KEPT, path).ok();
        let kept = (!keep.is_empty()).then(|| Units::with_sysfs(&sysfs, keep.iter().filter_map(name)));
        Self { keep, kept, passes, sysfs, refusals: Refusals::new(REMEDY) }
    }

    /// Who answers `command`, which came with this descriptor.
    pub(crate) fn owner(&self, descriptor: BorrowedFd<'_>, command: Command<'_>) -> Owner {
        match self.look_up(descriptor) {
            Ok(Found::Store) => Owner::Store,
            Ok(Found::ItsOwn(_)) if self.passes => Owner::Helper,
            Ok(Found::ItsOwn(device)) => self.refuse(command, &device, "others may use the reservations that it has"),
            Ok(Found::OverItsOwn(device)) => self.refuse(
                command,
                &device,
                "others may use the reservations that the disk behind this loop device has",
            ),
            Ok(Found::Unexplained(device)) => self.refuse(command, &device, "it may have reservations of its own"),
            Err(error) => Owner::Nobody(self.refusals.put_off(command, &error)),
        }
    }

    fn refuse(&self, command: Command<'_>, device: &Device, why: &str) -> Owner {
        Owner::Nobody(self.refusals.refuse(command, device.number(), || device, why))
    }

    fn look_up(&self, descriptor: BorrowedFd<'_>) -> io::Result<Found> {
        let Some(node) = Node::of(descriptor)? else { return Ok(Found::Store) };
        if self.is_kept(node) || self.is_kept_by_another_path(descriptor) {
            return Ok(Found::Store);
        }
        self.sort(node, Sysfs::at(&self.sysfs).device(descriptor)?, DEEPEST)
    }

    fn sort(&self, node: Node, device: Device, depth: usize) -> io::Result<Found> {
        Ok(match device.class() {
            DeviceClass::ScsiBlock
            | DeviceClass::ScsiGeneric
            | DeviceClass::Multipath { .. }
            | DeviceClass::NvmeNamespace => Found::ItsOwn(device),
            DeviceClass::Unexplained { .. } => Found::Unexplained(device),
            DeviceClass::OtherBlock => match self.behind_loop(node)? {
                // The store knows both by one identifier, so that they must have one owner.
                Some(disk) if depth > 0 && !self.is_kept(disk) => {
                    match self.sort(disk, Sysfs::at(&self.sysfs).block(disk.number)?, depth - 1)? {
                        Found::Store => Found::Store,
                        _ => Found::OverItsOwn(device),
                    }
                }
                _ => Found::Store,
            },
            // What is no disk at all the store refuses by itself.
            _ => Found::Store,
        })
    }

    /// The block device behind a loop device. What is behind one cannot be told where its path leads elsewhere: the store
    /// refuses that one.
    fn behind_loop(&self, node: Node) -> io::Result<Option<Node>> {
        let attribute = self.sysfs.join("dev").join(node.to_string()).join("loop/backing_file");
        let mut path = match fs::read(&attribute) {
            Ok(path) => path,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        path.pop_if(|byte| *byte == b'\n');
        Ok(Node::at(Path::new(OsStr::from_bytes(&path))).ok().flatten().filter(|node| node.is_block))
    }

    /// Whether one of the paths to keep leads to the unit of this node.
    fn is_kept(&self, node: Node) -> bool {
        self.keep.iter().any(|path| {
            // A path that leads nowhere now keeps nothing.
            let Ok(Some(kept)) = Node::at(path) else { return false };
            kept == node || self.unit(kept).is_some_and(|unit| Some(unit) == self.unit(node))
        })
    }

    /// Whether this is another way to the unit of a path to keep, by what the unit tells of itself: another path to a disk, a
    /// multipath map over it.
    fn is_kept_by_another_path(&self, descriptor: BorrowedFd<'_>) -> bool {
        let Some(kept) = &self.kept else { return false };
        UnitId::named(KEPT).is_ok_and(|name| kept.identify(descriptor).is_ok_and(|unit| unit == name))
    }

    /// The SCSI device that a node is of: `sda` and `sg0` may have the same.
    fn unit(&self, node: Node) -> Option<PathBuf> {
        fs::canonicalize(self.sysfs.join("dev").join(node.to_string()).join("device")).ok()
    }
}

/// Whether a device is at `path`.
pub(crate) fn is_device(path: &Path) -> bool {
    matches!(Node::at(path), Ok(Some(_)))
}

/// What a descriptor is of.
enum Found {
    /// Something without reservations of its own, or that is to be kept.
    Store,
    /// A device that has its own.
    ItsOwn(Device),
    /// A loop device over such a one.
    OverItsOwn(Device),
    /// Nobody knows.
    Unexplained(Device),
}

/// A device node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Node {
    is_block: bool,
    number: Number,
}

impl Node {
    fn of(descriptor: BorrowedFd<'_>) -> io::Result<Option<Self>> {
        Ok(Self::from(fstat(descriptor)?))
    }

    fn at(path: &Path) -> io::Result<Option<Self>> {
        Ok(Self::from(rustix::fs::stat(path)?))
    }

    /// `None` for what is no device.
    fn from(stat: rustix::fs::Stat) -> Option<Self> {
        let number = Number { major: major(stat.st_rdev), minor: minor(stat.st_rdev) };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::BlockDevice => Some(Self { is_block: true, number }),
            FileType::CharacterDevice => Some(Self { is_block: false, number }),
            _ => None,
        }
    }
}

impl fmt::Display for Node {
    /// As below `/sys/dev`: `block/8:0`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", if self.is_block { "block" } else { "char" }, self.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, Mode, OFlags, open};
    use scsi_pr::{ReserveIn, ReserveInAction, SenseCode};
    use std::os::fd::{AsFd, OwnedFd};
    use std::os::unix::fs::symlink;
    use tempfile::TempDir;

    /// A sysfs that says what the one block device of the test is.
    struct Tree(TempDir);

    /// A block device of this machine, whatever it is, and its number.
    fn block_device() -> Option<(OwnedFd, PathBuf, Number)> {
        nth_block_device(0)
    }

    fn another_block_device() -> Option<(OwnedFd, PathBuf, Number)> {
        nth_block_device(1)
    }

    fn nth_block_device(index: usize) -> Option<(OwnedFd, PathBuf, Number)> {
        let names = ["loop0", "vda", "sda", "nvme0n1", "zram0", "loop1", "vda1", "sda1"];
        let paths = names.map(|name| Path::new("/dev").join(name));
        let mut found = paths.into_iter().filter_map(|path| {
            let device = open(&path, OFlags::PATH, Mode::empty()).ok()?;
            let number = Node::of(device.as_fd()).ok()??.number;
            Some((device, path, number))
        });
        let found = found.nth(index);
        if found.is_none() {
            println!("skipped: there are not {} block devices", index + 1);
        }
        found
    }

    impl Tree {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn block(number: Number, attributes: &[(&str, &str)], subsystem: Option<&str>) -> Self {
            let tree = Self::new();
            tree.add("x", number, attributes, subsystem);
            tree
        }

        fn add(&self, name: &str, number: Number, attributes: &[(&str, &str)], subsystem: Option<&str>) {
            let device = self.0.path().join("devices").join(name);
            let disk = device.join("block/disk");
            fs::create_dir_all(disk.join("slaves")).unwrap();
            for (name, value) in [("dev", number.to_string().as_str())].iter().chain(attributes) {
                let path = disk.join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, format!("{value}\n")).unwrap();
            }
            if let Some(subsystem) = subsystem {
                let unit = device.join("unit");
                fs::create_dir_all(&unit).unwrap();
                symlink(format!("../../../bus/{subsystem}"), unit.join("subsystem")).unwrap();
                symlink("../../unit", disk.join("device")).unwrap();
            }
            self.number(&format!("block/{number}"), &format!("../../devices/{name}/block/disk"));
        }

        fn number(&self, place: &str, device: &str) {
            let link = self.0.path().join("dev").join(place);
            fs::create_dir_all(link.parent().unwrap()).unwrap();
            symlink(device, link).unwrap();
        }

        fn owner(&self, descriptor: impl AsFd, keep: &[&Path], passes: bool) -> Owner {
            let keep = keep.iter().map(|path| path.to_path_buf()).collect();
            let devices = Devices::with_sysfs(self.0.path(), keep, passes);
            let command = ReserveIn::new(ReserveInAction::ReadKeys, 8).encode();
            devices.owner(descriptor.as_fd(), command.command())
        }
    }

    fn refused() -> Owner {
        Owner::Nobody(Completion::check(SenseCode::INVALID_OPCODE))
    }

    #[test]
    fn what_has_reservations_of_its_own_is_passed_or_refused_or_kept_by_name() {
        let Some((device, path, number)) = block_device() else { return };
        let mpath = [("dm/uuid", "mpath-3600140500000001"), ("dm/name", "mpatha")];
        for tree in [
            Tree::block(number, &[], Some("scsi")),
            Tree::block(number, &[], Some("nvme")),
            Tree::block(number, &[], Some("nvme-subsystem")),
            Tree::block(number, &mpath, None),
        ] {
            assert_eq!(tree.owner(&device, &[], true), Owner::Helper);
            assert_eq!(tree.owner(&device, &[], false), refused());
            for passes in [false, true] {
                assert_eq!(tree.owner(&device, &[&path], passes), Owner::Store);
            }
            assert_eq!(tree.owner(&device, &[Path::new("/dev/null"), Path::new("/nonexistent")], true), Owner::Helper);
        }
    }

    #[test]
    fn what_has_none_is_kept() {
        let Some((device, _, number)) = block_device() else { return };
        let volume = [("dm/uuid", "LVM-x"), ("dm/name", "vg-lv")];
        for tree in [
            Tree::block(number, &[], None),
            Tree::block(number, &[], Some("virtio")),
            Tree::block(number, &volume, None),
            Tree::block(number, &[("partition", "1")], None),
        ] {
            for passes in [false, true] {
                assert_eq!(tree.owner(&device, &[], passes), Owner::Store);
            }
        }
        for passes in [false, true] {
            assert_eq!(Tree::new().owner(tempfile::tempfile().unwrap(), &[], passes), Owner::Store);
        }
    }

    /// A disk with several paths, and the map over them: the store knows them by one identifier, so all have one owner.
    #[test]
    fn what_is_kept_by_one_path_is_kept_by_all() {
        let (Some((_, map, number)), Some((_, path, below))) = (block_device(), another_block_device()) else { return };
        let open = |path| open(path, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty());
        let (Ok(map_device), Ok(path_device)) = (open(&map), open(&path)) else {
            println!("skipped: block devices cannot be opened");
            return;
        };
        let uuid = [("dm/uuid", "mpath-3600140500000001"), ("dm/name", "mpatha")];
        let tree = Tree::block(number, &uuid, None);
        tree.add("path", below, &[], Some("scsi"));
        let directory = tree.0.path().join("devices");
        symlink("../../../../path/block/disk", directory.join("x/block/disk/slaves/sda")).unwrap();
        let page = [&[0, 0x83, 0, 20, 1, 3, 0, 16, 0x60][..], &[7; 15]].concat();
        fs::write(directory.join("path/unit/vpd_pg83"), page).unwrap();
        for device in [&map_device, &path_device] {
            assert_eq!(tree.owner(device, &[], true), Owner::Helper);
            assert_eq!(tree.owner(device, &[&path], true), Owner::Store);
            assert_eq!(tree.owner(device, &[&map], true), Owner::Store);
        }
    }

    /// The store would know it by the identifier of the disk, whose reservations are elsewhere.
    #[test]
    fn a_loop_device_has_the_owner_of_the_disk_behind_it() {
        let (Some((device, path, number)), Some((_, disk, below))) = (block_device(), another_block_device()) else {
            return;
        };
        let backing = [("loop/backing_file", disk.to_str().unwrap())];
        for (subsystem, owner) in [("scsi", refused()), ("nvme", refused()), ("virtio", Owner::Store)] {
            let tree = Tree::block(number, &backing, None);
            tree.add("disk", below, &[], Some(subsystem));
            for passes in [false, true] {
                assert_eq!(tree.owner(&device, &[], passes), owner, "{subsystem}");
                for kept in [&path, &disk] {
                    assert_eq!(tree.owner(&device, &[kept], passes), Owner::Store, "{subsystem}");
                }
            }
        }
        // What is behind is not known, and may be anything.
        assert_eq!(Tree::block(number, &backing, None).owner(&device, &[], true), refused());
        // A file, one that has gone.
        for file in ["/etc/passwd", "/nonexistent (deleted)"] {
            let tree = Tree::block(number, &[("loop/backing_file", file)], None);
            assert_eq!(tree.owner(&device, &[], true), Owner::Store);
        }
        // Over itself, as a path may say that leads elsewhere now.
        let itself = [("loop/backing_file", path.to_str().unwrap())];
        assert_eq!(Tree::block(number, &itself, None).owner(&device, &[], true), Owner::Store);
    }

    #[test]
    fn what_is_not_known_is_nobody_s_unless_it_is_named() {
        let Some((device, path, _)) = block_device() else { return };
        for passes in [false, true] {
            assert_eq!(Tree::new().owner(&device, &[], passes), refused());
            assert_eq!(Tree::new().owner(&device, &[&path], passes), Owner::Store);
        }
    }

    /// `/dev/sdX` and `/dev/sgX` of one unit. A character device of this machine plays the latter.
    #[test]
    fn a_path_stands_for_the_other_node_of_its_unit() {
        let Some((device, path, number)) = block_device() else { return };
        let null = Path::new("/dev/null");
        let generic = rustix::fs::openat(CWD, null, OFlags::RDWR, Mode::empty()).unwrap();
        let tree = Tree::block(number, &[], Some("scsi"));
        tree.number("char/1:3", "../../devices/x/unit/scsi_generic/sg0");
        let node = tree.0.path().join("devices/x/unit/scsi_generic/sg0");
        fs::create_dir_all(&node).unwrap();
        assert_eq!(tree.owner(&generic, &[&path], true), Owner::Helper);
        symlink("../../../unit", node.join("device")).unwrap();
        assert_eq!(tree.owner(&generic, &[&path], true), Owner::Store);
        assert_eq!(tree.owner(&device, &[null], true), Owner::Store);
        assert_eq!(tree.owner(&generic, &[], true), Owner::Helper);
    }
}
