//! Small things that every part does to the guest: running programs, writing attributes, waiting.

use std::fmt::Debug;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Nothing in the guest takes that long; emulation on a busy machine is slow.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a program; its output, or an error with everything it said.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {program}"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {} failed ({}): {said}{errors}", arguments.join(" "), output.status);
    }
    Ok(said)
}

/// Writes an attribute of configfs, sysfs or procfs.
pub(crate) fn write(attribute: impl AsRef<Path>, value: &str) -> Result<()> {
    let attribute = attribute.as_ref();
    std::fs::write(attribute, value).with_context(|| format!("write {value:?} to {}", attribute.display()))
}

/// Makes a directory and those above it; in configfs this makes an object.
pub(crate) fn make(directory: impl AsRef<Path>) -> Result<()> {
    let directory = directory.as_ref();
    std::fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))
}

/// Asks until there is an answer.
pub(crate) fn wait_for<T, E: Debug>(what: &str, mut ask: impl FnMut() -> Result<T, E>) -> Result<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(error) if Instant::now() > end => bail!("no {what} after {PATIENCE:?}: {error:?}"),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}
