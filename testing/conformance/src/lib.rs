//! The harness of the conformance suite: one set of tests, run against our `qemu-pr-helper` and against QEMU's.
//!
//! A test is a function of a [`Subject`], the helper under test; [`against_each_helper!`] makes of it one test for ours
//! and one for QEMU's, so that a failure says whose it is. `HELPER_UNDER_TEST=ours|c` takes one of them; by default both
//! run when QEMU's is installed. `PR_HELPER_OURS` and `PR_HELPER_C` name other binaries than the one that cargo builds
//! and `/usr/bin/qemu-pr-helper`.
//!
//! What a test expects is what QEMU's helper does. Where ours differs on purpose, the test says so with
//! [`Subject::differs`] and the name under which `docs/reference/differences.md` gives the reason; the test still runs against both
//! and knows what each of them does.
//!
//! * [`Subject`], [`Start`] and [`Helper`]: the program, how it is started, the running process, always killed.
//! * [`Client`]: a connection that can send anything, piece by piece. It shares no code with the library under test.
//! * [`Supervisor`]: stands between the helper and the kernel at chosen system calls, so that SG_IO answers what the test
//!   wants, without a hook in the helper.
//! * [`process`]: what /proc tells of a process.
#![forbid(unsafe_code)]

mod client;
mod device;
mod helper;
pub mod process;
pub mod sg_io;
mod start;
mod subject;
mod supervisor;
mod wait;

pub use client::{Answer, Client, IN, OUT, in_cdb, out_cdb, sense};
pub use device::{null, regular_file};
pub use helper::Helper;
pub use start::{Finished, Start};
pub use subject::Subject;
pub use supervisor::{Stop, Supervisor};
pub use wait::{DEADLINE, eventually, holds_for};

/// Makes two tests of each of the functions named, which take a `&Subject`: `ours::name` and `c::name`.
#[macro_export]
macro_rules! against_each_helper {
    ($($test:ident),* $(,)?) => {
        mod ours {
            $(#[test]
            fn $test() {
                if let Some(subject) = $crate::Subject::ours() {
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
