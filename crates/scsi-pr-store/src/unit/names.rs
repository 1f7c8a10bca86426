//! Names that an administrator gives to units.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::fs::{Mode, OFlags, open};
use scsi_pr_linux::device::{FileType, Node, Number};

use super::UnitId;

/// A name for a unit: `NAME=PATH` for a device or a regular file, `NAME=MAJOR:MINOR` for a block device, or
/// `NAME=IDENTIFIER`, the [`UnitId`] without a name.
///
/// A unit with an identifier has the name by every path to it: another path to a disk, a map over it, a loop device over a
/// file. Each command follows the paths again. A path that leads nowhere names nothing, so name a disk with several paths
/// by its identifier. A path on a dead file server delays every command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Naming {
    unit: UnitId,
    place: Place,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Path(PathBuf),
    Block(Number),
    Identifier(String),
}

/// The target of a name.
pub(super) enum Followed<'a> {
    /// The unit with this identifier.
    Unit(&'a str),
    /// This block device.
    Block(Number),
    /// A device or a file, by a descriptor with `O_PATH`.
    Open(OwnedFd),
    /// Nothing, now.
    Nowhere,
}

impl Naming {
    /// Names the device or file at `path`.
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

    /// Names the block device with this number.
    ///
    /// # Errors
    ///
    /// Those of [`UnitId::named`].
    pub fn block(name: &str, major: u32, minor: u32) -> Result<Self, InvalidNaming> {
        Ok(Self { unit: UnitId::named(name)?, place: Place::Block(Number { major, minor }) })
    }

    /// Names the unit that is `identifier` without a name.
    ///
    /// # Errors
    ///
    /// Those of [`UnitId::named`], and [`InvalidNaming::Place`] unless it may be an identifier that is no name itself.
    pub fn identifier(name: &str, identifier: &str) -> Result<Self, InvalidNaming> {
        let unit = UnitId::named(name)?;
        match UnitId::from_identifier(identifier) {
            Ok(_) if !identifier.starts_with("name.") => {
                Ok(Self { unit, place: Place::Identifier(identifier.to_owned()) })
            }
            _ => Err(InvalidNaming::Place(identifier.to_owned())),
        }
    }

    /// The unit that has the name.
    pub fn unit(&self) -> &UnitId {
        &self.unit
    }

    /// The path, if it leads nowhere now. The name then has no effect. A disk that appears there later changes its identifier.
    pub fn missing(&self) -> Option<&Path> {
        match &self.place {
            Place::Path(path) if matches!(self.followed(), Followed::Nowhere) => Some(path),
            _ => None,
        }
    }

    /// Whether the name is that of an open file.
    pub(super) fn is_of(&self, node: &Node) -> bool {
        match &self.place {
            Place::Block(number) => node.file_type == FileType::BlockDevice && node.number == *number,
            Place::Path(path) => Node::at(path).is_ok_and(|there| there.is_same(node)),
            Place::Identifier(_) => false,
        }
    }

    /// The target of the name, now.
    pub(super) fn followed(&self) -> Followed<'_> {
        match &self.place {
            Place::Identifier(identifier) => Followed::Unit(identifier),
            Place::Block(number) => Followed::Block(*number),
            Place::Path(path) => {
                let opened = open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
                opened.map_or(Followed::Nowhere, Followed::Open)
            }
        }
    }
}

impl FromStr for Naming {
    type Err = InvalidNaming;

    fn from_str(text: &str) -> Result<Self, InvalidNaming> {
        let (name, place) = text.split_once('=').ok_or_else(|| InvalidNaming::Shape(text.to_owned()))?;
        if place.starts_with('/') {
            return Self::path(name, place);
        }
        match place.parse() {
            Ok(Number { major, minor }) => Self::block(name, major, minor),
            Err(()) => Self::identifier(name, place),
        }
    }
}

/// Why a name is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidNaming {
    /// It is not `NAME=PATH`.
    #[error("the name of a unit is given as NAME=PATH, not as {0:?}")]
    Shape(String),
    /// The name has characters that are not allowed, or too many or too few.
    #[error("the name of a unit has 1 to 128 letters, digits and . _ : + -, unlike {0:?}")]
    Name(String),
    /// The text after `=` is neither an absolute path nor a device number nor an identifier.
    #[error(
        "a unit is found by an absolute path, by the MAJOR:MINOR number of its block device or by its identifier (naa.…), \
         not by {0:?}"
    )]
    Place(String),
}
