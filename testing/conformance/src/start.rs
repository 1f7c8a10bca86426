//! How a helper is started: arguments, environment, inherited descriptors, under supervision or not.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use tempfile::TempDir;

use crate::helper::{Helper, SOCKET, STDERR, STDOUT};
use crate::process::Mark;
use crate::subject::build_directory;
use crate::supervisor::Launch;

/// A start of a helper that is being prepared. Everything it leaves lies in a directory of its own.
#[derive(Debug)]
pub struct Start {
    program: PathBuf,
    directory: TempDir,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    shell: String,
    redirections: String,
    stdin: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    supervised: Option<Vec<&'static str>>,
}

/// What is left of a helper that has ended.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
    /// Its directory.
    pub directory: TempDir,
}

impl Finished {
    /// Its exit code; a signal panics.
    #[track_caller]
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| panic!("ended by signal {:?}: {}", self.status.signal(), self.stderr))
    }
}

impl Start {
    pub(crate) fn new(program: &Path) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "the conformance suite starts a privileged helper and looks into it: run it as root"
        );
        Self {
            program: program.to_owned(),
            directory: tempfile::Builder::new().prefix("pr-helper-").tempdir().expect("a temporary directory"),
            arguments: Vec::new(),
            environment: Vec::new(),
            shell: String::new(),
            redirections: String::new(),
            stdin: None,
            stderr: None,
            supervised: None,
        }
    }

    /// The directory of this start.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Another program: a copy or another name of the helper.
    pub fn program(mut self, program: &Path) -> Self {
        self.program = program.to_owned();
        self
    }

    /// One argument more.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// More arguments.
    pub fn args<S: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// `-k` with a socket in the directory.
    pub fn socket(self) -> Self {
        let path = self.path(SOCKET);
        self.arg("-k").arg(path)
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// Shell commands that run first, in the process that becomes the helper: `umask 022`, `ulimit -n 64`,
    /// `export LISTEN_PID=$$`.
    pub fn shell(mut self, commands: &str) -> Self {
        self.shell.push_str(commands);
        self.shell.push('\n');
        self
    }

    /// Shell redirections of the helper: `3<&0 0</dev/null`.
    pub fn redirect(mut self, redirections: &str) -> Self {
        self.redirections.push(' ');
        self.redirections.push_str(redirections);
        self
    }

    /// What standard input is, `/dev/null` otherwise.
    pub fn stdin(mut self, file: impl Into<OwnedFd>) -> Self {
        self.stdin = Some(file.into());
        self
    }

    /// What standard error is, a file otherwise.
    pub fn stderr(mut self, file: impl Into<OwnedFd>) -> Self {
        self.stderr = Some(file.into());
        self
    }

    /// Puts a [`Supervisor`](crate::Supervisor) between the helper and SG_IO.
    pub fn supervised(self) -> Self {
        self.stopping_at(&[])
    }

    /// Puts a [`Supervisor`](crate::Supervisor) between the helper and SG_IO and these system calls too. Not those that
    /// the launcher itself needs to become the helper.
    pub fn stopping_at(mut self, system_calls: &[&'static str]) -> Self {
        self.supervised.get_or_insert_default().extend(system_calls);
        self
    }

    /// Passes a listening socket as systemd does, as descriptor 3.
    pub fn activated_with(self, socket: impl Into<OwnedFd>) -> Self {
        self.shell("export LISTEN_PID=$$ LISTEN_FDS=1").stdin(socket).redirect("3<&0 0</dev/null")
    }

    /// Starts it and waits until it has ended.
    pub fn finish(self) -> Finished {
        self.start().finish()
    }

    /// Starts it, with a socket in its directory, and waits until it can be connected to.
    #[track_caller]
    pub fn serve(self) -> Helper {
        let mut helper = self.socket().start();
        helper.wait_until_served();
        helper
    }

    /// Starts it.
    ///
    /// # Panics
    ///
    /// When it cannot be.
    #[track_caller]
    pub fn start(self) -> Helper {
        let output =
            |name| OwnedFd::from(File::create(self.directory.path().join(name)).expect("a file for its output"));
        let (stdout, stderr) = (output(STDOUT), self.stderr.unwrap_or_else(|| output(STDERR)));
        let launch = self.supervised.map(|calls| Launch::new(self.directory.path(), &calls));
        let mut words: Vec<OsString> = Vec::new();
        if !self.shell.is_empty() || !self.redirections.is_empty() {
            let script = format!("{}exec \"$@\"{}", self.shell, self.redirections);
            words.extend(["/bin/sh", "-c", &script, "sh"].map(OsString::from));
        }
        if let Some(launch) = &launch {
            words.push(build_directory().join("supervised").into());
            words.extend(launch.arguments());
        }
        words.push(self.program.into());
        words.extend(self.arguments);

        let mark = Mark::new();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        let (name, value) = mark.variable();
        command
            .envs(self.environment)
            .env(name, value)
            .stdin(self.stdin.map_or_else(Stdio::null, Stdio::from))
            .stdout(stdout)
            .stderr(stderr);
        let child = command.spawn().unwrap_or_else(|error| panic!("{words:?} cannot be started: {error}"));
        let mut helper = Helper::new(child, self.directory, mark);
        if let Some(launch) = launch {
            helper.supervise(launch);
        }
        helper
    }
}
