//! The owner of the commands for a device: the store, the helper, or neither.
//!
//! [`reservation_owner`] and the administrator's options decide, never an attempt. If a disk that fails for a moment were
//! moved to the store, its reservations would be in two places.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use scsi_pr::{Command, Completion};
use scsi_pr_linux::device::{Device, Node, Sysfs};
use scsi_pr_linux::policy::Refusals;
use scsi_pr_linux::routing::{ReservationOwner, reservation_owner};
use scsi_pr_store::{Naming, UnitId, Units};

const REMEDY: &str = "to send them to a helper, use --pass=SOCKET; to keep them in this store, use --keep=PATH and have every \
                      host and virtual machine use this store";

/// The name by which the units of the `--keep` paths are recognized.
const KEPT: &str = "kept";

/// The most loop devices one over another. The kernel has no limit, and the store identifies no deeper stack.
const MAX_DEPTH: usize = 32;

/// Decides anew for each command: device numbers are reused, and paths change.
#[derive(Debug)]
pub(crate) struct Devices {
    keep: Vec<PathBuf>,
    /// Gives the units of the `--keep` paths a name, by whichever path they are reached.
    kept: Option<Units>,
    passes: bool,
    sysfs: Sysfs,
    refusals: Refusals,
}

/// The owner of a command.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// The store.
    Store,
    /// The helper.
    Helper,
    /// Neither: this is the answer.
    Neither(Completion),
}

impl Devices {
    /// The reservations of the devices at the paths `keep` are in the store, whatever the devices are. `passes` tells whether
    /// there is a helper.
    pub(crate) fn new(keep: Vec<PathBuf>, passes: bool) -> Self {
        Self::with_sysfs("/sys", keep, passes)
    }

    fn with_sysfs(root: impl Into<PathBuf>, keep: Vec<PathBuf>, passes: bool) -> Self {
        let root = root.into();
        let name = |path: &PathBuf| Naming::path(KEPT, path).ok();
        let kept = (!keep.is_empty()).then(|| Units::with_sysfs(&root, keep.iter().filter_map(name)));
        Self { keep, kept, passes, sysfs: Sysfs::at(root), refusals: Refusals::new(REMEDY) }
    }

    /// The owner of `command`, which came with this descriptor.
    pub(crate) fn owner(&self, descriptor: BorrowedFd<'_>, command: Command<'_>) -> Owner {
        let refuse =
            |device: &Device, why| Owner::Neither(self.refusals.refuse(command, device.number(), || device, why));
        match self.look_up(descriptor) {
            Ok(Found::Store) => Owner::Store,
            Ok(Found::Device(_)) if self.passes => Owner::Helper,
            Ok(Found::Device(device)) => refuse(&device, "others may use the reservations that it has"),
            Ok(Found::Backing(device)) => {
                refuse(&device, "others may use the reservations that the disk behind this loop device has")
            }
            Ok(Found::Unknown(device)) => refuse(&device, "it may have reservations of its own"),
            Err(error) => Owner::Neither(self.refusals.put_off(command, &error)),
        }
    }

    fn look_up(&self, descriptor: BorrowedFd<'_>) -> io::Result<Found> {
        let node = Node::of(descriptor)?;
        if !node.is_device() || self.is_kept(&node) || self.is_kept_by_another_path(descriptor) {
            return Ok(Found::Store);
        }
        self.find(&node, self.sysfs.device(descriptor)?, MAX_DEPTH)
    }

    fn find(&self, node: &Node, device: Device, depth: usize) -> io::Result<Found> {
        Ok(match reservation_owner(device.class()) {
            ReservationOwner::Device => Found::Device(device),
            ReservationOwner::Unknown => Found::Unknown(device),
            ReservationOwner::Backing => match self.sysfs.loop_backing_device(node.number)? {
                // The store knows both by one identifier, so they must have one owner.
                Some(disk) if depth > 0 && !self.is_kept(&disk) => {
                    match self.find(&disk, self.sysfs.block(disk.number)?, depth - 1)? {
                        Found::Store => Found::Store,
                        _ => Found::Backing(device),
                    }
                }
                // Where the path of the backing file leads elsewhere now, the store refuses the loop device.
                _ => Found::Store,
            },
            // The store refuses a descriptor that is not of a disk.
            ReservationOwner::None => Found::Store,
        })
    }

    /// Whether a `--keep` path leads to this device.
    fn is_kept(&self, node: &Node) -> bool {
        self.keep.iter().any(|path| {
            // A path that leads nowhere now has no effect.
            Node::at(path).is_ok_and(|kept| kept.is_device() && self.sysfs.is_same_device(&kept, node))
        })
    }

    /// Whether this is another path to a unit to keep, or a map over it, by the identifiers of the unit.
    fn is_kept_by_another_path(&self, descriptor: BorrowedFd<'_>) -> bool {
        let Some(kept) = &self.kept else { return false };
        UnitId::named(KEPT).is_ok_and(|name| kept.identify(descriptor).is_ok_and(|unit| unit == name))
    }
}

/// Whether a device is at `path`.
pub(crate) fn is_device(path: &Path) -> bool {
    Node::at(path).is_ok_and(|node| node.is_device())
}

/// Where the reservations of a device are.
enum Found {
    /// In the store.
    Store,
    /// In the device itself.
    Device(Device),
    /// In the disk behind this loop device.
    Backing(Device),
    /// sysfs does not explain the device.
    Unknown(Device),
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, Mode, OFlags, open};
    use scsi_pr::{ReserveIn, ReserveInAction, SenseCode};
    use scsi_pr_linux::device::Number;
    use std::fs;
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
            let number = Some(Node::of(device.as_fd()).ok()?).filter(Node::is_device)?.number;
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
        Owner::Neither(Completion::check(SenseCode::INVALID_OPCODE))
    }

    #[test]
    fn device_with_reservations_is_passed_or_refused_or_kept_by_name() {
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
    fn device_without_reservations_is_kept() {
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
    fn unit_kept_by_one_path_is_kept_by_all() {
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
    fn loop_device_has_the_owner_of_the_disk_behind_it() {
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
        // The disk behind is unknown.
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
    fn unknown_device_is_refused_unless_it_is_kept() {
        let Some((device, path, _)) = block_device() else { return };
        for passes in [false, true] {
            assert_eq!(Tree::new().owner(&device, &[], passes), refused());
            assert_eq!(Tree::new().owner(&device, &[&path], passes), Owner::Store);
        }
    }

    /// `/dev/sdX` and `/dev/sgX` of one unit. A character device of this machine plays the latter.
    #[test]
    fn path_stands_for_the_other_node_of_its_unit() {
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
