//! Slow and failing file systems.

use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use scsi_pr_disk::{Allocation, Durability, Medium, MediumError};
use scsi_pr_linux::medium::{CacheMode, FileMedium, MediumOptions};
use testing_support::skip;

use crate::slow_file::SlowFile;

/// Names the medium of the process that the test kills.
const VICTIM: &str = "SCSI_PR_TEST_MEDIUM";

fn wait_until(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "it does not happen");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn successor_of_a_killed_process_gets_the_lock_after_its_last_write() {
    for cache in [CacheMode::None, CacheMode::Writeback] {
        if let Ok(path) = std::env::var(VICTIM) {
            let mut options = MediumOptions::new(path);
            options.cache =
                if std::env::var_os("WRITEBACK").is_some() { CacheMode::Writeback } else { CacheMode::None };
            let _ = FileMedium::open(&options).unwrap().write(4096, &[7; 4096], Durability::Cached);
            return;
        }
        let Ok(file) = SlowFile::new() else { skip!("a FUSE file system needs root and /dev/fuse") };
        file.hold_writes();
        let mut victim = Command::new(std::env::current_exe().unwrap());
        let name = "faults::successor_of_a_killed_process_gets_the_lock_after_its_last_write";
        victim.args(["--exact", name]).env(VICTIM, file.path()).stdout(Stdio::null());
        if cache == CacheMode::Writeback {
            victim.env("WRITEBACK", "1");
        }
        let mut victim = victim.spawn().unwrap();
        wait_until(|| file.held_writes() == 1);
        victim.kill().unwrap();

        let mut options = MediumOptions::new(file.path());
        options.cache = cache;
        options.lock_timeout = Duration::from_millis(300);
        let refused = FileMedium::open(&options).expect_err("the write is in flight").to_string();
        assert!(refused.contains("in use"), "{refused}");

        options.lock_timeout = Duration::from_secs(60);
        let successor = thread::spawn(move || {
            let medium = FileMedium::open(&options).unwrap();
            let mut block = [0; 4096];
            medium.read(4096, &mut block).unwrap();
            block
        });
        thread::sleep(Duration::from_millis(200));
        assert!(!successor.is_finished());
        file.release_writes();
        assert_eq!(successor.join().unwrap(), [7; 4096]);
        victim.wait().unwrap();
    }
}

#[test]
fn failed_sync_fails_every_later_write_until_the_medium_is_opened_again() {
    let Ok(file) = SlowFile::new() else { skip!("a FUSE file system needs root and /dev/fuse") };
    let options = MediumOptions::new(file.path());
    let medium = FileMedium::open(&options).unwrap();
    medium.write(0, &[1; 512], Durability::Cached).unwrap();
    medium.flush().unwrap();
    file.fail_syncs(1);
    assert_eq!(medium.write(0, &[2; 512], Durability::Durable), Err(MediumError::Io));
    // The kernel's next fdatasync would succeed.
    assert_eq!(medium.flush(), Err(MediumError::Io));
    assert_eq!(medium.write(0, &[3; 512], Durability::Cached), Err(MediumError::Io));
    let zeroed = medium.zero(0, 512, Allocation::Deallocate, Durability::Durable);
    assert_eq!(zeroed, Err(MediumError::Io));
    medium.read(0, &mut [0; 512]).unwrap();
    drop(medium);
    let medium = FileMedium::open(&options).unwrap();
    medium.write(0, &[4; 512], Durability::Durable).unwrap();
    medium.flush().unwrap();
}
