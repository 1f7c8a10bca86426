//! A helper that runs. The end of the value kills it with everything that it became.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::Signal;
use tempfile::TempDir;
use testing_support::{Process, Program, eventually, holds_for, null};

use crate::client::{Client, in_cdb};
use crate::supervisor::{Launch, Supervisor};

pub(crate) const SOCKET: &str = "socket";

/// A helper that was started.
#[derive(Debug)]
pub struct Helper {
    program: Program,
    directory: Option<TempDir>,
    supervisor: Option<Supervisor>,
}

impl Helper {
    pub(crate) fn new(program: Program, directory: TempDir) -> Self {
        Self { program, directory: Some(directory), supervisor: None }
    }

    #[track_caller]
    pub(crate) fn supervise(&mut self, launch: Launch) {
        self.supervisor = Some(eventually("the launcher hands over its filter", || {
            // In this order, because the launcher may hand over its filter and end at once.
            let ended = self.ended();
            let supervisor = launch.accept();
            assert!(supervisor.is_some() || ended.is_none(), "the launcher ended: {ended:?}, {}", self.stderr());
            supervisor
        }));
    }

    #[track_caller]
    pub(crate) fn wait_until_served(&mut self) {
        let client = eventually("the helper's socket can be connected to", || {
            let ended = self.ended();
            assert!(ended.is_none(), "the helper ended: {ended:?}, {}", self.stderr());
            Client::try_connect(&self.socket()).ok()
        });
        // The helper sends its features once it has dropped its privileges.
        client.read::<4>();
    }

    /// The directory of its start.
    pub fn directory(&self) -> &Path {
        self.directory.as_ref().expect("kept until it has ended").path()
    }

    /// A path in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory().join(name)
    }

    /// The path of its socket.
    pub fn socket(&self) -> PathBuf {
        self.path(SOCKET)
    }

    /// A connection whose handshake is done.
    #[track_caller]
    pub fn connect(&self) -> Client {
        let client = self.connect_silently();
        client.handshake();
        client
    }

    /// A connection on which nothing was read or sent.
    #[track_caller]
    pub fn connect_silently(&self) -> Client {
        Client::try_connect(&self.socket()).unwrap_or_else(|error| panic!("no connection: {error}: {}", self.stderr()))
    }

    /// Silent connections: as many of `count` as are accepted or queued.
    pub fn crowd(&self, count: usize) -> Vec<OwnedFd> {
        let address = SocketAddrUnix::new(self.socket()).expect("the path of a socket");
        let connect = || {
            let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::NONBLOCK, None)?;
            connect(&socket, &address).map(|()| socket)
        };
        let mut crowd = Vec::new();
        // A queue that is full may have room a moment later.
        while crowd.len() < count
            && !holds_for(Duration::from_millis(100), || connect().map(|socket| crowd.push(socket)).is_err())
        {}
        crowd
    }

    /// A connection on which a request was served. Until the helper has room for it, it may close others.
    #[track_caller]
    pub fn connect_once_there_is_room(&self) -> Client {
        eventually("a connection is served", || {
            let client = Client::try_connect(&self.socket()).ok()?;
            client.try_handshake().ok()?;
            client.try_send_with(&in_cdb(0, 8), &[null().as_fd()]).ok()?;
            client.try_answer().ok().map(|_| client)
        })
    }

    /// The process that was started (not a daemon that it left).
    pub fn process(&self) -> Process {
        self.program.process()
    }

    /// Every process that it became: with `-d` the daemon, and not the process that was started.
    pub fn processes(&self) -> Vec<Process> {
        self.program.processes()
    }

    /// The supervisor between the helper and the kernel.
    ///
    /// # Panics
    ///
    /// When it was not started [`supervised`](crate::Start::supervised).
    pub fn supervisor(&self) -> &Supervisor {
        self.supervisor.as_ref().expect("started under supervision")
    }

    /// Everything so far on standard error.
    pub fn stderr(&self) -> String {
        self.program.stderr()
    }

    /// Everything so far on standard output.
    pub fn stdout(&self) -> String {
        self.program.stdout()
    }

    /// Waits until it has written `text` to standard error.
    #[track_caller]
    pub fn says(&self, text: &str) {
        self.program.wait_for_stderr(text);
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        self.process().signal(signal);
    }

    /// The exit status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.program.try_wait()
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        self.program.wait()
    }

    /// Waits for its end, and returns what it leaves.
    #[track_caller]
    pub fn finish(mut self) -> Finished {
        let status = self.wait();
        let (stdout, stderr) = (self.stdout(), self.stderr());
        self.kill();
        Finished { status, stdout, stderr, directory: self.directory.take().expect("kept until now") }
    }

    /// Sends SIGTERM, waits for its end, and returns what it leaves.
    #[track_caller]
    pub fn terminate(self) -> Finished {
        self.signal(Signal::TERM);
        self.finish()
    }

    /// Kills every process that it became.
    fn kill(&mut self) {
        // The end of the supervisor frees the system calls that it holds, which a killed process may wait for.
        self.supervisor = None;
        self.program.kill_all();
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The results of a helper that has ended.
#[derive(Debug)]
pub struct Finished {
    /// The exit status.
    pub status: ExitStatus,
    /// Everything on standard output.
    pub stdout: String,
    /// Everything on standard error.
    pub stderr: String,
    /// The directory of the start.
    pub directory: TempDir,
}

impl Finished {
    /// The exit code.
    ///
    /// # Panics
    ///
    /// When a signal ended the helper.
    #[track_caller]
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| panic!("ended by signal {:?}: {}", self.status.signal(), self.stderr))
    }
}
