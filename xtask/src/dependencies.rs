//! Checks licenses, sources and known vulnerabilities of the dependencies, with cargo-deny and `deny.toml`.

use std::env;
use std::process::Command;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow};

use crate::workspace::Workspace;
use crate::{cargo, command};

/// cargo-deny, while cargo may still be building it.
pub(crate) struct CargoDeny {
    /// Starts with `PATH=`, so that cargo finds the subcommand.
    path: String,
    install: Option<JoinHandle<Result<()>>>,
}

impl CargoDeny {
    /// Looks for cargo-deny, and builds it in the background when it is missing. The build takes one to two minutes.
    pub(crate) fn prepare(workspace: &Workspace) -> Result<Self> {
        let tools = workspace.tools.to_str().context("the path of the target directory is not UTF-8")?;
        let path = format!("PATH={tools}/bin:{}", env::var("PATH").unwrap_or_default());
        let mut deny = Self { path, install: None };
        if command::output(&mut deny.command(workspace, &["--version"])).is_err() {
            let mut install = cargo::command(workspace);
            // A debug build takes less than half the time of a release build, and checks in a second.
            install.args(["install", "--debug", "--quiet", "--locked", "--root", tools, "cargo-deny"]);
            install.env("CARGO_PROFILE_DEV_DEBUG", "0");
            println!(
                "Missing on this machine: cargo-deny. Building it from crates.io meanwhile: {}",
                command::line(&install)
            );
            deny.install = Some(thread::spawn(move || command::output(&mut install).map(drop)));
        }
        Ok(deny)
    }

    /// Checks everything that needs no network. An error has the findings.
    pub(crate) fn check(&mut self, workspace: &Workspace) -> Result<()> {
        if let Some(install) = self.install.take() {
            install.join().map_err(|_| anyhow!("the thread that builds cargo-deny has panicked"))??;
        }
        command::output(&mut self.command(workspace, &["check", "bans", "licenses", "sources"])).map(drop)
    }

    /// Fetches the database of vulnerabilities. An error says why it cannot be had.
    pub(crate) fn fetch_advisories(&self, workspace: &Workspace) -> Result<()> {
        command::output(&mut self.command(workspace, &["fetch", "db"])).map(drop)
    }

    /// Checks the dependencies against the database that was fetched. An error has the findings.
    pub(crate) fn check_advisories(&self, workspace: &Workspace) -> Result<()> {
        command::output(&mut self.command(workspace, &["check", "--disable-fetch", "advisories"])).map(drop)
    }

    fn command(&self, workspace: &Workspace, arguments: &[&str]) -> Command {
        let cargo = cargo::command(workspace);
        let mut command = Command::new("env");
        command.arg(&self.path).arg(cargo.get_program()).arg("deny").args(arguments);
        command.current_dir(&workspace.root);
        command
    }
}
