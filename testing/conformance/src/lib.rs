//! The harness of the conformance suite: one set of tests, run against scsi-pr's `qemu-pr-helper` and against QEMU's.
//!
//! A test is a function of a [`Subject`], the helper under test. [`against_each_helper!`] makes two tests of it, one for
//! each helper, so that the name of a failure names the helper. `HELPER_UNDER_TEST=scsi-pr|qemu` selects one helper; by default
//! both are tested when QEMU's is installed. `PR_HELPER_OURS` and `PR_HELPER_C` name other binaries than the one that
//! cargo builds and `/usr/bin/qemu-pr-helper`.
//!
//! A test expects the behaviour of QEMU's helper. Where scsi-pr differs on purpose, the test names the difference with
//! [`Subject::differs`]; `docs/reference/differences.md` gives the reason under that name. The test runs against both
//! helpers and knows the behaviour of each.
//!
//! * [`Subject`], [`Start`] and [`Helper`]: the program, how it is started, the process, which ends with its test.
//! * [`Client`]: a connection that can send anything, piece by piece. It shares no code with the library under test.
//! * [`Supervisor`]: stands between the helper and the kernel at chosen system calls. SG_IO answers what the test wants,
//!   without a hook in the helper.
//! * [`process`]: facts from `/proc` about a process, and the locks on a file.
//!
//! Both helpers start as root alone, so the suite needs root. Without it every test is skipped with that reason.
#![forbid(unsafe_code)]

mod client;
mod device;
mod helper;
pub mod process;
pub mod sg_io;
mod start;
mod subject;
mod supervisor;

pub use client::{Answer, Client, IN, OUT, in_cdb, out_cdb, sense};
pub use device::{null, regular_file};
pub use helper::{Finished, Helper};
pub use start::Start;
pub use subject::Subject;
pub use supervisor::{Stop, Supervisor};
pub use testing_support::{DEADLINE, eventually, holds_for};

/// Makes two tests of each of the functions named, which take a `&Subject`: `ours::name` and `c::name`.
#[macro_export]
macro_rules! against_each_helper {
    ($($test:ident),* $(,)?) => {
        mod ours {
            $(#[test]
            fn $test() {
                if let Some(subject) = $crate::Subject::scsi_pr() {
                    super::$test(subject);
                }
            })*
        }
        mod c {
            $(#[test]
            fn $test() {
                if let Some(subject) = $crate::Subject::c() {
                    super::$test(subject);
                }
            })*
        }
    };
}
