//! Facts from `/proc` about a process (proc(5)).

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};

/// A process, running or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process(u32);

impl Process {
    /// The process of this id.
    pub const fn new(pid: u32) -> Self {
        Self(pid)
    }

    /// Every process of the machine.
    pub fn all() -> impl Iterator<Item = Self> {
        let entries = fs::read_dir("/proc").expect("/proc");
        entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).map(Self)
    }

    /// The live processes that have `argument` on their command lines.
    pub fn with_argument(argument: impl AsRef<OsStr>) -> Vec<Self> {
        let argument = argument.as_ref();
        Self::all()
            .filter(|process| process.command_line().iter().any(|one| one.as_slice() == argument.as_bytes()))
            .collect()
    }

    /// The live processes whose environment has `name` with this value. Others than root see their own processes alone.
    pub fn with_variable(name: &str, value: &str) -> Vec<Self> {
        let wanted = format!("{name}={value}").into_bytes();
        Self::all()
            .filter(|process| {
                fs::read(process.path("environ"))
                    .is_ok_and(|environment| environment.split(|byte| *byte == 0).any(|variable| variable == wanted))
            })
            .collect()
    }

    /// Its id.
    pub const fn pid(self) -> u32 {
        self.0
    }

    /// A file of its directory in `/proc`.
    pub fn path(self, name: &str) -> PathBuf {
        Path::new("/proc").join(self.0.to_string()).join(name)
    }

    /// The arguments, the name of the program first. A zombie has none.
    pub fn command_line(self) -> Vec<Vec<u8>> {
        let line = fs::read(self.path("cmdline")).unwrap_or_default();
        let line = line.strip_suffix(&[0]).unwrap_or(&line);
        if line.is_empty() { Vec::new() } else { line.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect() }
    }

    /// Whether the first argument is `name`.
    pub fn is_named(self, name: &str) -> bool {
        self.command_line().first().is_some_and(|first| first == name.as_bytes())
    }

    fn raw(self) -> Option<Pid> {
        i32::try_from(self.0).ok().and_then(Pid::from_raw)
    }

    /// Sends it a signal. A process that has ended gets none.
    pub fn signal(self, signal: Signal) {
        let _ = kill_process(self.raw().expect("a process id"), signal);
    }

    /// Whether it runs: it exists and is no zombie.
    pub fn is_running(self) -> bool {
        self.status().get("State").is_some_and(|state| !state.starts_with(['Z', 'X']))
    }

    /// The fields of `/proc/PID/status`; none when it has ended.
    pub fn status(self) -> BTreeMap<String, String> {
        fields(&self.path("status"))
    }

    /// The fields of `/proc/PID/status` of each of its threads.
    pub fn threads(self) -> Vec<BTreeMap<String, String>> {
        let Ok(tasks) = fs::read_dir(self.path("task")) else { return Vec::new() };
        tasks.flatten().map(|task| fields(&task.path().join("status"))).filter(|fields| !fields.is_empty()).collect()
    }

    /// The files that its descriptors are open on.
    pub fn descriptors(self) -> BTreeMap<u32, PathBuf> {
        let Ok(entries) = fs::read_dir(self.path("fd")) else { return BTreeMap::new() };
        entries
            .flatten()
            .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, fs::read_link(entry.path()).ok()?)))
            .collect()
    }

    /// Lets it open `descriptors` descriptors more. Returns how many it has then.
    pub fn leave_room_for(self, descriptors: usize) -> usize {
        let open = self.descriptors();
        let limit = (0..).filter(|number| !open.contains_key(number)).nth(descriptors).map(u64::from);
        prlimit(self.raw(), Resource::Nofile, Rlimit { current: limit, maximum: limit }).expect("prlimit");
        open.len() + descriptors
    }

    /// Its resident memory in KiB (VmRSS).
    pub fn resident(self) -> u64 {
        let status = self.status();
        status.get("VmRSS").and_then(|field| field.split(' ').next()?.parse().ok()).unwrap_or(0)
    }

    /// The processor time that it has used, in clock ticks of 10 ms.
    pub fn processor_ticks(self) -> u64 {
        [14, 15].into_iter().filter_map(|number| self.stat(number)).map(u64::from).sum()
    }

    /// Its session, by the id of the leader.
    pub fn session(self) -> Option<u32> {
        self.stat(6)
    }

    /// A field of `/proc/PID/stat`, by its number in proc(5).
    fn stat(self, number: usize) -> Option<u32> {
        let stat = fs::read_to_string(self.path("stat")).ok()?;
        // The name is the second field, in parentheses, and may contain parentheses and spaces.
        stat.rsplit_once(')')?.1.split_whitespace().nth(number - 3)?.parse().ok()
    }

    /// Its children that run.
    pub fn children(self) -> Vec<Self> {
        Self::all().filter(|process| process.stat(4) == Some(self.0) && process.is_running()).collect()
    }

    /// Its working directory.
    pub fn working_directory(self) -> Option<PathBuf> {
        fs::read_link(self.path("cwd")).ok()
    }
}

fn fields(path: &Path) -> BTreeMap<String, String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_found_by_every_fact() {
        let this = Process::new(std::process::id());
        assert!(this.is_running() && this.resident() > 0 && !this.threads().is_empty());
        assert!(this.command_line()[0].ends_with(std::env::current_exe().unwrap().file_name().unwrap().as_bytes()));
        assert_eq!(this.working_directory(), std::env::current_dir().ok());
        assert!(this.descriptors().contains_key(&1));
        assert!(Process::all().any(|process| process == this));
        assert!(this.session().is_some());
    }
}
