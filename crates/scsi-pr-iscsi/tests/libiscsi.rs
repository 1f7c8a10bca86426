//! libiscsi's conformance suite, `iscsi-test-cu` (Debian: libiscsi-bin), over a real connection.

mod common;

use std::process::Command;

use common::*;
use scsi_pr_iscsi::directory::Allowed;

#[test]
fn every_test_of_the_suite_passes_or_is_of_a_command_that_is_not_supported() {
    let fixture = Fixture::start(Vec::new(), Allowed::All);
    let url = format!("iscsi://{}/{TARGET}/0", fixture.address);
    let output = Command::new("iscsi-test-cu").args(["--dataloss", &url]).output();
    let output = match output {
        Ok(output) => output,
        Err(error) => {
            println!("skipped: iscsi-test-cu cannot be started ({error}); Debian's package is libiscsi-bin");
            return;
        }
    };
    let text = String::from_utf8_lossy(&output.stdout);
    // "tests  615  615  615  0  0": total, run, passed, failed, inactive.
    let tests = text.lines().find_map(|line| line.trim().strip_prefix("tests ")).expect("the suite reports its tests");
    let numbers: Vec<u32> = tests.split_whitespace().map_while(|number| number.parse().ok()).collect();
    assert!(numbers[1] > 200, "{text}");
    assert_eq!(numbers[3], 0, "{text}\n{}", String::from_utf8_lossy(&output.stderr));
}
