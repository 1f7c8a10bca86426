//! The pid file: the id of the running helper, and a lock against a second one.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use crate::message::{Message, Result, reason};

/// A locked pid file. The lock is held as long as this value lives; the file is never removed.
#[must_use]
pub(crate) struct PidFile(File);

impl PidFile {
    /// Opens the file, made with mode 0600 if need be, and locks it.
    ///
    /// The lock is on the whole file and of the open file description, so it excludes the C helper's and stays whatever
    /// else this process opens or closes.
    pub(crate) fn lock(path: &Path) -> Result<Self> {
        let not_made = |error| Message::new(format!("Could not create '{}': {}", path.display(), reason(error)));
        loop {
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create(true).mode(0o600).open(path).map_err(not_made)?;
            let whole = libc::flock {
                l_type: libc::F_WRLCK as libc::c_short,
                l_whence: libc::SEEK_SET as libc::c_short,
                l_start: 0,
                l_len: 0,
                l_pid: 0,
            };
            fcntl(&file, FcntlArg::F_OFD_SETLK(&whole))
                .map_err(|error| Message::new(format!("Cannot lock pid file: {}", reason(io::Error::from(error)))))?;
            // Another process may have replaced the file since it was opened. A lock on a file that is not at the path
            // excludes no other helper.
            let opened = file.metadata().map_err(not_made)?;
            if std::fs::metadata(path).is_ok_and(|now| (now.dev(), now.ino()) == (opened.dev(), opened.ino())) {
                return Ok(Self(file));
            }
        }
    }

    /// Writes the id of this process and a newline.
    pub(crate) fn write(&mut self) -> Result<()> {
        let failed = |what, error| Message::new(format!("Failed to {what} pid file: {}", reason(error)));
        self.0.set_len(0).map_err(|error| failed("truncate", error))?;
        // One write, so that a reader sees all of it or nothing.
        let line = format!("{}\n", std::process::id());
        self.0.write_all(line.as_bytes()).map_err(|error| failed("write", error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{FlockOperation, fcntl_lock};

    fn refused() -> Message {
        Message::new("Cannot lock pid file: Resource temporarily unavailable")
    }

    #[test]
    fn it_holds_the_pid_and_the_lock() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pid");
        let mut pid_file = PidFile::lock(&path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"");
        pid_file.write().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(PidFile::lock(&path).err(), Some(refused()));
        drop(pid_file);
        assert!(path.exists());
    }

    #[test]
    fn what_was_there_is_replaced_and_its_mode_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pid");
        std::fs::write(&path, "1234567890\n1234567890\n").unwrap();
        let mode = std::fs::metadata(&path).unwrap().mode();
        PidFile::lock(&path).unwrap().write().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
        assert_eq!(std::fs::metadata(&path).unwrap().mode(), mode);
    }

    #[test]
    fn it_excludes_and_is_excluded_by_locks_of_the_c_helper_s_kind() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pid");
        let file = File::create(&path).unwrap();
        fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
        assert_eq!(PidFile::lock(&path).err(), Some(refused()));
        fcntl_lock(&file, FlockOperation::NonBlockingUnlock).unwrap();
        let _held = PidFile::lock(&path).unwrap();
        assert!(fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive).is_err());
    }

    #[test]
    fn errors_are_the_c_helper_s() {
        let error = PidFile::lock(Path::new("/nonexistent/pid")).err();
        assert_eq!(error, Some(Message::new("Could not create '/nonexistent/pid': No such file or directory")));
        let error = PidFile::lock(Path::new("")).err();
        assert_eq!(error, Some(Message::new("Could not create '': No such file or directory")));
        let error = PidFile::lock(Path::new("/dev/null")).and_then(|mut file| file.write()).err();
        assert_eq!(error, Some(Message::new("Failed to truncate pid file: Invalid argument")));
    }
}
