//! System calls of the program that changes a store fail, as on a disk that is full, read-only or broken.
#![cfg(target_arch = "x86_64")]

use std::path::Path;

use durability::changer::{Changer, Report};
use durability::tracer::{Call, Decision, run};
use durability::{KINDS, StoreDirectory, check};
use nix::libc;
use scsi_pr_store::Fault;

const CHANGER: &str = env!("CARGO_BIN_EXE_changer");
const CHANGES: u32 = 3;

/// The errors that a system call on files may return.
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
        // The locks of the stores' queue. SQLite's locks are excluded, because it retries them for ten seconds.
        libc::SYS_fcntl if [libc::F_OFD_SETLK, libc::F_OFD_GETLK].contains(&(call.arguments[1] as i32)) => {
            &[libc::ENOLCK]
        }
        libc::SYS_mmap => &[libc::ENOMEM],
        _ => &[],
    }
}

/// Makes changes while `decide` makes calls fail. Checks that the store has every acknowledged change, and no refused one.
#[track_caller]
fn changes_while(kind: &str, before: u32, decide: impl FnMut(&Call) -> Decision, when: &str) -> Report {
    let directory = StoreDirectory::new();
    let address = directory.store(kind);
    let mut changer = Changer::start(Path::new(CHANGER), &address, before, CHANGES);
    run(&mut changer, decide, |_, _| {});
    let report = changer.report();
    assert!(report.closed, "{when}: the program did not finish: {report:?}");
    assert_eq!(report.acknowledged as usize + report.failed.len(), CHANGES as usize, "{when}");
    let unknown = report.failed.iter().filter(|(fault, _)| *fault == Fault::OutcomeUnknown).count();
    let unknown = u32::try_from(unknown).expect("a few");
    assert_eq!(check(&address, before + report.acknowledged, unknown), Ok(()), "{when}: {report:?}");
    report
}

/// Makes each system call fail in turn, with each of its errors. All later changes must succeed.
fn one_call_fails(kind: &str, before: u32) {
    let mut failed = 0;
    // The number of the call, and the index of its error.
    let (mut chosen, mut way) = (0, 0);
    loop {
        let (mut number, mut ways, mut what) = (0, 0, String::new());
        let fail = |call: &Call| {
            let errors = failures(call);
            // Anonymous memory is excluded, because the allocator uses it as well.
            if errors.is_empty() || (call.number == libc::SYS_mmap && call.arguments[4] as i32 == -1) {
                return Decision::Run;
            }
            number += 1;
            if number != chosen + 1 {
                return Decision::Run;
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
    assert!(failed > 10, "{kind}: too few failures");
    println!("{kind}: {chosen} system calls, {failed} reported failures");
}

#[test]
fn directory_survives_failure_of_any_one_call() {
    one_call_fails("dir", 0);
    one_call_fails("dir", 33);
}

#[test]
fn database_survives_failure_of_any_one_call() {
    one_call_fails("sqlite", 0);
    one_call_fails("sqlite", 247);
}

/// All writes fail until the first change is refused. The store knows that this change was not made.
#[test]
fn change_on_full_or_read_only_disk_is_refused_and_later_changes_succeed() {
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
                if writes && !over { Decision::Fail(error) } else { Decision::Run }
            };
            let report = changes_while(kind, 5, fail, &format!("{kind}, error {error}"));
            let [(fault, text)] = &report.failed[..] else { panic!("{kind}: {report:?}") };
            assert_eq!(*fault, Fault::Unavailable, "{kind}: {text}");
            assert!(text.contains("store") && text.contains("; "), "{kind}: {text}");
            assert_eq!(report.acknowledged, CHANGES - 1);
        }
    }
}
