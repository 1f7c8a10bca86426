//! Two hosts with one key, and holders that cannot be known.

use super::*;

/// Hosts that share one multipath.conf have one key. The other host holds the reservation, and keeps it and its key.
#[test]
fn a_release_with_a_shared_key_by_a_host_that_does_not_hold_changes_nothing() {
    for kind in Type::ALL.into_iter().filter(|kind| !kind.is_all_registrants()) {
        for dead in [None, Some(0), Some(2)] {
            for given in Type::ALL {
                let mut fixture = Fixture::new(3);
                fixture.set_key(FOREIGN, Some(OURS));
                fixture = fixture.held_by(FOREIGN, kind);
                if let Some(path) = dead {
                    fixture = fixture.offline(path);
                }
                let before = fixture.unit();
                assert_eq!(fixture.release(OURS, given), done(GOOD), "{kind}, {given}, {dead:?}");
                let give_up = release_before_unregistering(&fixture.paths, &fixture.ports, OURS);
                assert_eq!(give_up, done(GOOD), "{kind}, {dead:?}");
                assert_eq!(fixture.unit(), before, "{kind}, {given}, {dead:?}");
            }
        }
    }
}

#[test]
fn a_release_with_a_shared_key_by_the_holder_leaves_the_other_host_its_registration() {
    for kind in Type::ALL {
        for dead in [None, Some(0)] {
            let mut fixture = Fixture::new(3);
            fixture.set_key(FOREIGN, Some(OURS));
            fixture = fixture.held_by(1, kind);
            if let Some(path) = dead {
                fixture = fixture.offline(path);
            }
            assert_eq!(fixture.release(OURS, kind), done(GOOD), "{kind}");
            assert_eq!((fixture.reservation(), fixture.key(FOREIGN)), (None, Some(OURS)), "{kind}");
        }
    }
}

#[test]
fn a_dead_holder_whose_key_another_host_has_is_not_taken_over() {
    for kind in Type::ALL.into_iter().filter(|kind| !kind.is_all_registrants()) {
        let fixture = Fixture::new(3).held_by(1, kind).offline(1);
        fixture.set_key(FOREIGN, Some(OURS));
        let before = fixture.unit();
        let failed = Completion::check(SenseCode::LUN_COMMUNICATION_FAILURE);
        let expected = Release { completion: failed, remark: Some(Remark::SharedKey) };
        assert_eq!(fixture.release(OURS, kind), expected, "{kind}");
        assert_eq!(release_before_unregistering(&fixture.paths, &fixture.ports, OURS), expected, "{kind}");
        assert_eq!(fixture.unit(), before, "{kind}");
    }
}

#[test]
fn a_holder_that_cannot_be_known_keeps_the_reservation_and_the_units_answer_stays() {
    let unknown = |fixture: &Fixture, part: &str| {
        let before = fixture.unit();
        let release = fixture.release(OURS, RO);
        let Some(Remark::HolderUnknown(why)) = release.remark else { panic!("{release:?}") };
        assert!(why.contains(part), "{why}");
        assert_eq!(release.completion, GOOD);
        assert_eq!(fixture.unit(), before);
    };
    for holder in [1, FOREIGN] {
        for (answer, part) in [
            (FullStatusAnswer::Refused, "the unit answers READ FULL STATUS with"),
            (FullStatusAnswer::WithoutHolder, "shows no holder"),
            (FullStatusAnswer::Cut, "READ FULL STATUS returns"),
        ] {
            let fixture = Fixture::new(3).offline(1);
            fixture.set_key(FOREIGN, Some(OURS));
            let fixture = fixture.held_by(holder, RO);
            fixture.world.borrow_mut().full_status = answer;
            unknown(&fixture, part);
        }
        // Sysfs shows no port of one path.
        let mut fixture = Fixture::new(3).offline(1);
        fixture.set_key(FOREIGN, Some(OURS));
        fixture.ports = HostPorts::new((0..3).map(|path| (name(path), Vec::new())));
        unknown(&fixture.held_by(holder, RO), "whose initiator port");
    }
}

/// A host that was cloned has the iSCSI name of this one: more registrations have it than this host has paths.
#[test]
fn a_cloned_iscsi_name_is_not_taken_for_this_host() {
    let mut fixture = Fixture::new(3).held_by(2, RO);
    // The third nexus is the clone's.
    fixture.paths.pop();
    fixture.ports = ports(2);
    let before = fixture.unit();
    let release = fixture.release(OURS, RO);
    assert!(matches!(release.remark, Some(Remark::HolderUnknown(_))), "{release:?}");
    assert_eq!((release.completion, fixture.unit()), (GOOD, before));
    // A path that the unit refuses does not account for the clone's registration either.
    let mut fixture = Fixture::new(3).held_by(2, RO);
    fixture.paths.pop();
    fixture.ports = ports(2);
    fixture.set_key(1, None);
    let before = fixture.unit();
    let release = fixture.release(OURS, RO);
    assert!(matches!(release.remark, Some(Remark::HolderUnknown(_))), "{release:?}");
    assert_eq!((release.completion, fixture.unit()), (GOOD, before));
}
