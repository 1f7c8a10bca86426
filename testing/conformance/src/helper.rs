//! A helper that runs, and is killed with everything it became when the test is over.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::client::{Client, in_cdb};
use crate::device::null;
use crate::process::{Mark, Process};
use crate::start::Finished;
use crate::supervisor::{Launch, Supervisor};
use crate::wait::{eventually, holds_for};

pub(crate) const SOCKET: &str = "socket";
pub(crate) const STDOUT: &str = "stdout";
pub(crate) const STDERR: &str = "stderr";

/// A helper that was started.
#[derive(Debug)]
pub struct Helper {
    child: Child,
    directory: Option<TempDir>,
    mark: Mark,
    supervisor: Option<Supervisor>,
}

impl Helper {
    pub(crate) fn new(child: Child, directory: TempDir, mark: Mark) -> Self {
        Self { child, directory: Some(directory), mark, supervisor: None }
    }

    #[track_caller]
    pub(crate) fn supervise(&mut self, launch: Launch) {
        self.supervisor = Some(eventually("the launcher hands over its filter", || {
            // In this order: it may hand it over and end at once.
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
        // It speaks once its start is over, privileges dropped.
        client.read::<4>();
    }

    /// The directory of its files.
    pub fn directory(&self) -> &Path {
        self.directory.as_ref().expect("kept until it has ended").path()
    }

    /// A path in it.
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

    /// Connections that say nothing, as many of `count` as are accepted or queued.
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

    /// A connection on which a request was served; until there is room for it, others may be closed.
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
        Process::new(self.child.id())
    }

    /// Everything that it became, with `-d` the daemon and not the process that was started.
    pub fn processes(&self) -> Vec<Process> {
        self.mark.processes()
    }

    /// What stands between it and the kernel.
    ///
    /// # Panics
    ///
    /// When it was not started [`supervised`](crate::Start::supervised).
    pub fn supervisor(&self) -> &Supervisor {
        self.supervisor.as_ref().expect("started under supervision")
    }

    /// What it has written to standard error so far.
    pub fn stderr(&self) -> String {
        fs::read_to_string(self.path(STDERR)).unwrap_or_default()
    }

    /// What it has written to standard output so far.
    pub fn stdout(&self) -> String {
        fs::read_to_string(self.path(STDOUT)).unwrap_or_default()
    }

    /// Waits until it has written `text` to standard error.
    #[track_caller]
    pub fn says(&self, text: &str) {
        eventually(&format!("standard error has {text:?}, not {:?}", self.stderr()), || {
            self.stderr().contains(text).then_some(())
        });
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        self.process().signal(signal);
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("its status")
    }

    /// Waits until it has ended.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        eventually("the helper ends", || self.ended())
    }

    /// Waits until it has ended, for what it leaves.
    #[track_caller]
    pub fn finish(mut self) -> Finished {
        let status = self.wait();
        let (stdout, stderr) = (self.stdout(), self.stderr());
        self.kill();
        Finished { status, stdout, stderr, directory: self.directory.take().expect("kept until now") }
    }

    /// SIGTERM, and what is left.
    #[track_caller]
    pub fn terminate(self) -> Finished {
        self.signal(Signal::TERM);
        self.finish()
    }

    /// Kills everything that it became.
    fn kill(&mut self) {
        // Before its directory goes: the supervisor's end frees system calls that it holds.
        self.supervisor = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
        for process in self.mark.processes() {
            process.signal(Signal::KILL);
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.kill();
    }
}
