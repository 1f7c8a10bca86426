//! What sysfs tells of a multipath map: its name, its paths, and which of them may work.
//!
//! Files of sysfs are read, and nothing else; none of them waits for a device. What is told is what the kernel's SCSI
//! layer thinks of each path. Which of them device mapper has given up, only its own ioctl tells, for which one has to be
//! root.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{FileType, fstat, major, minor};
use rustix::io::Errno;

use crate::device::{Device, Kind, Number, Sysfs};

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
        let (Some(number), Some(kernel_name), Kind::Multipath { map, uuid }) =
            (device.number(), device.name(), device.kind())
        else {
            return Ok(Err(device));
        };
        let slaves = sysfs.block_directory(number).join("slaves");
        let mut paths = Vec::new();
        for slave in fs::read_dir(slaves)? {
            let slave = slave?;
            paths.push(MapPath {
                // The kernel writes '!' where a device name has '/'.
                name: slave.file_name().to_string_lossy().replace('!', "/"),
                number: number_of(&slave.path())?,
                usable: is_usable(&slave.path())?,
            });
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
        let slave = sysfs.block_directory(self.number).join("slaves").join(path.name.replace('/', "!"));
        number_of(&slave).is_ok_and(|number| number == path.number)
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

/// Tells which maps have no path. It looks first at the path that worked when it last looked, so that as few files are
/// read as tell.
#[derive(Debug)]
pub(super) struct Watch {
    sysfs: Sysfs,
    /// Of each map, the link to that path in its own directory, which is there for as long as the map has the path.
    worked: Mutex<BTreeMap<Number, PathBuf>>,
}

impl Watch {
    /// Of so many maps it is remembered which path worked. The rest is looked at each time.
    const MOST: usize = 1024;

    pub(super) const fn new(sysfs: Sysfs) -> Self {
        Self { sysfs, worked: Mutex::new(BTreeMap::new()) }
    }

    /// Whether `descriptor` is a device over others of which none may work, or a map that has none.
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
        let worked = self.worked().get(&number).cloned();
        if worked.is_some_and(|slave| matches!(is_usable(&slave), Ok(true))) {
            return Ok(false);
        }
        let directory = self.sysfs.block_directory(number);
        let slaves = match fs::read_dir(directory.join("slaves")) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            slaves => slaves?,
        };
        let mut has_slaves = false;
        for slave in slaves {
            has_slaves = true;
            let slave = slave?.path();
            if is_usable(&slave)? {
                let mut worked = self.worked();
                if worked.len() < Self::MOST || worked.contains_key(&number) {
                    worked.insert(number, slave);
                }
                return Ok(false);
            }
        }
        // A disk has nothing beneath it, and needs nothing.
        Ok(has_slaves || directory.join("dm").exists())
    }

    fn worked(&self) -> MutexGuard<'_, BTreeMap<Number, PathBuf>> {
        self.worked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the device of this directory may carry a command. A SCSI device must be `running` (Linux
/// `Documentation/ABI/testing/sysfs-block`, `drivers/scsi/scsi_sysfs.c`): in its other states a command fails at once or
/// waits for a transport that is away. What has no state is taken to work.
fn is_usable(slave: &Path) -> io::Result<bool> {
    match read_attribute(&slave.join("device/state")) {
        // The second is an NVMe controller's.
        Ok(state) => Ok(matches!(state.trim_ascii_end(), b"running" | b"live")),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(slave.exists()),
        Err(error) if is_gone(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// An attribute of one word, which sysfs gives whole to whoever asks for more.
fn read_attribute(path: &Path) -> io::Result<Vec<u8>> {
    let mut room = [0; 64];
    let length = File::open(path)?.read(&mut room)?;
    Ok(room[..length].to_vec())
}

/// `ENODEV` or `ENXIO`: the device is being removed while its file is read.
fn is_gone(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NODEV | Errno::NXIO))
}

fn number_of(slave: &Path) -> io::Result<Number> {
    let path = slave.join("dev");
    let text = fs::read_to_string(&path)?;
    let number = text.trim_end().parse();
    number.map_err(|()| io::Error::new(ErrorKind::InvalidData, format!("{}: {text:?}", path.display())))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::device::tests::Tree;
    use proptest::prelude::*;
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

    fn without_path(tree: &Tree) -> bool {
        Watch::new(tree.sysfs()).none_is_usable(Number { major: 252, minor: 3 }).unwrap()
    }

    #[test]
    fn a_map_and_its_paths() {
        let mut map = map(&tree("252:3", &["running", "offline"]));
        assert_eq!(map.to_string(), "multipath map mpatha (dm-3, 3600140500000001)");
        assert_eq!(map.number, Number { major: 252, minor: 3 });
        map.paths.sort_by(|a, b| a.name.cmp(&b.name));
        let path =
            |name: &str, minor, usable| MapPath { name: name.to_owned(), number: Number { major: 8, minor }, usable };
        assert_eq!(map.paths, [path("sd0", 0, true), path("sd1", 16, false)]);
    }

    #[test]
    fn what_is_no_map_is_told() {
        let tree = Tree::new();
        tree.block("devices/block/sda", "8:0", &[]);
        let device = tree.explain(8, 0);
        assert_eq!(Map::at(&tree.sysfs(), device.clone()).unwrap(), Err(device));
        let null = File::open("/dev/null").unwrap();
        assert!(Map::of(&Sysfs::default(), null.as_fd()).unwrap().is_err());
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
    fn what_has_no_state_is_taken_to_work_and_what_is_gone_is_not() {
        let tree = Tree::new();
        tree.block("devices/block/vda", "254:0", &[]);
        tree.device_mapper("devices/virtual/block/dm-3", "252:3", ["mpatha", "mpath-3600"], &["devices/block/vda"]);
        assert!(!without_path(&tree));
        tree.remove("devices/block/vda");
        assert!(without_path(&tree));
        // Nothing beneath it is known, or needed.
        assert!(!Watch::new(tree.sysfs()).none_is_usable(Number { major: 8, minor: 0 }).unwrap());
        tree.block("devices/block/sda", "8:0", &[]);
        assert!(!Watch::new(tree.sysfs()).none_is_usable(Number { major: 8, minor: 0 }).unwrap());
    }

    #[test]
    fn a_path_that_worked_is_not_taken_to_work_for_good() {
        let tree = tree("252:3", &["running", "running"]);
        let [first, second] = ["devices/host0/block/sd0", "devices/host1/block/sd1"];
        let watch = Watch::new(tree.sysfs());
        let without_path = || watch.none_is_usable(Number { major: 252, minor: 3 }).unwrap();
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
    fn more_maps_than_are_remembered_are_looked_at_all_the_same() {
        let tree = tree("252:3", &["running"]);
        let watch = Watch::new(tree.sysfs());
        *watch.worked() =
            (0..Watch::MOST).map(|minor| (Number { major: 8, minor: minor as u32 }, PathBuf::new())).collect();
        assert!(!watch.none_is_usable(Number { major: 252, minor: 3 }).unwrap());
        assert_eq!(watch.worked().len(), Watch::MOST);
        tree.state("devices/host0/block/sd0", "offline");
        assert!(watch.none_is_usable(Number { major: 252, minor: 3 }).unwrap());
    }

    #[test]
    fn the_number_of_a_character_device_is_not_a_block_devices() {
        // /dev/null is 1:3: with that number, a block device would be a RAM disk.
        let tree = tree("1:3", &["offline"]);
        let null = File::open("/dev/null").unwrap();
        let watch = Watch::new(tree.sysfs());
        assert!(!watch.is_without_path(null.as_fd()).unwrap());
        assert!(watch.none_is_usable(Number { major: 1, minor: 3 }).unwrap());
        assert!(Map::of(&tree.sysfs(), null.as_fd()).unwrap().is_err());
    }

    proptest! {
        #[test]
        fn both_ways_of_asking_agree(states in prop::collection::vec(prop::sample::select(&STATES[..]), 0..5)) {
            let tree = tree("252:3", &states);
            prop_assert_eq!(map(&tree).has_usable_path(), !without_path(&tree));
            prop_assert_eq!(map(&tree).paths.len(), states.len());
        }
    }
}
