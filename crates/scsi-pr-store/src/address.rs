//! [`open`]: the text by which an administrator names a store.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::directory::Directory;
use crate::records::RecordStore;
use crate::sqlite::Sqlite;
use crate::{MemoryStore, Store, StoreError};

/// Opens the store that `address` names:
///
/// | address | store |
/// | --- | --- |
/// | `memory:` | in this process's memory, [`MemoryStore`] |
/// | `sqlite:PATH` | an SQLite database, for the processes of one host |
/// | `dir:PATH` | a directory, for one host or for several on a cluster file system or NFSv4 |
///
/// A database or directory that is not there is made. Words after the kind change that, and what is thought of the file
/// system, as in `dir+shared+existing:/srv/pr`:
///
/// * `+existing`: what is not there is not made. For a store on a file system that may not be mounted yet: a new store
///   beneath its mount point would be a second truth.
/// * `+local`: the administrator vouches that no other host uses this store, whatever its file system is.
/// * `+shared`: other hosts use this store, whatever its file system is (`dir` only).
///
/// # Errors
///
/// An address of another form; a path that cannot be used; a store that is foreign, damaged, or of a newer version, which
/// stays as it is.
pub fn open(address: &str) -> Result<Arc<dyn Store>, StoreError> {
    open_address(Address::parse(address).ok_or_else(|| not_an_address(address))?)
}

/// Opens the store that `address` names, which another program has made. This function makes none: a store in another place
/// than the one that is meant would be empty.
///
/// # Errors
///
/// Those of [`open`], and `memory:`, whose store is in another process.
pub fn open_existing(address: &str) -> Result<Arc<dyn Store>, StoreError> {
    match Address::parse(address).ok_or_else(|| not_an_address(address))? {
        Address::Memory => Err(StoreError::refused("open the store memory:")
            .because("it is in the memory of the process that serves it")
            .remedy("use a socket of that process")),
        Address::Sqlite { path, local, .. } => open_address(Address::Sqlite { path, existing: true, local }),
        Address::Directory { path, shared, .. } => open_address(Address::Directory { path, existing: true, shared }),
    }
}

fn not_an_address(address: &str) -> StoreError {
    StoreError::refused(format!("open the store {address:?}"))
        .because("it is not the address of a store")
        .remedy("write memory:, sqlite:PATH or dir:PATH")
}

fn open_address(address: Address<'_>) -> Result<Arc<dyn Store>, StoreError> {
    Ok(match address {
        Address::Memory => Arc::new(MemoryStore::new()),
        Address::Sqlite { path, existing, local } => Arc::new(RecordStore::new(Sqlite::open(path, !existing, local)?)),
        Address::Directory { path, existing, shared } => {
            Arc::new(RecordStore::new(Directory::open(path, !existing, shared)?))
        }
    })
}

/// Whether `address` has the form of the address of a store. The store need not be there.
pub fn is_address(address: &str) -> bool {
    Address::parse(address).is_some()
}

/// The directory in which the store of `address` changes files; `None` for a store in memory, or one that is not there.
pub fn directory_of(address: &str) -> Option<PathBuf> {
    match Address::parse(address)? {
        Address::Memory => None,
        Address::Sqlite { path, .. } => path.canonicalize().ok()?.parent().map(Path::to_owned),
        Address::Directory { path, .. } => path.canonicalize().ok(),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Address<'a> {
    Memory,
    Sqlite {
        path: &'a Path,
        existing: bool,
        local: bool,
    },
    /// `shared`: what the administrator says of the file system, if anything.
    Directory {
        path: &'a Path,
        existing: bool,
        shared: Option<bool>,
    },
}

impl<'a> Address<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let (kind, path) = text.split_once(':')?;
        let mut words = kind.split('+');
        let kind = words.next()?;
        let (mut existing, mut shared) = (false, None);
        for word in words {
            match word {
                "existing" if !existing => existing = true,
                "local" if shared.is_none() => shared = Some(false),
                "shared" if shared.is_none() => shared = Some(true),
                _ => return None,
            }
        }
        match (kind, path, shared) {
            ("memory", "", None) if !existing => Some(Self::Memory),
            (_, "", _) => None,
            ("sqlite", path, None | Some(false)) => {
                Some(Self::Sqlite { path: Path::new(path), existing, local: shared.is_some() })
            }
            ("dir", path, shared) => Some(Self::Directory { path: Path::new(path), existing, shared }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        let path = Path::new("/a:b+c");
        let (sqlite, directory) = (
            |existing, local| Some(Address::Sqlite { path, existing, local }),
            |existing, shared| Some(Address::Directory { path, existing, shared }),
        );
        for (text, address) in [
            ("memory:", Some(Address::Memory)),
            ("sqlite:/a:b+c", sqlite(false, false)),
            ("sqlite+local:/a:b+c", sqlite(false, true)),
            ("sqlite+existing+local:/a:b+c", sqlite(true, true)),
            ("dir:/a:b+c", directory(false, None)),
            ("dir+shared:/a:b+c", directory(false, Some(true))),
            ("dir+local+existing:/a:b+c", directory(true, Some(false))),
        ] {
            assert_eq!(Address::parse(text), address, "{text}");
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "memory",
            "memory:x",
            "memory+local:",
            "memory+existing:",
            "sqlite:",
            "sqlite",
            "sqlite+shared:/a",
            "dir:",
            "dir+local+shared:/a",
            "dir+existing+existing:/a",
            "dir+:/a",
            "etcd:/a",
            "/a",
            ":/a",
            "Memory:",
        ] {
            assert_eq!(Address::parse(text), None, "{text:?}");
        }
        assert!(open_existing("memory:").is_err());
        let error = open("/var/pr.db").err().map(|error| error.to_string());
        assert_eq!(
            error.as_deref(),
            Some(
                "cannot open the store \"/var/pr.db\": it is not the address of a store; \
                 write memory:, sqlite:PATH or dir:PATH"
            )
        );
    }
}
