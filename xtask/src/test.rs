//! `cargo xtask test`: every test there is, a line for each step, and nothing left out in silence.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::lab::{Lab, Tally};
use crate::place::Place;
use crate::{cargo, command, demo, packages, prose};

/// Runs everything, also after a failure. Whether all passed.
pub(crate) fn run(place: &Place) -> Result<bool> {
    packages::ensure_tests()?;
    let mut summary = Summary::default();
    let rustdoc = |command: &mut Command| {
        command.env("RUSTDOCFLAGS", "-D warnings");
    };
    summary.step("formatting", || step(place, &["fmt", "--all", "--check"], |_| {}));
    let clippy = ["clippy", "--quiet", "--workspace", "--all-targets", "--", "--deny", "warnings"];
    summary.step("prose", || prose(place));
    summary.step("clippy", || step(place, &clippy, |_| {}));
    summary.step("build", || step(place, &["build", "--quiet", "--workspace"], |_| {}));
    summary.step("demo", || {
        let passed = demo::trial::run(place)?;
        Ok(Outcome { tally: Tally { passed, failed: 0 }, ..Outcome::default() })
    });
    // What a test leaves out, it says; only with --show-output does the harness pass that on.
    let tests = |which: &[&str]| {
        let common = ["test", "--quiet", "--no-fail-fast"];
        step(place, &[&common, which, &["--", "--show-output"]].concat(), |_| {})
    };
    let own_steps = ["--workspace", "--exclude", "conformance", "--exclude", "fuzz"];
    summary.step("unit, integration and documentation tests", || tests(&own_steps));
    summary.step("conformance, both helpers", || tests(&["--package", "conformance"]));
    summary.step("fuzz targets over their corpora", || tests(&["--package", "fuzz"]));
    summary.step("documentation", || step(place, &["doc", "--quiet", "--workspace", "--no-deps"], rustdoc));
    summary.step("lab", || lab(place));
    summary.print();
    Ok(summary.tally.failed == 0)
}

/// Each rule of prose is a check.
fn prose(place: &Place) -> Result<Outcome> {
    let broken = prose::over_limits(&place.workspace)?;
    let details = broken.iter().flat_map(|line| [line, "\n"]).collect();
    let tally = Tally { passed: prose::RULES - broken.len(), failed: broken.len() };
    Ok(Outcome { tally, details, ..Outcome::default() })
}

/// What a step came to.
#[derive(Default)]
struct Outcome {
    tally: Tally,
    /// What was not run, and why.
    skipped: Vec<String>,
    /// All that it said, when it failed.
    details: String,
}

#[derive(Default)]
struct Summary {
    tally: Tally,
    lines: Vec<String>,
    skipped: Vec<String>,
}

impl Summary {
    fn step(&mut self, name: &str, run: impl FnOnce() -> Result<Outcome>) {
        println!("== {name}");
        let start = Instant::now();
        let outcome = run().unwrap_or_else(|error| Outcome {
            tally: Tally { passed: 0, failed: 1 },
            details: format!("{error:#}\n"),
            ..Outcome::default()
        });
        let Tally { passed, failed } = outcome.tally;
        print!("{}", outcome.details);
        let verdict = if failed == 0 { "ok" } else { "FAILED" };
        let line = format!("{verdict:<6} {name}: {passed} passed, {failed} failed, {}", seconds(start.elapsed()));
        println!("{line}");
        self.tally.passed += passed;
        self.tally.failed += failed;
        self.lines.push(line);
        self.skipped.extend(outcome.skipped.into_iter().map(|what| format!("{name}: {what}")));
    }

    /// The last line is for programs.
    fn print(&self) {
        println!("\n== summary");
        self.lines.iter().for_each(|line| println!("{line}"));
        match &self.skipped[..] {
            [] => println!("skipped: nothing"),
            skipped => skipped.iter().for_each(|what| println!("skipped in {what}")),
        }
        println!("{} passed, {} failed", self.tally.passed, self.tally.failed);
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

/// One call of cargo. Its tests count if it has any, else it is one check itself.
fn step(place: &Place, arguments: &[&str], configure: impl FnOnce(&mut Command)) -> Result<Outcome> {
    let cargo = cargo::command(place);
    // A shell that starts us in the background has signals ignored, which the tests of signals would inherit.
    let mut command = Command::new("env");
    command.arg("--default-signal").arg(cargo.get_program()).args(arguments).current_dir(&place.workspace);
    configure(&mut command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("start {}", command::line(&command)))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let mut outcome = counted(&said);
    let success = output.status.success();
    if outcome.tally.passed + outcome.tally.failed == 0 {
        outcome.tally.passed = usize::from(success);
    }
    if !success {
        // A crash, or tests that do not build, fails nothing that is counted.
        outcome.tally.failed = outcome.tally.failed.max(1);
        outcome.details = format!("{}{}", without_successes(&said), String::from_utf8_lossy(&output.stderr));
    }
    Ok(outcome)
}

/// The tests that the test harness says it ran, those it was told to ignore, and what tests say they left out.
fn counted(said: &str) -> Outcome {
    let mut outcome = Outcome::default();
    for line in said.lines() {
        if let Some(what) = line.strip_prefix("skipped: ").or_else(|| line.strip_prefix("SKIPPED: ")) {
            // Many tests may have the same reason.
            if !outcome.skipped.iter().any(|known| known == what) {
                outcome.skipped.push(what.to_owned());
            }
        }
        if let Some((_, counts)) = line.strip_prefix("test result: ").and_then(|line| line.split_once(". ")) {
            for count in counts.split("; ") {
                match count.split_once(' ').map(|(number, kind)| (number.parse::<usize>(), kind)) {
                    Some((Ok(number), "passed")) => outcome.tally.passed += number,
                    Some((Ok(number), "failed")) => outcome.tally.failed += number,
                    Some((Ok(number), "ignored")) if number > 0 => {
                        outcome.skipped.push(format!("{number} tests are marked to be ignored"));
                    }
                    _ => {}
                }
            }
        }
    }
    outcome
}

/// What the test harness said, without what passing tests printed.
fn without_successes(said: &str) -> String {
    let mut shown = true;
    let lines = said.lines().filter(|line| {
        shown = match *line {
            "successes:" => false,
            "failures:" => true,
            line => shown || line.starts_with("test result: "),
        };
        shown
    });
    lines.flat_map(|line| [line, "\n"]).collect()
}

/// The lab's scenarios: here only their names, and what failed.
fn lab(place: &Place) -> Result<Outcome> {
    let lab = Lab::prepare(place)?;
    let mut failing = false;
    let tally = lab.run(&[], |line| {
        // What was expected and what came may take more than one line.
        failing = line.trim_start().starts_with("FAILED") || (failing && line.starts_with("    "));
        if failing || line.starts_with("scenario") {
            println!("{line}");
        }
    })?;
    Ok(Outcome { tally, ..Outcome::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tests_of_all_harnesses_are_counted() {
        let said = "running 2 tests\n..\ntest result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n\n\
                    test result: FAILED. 1 passed; 3 failed; 4 ignored; 0 measured; 0 filtered out; finished in 0.00s\n";
        let outcome = counted(said);
        assert_eq!((outcome.tally.passed, outcome.tally.failed), (3, 3));
        assert_eq!(outcome.skipped, ["4 tests are marked to be ignored"]);
        assert_eq!(counted("---- a stdout ----\nskipped: not root\n").skipped, ["not root"]);
    }

    #[test]
    fn passing_tests_are_not_quoted_when_others_fail() {
        let said = "running 2 tests\nsuccesses:\n---- a stdout ----\nnoise\nsuccesses:\n    a\n\nfailures:\n---- b stdout ----\n\
                    panicked\ntest result: FAILED. 1 passed; 1 failed\nsuccesses:\nnoise\ntest result: ok. 1 passed\n";
        let expected = "running 2 tests\nfailures:\n---- b stdout ----\npanicked\ntest result: FAILED. 1 passed; 1 failed\n\
                        test result: ok. 1 passed\n";
        assert_eq!(without_successes(said), expected);
    }
}
