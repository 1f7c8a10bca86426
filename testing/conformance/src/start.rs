//! How a helper is started: arguments, environment, inherited descriptors, with or without a supervisor.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use testing_support::{Launcher, Output};

use crate::helper::{Finished, Helper, SOCKET};
use crate::subject::build_directory;
use crate::supervisor::Launch;

/// A start of a helper that is being prepared. It has a directory of its own for its files.
#[derive(Debug)]
pub struct Start {
    launcher: Launcher,
    directory: TempDir,
    supervised: Option<Vec<&'static str>>,
}

impl Start {
    pub(crate) fn new(program: &Path) -> Self {
        let directory = tempfile::Builder::new().prefix("pr-helper-").tempdir().expect("a temporary directory");
        Self { launcher: Launcher::new(program), directory, supervised: None }
    }

    /// The directory of this start.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A path in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Another program: a copy or another name of the helper.
    pub fn program(mut self, program: &Path) -> Self {
        self.launcher.program(program);
        self
    }

    /// Adds an argument.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.launcher.arg(argument);
        self
    }

    /// Adds arguments.
    pub fn args<S: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.launcher.args(arguments);
        self
    }

    /// `-k` with a socket in the directory.
    pub fn socket(self) -> Self {
        let path = self.path(SOCKET);
        self.arg("-k").arg(path)
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.launcher.env(name, value);
        self
    }

    /// Shell commands that run first, in the process that becomes the helper: `umask 022`, `ulimit -n 64`,
    /// `export LISTEN_PID=$$`.
    pub fn shell(mut self, commands: &str) -> Self {
        self.launcher.shell(commands);
        self
    }

    /// Shell redirections of the helper: `3<&0 0</dev/null`.
    pub fn redirect(mut self, redirections: &str) -> Self {
        self.launcher.redirect(redirections);
        self
    }

    /// Sets standard input, which is `/dev/null` otherwise.
    pub fn stdin(mut self, file: impl Into<OwnedFd>) -> Self {
        self.launcher.stdin(file);
        self
    }

    /// Sets standard error, which is recorded otherwise.
    pub fn stderr(mut self, file: impl Into<OwnedFd>) -> Self {
        self.launcher.stderr(Output::To(file.into()));
        self
    }

    /// Puts a [`Supervisor`](crate::Supervisor) between the helper and SG_IO.
    pub fn supervised(self) -> Self {
        self.stopping_at(&[])
    }

    /// Puts a [`Supervisor`](crate::Supervisor) between the helper and SG_IO, and between the helper and these system
    /// calls. The launcher must not need them to become the helper.
    pub fn stopping_at(mut self, system_calls: &[&'static str]) -> Self {
        self.supervised.get_or_insert_default().extend(system_calls);
        self
    }

    /// Passes a listening socket as systemd does, as descriptor 3.
    pub fn activated_with(mut self, socket: impl Into<OwnedFd>) -> Self {
        self.launcher.activated_with(socket, "LISTEN_PID=$$ LISTEN_FDS=1");
        self
    }

    /// Starts the helper and waits for its end.
    pub fn finish(self) -> Finished {
        self.start().finish()
    }

    /// Starts the helper with a socket in its directory, and waits until it serves.
    #[track_caller]
    pub fn serve(self) -> Helper {
        let mut helper = self.socket().start();
        helper.wait_until_served();
        helper
    }

    /// Starts the helper.
    ///
    /// # Panics
    ///
    /// When it cannot be started.
    #[track_caller]
    pub fn start(mut self) -> Helper {
        let launch = self.supervised.map(|calls| Launch::new(self.directory.path(), &calls));
        if let Some(launch) = &launch {
            let supervised: OsString = build_directory().join("supervised").into();
            self.launcher.wrapped_by([supervised].into_iter().chain(launch.arguments()));
        }
        let mut helper = Helper::new(self.launcher.spawn(), self.directory);
        if let Some(launch) = launch {
            helper.supervise(launch);
        }
        helper
    }
}
