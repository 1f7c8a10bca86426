//! The one reader of sysfs (Linux `Documentation/ABI/stable/sysfs-block`, `testing/sysfs-block-dm`).
//!
//! The directory of a device that disappears is emptied attribute by attribute. A missing attribute then looks like a
//! property of the device. So a reading counts only if `dev` is there afterwards, and still has the same number.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::Number;

/// How deep devices may be stacked. The kernel has no limit. A deeper stack is not explained.
pub(super) const MAX_DEPTH: usize = 32;

/// Where sysfs is mounted.
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

impl Sysfs {
    /// A sysfs that is mounted at `root`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// The path of a block device's directory: a symbolic link.
    pub(crate) fn block_directory(&self, number: Number) -> PathBuf {
        self.root.join("dev/block").join(number.to_string())
    }

    /// The path of a character device's directory: a symbolic link.
    pub(super) fn character_directory(&self, number: Number) -> PathBuf {
        self.root.join("dev/char").join(number.to_string())
    }
}

/// Why sysfs gives no answer about a device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SysfsError {
    /// The device has no identity, and never will have.
    #[error("{0}")]
    NoIdentity(&'static str),
    /// sysfs does not know the device, or contradicts itself, or a value has an unknown form.
    #[error("{0}")]
    Unexplained(String),
    /// This process or the machine has too many open files: it may work later.
    #[error("{0}")]
    TooManyOpenFiles(#[source] io::Error),
}

impl SysfsError {
    pub(super) fn unexplained(reason: impl Into<String>) -> Self {
        Self::Unexplained(reason.into())
    }

    /// The meaning of an error with the file at `path`.
    pub(super) fn with_path(path: &Path) -> impl Fn(io::Error) -> Self {
        move |error| match Errno::from_io_error(&error) {
            Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM) => Self::TooManyOpenFiles(error),
            _ => Self::Unexplained(format!("{}: {error}", path.display())),
        }
    }
}

/// One step down a stack of devices.
pub(super) fn descend(depth: usize) -> Result<usize, SysfsError> {
    depth.checked_sub(1).ok_or_else(|| SysfsError::unexplained("too many devices one above the other"))
}

/// The directory of one device.
pub(super) struct Directory(PathBuf);

impl Directory {
    /// The directory behind symbolic links. Its name is that of the device; its parent is a partition's disk.
    pub(super) fn at(path: &Path) -> Result<Self, SysfsError> {
        fs::canonicalize(path).map(Self).map_err(SysfsError::with_path(path))
    }

    /// The result of `read`, if this device was there all the while. It must have `number`, where that is known.
    pub(super) fn read_consistent<T>(
        &self,
        number: Option<Number>,
        read: impl FnOnce() -> Result<T, SysfsError>,
    ) -> Result<T, SysfsError> {
        let before = number.map_or_else(|| self.required("dev"), |number| Ok(number.to_string()))?;
        let result = read();
        let after = self.required("dev")?;
        match before == after {
            true => result,
            false => {
                Err(SysfsError::Unexplained(format!("{} is of device {after}, not of {before}", self.0.display())))
            }
        }
    }

    /// Whether it is in the directory of a class: `…/scsi_generic/sg0`.
    pub(super) fn is_of_class(&self, class: &str) -> bool {
        self.0.parent().is_some_and(|parent| parent.ends_with(class))
    }

    /// The kernel's name of the device.
    pub(super) fn name(&self) -> String {
        // The kernel writes '!' where a device name has '/'.
        file_name(&self.0).replace('!', "/")
    }

    /// The whole disk and the partition number, if this is a partition.
    pub(super) fn partition(&self) -> Result<Option<(Self, String)>, SysfsError> {
        Ok(match (self.attribute("partition")?, self.0.parent()) {
            (Some(number), Some(parent)) => Some((Self(parent.to_owned()), number)),
            _ => None,
        })
    }

    /// The devices directly beneath.
    pub(super) fn slaves(&self) -> Result<Vec<Self>, SysfsError> {
        let path = self.0.join("slaves");
        let entries = fs::read_dir(&path).map_err(SysfsError::with_path(&path))?;
        entries.map(|entry| Self::at(&entry.map_err(SysfsError::with_path(&path))?.path())).collect()
    }

    /// The subsystem of the parent device; `None` where the block device has no parent device.
    pub(super) fn subsystem(&self) -> Result<Option<String>, SysfsError> {
        let path = self.0.join("device/subsystem");
        match fs::read_link(&path) {
            Ok(target) => Ok(Some(file_name(&target))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(SysfsError::with_path(&path)(error)),
        }
    }

    /// The bytes of an attribute; `None` where there is no such attribute.
    pub(super) fn bytes(&self, name: &str) -> Result<Option<Vec<u8>>, SysfsError> {
        let path = self.0.join(name);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(SysfsError::with_path(&path)(error)),
        }
    }

    /// The bytes without the newline at their end.
    pub(super) fn line(&self, name: &str) -> Result<Option<Vec<u8>>, SysfsError> {
        let mut bytes = self.bytes(name)?;
        if let Some(bytes) = bytes.as_mut() {
            bytes.pop_if(|byte| *byte == b'\n');
        }
        Ok(bytes)
    }

    /// The same as text.
    pub(super) fn attribute(&self, name: &str) -> Result<Option<String>, SysfsError> {
        let text = self.line(name)?.map(String::from_utf8).transpose();
        text.map_err(|_| SysfsError::Unexplained(format!("{} is not text", self.0.join(name).display())))
    }

    /// An attribute that must be there.
    pub(super) fn required(&self, name: &str) -> Result<String, SysfsError> {
        self.attribute(name)?.ok_or_else(|| SysfsError::with_path(&self.0.join(name))(ErrorKind::NotFound.into()))
    }
}

/// The last component of a path.
pub(super) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
