//! [`PathHealth`].

use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{FileType, fstat, major, minor};

use crate::device::{Number, Slave, Sysfs};

/// Tells which maps have no usable path. It reads first the state of the path that was usable the last time, so that it
/// opens as few files as possible.
#[derive(Debug)]
pub(super) struct PathHealth {
    sysfs: Sysfs,
    /// For each map, that path.
    usable: Mutex<BTreeMap<Number, Slave>>,
}

impl PathHealth {
    /// The number of maps whose usable path is remembered.
    const MAX_REMEMBERED: usize = 1024;

    pub(super) const fn new(sysfs: Sysfs) -> Self {
        Self { sysfs, usable: Mutex::new(BTreeMap::new()) }
    }

    /// Whether `descriptor` is a device over others of which none is usable, or a map without paths.
    ///
    /// # Errors
    ///
    /// Those of fstat(2) and of reading sysfs.
    pub(super) fn is_without_path(&self, descriptor: BorrowedFd<'_>) -> io::Result<bool> {
        let stat = fstat(descriptor)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::BlockDevice {
            return Ok(false);
        }
        self.none_is_usable(Number { major: major(stat.st_rdev), minor: minor(stat.st_rdev) })
    }

    fn none_is_usable(&self, number: Number) -> io::Result<bool> {
        let usable = self.usable().get(&number).cloned();
        if usable.is_some_and(|slave| matches!(slave.is_usable(), Ok(true))) {
            return Ok(false);
        }
        let Some(slaves) = self.sysfs.slaves(number)? else { return Ok(false) };
        let mut has_slaves = false;
        for slave in slaves {
            has_slaves = true;
            let slave = slave?;
            if slave.is_usable()? {
                let mut usable = self.usable();
                if usable.len() < Self::MAX_REMEMBERED || usable.contains_key(&number) {
                    usable.insert(number, slave);
                }
                return Ok(false);
            }
        }
        // A disk has no slaves, and needs none.
        Ok(has_slaves || self.sysfs.is_device_mapper(number))
    }

    fn usable(&self) -> MutexGuard<'_, BTreeMap<Number, Slave>> {
        self.usable.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::map::Map;
    use super::super::map::tests::tree;
    use super::*;
    use crate::device::tests::Tree;
    use proptest::prelude::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    /// The states that Linux knows (`enum scsi_device_state`), and what a file may hold besides.
    const STATES: [&str; 12] = [
        "running",
        "created",
        "cancel",
        "deleted",
        "quiesce",
        "offline",
        "transport-offline",
        "blocked",
        "created-blocked",
        "live",
        "connecting",
        "",
    ];

    fn map(tree: &Tree) -> Map {
        Map::at(&tree.sysfs(), tree.explain(252, 3)).unwrap().unwrap()
    }

    fn without_path(tree: &Tree) -> bool {
        PathHealth::new(tree.sysfs()).none_is_usable(Number { major: 252, minor: 3 }).unwrap()
    }

    #[test]
    fn one_running_path_is_enough_and_a_map_without_paths_has_none() {
        for state in STATES {
            let usable = matches!(state, "running" | "live");
            assert_eq!(without_path(&tree("252:3", &[state])), !usable, "{state:?}");
            assert!(!without_path(&tree("252:3", &[state, "running"])), "{state:?}");
        }
        assert!(without_path(&tree("252:3", &[])));
    }

    #[test]
    fn a_path_without_state_is_usable_and_one_that_is_gone_is_not() {
        let tree = Tree::new();
        tree.block("devices/block/vda", "254:0", &[]);
        tree.device_mapper("devices/virtual/block/dm-3", "252:3", ["mpatha", "mpath-3600"], &["devices/block/vda"]);
        assert!(!without_path(&tree));
        tree.remove("devices/block/vda");
        assert!(without_path(&tree));
        // Nothing beneath it is known, or needed.
        assert!(!PathHealth::new(tree.sysfs()).none_is_usable(Number { major: 8, minor: 0 }).unwrap());
        tree.block("devices/block/sda", "8:0", &[]);
        assert!(!PathHealth::new(tree.sysfs()).none_is_usable(Number { major: 8, minor: 0 }).unwrap());
    }

    #[test]
    fn a_path_that_was_usable_is_checked_again() {
        let tree = tree("252:3", &["running", "running"]);
        let [first, second] = ["devices/host0/block/sd0", "devices/host1/block/sd1"];
        let health = PathHealth::new(tree.sysfs());
        let without_path = || health.none_is_usable(Number { major: 252, minor: 3 }).unwrap();
        for states in [["offline", "running"], ["running", "offline"]] {
            for (path, state) in [first, second].into_iter().zip(states) {
                tree.state(path, state);
            }
            assert!(!without_path(), "{states:?}");
        }
        tree.state(first, "offline");
        assert!(without_path());
        tree.state(first, "running");
        assert!(!without_path());
        // It works, and the map does not have it any more.
        std::fs::remove_file(tree.sysfs().block_directory(Number { major: 252, minor: 3 }).join("slaves/sd0")).unwrap();
        assert!(without_path());
        tree.state(second, "running");
        assert!(!without_path());
    }

    #[test]
    fn maps_that_are_not_remembered_are_checked_as_well() {
        let tree = tree("252:3", &["running"]);
        let health = PathHealth::new(tree.sysfs());
        *health.usable() = (0..PathHealth::MAX_REMEMBERED)
            .map(|minor| (Number { major: 8, minor: minor as u32 }, Slave::default()))
            .collect();
        assert!(!health.none_is_usable(Number { major: 252, minor: 3 }).unwrap());
        assert_eq!(health.usable().len(), PathHealth::MAX_REMEMBERED);
        tree.state("devices/host0/block/sd0", "offline");
        assert!(health.none_is_usable(Number { major: 252, minor: 3 }).unwrap());
    }

    #[test]
    fn the_number_of_a_character_device_is_not_a_block_devices() {
        // /dev/null is 1:3: with that number, a block device would be a RAM disk.
        let tree = tree("1:3", &["offline"]);
        let null = File::open("/dev/null").unwrap();
        let health = PathHealth::new(tree.sysfs());
        assert!(!health.is_without_path(null.as_fd()).unwrap());
        assert!(health.none_is_usable(Number { major: 1, minor: 3 }).unwrap());
        assert!(Map::of(&tree.sysfs(), null.as_fd()).unwrap().is_err());
    }

    proptest! {
        #[test]
        fn map_and_path_health_agree(states in prop::collection::vec(prop::sample::select(&STATES[..]), 0..5)) {
            let tree = tree("252:3", &states);
            prop_assert_eq!(map(&tree).has_usable_path(), !without_path(&tree));
            prop_assert_eq!(map(&tree).paths.len(), states.len());
        }
    }
}
