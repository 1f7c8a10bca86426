//! Many processes change one unit at the same time.
#![cfg(target_arch = "x86_64")]

use std::path::Path;

use durability::changer::Changer;
use durability::{KINDS, StoreDirectory, check};

const PROCESSES: u32 = 64;
const CHANGES: u32 = 5;

#[test]
fn every_change_of_64_processes_is_acknowledged_and_stored() {
    for kind in KINDS {
        let directory = StoreDirectory::new();
        let start = |_| Changer::start(Path::new(env!("CARGO_BIN_EXE_changer")), &directory.store(kind), 0, CHANGES);
        // No process has opened the store yet, so they create it at the same time too.
        let mut changers: Vec<_> = (0..PROCESSES).map(start).collect();
        changers.iter_mut().for_each(Changer::begin);
        for changer in changers {
            let report = changer.report();
            assert!(report.acknowledged == CHANGES && report.closed, "{kind}: {report:?}");
        }
        assert_eq!(check(&directory.store(kind), PROCESSES * CHANGES, 0), Ok(()), "{kind}");
    }
}
