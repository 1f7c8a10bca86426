//! Block devices and SCSI generic devices.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};

use super::file;
use super::sysfs::{Directory, Number, Untold, about};
use super::vpd;
use super::{Known, UnitId};

/// How deep devices may be stacked. The kernel has no limit of its own; a deeper stack is not identified.
const DEEPEST: usize = 32;

/// Where the kernel tells about its devices.
#[derive(Clone, Debug)]
pub(super) struct Sysfs {
    root: PathBuf,
}

/// What was found out of a device: its name, whatever else is known, and its identifier.
pub(super) struct Told {
    pub(super) name: Option<String>,
    pub(super) unit: Result<UnitId, Untold>,
}

impl Sysfs {
    pub(super) fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The block device with this number.
    pub(super) fn block(&self, number: Number) -> Told {
        let directory = Directory::at(&self.root.join("dev/block").join(number.to_string()));
        Self::told(number, directory, |directory| Walk { sysfs: self, depth: DEEPEST }.unit(directory))
    }

    /// The SCSI generic device with this number: the same as the disk. `None` when it is another character device.
    pub(super) fn generic(&self, number: Number) -> Option<Told> {
        let directory = Directory::at(&self.root.join("dev/char").join(number.to_string()));
        match &directory {
            Ok(directory) if directory.is_of_class("scsi_generic") => {}
            Err(Untold::ForNow(_)) => {}
            _ => return None,
        }
        Some(Self::told(number, directory, scsi))
    }

    fn told(
        number: Number,
        directory: Result<Directory, Untold>,
        unit: impl FnOnce(&Directory) -> Result<UnitId, Untold>,
    ) -> Told {
        match directory {
            Err(untold) => Told { name: None, unit: Err(untold) },
            Ok(directory) => {
                let unit = directory.sure(Some(number), || unit(&directory));
                Told { name: Some(directory.name()), unit }
            }
        }
    }

    /// The block device with this number, as something that another one is made of.
    fn beneath(&self, number: Number, depth: usize) -> Result<UnitId, Untold> {
        let directory = Directory::at(&self.root.join("dev/block").join(number.to_string()))?;
        directory.sure(Some(number), || Walk { sysfs: self, depth }.unit(&directory))
    }
}

/// On the way down a stack of devices.
#[derive(Clone, Copy)]
pub(super) struct Walk<'a> {
    sysfs: &'a Sysfs,
    depth: usize,
}

impl<'a> Walk<'a> {
    pub(super) fn new(sysfs: &'a Sysfs) -> Self {
        Self { sysfs, depth: DEEPEST }
    }

    /// One step down.
    fn down(self) -> Result<Self, Untold> {
        let depth = self.depth.checked_sub(1).ok_or_else(|| Untold::because("too many devices one above the other"))?;
        Ok(Self { depth, ..self })
    }

    /// The block device with this number, one step down.
    pub(super) fn block(self, number: Number) -> Result<UnitId, Untold> {
        self.sysfs.beneath(number, self.down()?.depth)
    }

    fn directory(self, directory: &Directory) -> Result<UnitId, Untold> {
        let walk = self.down()?;
        directory.sure(None, || walk.unit(directory))
    }

    fn unit(self, directory: &Directory) -> Result<UnitId, Untold> {
        if let Some((disk, partition)) = directory.partition()? {
            return part(&self.directory(&disk)?, &partition);
        }
        if let Some(uuid) = directory.attribute("dm/uuid")? {
            return self.device_mapper(directory, &uuid);
        }
        if let Some(path) = directory.line("loop/backing_file")? {
            return self.behind_loop(directory, path);
        }
        if !directory.slaves()?.is_empty() {
            return Err(Untold::Nothing("it is made of other devices, and has no uuid"));
        }
        match directory.subsystem()?.as_deref() {
            Some("scsi") => scsi(directory),
            Some("nvme" | "nvme-subsystem") => nvme(directory),
            Some("rbd") => rbd(directory),
            _ => Err(Untold::Nothing("it has no identity of its own")),
        }
    }

    fn device_mapper(self, directory: &Directory, uuid: &str) -> Result<UnitId, Untold> {
        // multipath-tools has its own prefix, which others may not use; kpartx puts its own before that of what it divides.
        if uuid.starts_with("mpath-") {
            return self.multipath(directory);
        }
        if let Some(partition) = kpartx(uuid) {
            let [disk] = &directory.slaves()?[..] else {
                return Err(Untold::because("it is a partition of more than one device"));
            };
            return part(&self.directory(disk)?, partition);
        }
        let (uuid, known) = match uuid {
            "" => return Err(Untold::Nothing("it is a device-mapper device without a uuid")),
            uuid if is_lvm(uuid) => (uuid, Known::Everywhere),
            uuid => luks(uuid).map_or((uuid, Known::Here), |luks| (luks, Known::Everywhere)),
        };
        UnitId::new(format!("dm.{uuid}"), known).ok_or_else(too_long)
    }

    /// The identity that all paths of a map have. Its uuid would do only as far as multipath.conf and all versions of
    /// multipath-tools make the same of a designator.
    fn multipath(self, directory: &Directory) -> Result<UnitId, Untold> {
        let mut paths = directory.slaves()?.into_iter();
        let Some(first) = paths.next() else {
            return Err(Untold::because("the multipath map has no path by which to know it"));
        };
        let identify = |path: &Directory| {
            self.directory(path).map_err(|untold| match untold {
                // The other paths may have one.
                Untold::Nothing(reason) => Untold::Because(format!("its path {}: {reason}", path.name())),
                untold => untold,
            })
        };
        let unit = identify(&first)?;
        for path in paths {
            let other = identify(&path)?;
            if other != unit {
                return Err(Untold::Because(format!(
                    "its paths are of different disks: {} is {unit}, {} is {other}",
                    first.name(),
                    path.name()
                )));
            }
        }
        Ok(unit)
    }

    /// sysfs tells the file behind a loop device by its path alone, as it is now; it is believed if it is still the same
    /// once the file has been looked at, and the size is right.
    fn behind_loop(self, directory: &Directory, path: Vec<u8>) -> Result<UnitId, Untold> {
        if directory.required("loop/offset")? != "0" || directory.required("loop/sizelimit")? != "0" {
            return Err(Untold::Nothing("it is a loop device over a part of a file"));
        }
        // What the kernel appends to the path of a deleted file may be the end of a name, too.
        if !path.starts_with(b"/") || path.ends_with(b" (deleted)") {
            return Err(Untold::because("it is a loop device over a file that cannot be found by its name"));
        }
        let file = PathBuf::from(OsString::from_vec(path.clone()));
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = open(&file, flags, Mode::empty()).map_err(|error| about(&file)(error.into()))?;
        let behind = file::behind(self, &opened).map_err(|untold| name_file(untold, &file))?;
        let sectors = directory.required("size")?;
        let same_size = behind.size.is_none_or(|size| sectors == (size / 512).to_string());
        let same_path = directory.line("loop/backing_file")?.as_ref() == Some(&path);
        match same_size && same_path {
            true => Ok(behind.unit),
            false => Err(Untold::Because(format!(
                "it is not a loop device over the whole of {} as it is now",
                file.display()
            ))),
        }
    }
}

fn name_file(untold: Untold, file: &Path) -> Untold {
    match untold {
        Untold::Because(reason) => Untold::Because(format!("it is a loop device over {}: {reason}", file.display())),
        untold => untold,
    }
}

fn part(disk: &UnitId, partition: &str) -> Result<UnitId, Untold> {
    match !partition.is_empty() && partition.bytes().all(|byte| byte.is_ascii_digit()) {
        true => disk.part(&format!("-part{partition}")).ok_or_else(too_long),
        false => Err(Untold::Because(format!("its partition number is {partition:?}"))),
    }
}

/// The number in `part1-mpath-…`.
fn kpartx(uuid: &str) -> Option<&str> {
    let (number, rest) = uuid.strip_prefix("part")?.split_once('-')?;
    (!number.is_empty() && !rest.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())).then_some(number)
}

/// `LVM-`, 32 characters for the volume group, 32 for the volume, and for hidden volumes what they are.
fn is_lvm(uuid: &str) -> bool {
    let Some((ids, rest)) = uuid.strip_prefix("LVM-").and_then(|ids| ids.split_at_checked(64)) else { return false };
    ids.bytes().all(|byte| byte.is_ascii_alphanumeric()) && (rest.is_empty() || rest.starts_with('-'))
}

/// Of `CRYPT-LUKS2-`, 32 digits of the header's uuid, and the name of the mapping, all but the name. With a name in `_dif`
/// it is the integrity device beneath.
fn luks(uuid: &str) -> Option<&str> {
    let digits = uuid.strip_prefix("CRYPT-LUKS1-").or_else(|| uuid.strip_prefix("CRYPT-LUKS2-"))?;
    let (digits, name) = digits.split_at_checked(32)?;
    let whole = digits.bytes().all(|byte| byte.is_ascii_hexdigit())
        && name.len() > 1
        && name.starts_with('-')
        && !name.ends_with("_dif");
    whole.then(|| &uuid[..uuid.len() - name.len()])
}

fn scsi(directory: &Directory) -> Result<UnitId, Untold> {
    let page = directory.bytes("device/vpd_pg83")?;
    // There is no use in device/wwid: the kernel makes it of the same page.
    page.as_deref()
        .and_then(vpd::identify)
        .ok_or(Untold::Nothing("the SCSI device has no designator of use (Device Identification VPD page 83h)"))
}

fn nvme(directory: &Directory) -> Result<UnitId, Untold> {
    let wwid = directory.attribute("wwid")?.unwrap_or_default();
    let known = match wwid.split_once('.') {
        Some(("uuid" | "eui", _)) => Known::Everywhere,
        // The controller's vendor, serial and model, and the number of the namespace.
        Some(("nvme", _)) => Known::Here,
        _ => return Err(Untold::Nothing("the NVMe namespace has no UUID, NGUID, EUI-64 or serial number")),
    };
    UnitId::new(format!("nvme.{}", wwid.trim_end().to_ascii_lowercase()), known).ok_or_else(too_long)
}

/// Linux `Documentation/ABI/testing/sysfs-bus-rbd`.
fn rbd(directory: &Directory) -> Result<UnitId, Untold> {
    let required = |name| match directory.required(name)? {
        value if value.is_empty() => Err(Untold::Because(format!("its {name} is empty"))),
        value => Ok(value),
    };
    let mut text = format!("rbd.{}.{}", required("device/cluster_fsid")?, required("device/pool_id")?);
    for namespace in directory.attribute("device/pool_ns")?.into_iter().filter(|namespace| !namespace.is_empty()) {
        text.push_str(&format!(".{namespace}"));
    }
    text.push_str(&format!(".{}", required("device/image_id")?));
    // A snapshot is not what its image is.
    if required("device/current_snap")? != "-" {
        text.push_str(&format!(".snap-{}", required("device/snap_id")?));
    }
    UnitId::new(text, Known::Everywhere).ok_or_else(too_long)
}

pub(super) fn too_long() -> Untold {
    Untold::Because(format!("its identifier would be over {} bytes long", UnitId::MAX_LENGTH))
}
