//! Calling cargo.

use std::process::Command;

use anyhow::Result;

use crate::command;
use crate::place::Place;

/// The cargo that started us, in the root of the sources.
pub(crate) fn command(place: &Place) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(&place.workspace);
    cargo
}

/// Builds `packages`; shows what cargo says if it takes a while.
pub(crate) fn build(place: &Place, packages: &[&str]) -> Result<()> {
    let mut build = command(place);
    build.args(["build", "--quiet"]);
    packages.iter().for_each(|package| {
        build.args(["--package", package]);
    });
    command::show(&mut build)
}
