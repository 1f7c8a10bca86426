//! Open-file-description locks of a medium. QEMU respects them, and they respect QEMU's image locks.
//!
//! QEMU describes what it does with an image by read locks on single bytes: byte 100 + n for a permission that it uses,
//! byte 200 + n for one that others must not have. It looks for such locks of others before it opens an image.
//!
//! * A writable medium has a write lock on the whole file. QEMU gets no lock besides it, and it none besides QEMU's.
//! * A read-only medium says in QEMU's language that it reads, and that no other process may write or resize.

use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::fs::{major, minor};

use super::Access;

/// The bytes of permissions in use.
const USED: i64 = 100;
/// The bytes of permissions that others must not have.
const UNSHARED: i64 = 200;
/// The permission to read data that does not change.
const CONSISTENT_READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// The reason why there is no lock.
pub(super) enum LockError {
    /// Another description has one.
    Held,
    /// The file system has no such locks.
    Unsupported(Errno),
}

/// Locks `file` until its description is closed.
pub(super) fn lock(file: &File, access: Access) -> Result<(), LockError> {
    match access {
        // A length of zero means to the end, however far that moves.
        Access::ReadWrite => set(file, libc::F_WRLCK, 0, 0),
        Access::ReadOnly => {
            for byte in [USED + CONSISTENT_READ, UNSHARED + WRITE, UNSHARED + RESIZE] {
                set(file, libc::F_RDLCK, byte, 1)?;
            }
            for byte in [UNSHARED + CONSISTENT_READ, USED + WRITE, USED + RESIZE] {
                check_free(file, byte)?;
            }
            Ok(())
        }
    }
}

fn set(file: &File, kind: i32, start: i64, length: i64) -> Result<(), LockError> {
    match fcntl(file, FcntlArg::F_OFD_SETLK(&range(kind, start, length))) {
        Ok(_) => Ok(()),
        Err(Errno::EAGAIN | Errno::EACCES) => Err(LockError::Held),
        Err(errno) => Err(LockError::Unsupported(errno)),
    }
}

/// Whether no other description has any lock on the byte.
fn check_free(file: &File, byte: i64) -> Result<(), LockError> {
    let mut found = range(libc::F_WRLCK, byte, 1);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut found)).map_err(LockError::Unsupported)?;
    if i32::from(found.l_type) == libc::F_UNLCK { Ok(()) } else { Err(LockError::Held) }
}

fn range(kind: i32, start: i64, length: i64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: length,
        l_pid: 0,
    }
}

/// A process that has a lock on a medium.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its process id.
    pub pid: u32,
    /// The name of its program, as the kernel has it.
    pub name: String,
}

impl Holder {
    /// A process with a lock on the file. An open-file-description lock names no process, so the open files of all
    /// processes are looked through, as far as the kernel shows them to this one.
    pub(super) fn of(file: &File) -> Option<Self> {
        let metadata = file.metadata().ok()?;
        let device = metadata.dev();
        let inode = format!(" {:02x}:{:02x}:{} ", major(device), minor(device), metadata.ino());
        let is_lock = |line: &str| line.starts_with("lock:") && line.contains(&inode);
        fs::read_dir("/proc").ok()?.flatten().find_map(|process| {
            let pid = process.file_name().to_str()?.parse().ok()?;
            let holds = fs::read_dir(process.path().join("fdinfo"))
                .ok()?
                .flatten()
                .any(|descriptor| fs::read_to_string(descriptor.path()).is_ok_and(|info| info.lines().any(is_lock)));
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default().trim_end().to_owned();
            holds.then_some(Self { pid, name })
        })
    }

    pub(super) fn suffix(holder: Option<&Self>) -> String {
        holder.map(|holder| format!(" by {holder}")).unwrap_or_default()
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "process {} ({})", self.pid, self.name)
    }
}
