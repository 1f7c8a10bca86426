//! The test of the demo: it passes for every user, and fails if an answer is not the expected one.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::command;
use crate::packages::is_root;
use crate::workspace::Workspace;

/// The user and the group that may do nothing in particular.
const NOBODY: u32 = 65534;

/// Runs the demo in each of these ways, with the server that was built. How many there were.
pub(crate) fn run(workspace: &Workspace) -> Result<usize> {
    let programs = Programs::copy(workspace)?;
    programs.pass(|_| {})?;
    programs.fail_with_a_server_that_forgets()?;
    if !is_root()? {
        return Ok(2);
    }
    programs.pass(|demo| {
        demo.uid(NOBODY).gid(NOBODY);
    })?;
    Ok(3)
}

/// The programs, where everybody may run them.
struct Programs(TempDir);

impl Programs {
    fn copy(workspace: &Workspace) -> Result<Self> {
        let directory = tempfile::Builder::new().permissions(Permissions::from_mode(0o755)).tempdir()?;
        for name in ["xtask", "scsi-pr"] {
            fs::copy(workspace.program(name), directory.path().join(name)).with_context(|| format!("copy {name}"))?;
        }
        Ok(Self(directory))
    }

    fn demo(&self, server: &Path) -> Command {
        let mut demo = Command::new(self.0.path().join("xtask"));
        demo.arg("demo").arg("--server").arg(server).current_dir("/").stdin(Stdio::null());
        demo
    }

    /// It succeeds for any user, after its last step.
    fn pass(&self, configure: impl FnOnce(&mut Command)) -> Result<()> {
        let mut demo = self.demo(&self.0.path().join("scsi-pr"));
        configure(&mut demo);
        let said = command::output(&mut demo)?;
        ensure!(said.contains("Done in "), "the demo ended before its end:\n{said}");
        Ok(())
    }

    /// With a server that forgets the reservations at each start, the demo fails after the restart.
    fn fail_with_a_server_that_forgets(&self) -> Result<()> {
        let forgetful = self.0.path().join("forgetful");
        let script = format!(
            "#!/bin/sh\nfor option; do case $option in --store=sqlite:*) rm -f \"${{option#*:}}\"*;; esac; done\n\
             exec {} \"$@\"\n",
            command::quoted(&self.0.path().join("scsi-pr").to_string_lossy())
        );
        fs::write(&forgetful, script)?;
        fs::set_permissions(&forgetful, Permissions::from_mode(0o755))?;
        let output = self.demo(&forgetful).output().context("start the demo")?;
        let said = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        let noticed = errors.contains("vm1 should have got: refused: RESERVATION CONFLICT");
        ensure!(noticed && !output.status.success(), "a server that forgets was not noticed:\n{said}{errors}");
        Ok(())
    }
}
