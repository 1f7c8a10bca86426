//! Calls cargo.

use std::process::Command;

use anyhow::Result;

use crate::command;
use crate::workspace::Workspace;

/// The cargo that started this program, in the root of the sources.
pub(crate) fn command(workspace: &Workspace) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(&workspace.root);
    cargo
}

/// Builds `packages`, with cargo's messages on the terminal.
pub(crate) fn build(workspace: &Workspace, packages: &[&str]) -> Result<()> {
    let mut build = command(workspace);
    build.args(["build", "--quiet"]);
    packages.iter().for_each(|package| {
        build.args(["--package", package]);
    });
    command::show(&mut build)
}
