//! The log while a process floods the server.
#![forbid(unsafe_code)]

mod common;

use common::{Machine, Place, flood, good, preempt, register};
use scsi_pr::{Completion, Key, ReserveOut};

const CONNECTIONS: usize = 20;
const KEY: u64 = 1;
const KEY_OF_FLOOD: u64 = 2;
const PREEMPTS: usize = 8;

#[test]
#[ignore = "it is a process of the other tests"]
fn flood() {
    flood::run();
}

#[test]
fn flood_of_one_process_suppresses_no_audit_line_of_another() {
    let place = Place::new();
    let (own, other) = (place.path("own"), place.path("other"));
    let server = place.serve("memory:").arg("-v").listen("own", own.clone()).listen("other", other.clone()).start();
    let machine = Machine::new(&place, &own);
    assert_eq!(machine.out(&register(0, KEY)), good());

    let (service_action_key, all_tg_pt, aptpl) = (Key(KEY_OF_FLOOD), false, false);
    let registration = ReserveOut::RegisterAndIgnoreExistingKey { service_action_key, all_tg_pt, aptpl };
    let registration = registration.encode().unwrap();
    let registration = registration.command();
    let (cdb, list) = (registration.cdb().bytes(), registration.parameter_list());
    let flooding = flood::start(&other, &place.path("disk.img"), &[CONNECTIONS], cdb, list);
    let lines_of = |pid: u32| {
        let part = format!("by process {pid} of ");
        server.log().lines().filter(|line| line.contains(&part)).map(str::to_owned).collect::<Vec<_>>()
    };
    testing_support::eventually("more commands than a process may have lines", || {
        (machine.keys().generation.0 > 1_000).then_some(())
    });
    let mut outcomes: Vec<Completion> = Vec::new();
    for _ in 0..PREEMPTS {
        outcomes.push(machine.out(&preempt(KEY, KEY_OF_FLOOD)));
        // The flood takes its turn, and registers the key again.
        testing_support::eventually("the key to be registered", || {
            machine.keys().keys.contains(&Key(KEY_OF_FLOOD)).then_some(())
        });
    }
    assert_eq!(outcomes, vec![good(); PREEMPTS]);
    let preempted = lines_of(std::process::id()).into_iter().filter(|line| line.contains(", PREEMPT, "));
    assert_eq!(preempted.count(), PREEMPTS, "{}", server.log());
    let (flooded, generation) = (lines_of(flooding[0].pid()).len(), machine.keys().generation.0);
    assert!(flooded < generation as usize / 2, "{flooded} lines of the flood, {generation} commands");
}
