//! Reads the output of Rust's test harness.

use super::outcome::Outcome;

/// The tests that the harness ran or ignored, and the reasons of tests that left something out.
pub(super) fn outcome(output: &str) -> Outcome {
    let mut outcome = Outcome::default();
    for line in output.lines() {
        if let Some(reason) = line.strip_prefix("skipped: ").or_else(|| line.strip_prefix("SKIPPED: ")) {
            // Many tests may have the same reason.
            if !outcome.skipped.iter().any(|known| known == reason) {
                outcome.skipped.push(reason.to_owned());
            }
        }
        if let Some((_, counts)) = line.strip_prefix("test result: ").and_then(|line| line.split_once(". ")) {
            for count in counts.split("; ") {
                match count.split_once(' ').map(|(number, kind)| (number.parse::<usize>(), kind)) {
                    Some((Ok(number), "passed")) => outcome.tally.passed += number,
                    Some((Ok(number), "failed")) => outcome.tally.failed += number,
                    Some((Ok(number), "ignored")) if number > 0 => {
                        outcome.skipped.push(format!("{number} tests are marked as ignored"));
                    }
                    _ => {}
                }
            }
        }
    }
    outcome
}

/// The output without the lines that passing tests printed.
pub(super) fn without_successes(output: &str) -> String {
    let mut shown = true;
    let lines = output.lines().filter(|line| {
        shown = match *line {
            "successes:" => false,
            "failures:" => true,
            line => shown || line.starts_with("test result: "),
        };
        shown
    });
    lines.flat_map(|line| [line, "\n"]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_of_all_harnesses_are_counted() {
        let output = "running 2 tests\n..\ntest result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n\n\
                      test result: FAILED. 1 passed; 3 failed; 4 ignored; 0 measured; 0 filtered out; finished in 0.00s\n";
        let counted = outcome(output);
        assert_eq!((counted.tally.passed, counted.tally.failed), (3, 3));
        assert_eq!(counted.skipped, ["4 tests are marked as ignored"]);
        assert_eq!(outcome("---- a stdout ----\nskipped: not root\n").skipped, ["not root"]);
    }

    #[test]
    fn output_of_passing_tests_is_left_out_when_others_fail() {
        let output = "running 2 tests\nsuccesses:\n---- a stdout ----\nnoise\nsuccesses:\n    a\n\nfailures:\n---- b stdout ----\n\
                      panicked\ntest result: FAILED. 1 passed; 1 failed\nsuccesses:\nnoise\ntest result: ok. 1 passed\n";
        let expected = "running 2 tests\nfailures:\n---- b stdout ----\npanicked\ntest result: FAILED. 1 passed; 1 failed\n\
                        test result: ok. 1 passed\n";
        assert_eq!(without_successes(output), expected);
    }
}
