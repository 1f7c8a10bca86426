//! `cargo xtask test`: every test, a line for each step, and a line for each omission.
//!
//! Without root, the steps that need root are left out, and the rest takes minutes.

mod harness;
mod outcome;

use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::dependencies::CargoDeny;
use crate::lab::{Lab, Tally};
use crate::qemu::QemuSource;
use crate::workspace::Workspace;
use crate::{cargo, command, demo, guests, packages, prose};
use outcome::{Outcome, Summary};

const TESTS: &str = "unit, integration and documentation tests";
const CONFORMANCE: &str = "conformance, both helpers";

/// Both helpers drop privileges at the start, which an ordinary user lacks.
const HELPER_NEEDS_ROOT: &str = "needs root, because a helper starts as root alone";

/// Runs every step, also after one failed. Returns whether all passed.
pub(crate) fn run(workspace: &Workspace) -> Result<bool> {
    packages::ensure_tests()?;
    let mut deny = CargoDeny::prepare(workspace)?;
    let mut summary = Summary::default();
    let rustdoc = |command: &mut Command| {
        command.env("RUSTDOCFLAGS", "-D warnings");
    };
    summary.step("formatting", || step(workspace, &["fmt", "--all", "--check"], |_| {}));
    summary.step("prose", || prose(workspace));
    let clippy = ["clippy", "--quiet", "--workspace", "--all-targets", "--", "--deny", "warnings"];
    summary.step("clippy", || step(workspace, &clippy, |_| {}));
    summary.step("build", || step(workspace, &["build", "--quiet", "--workspace"], |_| {}));
    summary.step("demo", || Ok(Outcome::passed(demo::trial::run(workspace)?)));
    // A test prints the reason when it leaves something out. The harness shows it only with --show-output.
    let tests = |which: &[&str]| {
        let common = ["test", "--quiet", "--no-fail-fast"];
        step(workspace, &[&common, which, &["--", "--show-output"]].concat(), |_| {})
    };
    let is_root = packages::is_root()?;
    let libraries = ["--workspace", "--exclude", "conformance", "--exclude", "fuzz"];
    if is_root {
        summary.step(TESTS, || tests(&libraries));
        summary.step(CONFORMANCE, || tests(&["--package", "conformance"]));
    } else {
        summary.step(TESTS, || tests(&[&libraries[..], &["--exclude", "qemu-pr-helper"]].concat()));
        summary.step("unit tests of qemu-pr-helper", || tests(&["--package", "qemu-pr-helper", "--bins"]));
        summary.skip("integration tests of qemu-pr-helper", HELPER_NEEDS_ROOT);
        summary.skip(CONFORMANCE, HELPER_NEEDS_ROOT);
    }
    summary.step("fuzz targets over their corpora", || tests(&["--package", "fuzz"]));
    summary.step("documentation", || step(workspace, &["doc", "--quiet", "--workspace", "--no-deps"], rustdoc));
    summary.step("dependencies", || dependencies(workspace, &mut deny));
    if is_root {
        summary.step("two guests on one disk", || guests(workspace));
        summary.step("lab", || lab(workspace));
    } else {
        summary
            .skip("two guests on one disk", "needs root, to read every program for the guests; `cargo xtask guests`");
        summary.skip("lab", "needs root, and takes longer than all other steps; as root, `cargo xtask lab` runs it");
    }
    summary.print();
    Ok(summary.tally.failed == 0)
}

/// Each rule of prose is a check.
fn prose(workspace: &Workspace) -> Result<Outcome> {
    let (rules, broken) = prose::broken_rules(&workspace.root)?;
    let details = broken.iter().flat_map(|line| [line, "\n"]).collect();
    let tally = Tally { passed: rules - broken.len(), failed: broken.len() };
    Ok(Outcome { tally, details, ..Outcome::default() })
}

/// The database of vulnerabilities comes from the network, which may be missing; the rest is on this machine.
fn dependencies(workspace: &Workspace, deny: &mut CargoDeny) -> Result<Outcome> {
    deny.check(workspace)?;
    if let Err(error) = deny.fetch_advisories(workspace) {
        let error = format!("{error:#}");
        let cause = error.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
        let reason = format!("the database of vulnerabilities cannot be fetched: {cause}");
        return Ok(Outcome { skipped: vec![reason], ..Outcome::passed(1) });
    }
    deny.check_advisories(workspace)?;
    Ok(Outcome::passed(2))
}

/// Runs cargo once. Its tests are counted; without tests it is one check.
fn step(workspace: &Workspace, arguments: &[&str], configure: impl FnOnce(&mut Command)) -> Result<Outcome> {
    let cargo = cargo::command(workspace);
    // A shell starts background processes with some signals ignored. The tests of signals would inherit that.
    let mut command = Command::new("env");
    command.arg("--default-signal").arg(cargo.get_program()).args(arguments).current_dir(&workspace.root);
    configure(&mut command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("start {}", command::line(&command)))?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    let mut outcome = harness::outcome(&stdout);
    let success = output.status.success();
    if outcome.tally.passed + outcome.tally.failed == 0 {
        outcome.tally.passed = usize::from(success);
    }
    if !success {
        // A crashed test program, or one that does not build, reports no failed test.
        outcome.tally.failed = outcome.tally.failed.max(1);
        outcome.details = format!("{}{}", harness::without_successes(&stdout), String::from_utf8_lossy(&output.stderr));
    }
    Ok(outcome)
}

fn guests(workspace: &Workspace) -> Result<Outcome> {
    Ok(Outcome { tally: guests::checks::run(workspace, &QemuSource::Installed, failures())?, ..Outcome::default() })
}

fn lab(workspace: &Workspace) -> Result<Outcome> {
    Ok(Outcome { tally: Lab::prepare(workspace)?.run(&[], failures())?, ..Outcome::default() })
}

/// Prints the names of the scenarios and the failures alone.
fn failures() -> impl FnMut(&str) {
    let mut failing = false;
    move |line| {
        // The report of a failure may take more than one line.
        failing = line.trim_start().starts_with("FAILED") || (failing && line.starts_with("    "));
        if failing || line.starts_with("scenario") {
            println!("{line}");
        }
    }
}
