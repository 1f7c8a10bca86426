//! The threads for which the system has room.

use std::fs;
use std::path::Path;

use rustix::process::{Resource, getrlimit};

/// Threads and processes that a helper needs besides those of connections: 64 workers, the monitor, and some to spare. The
/// threads that close refused connections are not counted: those wait if there is no room.
const RESERVED_TASKS: u64 = 128;

/// Mappings that a helper needs besides those of connections: its program, its libraries, and the arenas of malloc(3).
const RESERVED_MAPPINGS: u64 = 1024;

/// The number of connections for whose threads the system has room, less a reserve.
pub(super) fn max_connections() -> usize {
    // The kernel holds no root user to RLIMIT_NPROC. Where it does hold this process to it, other processes of the user
    // count too, and a thread that cannot be started is no more than a connection refused.
    let user = if rustix::process::geteuid().is_root() { None } else { getrlimit(Resource::Nproc).current };
    // The stack of a thread and its signal stack are two mappings each, with their guard pages. A thread that finds no room
    // for its signal stack ends the process.
    let mappings =
        read_number(Path::new("/proc/sys/vm/max_map_count")).map(|count| count.saturating_sub(RESERVED_MAPPINGS) / 4);
    let cgroups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let tasks = [user, cgroup_tasks(&cgroups, Path::new("/sys/fs/cgroup"))];
    let tasks = tasks.into_iter().flatten().map(|tasks| tasks.saturating_sub(RESERVED_TASKS));
    tasks.chain(mappings).min().map_or(usize::MAX, |max| usize::try_from(max).unwrap_or(usize::MAX))
}

/// The tasks that the cgroups of a process leave room for (cgroups(7)): the least over each cgroup and those above it.
/// `cgroups` is the text of `/proc/self/cgroup`, `root` the mount point of the cgroup file systems.
fn cgroup_tasks(cgroups: &str, root: &Path) -> Option<u64> {
    let directories = cgroups.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?.trim_start_matches('/'));
        match controllers {
            "" => Some((root.to_owned(), path)),
            "pids" => Some((root.join("pids"), path)),
            _ => None,
        }
    });
    let room = |directory: &Path| {
        let max = read_number(&directory.join("pids.max"))?;
        Some(max.saturating_sub(read_number(&directory.join("pids.current")).unwrap_or(0)))
    };
    directories
        .flat_map(|(top, path)| {
            let cgroup = top.join(path);
            cgroup.ancestors().take_while(|ancestor| ancestor.starts_with(&top)).filter_map(room).min()
        })
        .min()
}

/// The number in a file of the kernel; `None` for `max` too.
fn read_number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_are_bounded_by_the_smallest_cgroup() {
        let root = tempfile::tempdir().unwrap();
        for (cgroup, max, current) in [
            ("", "max", "90"),
            ("a", "1000", "10"),
            ("a/b", "500", "20"),
            ("a/b/c", "max", "20"),
            ("pids/d", "100", "30"),
        ] {
            let directory = root.path().join(cgroup);
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join("pids.max"), format!("{max}\n")).unwrap();
            fs::write(directory.join("pids.current"), format!("{current}\n")).unwrap();
        }
        for (cgroups, tasks) in [
            ("0::/a/b/c\n", Some(480)),
            ("0::/a\n", Some(990)),
            ("0::/\n", None),
            ("4:memory:/a\n8:pids:/d\n0::/a\n", Some(70)),
            ("0::/not/there\n", None),
            ("", None),
        ] {
            assert_eq!(cgroup_tasks(cgroups, root.path()), tasks, "{cgroups}");
        }
    }
}
