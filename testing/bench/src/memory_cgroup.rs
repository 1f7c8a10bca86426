//! [`MemoryCgroup`]: what the kernel charges a process for, its own memory for the process included.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::process::Pid;

/// A cgroup with the memory controller (cgroups(7)) that has one process. It is removed with the value, after that process.
pub(crate) struct MemoryCgroup {
    directory: PathBuf,
    /// The name of its file with the memory that is charged, in bytes.
    current: &'static str,
}

impl MemoryCgroup {
    /// Makes a cgroup, and moves the process into it. Memory that the process has already stays charged to its former cgroup.
    ///
    /// # Errors
    ///
    /// This user may make no cgroup, or the system has none with the memory controller.
    pub(crate) fn with(process: Pid) -> Result<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").context("read /proc/self/cgroup")?;
        let (parent, current) = place(&own, Path::new("/sys/fs/cgroup")).context("this process is in no cgroup")?;
        let directory = parent.join(format!("scsi-pr-bench.{}", process.as_raw_pid()));
        fs::create_dir(&directory).with_context(|| format!("make the cgroup {}", directory.display()))?;
        let cgroup = Self { directory, current };
        cgroup.charged().context("the memory controller is not enabled there")?;
        let processes = cgroup.directory.join("cgroup.procs");
        fs::write(&processes, process.as_raw_pid().to_string())
            .with_context(|| format!("write {}", processes.display()))?;
        Ok(cgroup)
    }

    /// The memory that was charged since the process came, in KiB.
    pub(crate) fn charged(&self) -> Result<f64> {
        let path = self.directory.join(self.current);
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(text.trim().parse::<f64>()? / 1024.0)
    }
}

impl Drop for MemoryCgroup {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.directory) {
            eprintln!("cannot remove the cgroup {}: {error}", self.directory.display());
        }
    }
}

/// The directory for a new cgroup, and the name of its file with the memory that is charged. `own` is the text of
/// /proc/self/cgroup, `root` the mount point of the cgroup file systems.
fn place(own: &str, root: &Path) -> Option<(PathBuf, &'static str)> {
    let path_of = |beginning: &str| {
        let path = own.lines().find_map(|line| line.split_once(':')?.1.strip_prefix(beginning))?;
        Some(path.trim_start_matches('/'))
    };
    if let Some(path) = path_of("memory:") {
        return Some((root.join("memory").join(path), "memory.usage_in_bytes"));
    }
    // In version 2, a cgroup with processes cannot have the controller enabled for cgroups below it: the new one is beside it.
    let path = Path::new(path_of(":")?);
    Some((root.join(path.parent().unwrap_or(path)), "memory.current"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_cgroup_is_below_that_of_version_1_and_beside_that_of_version_2() {
        for (own, directory, file) in [
            ("9:name=systemd:/\n4:memory:/a/b\n0::/\n", "/c/memory/a/b", "memory.usage_in_bytes"),
            ("4:memory:/\n", "/c/memory/", "memory.usage_in_bytes"),
            ("0::/user.slice/session.scope\n", "/c/user.slice", "memory.current"),
            ("0::/\n", "/c/", "memory.current"),
        ] {
            assert_eq!(place(own, Path::new("/c")), Some((directory.into(), file)), "{own}");
        }
        assert_eq!(place("", Path::new("/c")), None);
    }
}
