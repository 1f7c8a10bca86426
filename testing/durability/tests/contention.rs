//! Many processes change one unit at the same time.
#![cfg(target_arch = "x86_64")]

use std::path::Path;

use durability::changer::Changer;
use durability::{KINDS, Place, check};

const PROCESSES: u32 = 64;
const CHANGES: u32 = 5;

#[test]
fn processes_all_have_their_way() {
    for kind in KINDS {
        let place = Place::new();
        let start = |_| Changer::start(Path::new(env!("CARGO_BIN_EXE_changer")), &place.store(kind), 0, CHANGES);
        // None of them has opened the store: they make it at the same time, too.
        let mut changers: Vec<_> = (0..PROCESSES).map(start).collect();
        changers.iter_mut().for_each(Changer::go);
        for changer in changers {
            let report = changer.report();
            assert!(report.kept == CHANGES && report.closed, "{kind}: {report:?}");
        }
        assert_eq!(check(&place.store(kind), PROCESSES * CHANGES, 0), Ok(()), "{kind}");
    }
}
