//! Names that an administrator gives to units.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::fs::{AtFlags, CWD, FileType, Statx, StatxFlags, statx};

use super::UnitId;
use super::file::{device, file_type};
use super::sysfs::Number;

/// A name for a unit, and where the unit is found on this host: `NAME=PATH`, or `NAME=MAJOR:MINOR` of a block device.
///
/// A path is followed anew for every command: the name belongs to what is there now, a device or a regular file. One unit may
/// be found in several places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Naming {
    unit: UnitId,
    place: Place,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Path(PathBuf),
    Block(Number),
}

impl Naming {
    /// What is at `path` is called `name`.
    ///
    /// # Errors
    ///
    /// Those of [`UnitId::named`], and [`InvalidNaming::Place`] unless the path is absolute.
    pub fn path(name: &str, path: impl Into<PathBuf>) -> Result<Self, InvalidNaming> {
        let path = path.into();
        match path.is_absolute() {
            true => Ok(Self { unit: UnitId::named(name)?, place: Place::Path(path) }),
            false => Err(InvalidNaming::Place(path.display().to_string())),
        }
    }

    /// The block device with this number is called `name`.
    ///
    /// # Errors
    ///
    /// Those of [`UnitId::named`].
    pub fn block(name: &str, major: u32, minor: u32) -> Result<Self, InvalidNaming> {
        Ok(Self { unit: UnitId::named(name)?, place: Place::Block(Number { major, minor }) })
    }

    /// The unit that has the name.
    pub fn unit(&self) -> &UnitId {
        &self.unit
    }

    /// The path of the unit, unless it is given by its number.
    pub fn place(&self) -> Option<&Path> {
        match &self.place {
            Place::Path(path) => Some(path),
            Place::Block(_) => None,
        }
    }

    /// Whether the name is that of an open file.
    pub(super) fn is_of(&self, stat: &Statx) -> bool {
        match &self.place {
            Place::Block(number) => file_type(stat) == FileType::BlockDevice && device(stat) == *number,
            Place::Path(path) => {
                let mask = StatxFlags::TYPE | StatxFlags::INO;
                statx(CWD, path, AtFlags::STATX_DONT_SYNC, mask).is_ok_and(|there| same(&there, stat))
            }
        }
    }
}

/// Whether two are of one device or of one regular file.
fn same(one: &Statx, other: &Statx) -> bool {
    let file = |stat: &Statx| (stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino);
    match file_type(one) {
        _ if file_type(one) != file_type(other) => false,
        FileType::BlockDevice | FileType::CharacterDevice => device(one) == device(other),
        _ => file(one) == file(other),
    }
}

impl FromStr for Naming {
    type Err = InvalidNaming;

    fn from_str(text: &str) -> Result<Self, InvalidNaming> {
        let (name, place) = text.split_once('=').ok_or_else(|| InvalidNaming::Shape(text.to_owned()))?;
        if place.starts_with('/') {
            return Self::path(name, place);
        }
        let number = place.split_once(':').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        let (major, minor) = number.ok_or_else(|| InvalidNaming::Place(place.to_owned()))?;
        Self::block(name, major, minor)
    }
}

/// Why a unit cannot be named so.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidNaming {
    /// It is not `NAME=PATH`.
    Shape(String),
    /// The name has characters that are not allowed, or too many or too few.
    Name(String),
    /// What should be the path of the unit is neither an absolute path nor the number of a device.
    Place(String),
}

impl fmt::Display for InvalidNaming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shape(text) => write!(f, "the name of a unit is given as NAME=PATH, not as {text:?}"),
            Self::Name(name) => {
                write!(f, "the name of a unit has 1 to 128 letters, digits and . _ : + -, unlike {name:?}")
            }
            Self::Place(place) => write!(
                f,
                "a unit is found by an absolute path or by the MAJOR:MINOR number of its block device, not by {place:?}"
            ),
        }
    }
}

impl std::error::Error for InvalidNaming {}
