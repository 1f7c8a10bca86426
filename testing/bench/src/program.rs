//! Programs under measurement: started on a socket of their own, looked into, ended.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// From a program's start until it listens, and from SIGTERM to its end.
const START_STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Longer than any figure takes. A helper that lives so long has stopped answering; it is killed, so that its client
/// wakes.
const LONGEST_LIFE: Duration = Duration::from_secs(300);

/// The arguments of a program in this directory.
pub(crate) type Arguments = Box<dyn Fn(&Path) -> Vec<OsString>>;

/// Something that serves the protocol on the socket [`SOCKET`] of a directory.
pub(crate) struct Program {
    pub(crate) path: PathBuf,
    /// Its arguments in this directory.
    pub(crate) arguments: Arguments,
    /// Whether the directory has to be on a disk.
    pub(crate) on_disk: bool,
}

/// The file name of the socket.
pub(crate) const SOCKET: &str = "socket";

/// An option, and the socket as its value.
pub(crate) fn option_and_socket(option: &str, directory: &Path) -> Vec<OsString> {
    vec![option.into(), directory.join(SOCKET).into()]
}

/// A program that listens.
pub(crate) struct Running {
    child: Child,
    directory: TempDir,
    watchdog: Option<(Sender<()>, JoinHandle<()>)>,
}

/// When a program was ready, counted from before the fork.
pub(crate) struct Started {
    pub(crate) running: Running,
    /// The connection that succeeded first.
    pub(crate) socket: UnixStream,
    /// From before the fork to that connection.
    pub(crate) listening: Duration,
}

impl Program {
    /// Starts it and waits until it listens.
    pub(crate) fn start(&self) -> Result<Running> {
        let mut running = self.start_timed()?.running;
        let pid = running.pid();
        let (sender, receiver) = mpsc::channel();
        let watchdog = thread::spawn(move || {
            if receiver.recv_timeout(LONGEST_LIFE) == Err(RecvTimeoutError::Timeout) {
                let _ = kill_process(pid, Signal::KILL);
            }
        });
        running.watchdog = Some((sender, watchdog));
        Ok(running)
    }

    /// Starts it, trying to connect all the time until that succeeds.
    pub(crate) fn start_timed(&self) -> Result<Started> {
        // Temporary files may be in memory; this program is on a disk.
        let directory = match self.on_disk {
            false => tempfile::tempdir()?,
            true => tempfile::tempdir_in(std::env::current_exe()?.parent().context("where this program is")?)?,
        };
        let path = directory.path().join(SOCKET);
        let log = File::create(directory.path().join("log"))?;
        let mut command = Command::new(&self.path);
        command.args((self.arguments)(directory.path())).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let start = Instant::now();
        let child = command.spawn().with_context(|| format!("start {}", self.path.display()))?;
        let mut running = Running { child, directory, watchdog: None };
        loop {
            if let Ok(socket) = UnixStream::connect(&path) {
                return Ok(Started { running, socket, listening: start.elapsed() });
            }
            if start.elapsed() > START_STOP_TIMEOUT {
                bail!("{} does not listen after {START_STOP_TIMEOUT:?}: {}", self.path.display(), running.log());
            }
            if let Some(status) = running.child.try_wait()? {
                bail!("{} ended with {status} instead of listening: {}", self.path.display(), running.log());
            }
        }
    }
}

impl Running {
    /// The path of its socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.path(SOCKET)
    }

    /// A path in its directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The program's standard error so far.
    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default().trim().to_string()
    }

    /// The id of its process.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Its resident memory, once two measurements in a row are equal; in KiB.
    pub(crate) fn settled_resident(&self) -> Result<f64> {
        self.settled("Rss:")
    }

    /// Its proportional set size, once two measurements in a row are equal; in KiB.
    pub(crate) fn settled_proportional(&self) -> Result<f64> {
        self.settled("Pss:")
    }

    /// Its proportional set size, in KiB.
    pub(crate) fn proportional(&self) -> Result<f64> {
        memory(self.pid().as_raw_pid(), "Pss:")
    }

    /// The greatest resident memory since the last [`reset_peak`](Self::reset_peak), in KiB.
    pub(crate) fn peak(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid().as_raw_pid()))?;
        parse_memory(&status, "VmHWM:").context("a process without VmHWM")
    }

    /// Begins to measure [`peak`](Self::peak) (proc_pid_clear_refs(5)).
    pub(crate) fn reset_peak(&self) -> Result<()> {
        Ok(fs::write(format!("/proc/{}/clear_refs", self.pid().as_raw_pid()), "5")?)
    }

    /// The processor time that it has used, in clock ticks.
    pub(crate) fn processor_time(&self) -> Result<u64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid().as_raw_pid()))?;
        // The name of the program may have spaces. The times are fields 14 and 15 (proc_pid_stat(5)); 3 comes after the name.
        let fields = stat.rsplit_once(')').context("no name in stat")?.1;
        fields.split_whitespace().skip(11).take(2).try_fold(0, |sum, ticks| Ok(sum + ticks.parse::<u64>()?))
    }

    fn settled(&self, field: &str) -> Result<f64> {
        let pid = self.pid().as_raw_pid();
        let mut before = memory(pid, field)?;
        for _ in 0..50 {
            thread::sleep(Duration::from_millis(200));
            let now = memory(pid, field)?;
            if now == before {
                return Ok(now);
            }
            before = now;
        }
        bail!("the memory of a process that does nothing does not settle")
    }

    /// The resident memory of the processes that it started, in KiB; what they share with it is counted again.
    pub(crate) fn resident_of_children(&self) -> Result<f64> {
        let pid = self.pid().as_raw_pid();
        let mut sum = 0.0;
        for thread in fs::read_dir(format!("/proc/{pid}/task")).context("list the threads of a helper")? {
            let children =
                fs::read_to_string(thread?.path().join("children")).context("list the children of a helper")?;
            for child in children.split_ascii_whitespace() {
                sum += memory(child.parse()?, "Rss:")?;
            }
        }
        Ok(sum)
    }
}

/// A field of the memory of a process, in KiB. The kernel walks its page tables: the counters of /proc/PID/status are rough.
pub(crate) fn memory(pid: i32, field: &str) -> Result<f64> {
    let path = PathBuf::from(format!("/proc/{pid}/smaps_rollup"));
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    parse_memory(&text, field).with_context(|| format!("{} has no field {field}", path.display()))
}

fn parse_memory(smaps: &str, field: &str) -> Option<f64> {
    smaps.lines().find_map(|line| line.strip_prefix(field)?.trim().strip_suffix(" kB")?.parse().ok())
}

impl Drop for Running {
    /// Asks it to end, and kills it when it does not: it must not outlive the bench.
    fn drop(&mut self) {
        if let Some((sender, watchdog)) = self.watchdog.take() {
            // The id is the helper's until it has been waited for, so the watchdog goes first.
            drop(sender);
            let _ = watchdog.join();
        }
        let _ = kill_process(self.pid(), Signal::TERM);
        let deadline = Instant::now() + START_STOP_TIMEOUT;
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_micros(200));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The first line that a program prints for `--version`.
pub(crate) fn version(path: &Path) -> Result<String> {
    let output = Command::new(path).arg("--version").output().with_context(|| format!("run {}", path.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().next().unwrap_or_default();
    // The line begins with argv[0]; the report leaves out the program's path.
    Ok(line.strip_prefix(&format!("{} ", path.display())).unwrap_or(line).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_read() {
        let text =
            "55a0-7ffd ---p 00000000 00:00 0   [rollup]\nRss:                6384 kB\nPss:                 900 kB\n";
        assert_eq!(parse_memory(text, "Rss:"), Some(6384.0));
        assert_eq!(parse_memory(text, "Pss:"), Some(900.0));
        assert_eq!(parse_memory("Pss: 1 kB", "Rss:"), None);
        assert!(memory(std::process::id().cast_signed(), "Pss:").unwrap() > 0.0);
    }

    #[test]
    fn a_program_that_ends_is_an_error_with_its_words() {
        let program = Program {
            path: "/bin/sh".into(),
            arguments: Box::new(|_| vec!["-c".into(), "echo no good >&2; exit 3".into()]),
            on_disk: false,
        };
        let error = program.start().err().expect("it cannot listen").to_string();
        assert!(error.contains("no good") && error.contains('3'), "{error}");
    }
}
