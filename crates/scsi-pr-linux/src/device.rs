//! What a descriptor is: told from fstat(2) and sysfs alone. Nothing is opened but files of sysfs, and nothing is guessed.
//!
//! Of interest is how a block device relates to the logical unit that SG_IO on it would reach: whether it *is* the unit,
//! one path of several to it, or a part of it. Partitions, device-mapper devices and some others pass SG_IO on to what is
//! beneath them.

use std::fmt;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::fs::{FileType, OFlags, fcntl_getfl, fstat, major, minor};
use rustix::io::Errno;

/// A device number, `8:0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Number {
    /// Which driver.
    pub major: u32,
    /// Which of its devices.
    pub minor: u32,
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl FromStr for Number {
    /// It is none.
    type Err = ();

    /// Reads what [`Display`](fmt::Display) writes, and the kernel.
    fn from_str(text: &str) -> Result<Self, ()> {
        let (major, minor) = text.split_once(':').ok_or(())?;
        let number = |text: &str| text.parse().map_err(drop);
        Ok(Self { major: number(major)?, minor: number(minor)? })
    }
}

/// What a descriptor refers to.
///
/// A device number belongs to another device once nobody has the first one open any more; so this holds for as long as
/// the descriptor is open, and is not for keeping.
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
    /// Another device made of devices: md, bcache …
    Stacked {
        /// The whole disks and multipath maps beneath it.
        over: Vec<String>,
    },
    /// An NVMe namespace.
    NvmeNamespace,
    /// Another block device with nothing beneath it that the kernel knows of: virtio-blk, loop, zram …
    OtherBlock,
    /// A block device that sysfs does not explain.
    Unexplained {
        /// Why not.
        reason: String,
    },
    /// Another character device.
    OtherCharacter,
    /// No device at all: a file, a directory, a pipe, a socket …
    NotADevice(FileType),
}

/// Where the kernel tells about its devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sysfs {
    root: PathBuf,
}

impl Default for Sysfs {
    #[inline]
    fn default() -> Self {
        Self::at("/sys")
    }
}

/// A descriptor of a block device: all others are what they are by themselves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockDevice<'a> {
    descriptor: BorrowedFd<'a>,
    number: Number,
}

impl<'a> BlockDevice<'a> {
    /// `None` when `descriptor` is not of a block device.
    ///
    /// # Errors
    ///
    /// Those of fstat(2).
    pub(crate) fn of(descriptor: BorrowedFd<'a>) -> io::Result<Option<Self>> {
        let stat = fstat(descriptor)?;
        let number = Number { major: major(stat.st_rdev), minor: minor(stat.st_rdev) };
        let is = FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice;
        Ok(is.then_some(Self { descriptor, number }))
    }

    pub(crate) const fn number(&self) -> Number {
        self.number
    }

    /// A number that no other disk has had since the machine was started, and which a disk changes when its medium does
    /// (a loop device that is attached anew). A partition has its disk's. `None` before Linux 5.15, and where the descriptor
    /// is not for use (O_PATH).
    pub(crate) fn sequence_number(&self) -> Option<u64> {
        crate::sys::disk_sequence_number(self.descriptor).ok()
    }
}

/// How a descriptor was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// For reading only, or with `O_PATH`.
    ReadOnly,
    /// For writing too, or with the access mode 3 of Linux (ioctl alone).
    Writable,
}

impl Access {
    /// # Errors
    ///
    /// Those of fcntl(2).
    pub(crate) fn of(descriptor: BorrowedFd<'_>) -> io::Result<Self> {
        let flags = fcntl_getfl(descriptor)?;
        // With `O_PATH` the kernel clears the access mode, but the manual does not promise it.
        let read_only = flags & OFlags::RWMODE == OFlags::RDONLY || flags.contains(OFlags::PATH);
        Ok(if read_only { Self::ReadOnly } else { Self::Writable })
    }
}

/// Whether `descriptor` is a block device's.
///
/// # Errors
///
/// Those of fstat(2).
pub(crate) fn is_block_device(descriptor: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(BlockDevice::of(descriptor)?.is_some())
}

impl Device {
    /// What `descriptor` refers to, after `/sys`.
    ///
    /// # Errors
    ///
    /// Those of fstat(2), and `EMFILE`, `ENFILE` and `ENOMEM` of open(2): it may work later. What else keeps sysfs from
    /// telling is [`DeviceClass::Unexplained`].
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

    /// Whether it can become nothing else but by ceasing to be: after a table is swapped, an array put together or taken
    /// apart. Of what is beneath a device-mapper device this says nothing: only its UUID is given once and for all.
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
    /// A sysfs that is mounted at `root`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The directory of the block device with this number, behind a symbolic link.
    pub(crate) fn block_directory(&self, number: Number) -> PathBuf {
        self.root.join("dev/block").join(number.to_string())
    }

    /// What `descriptor` refers to.
    ///
    /// # Errors
    ///
    /// Those of fstat(2), and `EMFILE`, `ENFILE` and `ENOMEM` of open(2): it may work later. What else keeps sysfs from
    /// telling is [`DeviceClass::Unexplained`].
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

    /// Whether a block device is an NVMe namespace or has one at its bottom; `None` when sysfs does not tell.
    ///
    /// # Errors
    ///
    /// Those of open(2) that [`device`](Self::device) has.
    pub(crate) fn reaches_nvme(&self, number: Number) -> io::Result<Option<bool>> {
        let directory = Directory::at(self.block_directory(number));
        match directory.and_then(|directory| directory.reaches_nvme(DEEPEST)) {
            Ok(nvme) => Ok(Some(nvme)),
            Err(Untold::Because(_)) => Ok(None),
            Err(Untold::ForNow(error)) => Err(error),
        }
    }

    /// The block device with this number.
    ///
    /// # Errors
    ///
    /// Those of open(2) that [`device`](Self::device) has.
    pub fn block(&self, number: Number) -> io::Result<Device> {
        match self.explain(number) {
            Ok(device) => Ok(device),
            Err(Untold::Because(reason)) => Ok(Device {
                number: Some(number),
                name: None,
                class: DeviceClass::Unexplained { reason },
                is_permanent: false,
            }),
            Err(Untold::ForNow(error)) => Err(error),
        }
    }

    fn explain(&self, number: Number) -> Result<Device, Untold> {
        let directory = Directory::at(self.block_directory(number))?;
        let class = directory.block_class()?;
        let is_permanent = directory.is_permanent(&class)?;
        // A directory whose device has just gone is empty, and says by this that the device is not this and not that.
        // What was read counts only if it is still there.
        directory.confirm(number)?;
        Ok(Device { number: Some(number), name: Some(directory.name()), class, is_permanent })
    }

    fn character(&self, number: Number) -> Device {
        // Nothing depends on it but what the device is called, so one look has to do: `…/scsi_generic/sg0`.
        let link = fs::read_link(self.root.join("dev/char").join(number.to_string())).ok();
        let class = link.as_deref().and_then(Path::parent).map(last);
        let class = match class.as_deref() {
            Some("scsi_generic") => DeviceClass::ScsiGeneric,
            _ => DeviceClass::OtherCharacter,
        };
        Device { number: Some(number), name: link.as_deref().map(last), class, is_permanent: false }
    }
}

/// The directory of one device in sysfs (Linux `Documentation/ABI/stable/sysfs-block`, `testing/sysfs-block-dm`).
struct Directory(PathBuf);

/// Why sysfs does not tell.
enum Untold {
    /// It does not know, or not so that it can be understood.
    Because(String),
    /// There is no room for another open file.
    ForNow(io::Error),
}

/// How deep devices may be stacked. The kernel has no limit of its own; a deeper stack is not explained.
const DEEPEST: usize = 32;

/// The subsystem of a namespace with one path, and of one with several.
const NVME: &str = "nvme";
const NVME_MULTIPATH: &str = "nvme-subsystem";

fn one_deeper(depth: usize) -> Result<usize, Untold> {
    depth.checked_sub(1).ok_or_else(|| Untold::Because("too many devices one above the other".to_owned()))
}

impl Directory {
    /// The directory behind the symbolic links: its name is the device's, its parent a partition's disk.
    fn at(path: PathBuf) -> Result<Self, Untold> {
        fs::canonicalize(&path).map(Self).map_err(about(&path))
    }

    fn name(&self) -> String {
        // The kernel writes '!' where a device name has '/'.
        last(&self.0).replace('!', "/")
    }

    fn block_class(&self) -> Result<DeviceClass, Untold> {
        if let Some(disk) = self.disk()? {
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
    fn is_permanent(&self, class: &DeviceClass) -> Result<bool, Untold> {
        Ok(match class {
            DeviceClass::ScsiBlock
            | DeviceClass::NvmeNamespace
            | DeviceClass::Partition { .. }
            | DeviceClass::Multipath { .. } => true,
            // A device without a UUID may still be given one.
            DeviceClass::DeviceMapper { uuid, .. } => !uuid.is_empty(),
            // One without a device behind it is made by a driver, which may put it over others: md does, and bcache.
            DeviceClass::OtherBlock => self.subsystem()?.is_some(),
            _ => false,
        })
    }

    /// Of whose devices this is one; `None` when there is no device behind the block device.
    fn subsystem(&self) -> Result<Option<String>, Untold> {
        self.link_name("device/subsystem")
    }

    fn reaches_nvme(&self, depth: usize) -> Result<bool, Untold> {
        let depth = one_deeper(depth)?;
        if let Some(disk) = self.disk()? {
            return disk.reaches_nvme(depth);
        }
        let slaves = self.slaves()?;
        if slaves.is_empty() {
            return Ok(matches!(self.subsystem()?.as_deref(), Some(NVME | NVME_MULTIPATH)));
        }
        slaves.iter().try_fold(false, |found, slave| Ok(found || slave.reaches_nvme(depth)?))
    }

    /// Fails unless this is the directory of the device, and the device is there.
    fn confirm(&self, number: Number) -> Result<(), Untold> {
        let found = self.required("dev")?;
        match found == number.to_string() {
            true => Ok(()),
            false => Err(Untold::Because(format!("{} is of device {found}", self.0.display()))),
        }
    }

    /// The whole disk, if this is a partition.
    fn disk(&self) -> Result<Option<Self>, Untold> {
        Ok(match (self.attribute("partition")?, self.0.parent()) {
            (Some(_), Some(parent)) => Some(Self(parent.to_owned())),
            _ => None,
        })
    }

    /// The devices directly beneath.
    fn slaves(&self) -> Result<Vec<Self>, Untold> {
        let path = self.0.join("slaves");
        let entries = fs::read_dir(&path).map_err(about(&path))?;
        entries.map(|entry| Self::at(entry.map_err(about(&path))?.path())).collect()
    }

    /// The whole disks and multipath maps at the bottom of the stack.
    fn over(&self) -> Result<Vec<String>, Untold> {
        let mut found = Vec::new();
        for slave in self.slaves()? {
            slave.walk(&mut found, DEEPEST)?;
        }
        Ok(found)
    }

    /// Adds to `found`, which is in order and has each name once.
    fn walk(&self, found: &mut Vec<String>, depth: usize) -> Result<(), Untold> {
        let depth = one_deeper(depth)?;
        if let Some(disk) = self.disk()? {
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

    /// The text of an attribute; `None` when there is no such attribute.
    fn attribute(&self, name: &str) -> Result<Option<String>, Untold> {
        let path = self.0.join(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.trim_end_matches('\n').to_owned())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(about(&path)(error)),
        }
    }

    fn required(&self, name: &str) -> Result<String, Untold> {
        self.attribute(name)?.ok_or_else(|| about(&self.0.join(name))(ErrorKind::NotFound.into()))
    }

    /// The last part of what a symbolic link points to; `None` when there is no such link.
    fn link_name(&self, name: &str) -> Result<Option<String>, Untold> {
        let path = self.0.join(name);
        match fs::read_link(&path) {
            Ok(target) => Ok(Some(last(&target))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(about(&path)(error)),
        }
    }
}

fn add(names: &mut Vec<String>, name: String) {
    if let Err(place) = names.binary_search(&name) {
        names.insert(place, name);
    }
}

/// multipath-tools gives its maps UUIDs that begin so, and only they may have them. kpartx makes `part1-mpath-` of it.
fn is_multipath(uuid: &str) -> bool {
    uuid.starts_with("mpath-")
}

fn last(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// What an error with this file means.
fn about(path: &Path) -> impl Fn(io::Error) -> Untold {
    move |error| match Errno::from_io_error(&error) {
        Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM) => Untold::ForNow(error),
        _ => Untold::Because(format!("{}: {error}", path.display())),
    }
}

#[cfg(test)]
pub(crate) mod tests;
