//! The QEMU that runs guests: the one of this machine, another program, or the one of another release of Debian.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::apt::Apt;
use crate::command;

/// The QEMU of this machine.
pub(crate) const INSTALLED: &str = "qemu-system-x86_64";

/// Packages of QEMU with its iSCSI driver.
const PACKAGES: [&str; 2] = ["qemu-system-x86", "qemu-block-extra"];

/// Starts QEMU with the libraries, modules and firmware beside this script.
const SCRIPT: &str = "\
#!/bin/sh
usr=$(cd \"$(dirname \"$0\")\" && pwd)/usr
export QEMU_MODULE_DIR=\"$usr/lib/x86_64-linux-gnu/qemu\"
exec \"$usr/lib64/ld-linux-x86-64.so.2\" --library-path \"$usr/lib/x86_64-linux-gnu\" \\
    \"$usr/bin/qemu-system-x86_64\" -L \"$usr/share/qemu\" -L \"$usr/share/seabios\" \"$@\"
";

/// The choice of a QEMU.
pub(crate) enum QemuSource {
    /// [`INSTALLED`].
    Installed,
    /// This program, which has an iSCSI driver.
    Program(PathBuf),
    /// The QEMU of this release of Debian, unpacked below the target directory and not installed.
    Release(String),
}

impl QemuSource {
    /// The program. It is downloaded into `lab` when it is missing.
    pub(crate) fn fetch(&self, lab: &Path) -> Result<PathBuf> {
        match self {
            Self::Installed => Ok(INSTALLED.into()),
            Self::Program(program) => Ok(program.clone()),
            Self::Release(release) => {
                let root = lab.join(format!("qemu-{release}"));
                if !root.exists() {
                    download(release, &root)?;
                }
                Ok(root.join(INSTALLED))
            }
        }
    }
}

/// The line with the version that the program prints.
pub(crate) fn version(qemu: &Path) -> Result<String> {
    let text = command::output(Command::new(qemu).arg("--version"))?;
    Ok(text.lines().next().context("QEMU prints no version")?.to_owned())
}

/// Whether scsi-block has the property `migrate-pr` (QEMU 11.0).
pub(crate) fn has_migrate_pr(qemu: &Path) -> Result<bool> {
    Ok(command::output(Command::new(qemu).args(["-device", "scsi-block,help"]))?.contains("migrate-pr="))
}

/// Unpacks in a temporary directory and renames it at the end. An interrupted run leaves no incomplete QEMU.
fn download(release: &str, root: &Path) -> Result<()> {
    let aside = root.with_extension("new");
    if aside.exists() {
        fs::remove_dir_all(&aside)?;
    }
    let files = aside.join("apt");
    let apt = Apt::new(files.clone(), release)?;
    command::output(apt.program("apt-get").args(["update", "-qq"]))?;
    println!("Fetching QEMU of Debian {release} into {} (60 MB, not installed)", root.display());
    let mut install = apt.program("apt-get");
    install.args(["install", "-qq", "--yes", "--download-only", "--no-install-recommends"]).args(PACKAGES);
    command::output(&mut install)?;
    for entry in fs::read_dir(files.join("cache/archives"))? {
        let archive = entry?.path();
        if archive.extension().is_some_and(|extension| extension == "deb") {
            command::output(Command::new("dpkg").arg("--extract").arg(&archive).arg(&aside))?;
        }
    }
    fs::remove_dir_all(files)?;
    let script = aside.join(INSTALLED);
    fs::write(&script, SCRIPT)?;
    fs::set_permissions(&script, Permissions::from_mode(0o755))?;
    version(&script).with_context(|| format!("QEMU of Debian {release} does not start"))?;
    fs::rename(&aside, root)?;
    Ok(())
}
