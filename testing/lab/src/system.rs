//! Runs programs, writes attributes of the kernel, and waits.

use std::fmt::Debug;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// The longest wait. Emulation on a busy machine is slow.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Runs a program and returns its standard output. An error has all output.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {program}"))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {} failed ({}): {stdout}{errors}", arguments.join(" "), output.status);
    }
    Ok(stdout)
}

/// Writes an attribute of configfs, sysfs or procfs.
pub(crate) fn write(attribute: impl AsRef<Path>, value: &str) -> Result<()> {
    let attribute = attribute.as_ref();
    std::fs::write(attribute, value).with_context(|| format!("write {value:?} to {}", attribute.display()))
}

/// Creates a directory and its parents. In configfs this creates an object.
pub(crate) fn make(directory: impl AsRef<Path>) -> Result<()> {
    let directory = directory.as_ref();
    std::fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))
}

/// Calls `attempt` until it succeeds. `what` names the result in the error.
pub(crate) fn wait_for<T, E: Debug>(what: &str, mut attempt: impl FnMut() -> Result<T, E>) -> Result<T> {
    let end = Instant::now() + TIMEOUT;
    loop {
        match attempt() {
            Ok(result) => return Ok(result),
            Err(error) if Instant::now() > end => bail!("no {what} after {TIMEOUT:?}: {error:?}"),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}
