//! The keeper: a second process, of the same binary, that stays what the helper no longer is. It removes the socket when
//! the helper ends, whatever way it ends and whoever owns the directory.
//!
//! It is started before the helper drops its privileges and has one thread and one input: a socket shared with the
//! helper, over which each message is a byte that says what it is, data, and a descriptor. When the helper is gone that
//! socket ends, and the keeper with it.
//!
//! ```text
//! helper                                        keeper
//!    ── 'D', descriptor of its directory ──▶             the first two, once: the socket to watch over
//!    ── 'S', name, descriptor of the file ──▶
//!    ── 'R' ────────────────────────────────▶            remove it
//!    ◀─────────────────────── errno, or 0 ──             as 4 bytes in native order
//! ```

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::SigSet;
use pr_daemon::socket::SocketFile;
use pr_helper::descriptor::{self, Passed};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, socketpair};
use rustix::thread::CapabilitySet;

use crate::message::{Message, Result, invoked_as, reason};
use crate::privileges;

/// What the keeper is called: its first word, by which this binary knows that it is one.
const NAME: &str = "qemu-pr-helper-keeper";

/// What the keeper may do besides being user 0: remove a file from a directory of another user, with the sticky bit too.
const PRIVILEGES: CapabilitySet = CapabilitySet::DAC_OVERRIDE.union(CapabilitySet::FOWNER);

const DIRECTORY: u8 = b'D';
const SOCKET: u8 = b'S';
const REMOVE: u8 = b'R';

/// Longer than any message.
const ROOM: usize = 256;

/// How long the helper waits for the keeper's answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The helper's end.
pub(crate) struct Keeper {
    socket: OwnedFd,
    process: Child,
}

impl Keeper {
    /// Starts the keeper, to watch over `file`; `path` is for people to see which one.
    fn start(file: &SocketFile, path: &Path) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        let (socket, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
        let (directory, name, file) = file.parts();
        descriptor::send(&socket, &[DIRECTORY], directory, SendFlags::empty())?;
        descriptor::send(&socket, &[&[SOCKET], name.as_bytes()].concat(), file, SendFlags::empty())?;
        let process = Command::new("/proc/self/exe")
            .arg0(NAME)
            .arg(path)
            .env_clear()
            .stdin(theirs)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self { socket, process })
    }

    /// Has the socket removed, and the keeper end.
    ///
    /// # Errors
    ///
    /// The keeper's, or that it does not answer.
    fn finish(mut self) -> io::Result<()> {
        let removed = self.remove();
        // A keeper that answers ends at once. It is waited for because not every container has somebody who would.
        if removed.is_ok() {
            drop(self.socket);
            self.process.wait()?;
        }
        removed
    }

    fn remove(&self) -> io::Result<()> {
        rustix::net::send(&self.socket, &[REMOVE], SendFlags::NOSIGNAL)?;
        let mut answer = [0; 4];
        let (length, _) = rustix::net::recv(&self.socket, &mut answer, RecvFlags::empty())?;
        match i32::from_ne_bytes(answer) {
            _ if length != answer.len() => Err(io::ErrorKind::UnexpectedEof.into()),
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

/// Our socket's file, which goes when this value does.
pub(crate) struct Kept {
    path: PathBuf,
    file: SocketFile,
    keeper: Option<Keeper>,
}

impl Kept {
    /// The file at `path`, without a keeper.
    pub(crate) fn new(path: PathBuf, file: SocketFile) -> Self {
        Self { path, file, keeper: None }
    }

    /// Starts a keeper, where this process could become unable to remove the file itself: user 0 is about to drop its
    /// privileges, and anybody else can never do more than now.
    pub(crate) fn start_keeper(&mut self) {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        match Keeper::start(&self.file, &self.path) {
            Ok(keeper) => self.keeper = Some(keeper),
            // To serve is worth more than to leave nothing behind.
            Err(error) => tracing::warn!(
                "the keeper cannot be started (is /proc mounted?), so {} may stay behind at the end: {}",
                self.path.display(),
                reason(error)
            ),
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let removed = self.keeper.take().is_some_and(|keeper| keeper.finish().is_ok());
        if !removed && let Err(error) = self.file.remove() {
            Message::new(format!("Failed to unlink socket {}: {}", self.path.display(), reason(error))).print();
        }
    }
}

/// Whether this process was started to be a keeper.
pub(crate) fn is_wanted() -> bool {
    invoked_as() == NAME
}

/// Is the keeper, until the helper ends.
pub(crate) fn run() -> Result<()> {
    // A signal to the group or the service is the helper's to act on; the keeper has work to do after it.
    let _ = SigSet::all().thread_block();
    let _ = rustix::thread::set_name(c"qemu-pr-keeper");
    let failed = |error: io::Error| Message::new(format!("cannot keep a socket: {}", reason(error)));
    let helper = io::stdin().as_fd().try_clone_to_owned().map_err(failed)?;
    close_inherited(&helper).map_err(failed)?;
    std::env::set_current_dir("/").map_err(failed)?;
    let held = rustix::thread::capabilities(None).map_err(|error| failed(error.into()))?.permitted;
    privileges::drop_to(PRIVILEGES & held, None, None).map_err(failed)?;
    let file = socket_to_keep(&helper).map_err(failed)?;
    keep(&helper, &file);
    Ok(())
}

/// Closes what this process has been given besides its input: libvirt and systemd wait for the ends of pipes and files
/// that the helper was started with.
fn close_inherited(helper: &OwnedFd) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    // The listing has a descriptor of its own, which is closed before the others are.
    let open: Vec<i32> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|number| *number > 2 && *number != helper.as_raw_fd())
        .collect();
    for number in open {
        let _ = nix::unistd::close(number);
    }
    Ok(())
}

/// The first messages. Only the helper as it was before it served anybody can have sent them: they are there before the
/// keeper starts.
fn socket_to_keep(helper: &OwnedFd) -> io::Result<SocketFile> {
    let (_, directory) = part(helper, DIRECTORY)?;
    let (name, file) = part(helper, SOCKET)?;
    Ok(SocketFile::from_parts(directory, name, file))
}

/// The data and the descriptor of the next message, which must be of this kind.
fn part(helper: &OwnedFd, kind: u8) -> io::Result<(OsString, OwnedFd)> {
    let mut room = [0; ROOM];
    match descriptor::receive(helper, &mut room, RecvFlags::empty())? {
        (length @ 1.., Passed::One(descriptor)) if room[0] == kind => {
            Ok((OsString::from_vec(room[1..length].to_vec()), descriptor))
        }
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Does what the helper says until it ends, and then removes the socket if that has not been asked for.
fn keep(helper: &OwnedFd, file: &SocketFile) {
    let mut room = [0; ROOM];
    while let Ok((1.., _)) = descriptor::receive(helper, &mut room, RecvFlags::empty()) {
        // Nothing else is known, and a helper that says something else is not ours any more.
        if room[0] != REMOVE {
            break;
        }
        let errno = file.remove().err().map_or(0, rustix::io::Errno::raw_os_error);
        let _ = rustix::net::send(helper, &errno.to_ne_bytes(), SendFlags::NOSIGNAL);
    }
    let _ = file.remove();
}
