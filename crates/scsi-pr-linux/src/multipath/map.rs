//! A multipath map as sysfs has it: its name, its paths, and which of them are usable.
//!
//! Only files of sysfs are read; none of them waits for a device. They have the state that the kernel's SCSI layer gives
//! each path. Which paths device mapper has failed, only its own ioctl tells, which needs root.

use std::fmt;
use std::io::{self, ErrorKind};
use std::os::fd::BorrowedFd;

use crate::device::{Device, DeviceClass, Number, Sysfs};

/// A multipath map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Map {
    /// The device number.
    pub(super) number: Number,
    /// The kernel's name: `dm-0`.
    pub(super) kernel_name: String,
    /// The administrator's name: `mpatha`.
    pub(super) alias: String,
    /// The unit's identifier, by which multipath.conf may name it.
    pub(super) wwid: String,
    /// The paths, in no particular order.
    pub(super) paths: Vec<MapPath>,
}

/// One path of a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MapPath {
    /// The kernel's name: `sda`.
    pub(super) name: String,
    /// The device number.
    pub(super) number: Number,
    /// Whether a command may get through, as far as the kernel's SCSI layer knows.
    pub(super) usable: bool,
}

impl Map {
    /// The map behind `descriptor`; or else what is behind it.
    ///
    /// # Errors
    ///
    /// Those of fstat(2) and of reading sysfs.
    pub(super) fn of(sysfs: &Sysfs, descriptor: BorrowedFd<'_>) -> io::Result<Result<Self, Device>> {
        Self::at(sysfs, sysfs.device(descriptor)?)
    }

    /// As [`of`](Self::of).
    pub(super) fn at(sysfs: &Sysfs, device: Device) -> io::Result<Result<Self, Device>> {
        let (Some(number), Some(kernel_name), DeviceClass::Multipath { map, uuid }) =
            (device.number(), device.name(), device.class())
        else {
            return Ok(Err(device));
        };
        let mut paths = Vec::new();
        for slave in sysfs.slaves(number)?.ok_or(ErrorKind::NotFound)? {
            let slave = slave?;
            if let Some(number) = slave.number()? {
                paths.push(MapPath { name: slave.name(), number, usable: slave.is_usable()? });
            }
        }
        Ok(Ok(Self {
            number,
            kernel_name: kernel_name.to_owned(),
            alias: map.clone(),
            wwid: uuid.strip_prefix("mpath-").unwrap_or(uuid).to_owned(),
            paths,
        }))
    }

    /// Whether `path` is beneath the map now.
    pub(super) fn has(&self, sysfs: &Sysfs, path: &MapPath) -> bool {
        sysfs.has_slave(self.number, &path.name, path.number)
    }

    /// The DM UUID.
    pub(super) fn uuid(&self) -> String {
        format!("mpath-{}", self.wwid)
    }

    /// Whether a command may get through by one of the paths.
    pub(super) fn has_usable_path(&self) -> bool {
        self.paths.iter().any(|path| path.usable)
    }
}

impl fmt::Display for Map {
    /// For a log line: "multipath map mpatha (dm-0, 3600…)".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "multipath map {} ({}, {})", self.alias.escape_debug(), self.kernel_name, self.wwid.escape_debug())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::device::tests::Tree;
    use std::fs::File;
    use std::os::fd::AsFd;

    /// A tree with the map `mpatha` of this number, over paths in these states.
    pub(in super::super) fn tree(number: &str, states: &[&str]) -> Tree {
        let tree = Tree::new();
        let paths: Vec<_> = (0..states.len()).map(|index| format!("devices/host{index}/block/sd{index}")).collect();
        for (index, path) in paths.iter().enumerate() {
            tree.block(path, &format!("8:{}", 16 * index), &[]);
            tree.state(path, states[index]);
        }
        let paths: Vec<_> = paths.iter().map(String::as_str).collect();
        tree.device_mapper("devices/virtual/block/dm-3", number, ["mpatha", "mpath-3600140500000001"], &paths);
        tree
    }

    fn map(tree: &Tree) -> Map {
        Map::at(&tree.sysfs(), tree.explain(252, 3)).unwrap().unwrap()
    }

    #[test]
    fn a_map_has_its_names_and_paths() {
        let mut map = map(&tree("252:3", &["running", "offline"]));
        assert_eq!(map.to_string(), "multipath map mpatha (dm-3, 3600140500000001)");
        assert_eq!(map.number, Number { major: 252, minor: 3 });
        map.paths.sort_by(|a, b| a.name.cmp(&b.name));
        let path =
            |name: &str, minor, usable| MapPath { name: name.to_owned(), number: Number { major: 8, minor }, usable };
        assert_eq!(map.paths, [path("sd0", 0, true), path("sd1", 16, false)]);
    }

    #[test]
    fn a_path_that_is_being_removed_is_left_out() {
        let tree = tree("252:3", &["running", "running"]);
        tree.remove("devices/host0/block/sd0");
        let map = map(&tree);
        assert_eq!(map.paths.len(), 1);
        assert_eq!(map.paths[0].name, "sd1");
    }

    #[test]
    fn a_device_that_is_no_map_is_returned() {
        let tree = Tree::new();
        tree.block("devices/block/sda", "8:0", &[]);
        let device = tree.explain(8, 0);
        assert_eq!(Map::at(&tree.sysfs(), device.clone()).unwrap(), Err(device));
        let null = File::open("/dev/null").unwrap();
        assert!(Map::of(&Sysfs::default(), null.as_fd()).unwrap().is_err());
    }
}
