//! Block devices and SCSI generic devices, down the stack of devices.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};

use super::file::FileSystem;
use super::{Identity, Scope, vpd};
use crate::device::class::is_multipath;
use crate::device::sysfs::{Directory, MAX_DEPTH, descend};
use crate::device::{FileType, Node, Number, Sysfs, SysfsError};

/// The name and the identity of a device.
#[derive(Debug)]
pub struct Identified {
    /// The kernel's name: `sda`; `None` where sysfs does not know the device.
    pub name: Option<String>,
    /// Its identity, or why it has none.
    pub identity: Result<Identity, SysfsError>,
}

impl Sysfs {
    /// Identifies the block device with this number.
    pub fn identify_block(&self, number: Number) -> Identified {
        let directory = Directory::at(&self.block_directory(number));
        identify(number, directory, |directory| Walk { sysfs: self, depth: MAX_DEPTH }.identity(directory))
    }

    /// Identifies the SCSI generic device with this number: it is its disk. `None` for another character device.
    pub fn identify_generic(&self, number: Number) -> Option<Identified> {
        let directory = Directory::at(&self.character_directory(number));
        match &directory {
            Ok(directory) if directory.is_of_class("scsi_generic") => {}
            Err(SysfsError::TooManyOpenFiles(_)) => {}
            _ => return None,
        }
        Some(identify(number, directory, scsi))
    }

    /// The block device with this number, beneath a file system.
    pub(super) fn identify_beneath(&self, number: Number) -> Result<Identity, SysfsError> {
        Walk { sysfs: self, depth: MAX_DEPTH }.block(number)
    }
}

fn identify(
    number: Number,
    directory: Result<Directory, SysfsError>,
    identity: impl FnOnce(&Directory) -> Result<Identity, SysfsError>,
) -> Identified {
    match directory {
        Err(error) => Identified { name: None, identity: Err(error) },
        Ok(directory) => {
            let identity = directory.read_consistent(Some(number), || identity(&directory));
            Identified { name: Some(directory.name()), identity }
        }
    }
}

/// A position on the way down a stack of devices.
#[derive(Clone, Copy)]
struct Walk<'a> {
    sysfs: &'a Sysfs,
    depth: usize,
}

impl Walk<'_> {
    /// One step down.
    fn down(self) -> Result<Self, SysfsError> {
        Ok(Self { depth: descend(self.depth)?, ..self })
    }

    /// The block device with this number, one step down.
    fn block(self, number: Number) -> Result<Identity, SysfsError> {
        let walk = self.down()?;
        let directory = Directory::at(&self.sysfs.block_directory(number))?;
        directory.read_consistent(Some(number), || walk.identity(&directory))
    }

    fn directory(self, directory: &Directory) -> Result<Identity, SysfsError> {
        let walk = self.down()?;
        directory.read_consistent(None, || walk.identity(directory))
    }

    fn identity(self, directory: &Directory) -> Result<Identity, SysfsError> {
        if let Some((disk, partition)) = directory.partition()? {
            return part(&self.directory(&disk)?, &partition);
        }
        if let Some(uuid) = directory.attribute("dm/uuid")? {
            return self.device_mapper(directory, &uuid);
        }
        if let Some(path) = directory.line("loop/backing_file")? {
            return self.loop_device(directory, path);
        }
        if !directory.slaves()?.is_empty() {
            return Err(SysfsError::NoIdentity("it is made of other devices, and has no uuid"));
        }
        match directory.subsystem()?.as_deref() {
            Some("scsi") => scsi(directory),
            Some("nvme" | "nvme-subsystem") => nvme(directory),
            Some("rbd") => rbd(directory),
            _ => Err(SysfsError::NoIdentity("it has no identity of its own")),
        }
    }

    fn device_mapper(self, directory: &Directory, uuid: &str) -> Result<Identity, SysfsError> {
        // The prefix of multipath-tools is reserved. kpartx puts its own before the UUID of the device that it divides.
        if is_multipath(uuid) {
            return self.multipath(directory);
        }
        if let Some(partition) = kpartx(uuid) {
            let [disk] = &directory.slaves()?[..] else {
                return Err(SysfsError::unexplained("it is a partition of more than one device"));
            };
            return part(&self.directory(disk)?, partition);
        }
        let (uuid, scope) = match uuid {
            "" => return Err(SysfsError::NoIdentity("it is a device-mapper device without a uuid")),
            uuid if is_lvm(uuid) => (uuid, Scope::Global),
            uuid => luks(uuid).map_or((uuid, Scope::Host), |luks| (luks, Scope::Global)),
        };
        Identity::new(format!("dm.{uuid}"), scope)
    }

    /// The identity that all paths of a map have. The UUID of the map depends on multipath.conf and on the version of
    /// multipath-tools.
    fn multipath(self, directory: &Directory) -> Result<Identity, SysfsError> {
        let mut paths = directory.slaves()?.into_iter();
        let Some(first) = paths.next() else {
            return Err(SysfsError::unexplained("the multipath map has no path by which to know it"));
        };
        let identify = |path: &Directory| {
            self.directory(path).map_err(|error| match error {
                // The other paths may have one.
                SysfsError::NoIdentity(reason) => {
                    SysfsError::Unexplained(format!("its path {}: {reason}", path.name()))
                }
                error => error,
            })
        };
        let identity = identify(&first)?;
        for path in paths {
            let other = identify(&path)?;
            if other != identity {
                return Err(SysfsError::Unexplained(format!(
                    "its paths are of different disks: {} is {identity}, {} is {other}",
                    first.name(),
                    path.name()
                )));
            }
        }
        Ok(identity)
    }

    /// sysfs has only the path of the file behind a loop device. It counts if the path is still the same after the file was
    /// identified, and the size matches.
    fn loop_device(self, directory: &Directory, path: Vec<u8>) -> Result<Identity, SysfsError> {
        if directory.required("loop/offset")? != "0" || directory.required("loop/sizelimit")? != "0" {
            return Err(SysfsError::NoIdentity("it is a loop device over a part of a file"));
        }
        // The kernel appends this to the path of a deleted file. A file name may end with it too.
        if !path.starts_with(b"/") || path.ends_with(b" (deleted)") {
            return Err(SysfsError::unexplained("it is a loop device over a file that cannot be found by its name"));
        }
        let file = PathBuf::from(OsString::from_vec(path.clone()));
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = open(&file, flags, Mode::empty()).map_err(|error| SysfsError::with_path(&file)(error.into()))?;
        let (identity, size) = self.backing(opened.as_fd()).map_err(|error| with_backing_file(error, &file))?;
        let sectors = directory.required("size")?;
        let same_size = size.is_none_or(|size| sectors == (size / 512).to_string());
        let same_path = directory.line("loop/backing_file")?.as_ref() == Some(&path);
        match same_size && same_path {
            true => Ok(identity),
            false => Err(SysfsError::Unexplained(format!(
                "it is not a loop device over the whole of {} as it is now",
                file.display()
            ))),
        }
    }

    /// The file or device behind a loop device, by a descriptor with `O_PATH`; and the bytes of a file.
    fn backing(self, descriptor: BorrowedFd<'_>) -> Result<(Identity, Option<u64>), SysfsError> {
        let node = Node::of(descriptor).map_err(|error| SysfsError::Unexplained(error.to_string()))?;
        match node.file_type {
            FileType::RegularFile if !node.is_deleted() => {
                let file_system = FileSystem::of(descriptor, &node, |number| self.block(number))?;
                Ok((file_system.file(&node)?, Some(node.size)))
            }
            FileType::BlockDevice => Ok((self.block(node.number)?, None)),
            _ => Err(SysfsError::unexplained("it is no file")),
        }
    }
}

fn with_backing_file(error: SysfsError, file: &Path) -> SysfsError {
    match error {
        SysfsError::Unexplained(reason) => {
            SysfsError::Unexplained(format!("it is a loop device over {}: {reason}", file.display()))
        }
        error => error,
    }
}

fn part(disk: &Identity, partition: &str) -> Result<Identity, SysfsError> {
    match !partition.is_empty() && partition.bytes().all(|byte| byte.is_ascii_digit()) {
        true => disk.part(&format!("-part{partition}")),
        false => Err(SysfsError::Unexplained(format!("its partition number is {partition:?}"))),
    }
}

/// The number in `part1-mpath-…`.
fn kpartx(uuid: &str) -> Option<&str> {
    let (number, rest) = uuid.strip_prefix("part")?.split_once('-')?;
    (!number.is_empty() && !rest.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())).then_some(number)
}

/// `LVM-`, 32 characters for the volume group, 32 for the volume, and a suffix for hidden volumes.
fn is_lvm(uuid: &str) -> bool {
    let Some((ids, rest)) = uuid.strip_prefix("LVM-").and_then(|ids| ids.split_at_checked(64)) else { return false };
    ids.bytes().all(|byte| byte.is_ascii_alphanumeric()) && (rest.is_empty() || rest.starts_with('-'))
}

/// `CRYPT-LUKS2-` and the 32 digits of the header's UUID, without the name of the mapping. A name that ends with `_dif` is
/// that of the integrity device beneath.
fn luks(uuid: &str) -> Option<&str> {
    let digits = uuid.strip_prefix("CRYPT-LUKS1-").or_else(|| uuid.strip_prefix("CRYPT-LUKS2-"))?;
    let (digits, name) = digits.split_at_checked(32)?;
    let whole = digits.bytes().all(|byte| byte.is_ascii_hexdigit())
        && name.len() > 1
        && name.starts_with('-')
        && !name.ends_with("_dif");
    whole.then(|| &uuid[..uuid.len() - name.len()])
}

fn scsi(directory: &Directory) -> Result<Identity, SysfsError> {
    let page = directory.bytes("device/vpd_pg83")?;
    // device/wwid is of no use: the kernel makes it of the same page.
    page.as_deref()
        .and_then(vpd::identify)
        .ok_or(SysfsError::NoIdentity("the SCSI device has no designator of use (Device Identification VPD page 83h)"))
}

fn nvme(directory: &Directory) -> Result<Identity, SysfsError> {
    let wwid = directory.attribute("wwid")?.unwrap_or_default();
    let scope = match wwid.split_once('.') {
        Some(("uuid" | "eui", _)) => Scope::Global,
        // The controller's vendor, serial and model, and the number of the namespace.
        Some(("nvme", _)) => Scope::Host,
        _ => return Err(SysfsError::NoIdentity("the NVMe namespace has no UUID, NGUID, EUI-64 or serial number")),
    };
    Identity::new(format!("nvme.{}", wwid.trim_end().to_ascii_lowercase()), scope)
}

/// Linux `Documentation/ABI/testing/sysfs-bus-rbd`.
fn rbd(directory: &Directory) -> Result<Identity, SysfsError> {
    let required = |name| match directory.required(name)? {
        value if value.is_empty() => Err(SysfsError::Unexplained(format!("its {name} is empty"))),
        value => Ok(value),
    };
    let mut text = format!("rbd.{}.{}", required("device/cluster_fsid")?, required("device/pool_id")?);
    for namespace in directory.attribute("device/pool_ns")?.into_iter().filter(|namespace| !namespace.is_empty()) {
        text.push_str(&format!(".{namespace}"));
    }
    text.push_str(&format!(".{}", required("device/image_id")?));
    // A snapshot is not its image.
    if required("device/current_snap")? != "-" {
        text.push_str(&format!(".snap-{}", required("device/snap_id")?));
    }
    Identity::new(text, Scope::Global)
}
