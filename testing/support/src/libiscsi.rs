//! [`LibiscsiSuite`]: libiscsi's conformance suite, `iscsi-test-cu` (Debian: libiscsi-bin), over a real connection.

use std::process::Command;

/// A run of the suite.
#[derive(Debug)]
pub struct LibiscsiSuite {
    /// The number of tests that ran.
    pub ran: u32,
    /// The number of tests that failed.
    pub failed: u32,
    /// The lines of tests that failed.
    pub failures: Vec<String>,
    /// Standard output and standard error.
    pub text: String,
}

impl LibiscsiSuite {
    /// Runs every test on the unit at these URLs, whose data are lost. With two URLs, one of each target port, the tests of
    /// several paths run too. `None`, and a line about the skipped test, where the program is missing.
    ///
    /// # Panics
    ///
    /// If the suite reports no numbers.
    pub fn run(urls: &[&str]) -> Option<Self> {
        let output = match Command::new("iscsi-test-cu").args(["--dataloss", "-t", "ALL"]).args(urls).output() {
            Ok(output) => output,
            Err(error) => {
                println!("skipped: iscsi-test-cu cannot be started ({error}); Debian's package is libiscsi-bin");
                return None;
            }
        };
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        // "tests  615  615  615  0  0": total, run, passed, failed, inactive.
        let tests = text.lines().find_map(|line| line.trim().strip_prefix("tests "));
        let numbers = tests.into_iter().flat_map(str::split_whitespace).map_while(|number| number.parse().ok());
        let [_, ran, _, failed, ..] = numbers.collect::<Vec<u32>>()[..] else { panic!("no numbers of tests: {text}") };
        let failures = text.lines().filter(|line| line.ends_with("...FAILED")).map(|line| line.trim().to_owned());
        Some(Self { ran, failed, failures: failures.collect(), text })
    }
}
