//! Reading sysfs so that nothing is believed of a device that has gone.
//!
//! The directory of a device that goes away is emptied attribute by attribute, and says by this that the device is not this
//! and not that. So whatever is read of one counts only if its `dev` is there afterwards, and still the number it had.

use std::fmt;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// A device number, `8:0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Number {
    pub(super) major: u32,
    pub(super) minor: u32,
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// Why a device is not identified.
#[derive(Debug)]
pub(super) enum Untold {
    /// It has none, and never will have: what it is made of may serve in its place.
    Nothing(&'static str),
    /// It may have one, and it cannot be told or not be trusted.
    Because(String),
    /// There is no room for another open file.
    ForNow(io::Error),
}

impl Untold {
    pub(super) fn because(reason: impl Into<String>) -> Self {
        Self::Because(reason.into())
    }
}

/// The directory of one device (Linux `Documentation/ABI/stable/sysfs-block`).
pub(super) struct Directory(PathBuf);

impl Directory {
    /// The directory behind the symbolic links: its name is the device's, its parent a partition's disk.
    pub(super) fn at(path: &Path) -> Result<Self, Untold> {
        fs::canonicalize(path).map(Self).map_err(about(path))
    }

    /// What `tell` reads of this device, which must be there all the while; and must be the one with that `number`, where it
    /// is known.
    pub(super) fn sure<T>(
        &self,
        number: Option<Number>,
        tell: impl FnOnce() -> Result<T, Untold>,
    ) -> Result<T, Untold> {
        let before = number.map_or_else(|| self.required("dev"), |number| Ok(number.to_string()))?;
        let told = tell();
        let after = self.required("dev")?;
        match before == after {
            true => told,
            false => Err(Untold::Because(format!("{} is of device {after}, not of {before}", self.0.display()))),
        }
    }

    /// Whether it is in the directory of a class: `…/scsi_generic/sg0`.
    pub(super) fn is_of_class(&self, class: &str) -> bool {
        self.0.parent().is_some_and(|parent| parent.ends_with(class))
    }

    /// What the kernel calls the device.
    pub(super) fn name(&self) -> String {
        // The kernel writes '!' where a device name has '/'.
        last(&self.0).replace('!', "/")
    }

    /// The whole disk and the number of the partition, if this is one.
    pub(super) fn partition(&self) -> Result<Option<(Self, String)>, Untold> {
        Ok(match (self.attribute("partition")?, self.0.parent()) {
            (Some(number), Some(parent)) => Some((Self(parent.to_owned()), number)),
            _ => None,
        })
    }

    /// The devices directly beneath.
    pub(super) fn slaves(&self) -> Result<Vec<Self>, Untold> {
        let path = self.0.join("slaves");
        let entries = fs::read_dir(&path).map_err(about(&path))?;
        entries.map(|entry| Self::at(&entry.map_err(about(&path))?.path())).collect()
    }

    /// Of whose devices this is one; `None` when there is no device behind the block device.
    pub(super) fn subsystem(&self) -> Result<Option<String>, Untold> {
        let path = self.0.join("device/subsystem");
        match fs::read_link(&path) {
            Ok(target) => Ok(Some(last(&target))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(about(&path)(error)),
        }
    }

    /// The bytes of an attribute; `None` when there is no such attribute.
    pub(super) fn bytes(&self, name: &str) -> Result<Option<Vec<u8>>, Untold> {
        let path = self.0.join(name);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(about(&path)(error)),
        }
    }

    /// The line that an attribute consists of; `None` when there is no such attribute.
    pub(super) fn line(&self, name: &str) -> Result<Option<Vec<u8>>, Untold> {
        let mut bytes = self.bytes(name)?;
        if let Some(bytes) = bytes.as_mut() {
            bytes.pop_if(|byte| *byte == b'\n');
        }
        Ok(bytes)
    }

    /// The same as text.
    pub(super) fn attribute(&self, name: &str) -> Result<Option<String>, Untold> {
        let text = self.line(name)?.map(String::from_utf8).transpose();
        text.map_err(|_| Untold::Because(format!("{} is not text", self.0.join(name).display())))
    }

    pub(super) fn required(&self, name: &str) -> Result<String, Untold> {
        self.attribute(name)?.ok_or_else(|| about(&self.0.join(name))(ErrorKind::NotFound.into()))
    }
}

fn last(path: &Path) -> String {
    String::from_utf8_lossy(path.file_name().unwrap_or_default().as_bytes()).into_owned()
}

/// What an error with this file means.
pub(super) fn about(path: &Path) -> impl Fn(io::Error) -> Untold {
    move |error| match Errno::from_io_error(&error) {
        Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM) => Untold::ForNow(error),
        _ => Untold::Because(format!("{}: {error}", path.display())),
    }
}
