//! What /proc tells of a process.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};

/// An environment variable by which everything that a helper became can be found again, a daemon too.
#[derive(Debug)]
pub(crate) struct Mark(String);

impl Mark {
    const NAME: &str = "PR_HELPER_CONFORMANCE";

    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        Self(format!("{}.{}.", process::id(), COUNT.fetch_add(1, Ordering::Relaxed)))
    }

    pub(crate) fn variable(&self) -> (&'static str, &str) {
        (Self::NAME, &self.0)
    }

    /// The processes that carry the mark.
    pub(crate) fn processes(&self) -> Vec<Process> {
        let wanted = format!("{}={}", Self::NAME, self.0).into_bytes();
        all()
            .filter(|process| {
                fs::read(process.path("environ"))
                    .is_ok_and(|environment| environment.split(|byte| *byte == 0).any(|variable| variable == wanted))
            })
            .collect()
    }
}

/// A lock over a file (fcntl(2)) that excludes others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lock {
    /// From which byte on.
    pub start: i64,
    /// How many bytes; 0: to the end, wherever it is.
    pub length: i64,
    /// Whose it is: a process, or with -1 an open file description.
    pub owner: i32,
}

/// The lock that keeps others from locking `file`.
pub fn lock_over(file: &Path) -> Option<Lock> {
    let file = File::options().read(true).write(true).open(file).expect("a file to be locked");
    let mut lock =
        libc::flock { l_type: libc::F_WRLCK as i16, l_whence: libc::SEEK_SET as i16, l_start: 0, l_len: 0, l_pid: 0 };
    fcntl(&file, FcntlArg::F_GETLK(&mut lock)).expect("F_GETLK");
    let held = i32::from(lock.l_type) != libc::F_UNLCK;
    held.then_some(Lock { start: lock.l_start, length: lock.l_len, owner: lock.l_pid })
}

/// Every process there is.
fn all() -> impl Iterator<Item = Process> {
    fs::read_dir("/proc")
        .expect("/proc")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .map(Process)
}

/// A process, running or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process(u32);

impl Process {
    /// The process of this id.
    pub const fn new(pid: u32) -> Self {
        Self(pid)
    }

    /// Its id.
    pub const fn pid(self) -> u32 {
        self.0
    }

    fn path(self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.0))
    }

    /// Sends it a signal; a process that is gone does not mind.
    pub fn signal(self, signal: Signal) {
        let pid = i32::try_from(self.0).ok().and_then(Pid::from_raw).expect("a process id");
        let _ = kill_process(pid, signal);
    }

    /// Whether it runs: is there, and no zombie.
    pub fn is_running(self) -> bool {
        self.status().get("State").is_some_and(|state| !state.starts_with(['Z', 'X']))
    }

    /// The fields of /proc/PID/status; empty when it is gone.
    pub fn status(self) -> BTreeMap<String, String> {
        fields(self.path("status"))
    }

    /// The fields of /proc/PID/status for each of its threads.
    pub fn threads(self) -> Vec<BTreeMap<String, String>> {
        let Ok(tasks) = fs::read_dir(self.path("task")) else { return Vec::new() };
        tasks.flatten().map(|task| fields(task.path().join("status"))).filter(|fields| !fields.is_empty()).collect()
    }

    /// What its descriptors are open on.
    pub fn descriptors(self) -> BTreeMap<u32, PathBuf> {
        let Ok(entries) = fs::read_dir(self.path("fd")) else { return BTreeMap::new() };
        entries
            .flatten()
            .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, fs::read_link(entry.path()).ok()?)))
            .collect()
    }

    /// Lets it open so many descriptors more, and no others; says how many it has then.
    pub fn leave_room_for(self, descriptors: usize) -> usize {
        let open = self.descriptors();
        let limit = (0..).filter(|number| !open.contains_key(number)).nth(descriptors).map(u64::from);
        let pid = i32::try_from(self.0).ok().and_then(Pid::from_raw);
        prlimit(pid, Resource::Nofile, Rlimit { current: limit, maximum: limit }).expect("prlimit");
        open.len() + descriptors
    }

    /// Its resident memory in KiB.
    pub fn resident(self) -> u64 {
        let status = self.status();
        status.get("VmRSS").and_then(|field| field.split(' ').next()?.parse().ok()).unwrap_or(0)
    }

    /// The processor time it has used, in clock ticks (of 10 ms).
    pub fn processor_ticks(self) -> u64 {
        [13, 14].into_iter().filter_map(|index| self.stat(index)).map(u64::from).sum()
    }

    /// The session that it belongs to, by the id of its leader.
    pub fn session(self) -> Option<u32> {
        self.stat(5)
    }

    /// A field of /proc/PID/stat after the name, counted from 0 (proc(5) counts from 1).
    fn stat(self, index: usize) -> Option<u32> {
        let stat = fs::read_to_string(self.path("stat")).ok()?;
        // The name is the second field, in parentheses, and may hold anything.
        stat.rsplit(')').next()?.split_whitespace().nth(index - 2)?.parse().ok()
    }

    /// The processes that it started and that still run.
    pub fn children(self) -> Vec<Self> {
        let parent = self.0.to_string();
        all().filter(|process| process.status().get("PPid") == Some(&parent)).collect()
    }

    /// Where its working directory is.
    pub fn working_directory(self) -> Option<PathBuf> {
        fs::read_link(self.path("cwd")).ok()
    }
}

fn fields(path: PathBuf) -> BTreeMap<String, String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect()
}
