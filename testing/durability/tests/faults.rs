//! System calls of the program that changes a store fail, as on a disk that is full, read-only or broken.
#![cfg(target_arch = "x86_64")]

use std::path::Path;

use durability::changer::{Changer, Report};
use durability::tracer::{Call, Decision, run};
use durability::{KINDS, Place, check};
use nix::libc;
use scsi_pr_store::Fault;

const CHANGER: &str = env!("CARGO_BIN_EXE_changer");
const CHANGES: u32 = 3;

/// How a system call that has to do with files may fail.
fn failures(call: &Call) -> &'static [i32] {
    match call.number {
        libc::SYS_write if call.arguments[0] == 1 => &[],
        libc::SYS_write | libc::SYS_pwrite64 | libc::SYS_ftruncate => &[libc::EIO, libc::ENOSPC, libc::EROFS],
        libc::SYS_openat | libc::SYS_mkdirat | libc::SYS_mkdir => &[libc::EMFILE, libc::ENOSPC, libc::EROFS],
        libc::SYS_linkat | libc::SYS_renameat2 => &[libc::EIO, libc::ENOSPC, libc::EROFS],
        libc::SYS_fsync | libc::SYS_fdatasync | libc::SYS_read | libc::SYS_pread64 | libc::SYS_getdents64 => {
            &[libc::EIO]
        }
        libc::SYS_unlink | libc::SYS_unlinkat | libc::SYS_statx | libc::SYS_newfstatat | libc::SYS_fstat => {
            &[libc::EIO]
        }
        // Those by which processes queue. SQLite's own are left alone: it tries for ten seconds what no kernel refuses.
        libc::SYS_fcntl if [libc::F_OFD_SETLK, libc::F_OFD_GETLK].contains(&(call.arguments[1] as i32)) => {
            &[libc::ENOLCK]
        }
        libc::SYS_mmap => &[libc::ENOMEM],
        _ => &[],
    }
}

/// Makes changes while `decide` says what fails. Nothing may be lost, and what was refused may not have been done.
#[track_caller]
fn changes_while(kind: &str, before: u32, decide: impl FnMut(&Call) -> Decision, when: &str) -> Report {
    let place = Place::new();
    let address = place.store(kind);
    let mut changer = Changer::start(Path::new(CHANGER), &address, before, CHANGES);
    run(&mut changer, decide, |_, _| {});
    let report = changer.report();
    assert!(report.closed, "{when}: it did not live on: {report:?}");
    assert_eq!(report.kept as usize + report.failed.len(), CHANGES as usize, "{when}");
    let unknown = report.failed.iter().filter(|(fault, _)| *fault == Fault::OutcomeUnknown).count();
    let unknown = u32::try_from(unknown).expect("a few");
    assert_eq!(check(&address, before + report.kept, unknown), Ok(()), "{when}: {report:?}");
    report
}

/// Lets one system call fail, each in turn, in each way. The store serves on as if nothing had been.
fn one_call_fails(kind: &str, before: u32) {
    let mut failed = 0;
    // Which call, and which of its ways.
    let (mut chosen, mut way) = (0, 0);
    loop {
        let (mut number, mut ways, mut what) = (0, 0, String::new());
        let fail = |call: &Call| {
            let errors = failures(call);
            // A library that the program is started with is mapped too; what memory is for is not told apart.
            if errors.is_empty() || (call.number == libc::SYS_mmap && call.arguments[4] as i32 == -1) {
                return Decision::Go;
            }
            number += 1;
            if number != chosen + 1 {
                return Decision::Go;
            }
            (ways, what) = (errors.len(), format!("system call {} with error {}", call.number, errors[way]));
            Decision::Fail(errors[way])
        };
        let report = changes_while(kind, before, fail, &format!("{kind}, call {chosen} fails, way {way}"));
        if ways == 0 {
            break;
        }
        assert!(report.failed.len() + report.unopened.len() <= 1, "{kind}, {what}: {report:?}");
        failed += report.failed.len() + report.unopened.len();
        (chosen, way) = if way + 1 < ways { (chosen, way + 1) } else { (chosen + 1, 0) };
    }
    assert!(failed > 10, "{kind}: hardly anything failed");
    println!("{kind}: {chosen} system calls, {failed} failures that were reported");
}

#[test]
fn a_directory_of_which_one_call_fails() {
    one_call_fails("dir", 0);
    one_call_fails("dir", 33);
}

#[test]
fn a_database_of_which_one_call_fails() {
    one_call_fails("sqlite", 0);
    one_call_fails("sqlite", 247);
}

/// Until the first change is refused nothing can be written: it has not been made, for certain.
#[test]
fn a_disk_that_is_full_or_read_only_for_a_while() {
    for kind in KINDS {
        for error in [libc::ENOSPC, libc::EROFS] {
            let mut over = false;
            let fail = |call: &Call| {
                over |= call.number == libc::SYS_write && call.arguments[0] == 1;
                let writes = match call.number {
                    libc::SYS_write
                    | libc::SYS_pwrite64
                    | libc::SYS_ftruncate
                    | libc::SYS_mkdirat
                    | libc::SYS_linkat => true,
                    libc::SYS_openat => call.arguments[2] & libc::O_CREAT as u64 != 0,
                    _ => false,
                };
                if writes && !over { Decision::Fail(error) } else { Decision::Go }
            };
            let report = changes_while(kind, 5, fail, &format!("{kind}, error {error}"));
            let [(fault, text)] = &report.failed[..] else { panic!("{kind}: {report:?}") };
            assert_eq!(*fault, Fault::Unavailable, "{kind}: {text}");
            assert!(text.contains("store") && text.contains("; "), "{kind}: {text}");
            assert_eq!(report.kept, CHANGES - 1);
        }
    }
}
