//! Servers as real processes, clients over real sockets, and short words for both.
#![allow(dead_code, reason = "each test program uses a part")]

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use scsi_pr::{
    CommandBuf, Completion, FullStatus, Key, Keys, MAX_TRANSFER, PrManager, Reservation, ReserveIn, ReserveInAction,
    ReserveOut, ScopeType, Status, Type,
};
use scsi_pr_helper::HelperClient;
use scsi_pr_helper::client::Config;
use tempfile::TempDir;

/// The program under test.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_scsi-pr");

/// Far more than anything here takes on a machine that is busy with other things.
pub(crate) const TEST_TIMEOUT: Duration = Duration::from_secs(120);

/// Waits until `condition` gives something.
#[track_caller]
pub(crate) fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < TEST_TIMEOUT, "waited in vain: {what}");
        sleep(Duration::from_millis(2));
    }
}

/// A directory with a disk in it.
pub(crate) struct Place(TempDir);

impl Place {
    pub(crate) fn new() -> Self {
        let place = Self(tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o755)).tempdir().unwrap());
        File::create(place.path("disk.img")).unwrap().set_len(1 << 20).unwrap();
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn sqlite(&self) -> String {
        format!("sqlite:{}", self.path("reservations.db").display())
    }

    /// The program, told to serve, with nothing inherited that could change what it does.
    pub(crate) fn serve(&self, store: &str) -> Start {
        let mut command = Command::new(PROGRAM);
        command.arg("serve").arg(format!("--store={store}")).stdin(Stdio::null());
        for name in ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET"] {
            command.env_remove(name);
        }
        Start { command, sockets: Vec::new(), log: self.path(&format!("log.{}", unique())) }
    }

    /// The disk, opened as a virtual machine has it.
    pub(crate) fn disk(&self) -> File {
        File::options().read(true).write(true).open(self.path("disk.img")).unwrap()
    }
}

fn unique() -> u32 {
    use std::sync::atomic::{AtomicU32, Ordering};
    static COUNT: AtomicU32 = AtomicU32::new(0);
    COUNT.fetch_add(1, Ordering::Relaxed)
}

/// A start that is being prepared.
pub(crate) struct Start {
    command: Command,
    sockets: Vec<PathBuf>,
    log: PathBuf,
}

impl Start {
    pub(crate) fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.command.arg(argument.into());
        self
    }

    pub(crate) fn listen(mut self, initiator: &str, socket: PathBuf) -> Self {
        self.command.arg(format!("--listen={initiator}={}", socket.display()));
        self.sockets.push(socket);
        self
    }

    /// Through a shell that does something first; `"$@"` is the program and its arguments.
    pub(crate) fn by_shell(mut self, script: &str) -> Self {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", script, "sh"]).arg(self.command.get_program()).args(self.command.get_args());
        for (name, value) in self.command.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        shell.stdin(Stdio::null());
        self.command = shell;
        self
    }

    /// Sets the standard input.
    pub(crate) fn stdin(mut self, input: impl Into<Stdio>) -> Self {
        self.command.stdin(input);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.command.env(name, value.into());
        self
    }

    /// Starts it and waits until it serves on all of its sockets.
    #[track_caller]
    pub(crate) fn start(mut self) -> Server {
        let process = self.spawn();
        let mut server = Server { process, start: self };
        server.wait_until_it_serves();
        server
    }

    fn spawn(&mut self) -> Child {
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        self.command.stderr(log).spawn().unwrap()
    }

    /// The exit code and what was printed, of one that ends by itself.
    #[track_caller]
    pub(crate) fn outcome(mut self) -> (Option<i32>, String) {
        let mut process = self.command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let status = ended(&mut process);
        let mut said = String::new();
        process.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (status.code(), said)
    }
}

/// A running server, which is killed if the test does not end it.
pub(crate) struct Server {
    pub(crate) process: Child,
    start: Start,
}

impl Server {
    /// Until every socket greets who connects: before, another one may just have been removed as left over.
    #[track_caller]
    fn wait_until_it_serves(&mut self) {
        for socket in self.start.sockets.clone() {
            wait_for("the server to serve", || {
                if let Some(status) = self.process.try_wait().unwrap() {
                    panic!("the server ended: {status}: {}", self.log());
                }
                HelperClient::new(&socket).connect().ok()
            });
        }
    }

    /// Its log.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.start.log).unwrap_or_default()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
    }

    /// Kills it, and leaves everything as it is then.
    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Kills it and starts it again.
    #[track_caller]
    pub(crate) fn restart(&mut self) {
        self.kill();
        self.process = self.start.spawn();
        self.wait_until_it_serves();
    }

    /// Ends it as systemd would.
    #[track_caller]
    pub(crate) fn stop(mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        ended(&mut self.process)
    }

    /// A field of `/proc/PID/status`.
    pub(crate) fn status(&self, field: &str) -> String {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.unwrap().trim().to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Waits for the end of a process.
#[track_caller]
pub(crate) fn ended(process: &mut Child) -> ExitStatus {
    wait_for("the process to end", || process.try_wait().unwrap())
}

/// A virtual machine: its connection and its disk.
pub(crate) struct Machine {
    client: HelperClient,
    disk: File,
}

impl Machine {
    /// That has this disk and comes to this socket.
    pub(crate) fn with(disk: File, socket: &Path) -> Self {
        let config =
            Config { attempts: 6000, pause: Duration::from_millis(10), turn: TEST_TIMEOUT, ..Config::default() };
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
