//! libiscsi's conformance suite, `iscsi-test-cu` (Debian: libiscsi-bin), over a real connection.

mod common;

use common::*;
use scsi_pr_iscsi::directory::Allowed;
use testing_support::LibiscsiSuite;

#[test]
fn every_test_of_the_suite_passes_or_is_of_a_command_that_is_not_supported() {
    let fixture = Fixture::start(Vec::new(), Allowed::All);
    let url = format!("iscsi://{}/{TARGET}/0", fixture.address);
    let Some(suite) = LibiscsiSuite::run(&[&url]) else { return };
    assert!(suite.ran > 200, "{}", suite.text);
    assert_eq!(suite.failed, 0, "{}", suite.text);
}
