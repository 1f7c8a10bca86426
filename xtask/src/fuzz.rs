//! `cargo xtask fuzz`: libFuzzer searches for new inputs of one target.

use std::env;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::workspace::Workspace;
use crate::{cargo, command};

/// Runs the target for so many seconds, with AddressSanitizer. Inputs that reach new code go to `target/fuzz/TARGET`, and an
/// input with a finding to `fuzz/artifacts/TARGET`.
pub(crate) fn run(workspace: &Workspace, target: &str, seconds: u32) -> Result<bool> {
    let corpus = workspace.root.join("fuzz/corpus").join(target);
    if !corpus.is_dir() {
        let targets = workspace.root.join("fuzz/corpus").read_dir()?.map(|entry| Ok(entry?.file_name()));
        let mut targets = targets.collect::<Result<Vec<_>>>()?;
        targets.sort();
        bail!("there is no target {target:?}; the targets are {}", targets.join(" ".as_ref()).display());
    }
    let tools = workspace.tools.to_str().context("the path of the target directory is not UTF-8")?;
    if !workspace.tools.join("bin/cargo-fuzz").exists() {
        let mut install = cargo::command(workspace);
        install.args(["install", "--quiet", "--locked", "--root", tools, "cargo-fuzz"]);
        println!("Missing on this machine: cargo-fuzz. Building it from crates.io: {}", command::line(&install));
        command::show(&mut install)?;
    }
    let found = workspace.target.join("fuzz").join(target);
    fs::create_dir_all(&found)?;
    let mut fuzz = Command::new("rustup");
    fuzz.current_dir(&workspace.root)
        .args(["run", "nightly", "cargo", "fuzz", "run", "--features=libfuzzer", target])
        .args([&found, &corpus])
        .args(["--", &format!("-max_total_time={seconds}"), "-print_final_stats=1"])
        .env("PATH", format!("{tools}/bin:{}", env::var("PATH").unwrap_or_default()))
        // The sections of the coverage do not survive the optimization of the whole program.
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env_remove("CARGO")
        .env_remove("RUSTUP_TOOLCHAIN");
    command::show(&mut fuzz).context("libFuzzer needs a C++ compiler, and `rustup toolchain install nightly`")?;
    Ok(true)
}
