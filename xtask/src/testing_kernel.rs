//! Debian testing's kernel. Only it has an NVMe target with reservations (Linux 6.13) and ioctls that read reservations
//! (Linux 6.19).
//!
//! apt downloads it with a separate configuration and list of sources, so that this machine's sources stay unchanged.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::apt::Apt;
use crate::command;
use crate::kernel::Kernel;

/// The kernel in `lab`. It is downloaded when it is missing.
pub(crate) fn fetch(lab: &Path) -> Result<Kernel> {
    let root = lab.join("kernel-testing");
    if !root.exists() {
        download(lab, &root)?;
    }
    Kernel::at(root)
}

/// Unpacks in a temporary directory and renames it at the end. An interrupted run leaves no incomplete kernel.
fn download(lab: &Path, root: &Path) -> Result<()> {
    let aside = lab.join("kernel-testing.new");
    if aside.exists() {
        fs::remove_dir_all(&aside)?;
    }
    let apt = Apt::new(aside.join("apt"), "testing")?;
    command::output(apt.program("apt-get").args(["update", "-qq"]))?;
    let depends = command::output(apt.program("apt-cache").args(["depends", "linux-image-amd64"]))?;
    let version = depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: linux-image-"))
        .context("Debian testing has no linux-image-amd64")?;
    println!(
        "Fetching Debian testing's kernel for the guests with NVMe into {} (125 MB, not installed): {version}",
        root.display()
    );
    for package in ["linux-base", "linux-modules", "linux-binary"] {
        let mut download = apt.program("apt-get");
        download.args(["download", "-qq", &format!("{package}-{version}")]);
        command::output(download.current_dir(&aside))?;
    }
    for entry in fs::read_dir(&aside)? {
        let archive = entry?.path();
        if archive.extension().is_some_and(|extension| extension == "deb") {
            command::output(Command::new("dpkg").arg("--extract").arg(&archive).arg(&aside))?;
            fs::remove_file(archive)?;
        }
    }
    // The same paths as in the stable kernel's package.
    fs::create_dir_all(aside.join("lib"))?;
    fs::create_dir_all(aside.join("boot"))?;
    fs::rename(aside.join("usr/lib/modules"), aside.join("lib/modules"))?;
    let image = aside.join("lib/modules").join(version).join("vmlinuz");
    fs::rename(image, aside.join("boot").join(format!("vmlinuz-{version}")))?;
    command::output(Command::new("/sbin/depmod").arg("--basedir").arg(&aside).arg(version))?;
    fs::remove_dir_all(aside.join("apt"))?;
    fs::rename(&aside, root)?;
    Ok(())
}
