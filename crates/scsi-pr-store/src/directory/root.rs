//! The directory of a store: creating it, recognizing it, and checking that it is still the same.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{
    AtFlags, CWD, Dir, Mode, OFlags, Statx, StatxFlags, fstat, fsync, linkat, mkdirat, openat, statat, statx, unlinkat,
};
use rustix::io::Errno;

use super::New;
use crate::file_system::{FileSystem, Reach};
use crate::lock::lock;
use crate::unique::unique;
use crate::{StoreError, UnitId};

/// The file that marks a directory as a store.
const MARKER: &str = "scsi-pr-store";

/// The beginning of the marker, before the number of the format.
const TITLE: &str = "scsi-pr reservations, directory format ";

/// The format of the directory.
const FORMAT: u32 = 1;

/// The directories of a store.
const PARTS: [&str; 3] = ["units", "locks", "new"];

/// The age at which a file below `new` has no writer any more.
const ABANDONED: Duration = Duration::from_secs(24 * 60 * 60);

/// A store of the file tree.
pub(super) struct Store {
    path: PathBuf,
    /// The text that distinguishes this store from others that may replace it.
    id: String,
    /// The marker from which this text was last read: device and inode.
    marker: Mutex<(u64, u64)>,
    shared: bool,
}

/// The directory that was at the path of a store.
pub(super) struct Root {
    directory: OwnedFd,
}

fn open_directory(at: impl AsFd, path: impl rustix::path::Arg) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(at, path, flags, Mode::empty())?)
}

/// The status of a file from the file system itself, not from the cache of this host.
pub(super) fn refresh(file: impl AsFd) -> io::Result<Statx> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
    Ok(statx(file, "", flags, StatxFlags::BASIC_STATS)?)
}

/// Whether both are the same file.
pub(super) fn is_same(one: &OwnedFd, other: &OwnedFd) -> bool {
    match (fstat(one), fstat(other)) {
        (Ok(one), Ok(other)) => (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino),
        _ => false,
    }
}

impl Root {
    pub(super) fn directory(&self) -> &OwnedFd {
        &self.directory
    }

    fn units(&self) -> io::Result<OwnedFd> {
        let units = open_directory(&self.directory, "units")?;
        // So that a unit which another host has just made is not taken for missing.
        refresh(&units)?;
        Ok(units)
    }

    /// The directory of a unit.
    pub(super) fn unit(&self, unit: &UnitId) -> io::Result<OwnedFd> {
        open_directory(self.units()?, unit.as_str())
    }

    /// Whether a unit has no directory, for certain.
    pub(super) fn has_no(&self, unit: &UnitId) -> bool {
        self.units().is_ok_and(|units| {
            statat(units, unit.as_str(), AtFlags::SYMLINK_NOFOLLOW).is_err_and(|errno| errno == Errno::NOENT)
        })
    }

    /// The names of the directories of units, and of anything else there but hidden files.
    pub(super) fn list_units(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(self.units()?)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if !name.starts_with('.') {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// Makes the directory of a unit. It is durable before any file comes into it, whichever process made it.
    pub(super) fn make_unit(&self, unit: &UnitId) -> io::Result<()> {
        let units = self.units()?;
        match mkdirat(&units, unit.as_str(), Mode::from_raw_mode(0o777)) {
            Ok(()) | Err(Errno::EXIST) => Ok(fsync(units)?),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Device and inode of the marker.
    fn marker(&self) -> io::Result<(u64, u64)> {
        let status = statat(&self.directory, MARKER, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok((status.st_dev, status.st_ino))
    }

    /// The text of the marker.
    fn read_marker(&self) -> io::Result<String> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut text = Vec::new();
        File::from(openat(&self.directory, MARKER, flags, Mode::empty())?).take(4096).read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Whether there is nothing, or only parts that an interrupted creation of a store left behind.
    fn is_blank(&self, path: &Path) -> io::Result<bool> {
        for entry in fs::read_dir(path)? {
            let name = entry?.file_name();
            let is_empty = |part: &str| fs::read_dir(path.join(part)).map(|mut entries| entries.next().is_none());
            let blank = match name.to_str() {
                // Of a file system that was just made.
                Some("lost+found" | "new") => true,
                Some(part @ ("units" | "locks")) => is_empty(part)?,
                _ => false,
            };
            if !blank {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Creates a store in a blank directory. It is complete once the marker is there.
    fn make(&self) -> io::Result<()> {
        for part in PARTS {
            match mkdirat(&self.directory, part, Mode::from_raw_mode(0o777)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        // The marker must never be durable without them.
        fsync(&self.directory)?;
        let marker = New::write(self, format!("{TITLE}{FORMAT}\nid {}\n", unique()?).as_bytes())?;
        match linkat(&self.directory, &marker.name, &self.directory, MARKER, AtFlags::empty()) {
            // Another process was first.
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS) => {
                Err(io::Error::new(ErrorKind::Unsupported, "the file system has no hard links"))
            }
            Err(errno) => Err(errno.into()),
        }
    }
}

/// The identifier in the text of a marker.
fn identify(text: &str) -> Result<&str, Invalid> {
    let rest = text.strip_prefix(TITLE).ok_or(Invalid::Foreign)?;
    let (format, rest) = rest.split_once('\n').ok_or(Invalid::Damaged)?;
    match format.parse::<u32>() {
        Ok(FORMAT) => {}
        Ok(newer) if newer > FORMAT => return Err(Invalid::Newer(newer)),
        _ => return Err(Invalid::Damaged),
    }
    let id = rest.strip_prefix("id ").and_then(|rest| rest.strip_suffix('\n')).ok_or(Invalid::Damaged)?;
    let whole = id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    whole.then_some(id).ok_or(Invalid::Damaged)
}

/// The fault of a marker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Invalid {
    Foreign,
    Damaged,
    Newer(u32),
}

impl Invalid {
    fn explain(self, error: StoreError) -> StoreError {
        match self {
            Self::Foreign => error
                .because(format!("its file {MARKER} is not what a store has there"))
                .remedy("name another directory: this one stays as it is"),
            Self::Damaged => error
                .because(format!("its file {MARKER} is damaged or cut short"))
                .remedy(format!("put back a copy of {MARKER} from before; the reservations are below units")),
            Self::Newer(format) => error
                .because(format!("it has format {format}, and this program knows only format {FORMAT}"))
                .remedy("use the version of this program that made it, or a later one"),
        }
    }
}

impl Store {
    pub(super) fn open(path: &Path, create: bool, shared: Option<bool>) -> Result<Self, StoreError> {
        let attempted = || format!("open the store in {}", path.display());
        let unavailable = |error: io::Error| super::unchanged(attempted(), error);
        if create {
            // A process that may read a file of the store may lock it, and so delay changes.
            match fs::DirBuilder::new().mode(0o700).create(path) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(unavailable(error)),
                _ => {}
            }
        }
        let path = path.canonicalize().map_err(unavailable)?;
        let root = Root { directory: open_directory(CWD, &path).map_err(unavailable)? };
        let marker = match root.marker() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                // Unless another process has just created it.
                if !root.is_blank(&path).map_err(unavailable)? && root.marker().is_err() {
                    return Err(StoreError::refused(attempted())
                        .because(format!("something is there, and no {MARKER}"))
                        .remedy("name another directory: this one stays as it is"));
                }
                if !create {
                    return Err(StoreError::unavailable(attempted())
                        .because("no store is there")
                        .remedy("mount its file system; or leave out +existing to make a store"));
                }
                root.make().map_err(unavailable)?;
                root.marker()
            }
            marker => marker,
        };
        let marker = marker.map_err(unavailable)?;
        let text = root.read_marker().map_err(unavailable)?;
        let id = identify(&text).map_err(|invalid| invalid.explain(StoreError::refused(attempted())))?.to_owned();
        if statat(&root.directory, MARKER.to_uppercase(), AtFlags::SYMLINK_NOFOLLOW).is_ok() {
            return Err(StoreError::refused(attempted())
                .because("upper and lower case are the same there, but not in the names of units")
                .remedy("name a directory on a file system that tells them apart"));
        }
        // Its creator may have died before the entries were durable.
        fsync(&root.directory).map_err(|errno| unavailable(errno.into()))?;
        if let Some(parent) = path.parent() {
            File::open(parent).and_then(|parent| parent.sync_all()).map_err(unavailable)?;
        }
        let file_system = FileSystem::of(&path).map_err(unavailable)?;
        if file_system.is_volatile() {
            tracing::warn!("{} is on {file_system}: it is lost when this host restarts", path.display());
        }
        let shared = shared.unwrap_or(file_system.reach() != Reach::Host);
        let store = Self { path, id, marker: Mutex::new(marker), shared };
        store.remove_abandoned(&root);
        Ok(store)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn is_shared(&self) -> bool {
        self.shared
    }

    /// The directory at the path. It must be the store that was opened.
    pub(super) fn root(&self, attempted: &dyn Fn() -> String) -> Result<Root, StoreError> {
        let unavailable = |error: io::Error| super::unchanged(attempted(), error);
        let root = Root { directory: open_directory(CWD, &self.path).map_err(unavailable)? };
        let found = root.marker().map_err(unavailable)?;
        let mut known = lock(&self.marker);
        if *known != found {
            // A new mount has another device number.
            let text = root.read_marker().map_err(unavailable)?;
            let id = identify(&text).map_err(|invalid| invalid.explain(StoreError::refused(attempted())))?;
            if id != self.id {
                return Err(StoreError::refused(attempted())
                    .because("another store came to its place")
                    .remedy("put back the one that was there, or restart to go on with the other one"));
            }
            *known = found;
        }
        drop(known);
        Ok(root)
    }

    /// Whether the path still leads to `root`.
    pub(super) fn is_in_place(&self, root: &Root) -> bool {
        open_directory(CWD, &self.path).is_ok_and(|found| is_same(&found, &root.directory))
            && root.marker().is_ok_and(|marker| marker == *lock(&self.marker))
    }

    /// Removes files that no process will complete. A failure does no harm.
    fn remove_abandoned(&self, root: &Root) {
        let Ok(entries) = fs::read_dir(self.path.join("new")) else { return };
        for entry in entries.flatten() {
            let written = entry.metadata().and_then(|metadata| metadata.modified());
            let age = written.ok().and_then(|written| SystemTime::now().duration_since(written).ok());
            if age.is_some_and(|age| age > ABANDONED) {
                let path = Path::new("new").join(entry.file_name());
                let _ = unlinkat(&root.directory, path, AtFlags::empty());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn a_marker_is_read() {
        let marker = |format: &str, rest: &str| format!("{TITLE}{format}\n{rest}");
        for (text, identified) in [
            (marker("1", &format!("id {ID}\n")), Ok(ID)),
            (marker("2", "anything"), Err(Invalid::Newer(2))),
            (marker("0", &format!("id {ID}\n")), Err(Invalid::Damaged)),
            (marker("1", &format!("id {ID}")), Err(Invalid::Damaged)),
            (marker("1", "id 01\n"), Err(Invalid::Damaged)),
            (marker("", ""), Err(Invalid::Damaged)),
            (TITLE.to_owned(), Err(Invalid::Damaged)),
            (String::new(), Err(Invalid::Foreign)),
            ("something else".to_owned(), Err(Invalid::Foreign)),
        ] {
            assert_eq!(identify(&text), identified, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_marker_or_refused(text: String) {
            let _ = identify(&text);
        }

        #[test]
        fn no_part_of_a_marker_is_one(length in 0..TITLE.len() + 37) {
            let text = format!("{TITLE}{FORMAT}\nid {ID}\n");
            prop_assert!(identify(&text[..length]).is_err());
        }
    }
}
