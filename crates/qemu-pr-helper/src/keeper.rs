//! The keeper: a second process, of the same binary, that stays what the helper no longer is. It removes the socket when
//! the helper ends, whatever way it ends and whoever owns the directory; and it starts a worker for each command that
//! takes more privileges than the helper has.
//!
//! It is started before the helper drops its privileges and has one thread and one input: a [`Link`] to the helper. When
//! the helper is gone that ends, and the keeper with it, once the workers that still run have ended.

mod process;

use std::env;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use pr_daemon::socket::SocketFile;
use pr_helper::descriptor;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::link::{DIRECTORY, Link, NO_SOCKET, SOCKET};
use crate::message::{Message, invoked_as, reason};
pub(crate) use process::run;

/// What the keeper is called: its first word, by which this binary knows that it is one.
const NAME: &str = "qemu-pr-helper-keeper";

/// What a keeper, and with it each worker, has of the environment of the helper: where its libraries are, and where
/// multipathd listens.
const VARIABLES: [&str; 2] = ["LD_LIBRARY_PATH", "MULTIPATH_SOCKET_NAME"];

/// The helper's side of a keeper.
struct Keeper {
    link: Arc<Link>,
    process: Child,
}

impl Keeper {
    /// Starts a keeper, to watch over the file `socket` if there is one; its path is for people to see which one.
    fn start(socket: Option<(&Path, &SocketFile)>) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        let (link, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        let mut command = Command::new("/proc/self/exe");
        command.arg0(NAME);
        match socket {
            Some((path, file)) => {
                let (directory, name, file) = file.parts();
                descriptor::send(&link, &[DIRECTORY], directory, SendFlags::empty())?;
                descriptor::send(&link, &[&[SOCKET], name.as_bytes()].concat(), file, SendFlags::empty())?;
                command.arg(path);
            }
            None => {
                rustix::net::send(&link, &[NO_SOCKET], SendFlags::NOSIGNAL)?;
            }
        }
        let inherited = VARIABLES.into_iter().filter_map(|name| Some((name, env::var_os(name)?)));
        command.env_clear().envs(inherited);
        let process = command.stdin(theirs).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        Ok(Self { link: Arc::new(Link::new(link)?), process })
    }
}

impl Drop for Keeper {
    /// Has the keeper end. It is waited for, because not every container has somebody who would; but not if it waits for
    /// workers itself.
    fn drop(&mut self) {
        self.link.close();
        let moment = Timespec { tv_sec: 1, tv_nsec: 0 };
        if let Ok(end) = pidfd_open(Pid::from_child(&self.process), PidfdFlags::empty()) {
            let _ = rustix::io::retry_on_intr(|| poll(&mut [PollFd::new(&end.as_fd(), PollFlags::IN)], Some(&moment)));
        }
        let _ = self.process.try_wait();
    }
}

/// What is kept for the helper: its socket's file, which goes when this value does, and the keeper.
pub(crate) struct Kept {
    /// `None` when the socket is somebody else's, or removed.
    socket: Option<(PathBuf, SocketFile)>,
    keeper: Option<Keeper>,
}

impl Kept {
    /// This socket, if it is ours, without a keeper.
    pub(crate) fn new(socket: Option<(PathBuf, SocketFile)>) -> Self {
        Self { socket, keeper: None }
    }

    /// Starts a keeper, where this process is about to become unable to do what it can now: user 0 drops its privileges,
    /// and anybody else can never do more.
    pub(crate) fn start_keeper(&mut self) {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        match Keeper::start(self.socket.as_ref().map(|(path, file)| (path.as_path(), file))) {
            Ok(keeper) => self.keeper = Some(keeper),
            // To serve is worth more than what it is for.
            Err(error) => {
                let socket = self.socket.as_ref().map(|(path, _)| format!(", and {} may stay behind", path.display()));
                tracing::warn!(
                    "the keeper cannot be started (is /proc mounted?), so multipath maps cannot be reserved{}: {}",
                    socket.unwrap_or_default(),
                    reason(error)
                );
            }
        }
    }

    /// The link to the keeper, if there is one.
    pub(crate) fn link(&self) -> Option<Arc<Link>> {
        self.keeper.as_ref().map(|keeper| Arc::clone(&keeper.link))
    }

    /// Removes the socket's file, if it is ours and still there.
    pub(crate) fn remove_socket(&mut self) {
        let Some((path, file)) = self.socket.take() else { return };
        let removed = self.keeper.as_ref().is_some_and(|keeper| keeper.link.remove_socket().is_ok());
        if !removed && let Err(error) = file.remove() {
            Message::new(format!("Failed to unlink socket {}: {}", path.display(), reason(error))).print();
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.remove_socket();
    }
}

/// Whether this process was started to be a keeper.
pub(crate) fn is_wanted() -> bool {
    invoked_as() == NAME
}
