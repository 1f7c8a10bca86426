//! Servers as real processes, clients over real sockets, and short words for both.
#![allow(dead_code, reason = "each test program uses a part")]

pub(crate) mod admin;
pub(crate) mod disk;

pub(crate) mod flood;

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::Signal;
use scsi_pr::{
    CommandBuf, Completion, FullStatus, Key, Keys, PrManager, Reservation, ReserveIn, ReserveInAction, ReserveOut,
    ScopeType, Status, Type,
};
use scsi_pr_helper::client::Config;
use scsi_pr_helper::{HelperClient, MAX_TRANSFER};
use tempfile::TempDir;
use testing_support::{DEADLINE, Launcher, Program};

/// The program under test.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_scsi-pr");

/// A directory with a disk in it.
pub(crate) struct Place(TempDir);

impl Place {
    pub(crate) fn new() -> Self {
        let place = Self(testing_support::directory());
        File::create(place.path("disk.img")).unwrap().set_len(1 << 20).unwrap();
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn sqlite(&self) -> String {
        format!("sqlite:{}", self.path("reservations.db").display())
    }

    /// `scsi-pr serve` with this store.
    pub(crate) fn serve(&self, store: &str) -> Start {
        let mut launcher = Launcher::new(PROGRAM);
        launcher.arg("serve").arg(format!("--store={store}"));
        Start { launcher, sockets: Vec::new() }
    }

    /// The disk, opened as a virtual machine has it.
    pub(crate) fn disk(&self) -> File {
        File::options().read(true).write(true).open(self.path("disk.img")).unwrap()
    }
}

/// A start that is being prepared.
pub(crate) struct Start {
    launcher: Launcher,
    sockets: Vec<PathBuf>,
}

impl Start {
    pub(crate) fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.launcher.arg(argument.into());
        self
    }

    pub(crate) fn listen(mut self, initiator: &str, socket: PathBuf) -> Self {
        self.launcher.arg(format!("--listen={initiator}={}", socket.display()));
        self.sockets.push(socket);
        self
    }

    /// Through a shell that does something first; `"$@"` is the program and its arguments.
    pub(crate) fn by_shell(mut self, script: &str) -> Self {
        self.launcher.wrapped_by(["/bin/sh", "-c", script, "sh"]);
        self
    }

    pub(crate) fn stdin(mut self, input: impl Into<OwnedFd>) -> Self {
        self.launcher.stdin(input);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.launcher.env(name, value.into());
        self
    }

    /// Starts the server and waits until it serves on all of its sockets.
    #[track_caller]
    pub(crate) fn start(mut self) -> Server {
        let mut server = Server { process: self.launcher.spawn(), sockets: self.sockets };
        server.wait_until_served();
        server
    }

    /// The exit code and standard error of a server that ends by itself.
    #[track_caller]
    pub(crate) fn outcome(mut self) -> (Option<i32>, String) {
        let (code, _, stderr) = self.launcher.outcome();
        (code, stderr)
    }
}

/// A server, which is killed if the test does not end it.
pub(crate) struct Server {
    pub(crate) process: Program,
    sockets: Vec<PathBuf>,
}

impl Server {
    #[track_caller]
    fn wait_until_served(&mut self) {
        self.sockets.iter().for_each(|socket| self.process.wait_until_served(socket));
    }

    /// Everything on standard error.
    pub(crate) fn log(&self) -> String {
        self.process.stderr()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Kills the server, and leaves everything as it is then.
    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// Kills the server and starts it again.
    #[track_caller]
    pub(crate) fn restart(&mut self) {
        self.process.restart();
        self.wait_until_served();
    }

    /// Ends the server as systemd does.
    #[track_caller]
    pub(crate) fn stop(mut self) -> ExitStatus {
        self.process.stop()
    }

    /// A field of `/proc/PID/status`.
    pub(crate) fn status(&self, field: &str) -> String {
        self.process.process().status()[field].clone()
    }
}

/// A virtual machine: its connection and its disk.
pub(crate) struct Machine {
    client: HelperClient,
    disk: File,
}

impl Machine {
    /// That has this disk and comes to this socket.
    pub(crate) fn with(disk: File, socket: &Path) -> Self {
        let config = Config::default().with_attempts(6000).with_pause(Duration::from_millis(10)).with_turn(DEADLINE);
        Self { client: HelperClient::new(socket).with_config(config), disk }
    }

    pub(crate) fn new(place: &Place, socket: &Path) -> Self {
        Self::with(place.disk(), socket)
    }

    /// The answer, or that there is none.
    pub(crate) fn try_out(&self, request: &ReserveOut) -> Result<Completion, scsi_pr::Error> {
        self.client.execute(self.disk.as_fd(), request.encode().unwrap().command())
    }

    /// Any command.
    #[track_caller]
    pub(crate) fn run(&self, command: &CommandBuf) -> Completion {
        self.client.execute(self.disk.as_fd(), command.command()).unwrap()
    }

    #[track_caller]
    pub(crate) fn out(&self, request: &ReserveOut) -> Completion {
        self.try_out(request).unwrap()
    }

    #[track_caller]
    pub(crate) fn read(&self, action: ReserveInAction) -> Completion {
        let command = ReserveIn::new(action, MAX_TRANSFER).encode();
        self.client.execute(self.disk.as_fd(), command.command()).unwrap()
    }

    #[track_caller]
    fn data(&self, action: ReserveInAction) -> Vec<u8> {
        match self.read(action) {
            Completion::Good(data) => data,
            other => panic!("{action}: {other}"),
        }
    }

    #[track_caller]
    pub(crate) fn keys(&self) -> Keys {
        Keys::parse(&self.data(ReserveInAction::ReadKeys)).unwrap().value
    }

    /// The key of the holder.
    #[track_caller]
    pub(crate) fn holder(&self) -> Option<u64> {
        let reservation = Reservation::parse(&self.data(ReserveInAction::ReadReservation)).unwrap();
        reservation.value.held.map(|held| held.key.0)
    }

    /// The names and keys of who is registered.
    #[track_caller]
    pub(crate) fn registrants(&self) -> Vec<(String, u64)> {
        let status = FullStatus::parse(&self.data(ReserveInAction::ReadFullStatus)).unwrap().value;
        let registrants = status.descriptors.iter();
        registrants.map(|one| (one.transport_id().unwrap().to_string(), one.key.0)).collect()
    }
}

pub(crate) fn good() -> Completion {
    Completion::Good(Vec::new())
}

pub(crate) fn conflict() -> Completion {
    Completion::Status(Status::RESERVATION_CONFLICT)
}

pub(crate) fn register(from: u64, to: u64) -> ReserveOut {
    ReserveOut::Register {
        key: Key(from),
        service_action_key: Key(to),
        initiator_ports: None,
        all_tg_pt: false,
        aptpl: false,
    }
}

pub(crate) fn reserve(key: u64) -> ReserveOut {
    ReserveOut::Reserve { key: Key(key), reservation_type: Type::WriteExclusive }
}

pub(crate) fn release(key: u64) -> ReserveOut {
    ReserveOut::Release { key: Key(key), reservation_type: Type::WriteExclusive }
}

pub(crate) fn preempt(key: u64, victim: u64) -> ReserveOut {
    ReserveOut::Preempt {
        key: Key(key),
        service_action_key: Key(victim),
        scope_type: ScopeType::from(Type::WriteExclusive),
    }
}
