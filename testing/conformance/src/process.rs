//! Processes, and the locks that they hold on files.

use std::fs::File;
use std::path::Path;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

pub use testing_support::Process;

/// A lock on a file (fcntl(2)) that excludes others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lock {
    /// The first byte.
    pub start: i64,
    /// The number of bytes; 0 means up to the end of the file.
    pub length: i64,
    /// The process that holds it, or -1 for an open file description.
    pub owner: i32,
}

/// The lock that keeps others from locking `file`.
pub fn lock_over(file: &Path) -> Option<Lock> {
    let file = File::options().read(true).write(true).open(file).expect("a file to be locked");
    let mut lock =
        libc::flock { l_type: libc::F_WRLCK as i16, l_whence: libc::SEEK_SET as i16, l_start: 0, l_len: 0, l_pid: 0 };
    fcntl(&file, FcntlArg::F_GETLK(&mut lock)).expect("F_GETLK");
    let held = i32::from(lock.l_type) != libc::F_UNLCK;
    held.then_some(Lock { start: lock.l_start, length: lock.l_len, owner: lock.l_pid })
}
