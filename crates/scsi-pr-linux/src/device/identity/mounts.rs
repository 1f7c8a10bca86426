//! [`FileSystems`]: the file systems of known mounts.

use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, PoisonError};

use super::Identity;
use super::file::FileSystem;
use crate::device::{Node, Number, Sysfs, SysfsError};

/// The file systems of known mounts. A file on one of them then costs one statx(2).
#[derive(Debug, Default)]
pub struct FileSystems(Mutex<HashMap<Mount, FileSystem>>);

/// The number of a mount, and its block device. A mount keeps its file system while it exists.
type Mount = (u64, Number);

/// The most mounts that are remembered. libvirt gives each virtual machine a mount namespace, so there may be many.
const MAX_MOUNTS: usize = 4096;

impl FileSystems {
    /// The identity of a regular file.
    ///
    /// # Errors
    ///
    /// [`SysfsError::Unexplained`] for a file without a name, and for a file system without permanent inode numbers.
    pub fn identify(&self, sysfs: &Sysfs, descriptor: BorrowedFd<'_>, node: &Node) -> Result<Identity, SysfsError> {
        if node.is_deleted() {
            return Err(SysfsError::unexplained("it has no name any more, or never had one"));
        }
        let mount = node.mount.map(|mount| (mount, node.file_system));
        let remembered = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = mount.and_then(|mount| remembered().get(&mount).cloned()) {
            return known.file(node);
        }
        let found = FileSystem::of(descriptor, node, |number| sysfs.identify_beneath(number))?;
        let identity = found.file(node);
        if let Some(mount) = mount {
            let mut remembered = remembered();
            if remembered.len() >= MAX_MOUNTS {
                remembered.clear();
            }
            remembered.insert(mount, found);
        }
        identity
    }
}
