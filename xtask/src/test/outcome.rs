//! Results of steps, and their summary.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::lab::Tally;

/// The result of one step.
#[derive(Default)]
pub(super) struct Outcome {
    pub(super) tally: Tally,
    /// Checks that were not run, each with its reason.
    pub(super) skipped: Vec<String>,
    /// Output to show, when the step failed.
    pub(super) details: String,
}

impl Outcome {
    /// So many checks passed, and none failed.
    pub(super) fn passed(passed: usize) -> Self {
        Self { tally: Tally { passed, failed: 0 }, ..Self::default() }
    }
}

/// The results of all steps so far.
#[derive(Default)]
pub(super) struct Summary {
    pub(super) tally: Tally,
    lines: Vec<String>,
    skipped: Vec<String>,
}

impl Summary {
    /// Runs a step and prints its result. A step that ends in an error is one failed check.
    pub(super) fn step(&mut self, name: &str, run: impl FnOnce() -> Result<Outcome>) {
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
        self.skipped.extend(outcome.skipped.into_iter().map(|reason| format!("{name}: {reason}")));
    }

    /// Records a step that was left out.
    pub(super) fn skip(&mut self, name: &str, reason: &str) {
        self.skipped.push(format!("{name}: {reason}"));
    }

    /// Prints the summary. Its last line has a fixed form, for programs.
    pub(super) fn print(&self) {
        println!("\n== summary");
        self.lines.iter().for_each(|line| println!("{line}"));
        match &self.skipped[..] {
            [] => println!("skipped: nothing"),
            skipped => skipped.iter().for_each(|reason| println!("skipped in {reason}")),
        }
        println!("{} passed, {} failed", self.tally.passed, self.tally.failed);
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
