//! The helper as a process.
//!
//! The helper starts as root alone, so every test of it begins with [`require_root!`].
#![allow(dead_code, unused_imports, reason = "each test program uses a part")]

use std::ffi::OsStr;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};

use rustix::process::Signal;
use testing_support::Client;
pub(crate) use testing_support::{Launcher, Output, Process, Program, directory, eventually, skip};

/// The program under test.
pub(crate) const HELPER: &str = env!("CARGO_BIN_EXE_qemu-pr-helper");

/// A wrapper that leaves the program an ordinary user's, with CAP_SYS_RAWIO alone.
pub(crate) const WITH_ONE_CAPABILITY: [&str; 7] = [
    "setpriv",
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
    "--inh-caps=-all,+sys_rawio",
    "--ambient-caps=+sys_rawio",
    "--bounding-set=-all,+sys_rawio",
];

/// Returns from a test that does not run as root.
macro_rules! require_root {
    () => {
        testing_support::require_root!("the helper drops privileges, which an ordinary user lacks")
    };
}
pub(crate) use require_root;

/// The helper with these arguments.
pub(crate) fn helper<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Launcher {
    let mut launcher = Launcher::new(HELPER);
    launcher.args(arguments);
    launcher
}

/// The helper with `-k socket`.
pub(crate) fn helper_at(socket: &Path) -> Launcher {
    helper(["-k".as_ref(), socket.as_os_str()])
}

/// A helper that serves at a socket.
pub(crate) struct Helper {
    program: Program,
    pub(crate) socket: PathBuf,
}

impl Helper {
    /// Starts the helper and waits until it serves.
    #[track_caller]
    pub(crate) fn start(launcher: &mut Launcher, socket: &Path) -> Self {
        Self { program: launcher.serve(socket), socket: socket.to_owned() }
    }

    /// Sends `signal` and waits for the end.
    #[track_caller]
    pub(crate) fn end_by(mut self, signal: Signal) -> ExitStatus {
        self.program.end_by(signal)
    }

    /// Sends SIGTERM and waits for the end. Returns everything on standard error.
    #[track_caller]
    pub(crate) fn end(mut self) -> String {
        assert_eq!(self.program.stop().code(), Some(0));
        self.program.stderr()
    }

    /// The monitor of the helper.
    pub(crate) fn monitor(&self) -> Option<Process> {
        // A child has no command line for a moment, while its parent already goes on.
        eventually("every child has its command line", || {
            self.process().children().into_iter().all(|child| !child.command_line().is_empty()).then_some(())
        });
        Process::with_argument(&self.socket).into_iter().find(|process| process.is_named("qemu-pr-helper-monitor"))
    }
}

impl Deref for Helper {
    type Target = Program;

    fn deref(&self) -> &Program {
        &self.program
    }
}

impl DerefMut for Helper {
    fn deref_mut(&mut self) -> &mut Program {
        &mut self.program
    }
}

/// Waits until no process has `path` as an argument.
#[track_caller]
pub(crate) fn wait_until_unused(path: &Path) {
    eventually("every process of the helper ends", || Process::with_argument(path).is_empty().then_some(()));
}

/// Waits until the socket is removed.
#[track_caller]
pub(crate) fn wait_until_removed(socket: &Path) {
    eventually("the socket is removed", || (!socket.exists()).then_some(()));
}

/// Waits for the end of a process.
#[track_caller]
pub(crate) fn ended(process: &mut Child) -> ExitStatus {
    eventually("the process ends", || process.try_wait().unwrap())
}

/// Connects and reads the features that the helper offers. After that the helper serves the connection.
#[track_caller]
pub(crate) fn connect(socket: &Path) -> Client {
    let mut client = Client::connect(socket).unwrap();
    assert_eq!(client.read_features().unwrap(), 0);
    client
}
