//! A stream whose reader may hang or be gone.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags, fcntl_getfl, fstat};
use rustix::io::Errno;
use rustix::net::SendFlags;
use rustix::stdio;

use super::{MAX_LINE, cut};

/// A stream that is written without waiting for its reader.
///
/// O_NONBLOCK belongs to the open file description, which other processes share. So a pipe and a terminal are opened
/// again by way of /proc, which makes another description.
#[derive(Debug)]
pub(super) enum Stream {
    /// A pipe or a terminal, opened again with O_NONBLOCK.
    NonBlocking(OwnedFd),
    /// A socket, for send(2) with MSG_DONTWAIT.
    Socket(Descriptor),
    /// A regular file or a device without a reader, and a pipe that cannot be opened again.
    Polled(Descriptor),
}

#[derive(Debug)]
pub(super) enum Descriptor {
    Stderr,
    File(File),
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Stderr => stdio::stderr(),
            Self::File(file) => file.as_fd(),
        }
    }
}

/// The outcome of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// The line was written.
    Yes,
    /// The line was lost: there is no room, or the file system failed.
    Lost,
    /// The stream has no reader any more.
    NoReader,
}

impl Stream {
    /// Standard error; `None` when this process was started without it, or without a reader for it.
    pub(super) fn of_stderr() -> Option<Self> {
        Self::new(Descriptor::Stderr)
    }

    pub(super) fn of_file(file: File) -> Option<Self> {
        Self::new(Descriptor::File(file))
    }

    fn new(descriptor: Descriptor) -> Option<Self> {
        let stat = fstat(&descriptor).ok()?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Socket => Some(Self::Socket(descriptor)),
            // A standard stream that was closed: daemon(3) and Rust's runtime put /dev/null there, open for both.
            FileType::CharacterDevice if is_null(stat.st_rdev) => {
                let both = fcntl_getfl(&descriptor).is_ok_and(|flags| flags & OFlags::RWMODE == OFlags::RDWR);
                (!both).then_some(Self::Polled(descriptor))
            }
            FileType::Fifo | FileType::CharacterDevice => {
                let path = format!("/proc/self/fd/{}", descriptor.as_fd().as_raw_fd());
                let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
                match rustix::fs::open(path, flags, Mode::empty()) {
                    Ok(opened) => Some(Self::NonBlocking(opened)),
                    // A pipe without a reader.
                    Err(Errno::NXIO) => None,
                    Err(_) => Some(Self::Polled(descriptor)),
                }
            }
            _ => Some(Self::Polled(descriptor)),
        }
    }

    /// Writes `line` and a newline, cut to [`MAX_LINE`] bytes together.
    pub(super) fn write_line(&self, line: &str) -> Written {
        let mut bytes = cut(line, MAX_LINE - 1).as_bytes().to_vec();
        bytes.push(b'\n');
        outcome(match self {
            Self::NonBlocking(descriptor) => rustix::io::retry_on_intr(|| rustix::io::write(descriptor, &bytes)),
            Self::Socket(socket) => {
                let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                rustix::io::retry_on_intr(|| rustix::net::send(socket, &bytes, flags))
            }
            Self::Polled(descriptor) => return write_polled(descriptor.as_fd(), &bytes),
        })
    }
}

/// Whether `variable` names the file that `descriptor` is: its device and inode numbers, `8:1234`, as JOURNAL_STREAM has them
/// (systemd.exec(5)).
pub(super) fn is_stream(descriptor: impl AsFd, variable: &str) -> bool {
    let number = |text: &str| text.parse::<u64>().ok();
    let named = variable.split_once(':').map(|(device, inode)| (number(device), number(inode)));
    fstat(descriptor).is_ok_and(|stat| named == Some((Some(stat.st_dev), Some(stat.st_ino))))
}

/// Writes a line if poll(2) says that there is room. A pipe with room has room for a page, which is no less than a line;
/// another process may take that room in between.
pub(super) fn write_polled(stream: BorrowedFd<'_>, line: &[u8]) -> Written {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    match poll(&mut [PollFd::new(&stream, PollFlags::OUT)], Some(&now)) {
        Ok(1) => outcome(rustix::io::retry_on_intr(|| rustix::io::write(stream, line))),
        _ => Written::Lost,
    }
}

fn is_null(device: u64) -> bool {
    (rustix::fs::major(device), rustix::fs::minor(device)) == (1, 3)
}

fn outcome(result: Result<usize, Errno>) -> Written {
    match result {
        Ok(_) => Written::Yes,
        Err(
            Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN | Errno::CONNREFUSED | Errno::DESTADDRREQ | Errno::BADF,
        ) => Written::NoReader,
        Err(_) => Written::Lost,
    }
}
