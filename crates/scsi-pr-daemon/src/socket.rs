//! The file of a listening socket. A start replaces the socket of an instance that has ended, and never that of a running
//! one. At the end, a process removes only its own.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::Gid;

use crate::{Occupant, StartError};

/// The permissions of the socket's file: a client needs write permission to connect (unix(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Its mode is 0777 less the umask.
    Umask,
    /// Its mode is exactly this before a client can connect.
    Exactly {
        /// The permission bits.
        mode: u32,
        /// Its group; `None` for the one that a new file gets.
        group: Option<u32>,
    },
}

/// Listens at `path`.
///
/// # Errors
///
/// [`StartError`]: the path cannot be bound, or is in use, or the file cannot get its group.
pub fn listen(path: &Path, access: Access) -> Result<(OwnedFd, SocketFile), StartError> {
    let address = SocketAddrUnix::new(path).map_err(|_| StartError::PathTooLong(path.to_owned()))?;
    let not_bound = |error: Errno| StartError::Bind { path: path.to_owned(), source: error.into() };
    let socket = stream_socket(SocketFlags::empty()).map_err(not_bound)?;
    let (directory, name) = match (path.parent(), path.file_name()) {
        (Some(directory), Some(name)) => (open_directory(directory).map_err(not_bound)?, name.to_owned()),
        // It ends in `/` or `..`.
        _ => return Err(not_unlinked(path, Errno::ISDIR)),
    };
    // Between bind and listen, another helper that starts would take this socket for that of an ended one.
    let _lock = lock(&directory);
    remove_stale(path, &address)?;
    rustix::net::bind(&socket, &address).map_err(not_bound)?;
    let listening = SocketFile::in_directory(directory, name).and_then(|file| {
        // No client can connect before it listens.
        file.admit(access)?;
        // The kernel takes less if net.core.somaxconn says so.
        rustix::net::listen(&socket, i32::MAX)?;
        Ok(file)
    });
    match listening {
        Ok(file) => Ok((socket, file)),
        Err(error) => {
            let _ = rustix::fs::unlink(path);
            Err(StartError::Listen { path: path.to_owned(), source: error.into() })
        }
    }
}

fn open_directory(path: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn not_unlinked(path: &Path, error: Errno) -> StartError {
    StartError::Unlink { path: path.to_owned(), source: error.into() }
}

fn stream_socket(flags: SocketFlags) -> rustix::io::Result<OwnedFd> {
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags | SocketFlags::CLOEXEC, None)
}

/// Removes the socket of an ended instance at `path`. Any other file there is an error, and a socket on which a program may
/// listen.
fn remove_stale(path: &Path, address: &SocketAddrUnix) -> Result<(), StartError> {
    let occupied = |occupant| Err(StartError::Occupied { path: path.to_owned(), occupant });
    let not_probed = |error: Errno| StartError::Probe { path: path.to_owned(), source: error.into() };
    match rustix::fs::lstat(path).map(|file| FileType::from_raw_mode(file.st_mode)) {
        Ok(FileType::Socket) => {}
        Ok(FileType::Directory) => return Err(not_unlinked(path, Errno::ISDIR)),
        Ok(_) => return occupied(Occupant::File),
        // bind(2) says what is wrong with the path.
        Err(_) => return Ok(()),
    }
    let probe = stream_socket(SocketFlags::NONBLOCK).map_err(not_probed)?;
    match rustix::net::connect(&probe, address) {
        Err(Errno::CONNREFUSED) => match rustix::fs::unlink(path) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(not_unlinked(path, error)),
        },
        Err(Errno::NOENT) => Ok(()),
        // AGAIN: the backlog of its listener is full.
        Ok(()) | Err(Errno::AGAIN) => occupied(Occupant::Listener),
        Err(Errno::PROTOTYPE) => occupied(Occupant::Socket),
        Err(error) => Err(not_probed(error)),
    }
}

/// The file of a socket that this process bound.
#[derive(Debug)]
pub struct SocketFile {
    /// Opened with O_PATH, so that no path has to be followed again: by then it may lead elsewhere.
    directory: OwnedFd,
    name: OsString,
    /// Opened with O_PATH. While it is held, the file system cannot give the file's number to another file, so numbers
    /// can be compared.
    file: OwnedFd,
}

impl SocketFile {
    fn in_directory(directory: OwnedFd, name: OsString) -> rustix::io::Result<Self> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&directory, &name, flags, Mode::empty())?;
        Ok(Self { directory, name, file })
    }

    /// Gives the file its group and its mode.
    fn admit(&self, access: Access) -> rustix::io::Result<()> {
        let Access::Exactly { mode, group } = access else { return Ok(()) };
        // The mode of a file that was opened with O_PATH is changed by way of /proc.
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        if let Some(group) = group {
            rustix::fs::chownat(&self.file, "", None, Some(Gid::from_raw(group)), AtFlags::EMPTY_PATH)?;
        }
        rustix::fs::chmod(path, Mode::from_raw_mode(mode))
    }

    /// The file that another process has taken apart by [`parts`](Self::parts).
    pub fn from_parts(directory: OwnedFd, name: OsString, file: OwnedFd) -> Self {
        Self { directory, name, file }
    }

    /// The directory, the name in it, and the file.
    pub fn parts(&self) -> (BorrowedFd<'_>, &OsStr, BorrowedFd<'_>) {
        (self.directory.as_fd(), &self.name, self.file.as_fd())
    }

    /// Removes it from its directory, unless another file has its name by now.
    ///
    /// # Errors
    ///
    /// Those of unlink(2), but for `ENOENT`: it is gone then.
    pub fn remove(&self) -> io::Result<()> {
        // Another helper may look at this file now.
        let _lock = lock(&self.directory);
        let ours = rustix::fs::fstat(&self.file)?;
        match rustix::fs::statat(&self.directory, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(there) if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino) => {
                match rustix::fs::unlinkat(&self.directory, &self.name, AtFlags::empty()) {
                    Err(Errno::NOENT) => Ok(()),
                    result => Ok(result?),
                }
            }
            Ok(_) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Keeps other helpers from starting or ending in `directory` while the value lives, by flock(2) on the directory.
///
/// Helpers hold it for microseconds. Other programs may lock a directory for long, and some file systems have no locks: the
/// helper then starts without the lock, after 2 s.
fn lock(directory: impl AsFd) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(directory, ".", flags, Mode::empty()).ok()?;
    for _ in 0..200 {
        match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Some(directory),
            Err(Errno::WOULDBLOCK) => sleep(Duration::from_millis(10)),
            Err(_) => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

    fn refusal(path: &Path) -> String {
        match listen(path, Access::Umask) {
            Ok(_) => panic!("{} was taken", path.display()),
            Err(message) => message.to_string(),
        }
    }

    /// The identity of the file at `path`, to see that it stays.
    fn identity(path: &Path) -> (u64, u64) {
        let file = std::fs::symlink_metadata(path).unwrap();
        (file.dev(), file.ino())
    }

    #[test]
    fn free_path_is_bound_and_cleaned_up() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let (listener, file) = listen(&path, Access::Umask).unwrap();
        let listener = UnixListener::from(listener);
        let client = UnixStream::connect(&path).unwrap();
        drop((client, listener.accept().unwrap()));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
        file.remove().unwrap();
        assert!(!path.exists());
        file.remove().unwrap();
    }

    #[test]
    fn the_file_has_exactly_the_mode_and_group_that_are_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        // The group that this process has is the one that anybody may give.
        let own = rustix::process::getgid().as_raw();
        for (mode, group) in [(0o600, None), (0o660, Some(own)), (0o666, None), (0, Some(own))] {
            let (_listener, file) = listen(&path, Access::Exactly { mode, group }).unwrap();
            let metadata = std::fs::metadata(&path).unwrap();
            assert_eq!((metadata.mode() & 0o7777, metadata.gid()), (mode, own));
            file.remove().unwrap();
        }
        let path = directory.path().join("foreign");
        // Root may give any.
        if !rustix::process::geteuid().is_root() {
            let refused = listen(&path, Access::Exactly { mode: 0o660, group: Some(0) }).unwrap_err();
            assert!(refused.to_string().starts_with("Failed to listen on socket "), "{refused}");
            assert!(!path.exists());
        }
    }

    #[test]
    fn socket_of_an_ended_program_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        let (_listener, _file) = listen(&path, Access::Umask).unwrap();
        UnixStream::connect(&path).unwrap();
        let datagram = directory.path().join("d");
        drop(UnixDatagram::bind(&datagram).unwrap());
        listen(&datagram, Access::Umask).unwrap();
    }

    #[test]
    fn socket_of_a_running_program_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let listener = stream_socket(SocketFlags::empty()).unwrap();
        rustix::net::bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let before = identity(&path);
        assert!(refusal(&path).contains("another program listens there"));
        // The probe waits to be accepted, so from here on there is no room.
        assert!(refusal(&path).contains("another program listens there"));
        assert_eq!(identity(&path), before);

        let path = directory.path().join("d");
        let _datagram = UnixDatagram::bind(&path).unwrap();
        assert!(refusal(&path).contains("another program uses a socket there"));
        assert!(std::fs::symlink_metadata(&path).unwrap().file_type().is_socket());
    }

    #[test]
    fn file_that_is_no_socket_stays() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, "precious").unwrap();
        assert!(refusal(&file).contains("there is a file that is not a socket"));
        assert_eq!(std::fs::read(&file).unwrap(), b"precious");

        let stale = directory.path().join("stale");
        drop(UnixListener::bind(&stale).unwrap());
        let link = directory.path().join("link");
        symlink(&stale, &link).unwrap();
        assert!(refusal(&link).contains("there is a file that is not a socket"));
        assert!(stale.exists() && link.is_symlink());

        for path in [directory.path(), Path::new("/"), Path::new("/tmp/..")] {
            assert!(refusal(path).ends_with(&format!("Failed to unlink socket {}: Is a directory", path.display())));
        }
    }

    #[test]
    fn path_that_cannot_be_bound_is_an_error_with_its_reason() {
        let expected = "Failed to bind socket to /nonexistent/s: No such file or directory";
        assert!(refusal(Path::new("/nonexistent/s")).ends_with(expected));
        let long = format!("/tmp/{}", "a".repeat(104));
        let expected = format!("UNIX socket path '{long}' is too long\nPath must be less than 108 bytes");
        assert!(refusal(Path::new(&long)).ends_with(&expected));
    }

    #[test]
    fn a_path_may_have_108_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let room = 108 - directory.path().as_os_str().len() - 1;
        let path = directory.path().join("s".repeat(room));
        let (_listener, file) = listen(&path, Access::Umask).unwrap();
        assert!(path.exists());
        assert!(refusal(&path).contains("another program listens there"));
        file.remove().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn file_is_removed_from_the_directory_in_which_it_was_made() {
        let directory = tempfile::tempdir().unwrap();
        let (before, after) = (directory.path().join("before"), directory.path().join("after"));
        std::fs::create_dir(&before).unwrap();
        let (_listener, file) = listen(&before.join("s"), Access::Umask).unwrap();
        std::fs::rename(&before, &after).unwrap();
        std::fs::create_dir(&before).unwrap();
        std::fs::write(before.join("s"), "another's").unwrap();
        file.remove().unwrap();
        assert!(before.join("s").exists() && !after.join("s").exists());
    }

    #[test]
    fn only_the_own_socket_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let (listener, file) = listen(&path, Access::Umask).unwrap();
        drop(listener);
        // The other file cannot have the inode number of the first, which is still open.
        let (_listener, other) = listen(&path, Access::Umask).unwrap();
        file.remove().unwrap();
        assert!(path.exists());
        other.remove().unwrap();
        std::fs::write(&path, "not a socket").unwrap();
        other.remove().unwrap();
        assert!(path.exists());
    }

    /// Exactly one of many starts on one path succeeds, and keeps the path.
    #[test]
    fn of_many_starts_at_once_one_wins() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        for _ in 0..50 {
            drop(UnixListener::bind(&path).unwrap());
            let start = std::sync::Barrier::new(4);
            let attempt = || {
                start.wait();
                listen(&path, Access::Umask)
            };
            let mut won: Vec<_> = std::thread::scope(|scope| {
                let attempts: Vec<_> = (0..4).map(|_| scope.spawn(attempt)).collect();
                attempts.into_iter().filter_map(|attempt| attempt.join().unwrap().ok()).collect()
            });
            let (listener, file) = won.pop().expect("one of them succeeds");
            assert!(won.is_empty());
            let listener = UnixListener::from(listener);
            listener.set_nonblocking(true).unwrap();
            while listener.accept().is_ok() {}
            let _client = UnixStream::connect(&path).unwrap();
            listener.accept().expect("the winner is the one at the path");
            file.remove().unwrap();
        }
    }

    #[test]
    fn start_waits_for_a_locked_directory() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let lock = lock(open_directory(directory.path()).unwrap()).unwrap();
        std::thread::scope(|scope| {
            let listening = scope.spawn(|| listen(&path, Access::Umask));
            sleep(Duration::from_millis(50));
            assert!(!path.exists(), "bound although the directory is locked");
            drop(lock);
            listening.join().unwrap().unwrap();
        });
    }
}
