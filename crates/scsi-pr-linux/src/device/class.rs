//! [`Device`] and [`DeviceClass`]: how a device relates to the logical unit that SG_IO on it reaches.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{fstat, major, minor};

use super::sysfs::{Directory, MAX_DEPTH, descend, file_name};
use super::{FileType, Node, Number, Sysfs, SysfsError};

/// The device that a descriptor refers to.
///
/// The kernel gives the number of a device to another one after the last close. So do not keep this for longer than the
/// descriptor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    number: Option<Number>,
    name: Option<String>,
    class: DeviceClass,
    is_permanent: bool,
}

/// The classes of [`Device`]: how it relates to the logical unit that SG_IO on it would reach.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceClass {
    /// A SCSI logical unit as a block device: `/dev/sda`, `/dev/sr0`.
    ScsiBlock,
    /// A SCSI logical unit as a character device: `/dev/sg0`.
    ScsiGeneric,
    /// A partition that the kernel found.
    Partition {
        /// The whole disk.
        disk: String,
    },
    /// A dm-multipath map: one unit, by several paths.
    Multipath {
        /// The name of the map.
        map: String,
        /// The DM UUID, `mpath-` and the unit's identifier.
        uuid: String,
    },
    /// Any other device-mapper device: a logical volume, a crypt device, a partition that kpartx made of a map …
    DeviceMapper {
        /// Its name.
        map: String,
        /// Its DM UUID; often empty.
        uuid: String,
        /// The whole disks and multipath maps beneath it.
        over: Vec<String>,
    },
    /// Another device over devices: md, bcache …
    Stacked {
        /// The whole disks and multipath maps beneath it.
        over: Vec<String>,
    },
    /// An NVMe namespace.
    NvmeNamespace,
    /// Another block device without a block device beneath it: virtio-blk, loop, zram …
    OtherBlock,
    /// A block device that sysfs does not explain.
    Unexplained {
        /// The reason.
        reason: String,
    },
    /// Another character device.
    OtherCharacter,
    /// A descriptor that is not of a device: a file, a directory, a pipe, a socket …
    NotADevice(FileType),
}

impl Device {
    /// The device behind `descriptor`, by `/sys`.
    ///
    /// # Errors
    ///
    /// Those of fstat(2), and `EMFILE`, `ENFILE` and `ENOMEM` of open(2), after which it may work later. After any other
    /// error of sysfs the class is [`DeviceClass::Unexplained`].
    pub fn of(descriptor: BorrowedFd<'_>) -> io::Result<Self> {
        Sysfs::default().device(descriptor)
    }

    /// The device number; `None` for [`DeviceClass::NotADevice`].
    pub const fn number(&self) -> Option<Number> {
        self.number
    }

    /// The kernel's name for it: `sda`, `dm-0`; `None` when there is none or sysfs does not tell it.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Its class.
    pub const fn class(&self) -> &DeviceClass {
        &self.class
    }

    /// Whether the class holds until the device disappears, also when a table is swapped or an array is assembled. This says
    /// nothing about the devices beneath a device-mapper device: only its UUID is permanent.
    pub(crate) const fn is_permanent(&self) -> bool {
        self.is_permanent
    }
}

impl fmt::Display for Device {
    /// For a log line: "8:1 (sda1), a partition of sda".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.number, &self.name) {
            (Some(number), Some(name)) => write!(f, "{number} ({name}), {}", self.class),
            (Some(number), None) => write!(f, "{number}, {}", self.class),
            (None, _) => self.class.fmt(f),
        }
    }
}

impl fmt::Display for DeviceClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ScsiBlock => f.write_str("a SCSI device"),
            Self::ScsiGeneric => f.write_str("a SCSI generic device"),
            Self::Partition { disk } => write!(f, "a partition of {disk}"),
            Self::Multipath { map, .. } => write!(f, "the multipath map {map}"),
            Self::DeviceMapper { map, over, .. } => write!(f, "the device-mapper device {map} over {}", List(over)),
            Self::Stacked { over } => write!(f, "a device over {}", List(over)),
            Self::NvmeNamespace => f.write_str("an NVMe namespace"),
            Self::OtherBlock => f.write_str("a block device that is not SCSI"),
            Self::Unexplained { reason } => write!(f, "a block device that sysfs does not explain ({reason})"),
            Self::OtherCharacter => f.write_str("a character device"),
            Self::NotADevice(file_type) => f.write_str(match file_type {
                FileType::RegularFile => "a regular file",
                FileType::Directory => "a directory",
                FileType::Fifo => "a pipe",
                FileType::Socket => "a socket",
                _ => "no device",
            }),
        }
    }
}

/// Names with commas between them.
struct List<'a>(&'a [String]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [] => f.write_str("nothing"),
            names => f.write_str(&names.join(", ")),
        }
    }
}

impl Sysfs {
    /// The device behind `descriptor`.
    ///
    /// # Errors
    ///
    /// As [`Device::of`].
    pub fn device(&self, descriptor: BorrowedFd<'_>) -> io::Result<Device> {
        let stat = fstat(descriptor)?;
        let number = Number { major: major(stat.st_rdev), minor: minor(stat.st_rdev) };
        Ok(match FileType::from_raw_mode(stat.st_mode) {
            FileType::BlockDevice => self.block(number)?,
            FileType::CharacterDevice => self.character(number),
            file_type => {
                Device { number: None, name: None, class: DeviceClass::NotADevice(file_type), is_permanent: true }
            }
        })
    }

    /// Whether a block device is an NVMe namespace, or has one at the bottom of its stack. `None` where sysfs does not tell.
    ///
    /// # Errors
    ///
    /// Those of open(2) in [`Device::of`].
    pub(crate) fn reaches_nvme(&self, number: Number) -> io::Result<Option<bool>> {
        let directory = Directory::at(&self.block_directory(number));
        match directory.and_then(|directory| directory.reaches_nvme(MAX_DEPTH)) {
            Ok(nvme) => Ok(Some(nvme)),
            Err(SysfsError::TooManyOpenFiles(error)) => Err(error),
            Err(_) => Ok(None),
        }
    }

    /// The block device with this number.
    ///
    /// # Errors
    ///
    /// Those of open(2) in [`Device::of`].
    pub fn block(&self, number: Number) -> io::Result<Device> {
        match self.explain(number) {
            Ok(device) => Ok(device),
            Err(SysfsError::TooManyOpenFiles(error)) => Err(error),
            Err(error) => Ok(Device {
                number: Some(number),
                name: None,
                class: DeviceClass::Unexplained { reason: error.to_string() },
                is_permanent: false,
            }),
        }
    }

    fn explain(&self, number: Number) -> Result<Device, SysfsError> {
        let directory = Directory::at(&self.block_directory(number))?;
        directory.read_consistent(Some(number), || {
            let class = directory.block_class()?;
            let is_permanent = directory.is_permanent(&class)?;
            Ok(Device { number: Some(number), name: Some(directory.name()), class, is_permanent })
        })
    }

    /// The block device behind a loop device, by the path that sysfs has for it. `None` for another device, and where no
    /// block device is at that path.
    ///
    /// # Errors
    ///
    /// Those of open(2) and read(2), but for `ENOENT`.
    pub fn loop_backing_device(&self, number: Number) -> io::Result<Option<Node>> {
        let mut path = match fs::read(self.block_directory(number).join("loop/backing_file")) {
            Ok(path) => path,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        path.pop_if(|byte| *byte == b'\n');
        let node = Node::at(Path::new(OsStr::from_bytes(&path))).ok();
        Ok(node.filter(|node| node.file_type == FileType::BlockDevice))
    }

    /// Whether two nodes are of one device, or of one SCSI device as `sda` and `sg0` may be.
    pub fn is_same_device(&self, one: &Node, other: &Node) -> bool {
        let parent = |node: &Node| {
            let directory = match node.file_type {
                FileType::BlockDevice => self.block_directory(node.number),
                FileType::CharacterDevice => self.character_directory(node.number),
                _ => return None,
            };
            fs::canonicalize(directory.join("device")).ok()
        };
        one.is_same(other) || parent(one).is_some_and(|device| Some(device) == parent(other))
    }

    pub(super) fn character(&self, number: Number) -> Device {
        // Only the name depends on it, so one look is enough: `…/scsi_generic/sg0`.
        let link = fs::read_link(self.character_directory(number)).ok();
        let class = link.as_deref().and_then(Path::parent).map(file_name);
        let class = match class.as_deref() {
            Some("scsi_generic") => DeviceClass::ScsiGeneric,
            _ => DeviceClass::OtherCharacter,
        };
        Device { number: Some(number), name: link.as_deref().map(file_name), class, is_permanent: false }
    }
}

/// The subsystem of a namespace with one path, and of one with several.
const NVME: &str = "nvme";
const NVME_MULTIPATH: &str = "nvme-subsystem";

impl Directory {
    fn block_class(&self) -> Result<DeviceClass, SysfsError> {
        if let Some(disk) = self.partition()?.map(|(disk, _)| disk) {
            return Ok(DeviceClass::Partition { disk: disk.name() });
        }
        if let Some(uuid) = self.attribute("dm/uuid")? {
            let map = self.required("dm/name")?;
            return Ok(match is_multipath(&uuid) {
                true => DeviceClass::Multipath { map, uuid },
                false => DeviceClass::DeviceMapper { map, uuid, over: self.over()? },
            });
        }
        if !self.slaves()?.is_empty() {
            return Ok(DeviceClass::Stacked { over: self.over()? });
        }
        Ok(match self.subsystem()?.as_deref() {
            Some("scsi") => DeviceClass::ScsiBlock,
            Some(NVME | NVME_MULTIPATH) => DeviceClass::NvmeNamespace,
            _ => DeviceClass::OtherBlock,
        })
    }

    /// See [`Device::is_permanent`].
    fn is_permanent(&self, class: &DeviceClass) -> Result<bool, SysfsError> {
        Ok(match class {
            DeviceClass::ScsiBlock
            | DeviceClass::NvmeNamespace
            | DeviceClass::Partition { .. }
            | DeviceClass::Multipath { .. } => true,
            // A device without a UUID may still be given one.
            DeviceClass::DeviceMapper { uuid, .. } => !uuid.is_empty(),
            // A driver makes one without a parent device, and may put it over others: md and bcache do.
            DeviceClass::OtherBlock => self.subsystem()?.is_some(),
            _ => false,
        })
    }

    fn reaches_nvme(&self, depth: usize) -> Result<bool, SysfsError> {
        let depth = descend(depth)?;
        if let Some(disk) = self.partition()?.map(|(disk, _)| disk) {
            return disk.reaches_nvme(depth);
        }
        let slaves = self.slaves()?;
        if slaves.is_empty() {
            return Ok(matches!(self.subsystem()?.as_deref(), Some(NVME | NVME_MULTIPATH)));
        }
        slaves.iter().try_fold(false, |found, slave| Ok(found || slave.reaches_nvme(depth)?))
    }

    /// The whole disks and multipath maps at the bottom of the stack.
    fn over(&self) -> Result<Vec<String>, SysfsError> {
        let mut found = Vec::new();
        for slave in self.slaves()? {
            slave.walk(&mut found, MAX_DEPTH)?;
        }
        Ok(found)
    }

    /// Adds to `found`, which is sorted and has each name once.
    fn walk(&self, found: &mut Vec<String>, depth: usize) -> Result<(), SysfsError> {
        let depth = descend(depth)?;
        if let Some(disk) = self.partition()?.map(|(disk, _)| disk) {
            return disk.walk(found, depth);
        }
        if self.attribute("dm/uuid")?.is_some_and(|uuid| is_multipath(&uuid)) {
            add(found, self.required("dm/name")?);
            return Ok(());
        }
        let slaves = self.slaves()?;
        if slaves.is_empty() {
            add(found, self.name());
        }
        slaves.iter().try_for_each(|slave| slave.walk(found, depth))
    }
}

fn add(names: &mut Vec<String>, name: String) {
    if let Err(place) = names.binary_search(&name) {
        names.insert(place, name);
    }
}

/// Whether the DM UUID is that of a multipath map. The prefix is reserved for multipath-tools; kpartx writes
/// `part1-mpath-`.
pub(super) fn is_multipath(uuid: &str) -> bool {
    uuid.starts_with("mpath-")
}
