//! Starting the helper, and looking at what it does from outside. These tests have to be run as root, as the helper is:
//! for anybody else it does not start.
#![allow(dead_code, reason = "each test program uses a part")]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// The program under test.
pub(crate) const HELPER: &str = env!("CARGO_BIN_EXE_qemu-pr-helper");

/// Far more than anything here takes on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `condition` gives something.
#[track_caller]
pub(crate) fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "waited in vain: {what}");
        sleep(Duration::from_millis(2));
    }
}

/// A directory of the test's own that everybody may pass through.
pub(crate) fn directory() -> TempDir {
    tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o755)).tempdir().unwrap()
}

/// The helper as it is to be run, with nothing inherited that could change what it does.
pub(crate) fn helper<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(HELPER);
    command.args(arguments).stdin(Stdio::null());
    for name in ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET"] {
        command.env_remove(name);
    }
    command
}

/// A running helper, which is killed if the test does not end it.
pub(crate) struct Running {
    pub(crate) process: Child,
    pub(crate) socket: PathBuf,
}

impl Running {
    /// Starts `command` and waits until its socket can be connected to.
    #[track_caller]
    pub(crate) fn start(command: &mut Command, socket: &Path) -> Self {
        let mut running = Self { process: command.spawn().unwrap(), socket: socket.to_owned() };
        wait_for("the helper to listen", || {
            if let Some(status) = running.process.try_wait().unwrap() {
                panic!("the helper ended: {status}");
            }
            UnixStream::connect(socket).ok()
        });
        // Its start goes on after that; once it answers it is over.
        handshake(socket);
        running
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
    }

    /// Sends `signal` and waits for the end.
    #[track_caller]
    pub(crate) fn end_by(mut self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        ended(&mut self.process)
    }

    /// Its monitor.
    pub(crate) fn monitor(&self) -> Option<u32> {
        // Who starts a process goes on a moment before that has a command line.
        wait_for("every child to be somebody", || {
            let named = |pid| fs::read(format!("/proc/{pid}/cmdline")).map_or(true, |line: Vec<u8>| !line.is_empty());
            children(self.pid()).into_iter().all(named).then_some(())
        });
        processes_with(&self.socket).into_iter().find(|pid| {
            fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(b"qemu-pr-helper-monitor\0"))
        })
    }
}

impl Drop for Running {
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

/// Connects and reads what the helper offers: after that it serves.
#[track_caller]
pub(crate) fn handshake(socket: &Path) -> UnixStream {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut features = [0xff; 4];
    stream.read_exact(&mut features).unwrap();
    assert_eq!(features, [0; 4]);
    stream
}

/// The exit code and what was printed, of a helper that ends by itself.
#[track_caller]
pub(crate) fn outcome(command: &mut Command) -> (Option<i32>, String, String) {
    let mut process = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let status = ended(&mut process);
    let (mut out, mut err) = (String::new(), String::new());
    process.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    process.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    (status.code(), out, err)
}

/// The live children of a process.
pub(crate) fn children(process: u32) -> Vec<u32> {
    let all = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    all.filter(|pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // After the name, which may hold anything: state, parent.
        let words = stat.rsplit_once(") ").map(|(_, words)| words.split(' ').collect::<Vec<_>>()).unwrap_or_default();
        matches!(words[..], [state, parent, ..] if state != "Z" && parent == process.to_string())
    })
    .collect()
}

/// The live processes that have `path` on their command line.
pub(crate) fn processes_with(path: &Path) -> Vec<u32> {
    let path = path.as_os_str().as_encoded_bytes();
    let numbers = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    numbers
        .filter(|pid: &u32| {
            // A zombie has no command line.
            fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| line.split(|byte| *byte == 0).any(|argument| argument == path))
        })
        .collect()
}

/// The fields of `/proc/PID/status` of every thread.
pub(crate) fn threads(pid: u32) -> Vec<BTreeMap<String, String>> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let status = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("status")).ok());
    status
        .map(|text| {
            let fields = text.lines().filter_map(|line| line.split_once(':'));
            fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
        })
        .collect()
}
