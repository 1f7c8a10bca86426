//! Whose the reservations of a device are: the store's, a helper's, or nobody's here.
//!
//! It is decided by what the device is and by what the administrator said, never by trying: a disk that fails for a moment
//! would be kept here from then on, and be two disks to those who reserve it.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use pr_managers::device::{Device, Kind, Number, Sysfs};
use pr_managers::policy::Refusals;
use rustix::fs::{FileType, fstat, major, minor};
use scsi_pr::{Command, Completion};

const REMEDY: &str = "--pass=SOCKET sends what has its own reservations to a helper, --keep=PATH keeps them in this store, to \
                      which everybody must come then";

/// Decides for each command anew: device numbers are reused, and paths lead elsewhere.
#[derive(Debug)]
pub(crate) struct Devices {
    keep: Vec<PathBuf>,
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
        Self { keep, passes, sysfs: "/sys".into(), refusals: Refusals::new(REMEDY) }
    }

    /// Who answers `command`, which came with this descriptor.
    pub(crate) fn owner(&self, descriptor: BorrowedFd<'_>, command: Command<'_>) -> Owner {
        match self.look_up(descriptor) {
            Ok(Found::Store) => Owner::Store,
            Ok(Found::ItsOwn(_)) if self.passes => Owner::Helper,
            Ok(Found::ItsOwn(device)) => self.refuse(command, &device, "others may use the reservations that it has"),
            Ok(Found::Unexplained(device)) => self.refuse(command, &device, "it may have reservations of its own"),
            Err(error) => Owner::Nobody(self.refusals.put_off(command, &error)),
        }
    }

    fn refuse(&self, command: Command<'_>, device: &Device, why: &str) -> Owner {
        Owner::Nobody(self.refusals.refuse(command, device.number(), || device, why))
    }

    fn look_up(&self, descriptor: BorrowedFd<'_>) -> io::Result<Found> {
        let Some(node) = Node::of(descriptor)? else { return Ok(Found::Store) };
        if self.is_kept(node) {
            return Ok(Found::Store);
        }
        let device = Sysfs::at(&self.sysfs).device(descriptor)?;
        Ok(match device.kind() {
            Kind::ScsiBlock | Kind::ScsiGeneric | Kind::Multipath { .. } | Kind::NvmeNamespace => Found::ItsOwn(device),
            Kind::Unexplained { .. } => Found::Unexplained(device),
            // What is no disk at all the store refuses by itself.
            _ => Found::Store,
        })
    }

    /// Whether one of the paths to keep leads to the unit of this node.
    fn is_kept(&self, node: Node) -> bool {
        self.keep.iter().any(|path| {
            // A path that leads nowhere now keeps nothing.
            let Ok(Some(kept)) = Node::at(path) else { return false };
            kept == node || self.unit(kept).is_some_and(|unit| Some(unit) == self.unit(node))
        })
    }

    /// The SCSI device that a node is of: `sda` and `sg0` may have the same.
    fn unit(&self, node: Node) -> Option<PathBuf> {
        fs::canonicalize(self.sysfs.join("dev").join(node.to_string()).join("device")).ok()
    }
}

/// What a descriptor is of.
enum Found {
    /// Something without reservations of its own, or that is to be kept.
    Store,
    /// A device that has its own.
    ItsOwn(Device),
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
        let paths = ["loop0", "vda", "sda", "nvme0n1", "zram0"].map(|name| Path::new("/dev").join(name));
        let found = paths.into_iter().find_map(|path| {
            let device = open(&path, OFlags::PATH, Mode::empty()).ok()?;
            let number = Node::of(device.as_fd()).ok()??.number;
            Some((device, path, number))
        });
        if found.is_none() {
            println!("skipped: there is no block device");
        }
        found
    }

    impl Tree {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn block(number: Number, attributes: &[(&str, &str)], subsystem: Option<&str>) -> Self {
            let tree = Self::new();
            let disk = tree.0.path().join("devices/x/block/disk");
            fs::create_dir_all(disk.join("slaves")).unwrap();
            for (name, value) in [("dev", number.to_string().as_str())].iter().chain(attributes) {
                let path = disk.join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, format!("{value}\n")).unwrap();
            }
            if let Some(subsystem) = subsystem {
                let unit = tree.0.path().join("devices/x/unit");
                fs::create_dir_all(&unit).unwrap();
                symlink(format!("../../../bus/{subsystem}"), unit.join("subsystem")).unwrap();
                symlink("../../unit", disk.join("device")).unwrap();
            }
            tree.number(&format!("block/{number}"), "../../devices/x/block/disk");
            tree
        }

        fn number(&self, place: &str, device: &str) {
            let link = self.0.path().join("dev").join(place);
            fs::create_dir_all(link.parent().unwrap()).unwrap();
            symlink(device, link).unwrap();
        }

        fn owner(&self, descriptor: impl AsFd, keep: &[&Path], passes: bool) -> Owner {
            let keep = keep.iter().map(|path| path.to_path_buf()).collect();
            let devices = Devices { sysfs: self.0.path().to_owned(), ..Devices::new(keep, passes) };
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
