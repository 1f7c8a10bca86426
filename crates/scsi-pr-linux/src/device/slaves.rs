//! [`Slave`]: a device directly beneath another one, and its state.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::PathBuf;

use rustix::io::Errno;

use super::{Number, Sysfs};

/// A device directly beneath another one: its link in the directory `slaves`, which remains for as long as the device is there.
#[derive(Clone, Debug)]
#[cfg_attr(test, derive(Default))]
pub(crate) struct Slave(PathBuf);

impl Sysfs {
    /// The devices directly beneath a block device; `None` if it has no such directory.
    ///
    /// # Errors
    ///
    /// Those of reading the directory.
    pub(crate) fn slaves(&self, number: Number) -> io::Result<Option<impl Iterator<Item = io::Result<Slave>> + use<>>> {
        match fs::read_dir(self.block_directory(number).join("slaves")) {
            Ok(entries) => Ok(Some(entries.map(|entry| Ok(Slave(entry?.path()))))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether a block device is one of device mapper.
    pub(crate) fn is_device_mapper(&self, number: Number) -> bool {
        self.block_directory(number).join("dm").exists()
    }

    /// Whether the device with this name and number is directly beneath a block device.
    pub(crate) fn has_slave(&self, number: Number, name: &str, slave: Number) -> bool {
        let link = self.block_directory(number).join("slaves").join(name.replace('/', "!"));
        matches!(Slave(link).number(), Ok(Some(found)) if found == slave)
    }
}

impl Slave {
    /// The kernel's name: `sda`.
    pub(crate) fn name(&self) -> String {
        // The kernel writes '!' where a device name has '/'.
        super::sysfs::file_name(&self.0).replace('!', "/")
    }

    /// The device number; `None` if the device is being removed.
    ///
    /// # Errors
    ///
    /// Those of reading sysfs, and a number of another form.
    pub(crate) fn number(&self) -> io::Result<Option<Number>> {
        let path = self.0.join("dev");
        match fs::read_to_string(&path) {
            Ok(text) => text
                .trim_end()
                .parse()
                .map(Some)
                .map_err(|()| io::Error::new(ErrorKind::InvalidData, format!("{}: {text:?}", path.display()))),
            Err(error) if error.kind() == ErrorKind::NotFound || is_gone(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether the device may carry a command, as far as the kernel's SCSI layer knows. A SCSI device must be `running`
    /// (Linux `Documentation/ABI/testing/sysfs-block`, `drivers/scsi/scsi_sysfs.c`): in its other states a command fails at
    /// once or waits for a transport that is away. A device without a state counts as usable.
    ///
    /// # Errors
    ///
    /// Those of reading sysfs.
    pub(crate) fn is_usable(&self) -> io::Result<bool> {
        // An attribute of one word, which sysfs returns whole to a reader with more room.
        let mut room = [0; 64];
        match File::open(self.0.join("device/state")).and_then(|mut file| file.read(&mut room)) {
            // The second is an NVMe controller's.
            Ok(length) => Ok(matches!(room[..length].trim_ascii_end(), b"running" | b"live")),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(self.0.exists()),
            Err(error) if is_gone(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// `ENODEV` or `ENXIO`: the device is being removed while its file is read.
fn is_gone(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NODEV | Errno::NXIO))
}
