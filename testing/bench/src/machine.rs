//! The machine: what it is, which CPU is measured on, how many descriptors there may be.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::program::{Program, version};

/// Descriptors enough for a helper with 4,000 connections, of which one process may have a quarter, and that keeps room for
/// two more with each.
const DESCRIPTORS: u64 = 16_384;

/// Raises the limit of open descriptors for this process and those that it starts.
pub(crate) fn raise_descriptor_limit() -> Result<()> {
    // None is no limit.
    let maximum = getrlimit(Resource::Nofile).maximum.map(|maximum| maximum.max(DESCRIPTORS));
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
        .with_context(|| format!("raise the limit of open descriptors to {DESCRIPTORS} (needs root)"))
}

/// The calling thread, and the processes that it starts, on one CPU until this is dropped.
pub(crate) struct Pinned(CpuSet);

impl Pinned {
    /// Takes the last CPU of those allowed: the first has most of the interrupts.
    pub(crate) fn new() -> Result<Self> {
        let allowed = sched_getaffinity(None)?;
        let last = (0..CpuSet::MAX_CPU).rfind(|cpu| allowed.is_set(*cpu)).context("no CPU is allowed")?;
        let mut one = CpuSet::new();
        one.set(last);
        sched_setaffinity(None, &one).with_context(|| format!("stay on CPU {last}"))?;
        Ok(Self(allowed))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // It was allowed before.
        let _ = sched_setaffinity(None, &self.0);
    }
}

/// Date, machine and versions, in words that name neither host nor path.
pub(crate) fn describe(c: &Program, scsi_pr: &Program) -> Result<String> {
    Ok(format!("{}\n* C: {}\n* scsi-pr: {}", describe_machine()?, version(&c.path)?, version(&scsi_pr.path)?))
}

/// Date, machine and commit, in words that name neither host nor path.
pub(crate) fn describe_machine() -> Result<String> {
    let cpus = fs::read_to_string("/proc/cpuinfo").context("read /proc/cpuinfo")?;
    let model =
        cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map_or("unknown", |m| m.1);
    let count = std::thread::available_parallelism()?;
    let kernel = rustix::system::uname();
    let system = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let system = system
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))
        .map_or("unknown system", |name| name.trim_matches('"'));
    Ok(format!(
        "* {}\n* {model}, {count} CPUs, Linux {}, {system}\n* commit {}",
        output("date", &["-u", "+%Y-%m-%d"])?,
        kernel.release().to_string_lossy(),
        output("git", &["-C", env!("CARGO_MANIFEST_DIR"), "describe", "--always", "--dirty"])
            .unwrap_or_else(|_| "unknown".into()),
    ))
}

/// The standard output of a command.
fn output(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output().with_context(|| format!("run {program}"))?;
    anyhow::ensure!(output.status.success(), "{program} ended with {}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_thread_comes_back() {
        let before = sched_getaffinity(None).unwrap();
        let pinned = Pinned::new().unwrap();
        assert_eq!(sched_getaffinity(None).unwrap().count(), 1);
        drop(pinned);
        assert_eq!(sched_getaffinity(None).unwrap(), before);
    }
}
