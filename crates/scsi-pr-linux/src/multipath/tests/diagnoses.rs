//! The log lines of refusals and failures.

use super::fake::*;
use super::*;

#[test]
fn a_missing_reservation_key_is_logged_before_anything_is_registered() {
    let fake = Fake { configuration: Some(UNSET), ..Fake::default() };
    for action in [0, 6] {
        let (completion, line) = fake.logged_once(out(action, &REGISTER));
        assert_eq!(completion, check(SenseCode::INVALID_FIELD_IN_PARAMETER_LIST));
        assert!(line.contains("mpatha") && line.contains("`reservation_key file`"), "{line}");
        assert!(line.contains("REGISTER"), "{line}");
        assert!(fake.asked().is_empty());
    }
    // A host that only unregisters needs none.
    assert_eq!(fake.quiet(out(0, &list(1, 0))), GOOD);
    assert_eq!(fake.quiet(out(6, &list(0, 0))), GOOD);
}

#[test]
fn a_key_other_than_the_configured_one_is_logged() {
    let fake = Fake { configuration: Some(ONLY_1), ..Fake::default() };
    assert_eq!(fake.quiet(out(0, &list(0, 1))), GOOD);
    // The library would let the second through, and multipathd would register another key on later paths.
    for list in [list(0, 2), list(1, 2)] {
        fake.asked();
        let (completion, line) = fake.logged_once(out(0, &list));
        assert_eq!(completion, check(SenseCode::INVALID_FIELD_IN_PARAMETER_LIST));
        assert!(line.contains("0x0000000000000001 alone"), "{line}");
        assert!(fake.asked().is_empty());
    }
    // With a key that cannot be registered, the unit would refuse.
    let fake = Fake { library: Ok(1), ..fake };
    let (completion, line) = fake.logged_once(out(3, &list(2, 0)));
    assert_eq!(completion, Completion::Status(Status::RESERVATION_CONFLICT));
    assert!(line.contains("0x0000000000000001 alone"), "{line}");
    let fake = Fake { configuration: Some(FILE), ..fake };
    assert!(fake.logged_once(out(3, &list(2, 0))).1.contains("multipathd getprkey"));
    let fake = Fake { configuration: Some(UNSET), ..fake };
    assert!(fake.logged_once(out(3, &list(2, 0))).1.contains("no reservation_key"));
}

#[test]
fn a_multipathd_that_is_down_is_logged() {
    let fake = Fake { configuration: None, ..Fake::default() };
    let (completion, line) = fake.logged_once(out(0, &REGISTER));
    assert_eq!(completion, check(SenseCode::LUN_COMMUNICATION_FAILURE));
    assert!(line.contains("mpatha") && line.contains("systemctl start multipathd"), "{line}");
    assert!(fake.asked().is_empty());
    // It is needed to register, not for what follows.
    assert_eq!(fake.quiet(out(1, &list(1, 0))), GOOD);
    // If the library fails without it, that is why.
    let fake = Fake { library: Ok(13), ..fake };
    let (completion, line) = fake.logged_once(out(1, &list(1, 0)));
    assert_eq!(completion, check(SenseCode::LUN_COMMUNICATION_FAILURE));
    assert!(line.contains("multipathd does not listen"), "{line}");
}

#[test]
fn a_multipathd_that_will_not_register_later_paths_is_logged() {
    for (registers_paths, part) in
        [(Some(false), "later ones: check"), (None, "later ones (multipathd does not listen")]
    {
        let fake = Fake { registers_paths, ..Fake::default() };
        let (completion, line) = fake.logged_once(out(0, &REGISTER));
        assert_eq!(completion, GOOD);
        assert!(line.contains(part), "{line}");
        assert_eq!(fake.quiet(out(0, &list(1, 0))), GOOD);
    }
}

#[test]
fn a_map_without_a_path_that_works_is_not_ready() {
    for paths in [vec![], vec![false], vec![false, false]] {
        let fake = Fake { paths: [paths.clone(), paths], ..Fake::default() };
        for action in [0, 1, 2, 3, 4, 5, 6] {
            let (completion, line) = fake.logged_once(out(action, &list(1, 1)));
            assert_eq!(completion, check(SenseCode::NOT_READY));
            assert!(line.contains("none of its paths works"), "{line}");
        }
        assert_eq!(fake.logged_once(reserve_in(0)).0, check(SenseCode::NOT_READY));
        assert!(fake.asked().is_empty());
        assert_eq!(fake.logged_once(Command::cleanup()).0, check(SenseCode::NOT_READY));
        assert_eq!(fake.asked(), ["forget"]);
    }
    // Nor one that lost its last while the library was at it.
    let fake = Fake { paths: [vec![true], vec![false]], library: Ok(13), ..Fake::default() };
    assert_eq!(fake.logged_once(out(3, &list(1, 0))).0, check(SenseCode::NOT_READY));
}

#[test]
fn paths_that_cannot_be_opened_are_logged() {
    let fake = Fake { answers: None, ..Fake::default() };
    for command in [reserve_in(0), out(2, &list(1, 0))] {
        let (completion, line) = fake.logged_once(command);
        assert_eq!(completion, check(SenseCode::LUN_COMMUNICATION_FAILURE));
        assert!(line.contains("/dev"), "{line}");
    }
}

#[test]
fn a_missing_library_is_logged_with_the_package() {
    for (library, expected, part) in [
        (
            Unavailable::NotInstalled("no file".to_owned()),
            SenseCode::INVALID_OPCODE,
            "install multipath-tools 0.9.4 or later (package multipath-tools",
        ),
        (Unavailable::OldInterface(9), SenseCode::INVALID_OPCODE, "LIBMULTIPATH_9), and 0.9.4"),
        (Unavailable::NotStarted(1), SenseCode::LUN_COMMUNICATION_FAILURE, "multipath -t"),
    ] {
        let fake = Fake { library: Err(library), ..Fake::default() };
        let (completion, line) = fake.logged_once(out(0, &REGISTER));
        assert_eq!(completion, check(expected));
        assert!(line.contains("mpatha") && line.contains(part), "{line}");
        // IN and RELEASE need none.
        assert_eq!(fake.quiet(reserve_in(0)), Completion::Good(vec![0; 8]));
        assert_eq!(fake.quiet(out(2, &list(1, 0))), GOOD);
    }
}

#[test]
fn a_missing_library_is_logged_once_a_minute() {
    let fake = Fake { library: Err(Unavailable::OldInterface(9)), ..Fake::default() };
    let manager = Multipath::on(Box::new(fake));
    let log = Log::at(tracing::Level::WARN);
    let null = File::open("/dev/null").unwrap();
    log.during(|| {
        for _ in 0..3 {
            manager.execute(null.as_fd(), out(0, &REGISTER)).unwrap();
        }
    });
    assert_eq!(log.events().len(), 1);
}

#[test]
fn paths_left_without_registration_are_logged() {
    let dead = (check(SenseCode::LUN_NOT_RESPONDING), Reached::Path);
    let fake = Fake { answers: Some([(GOOD, Reached::Unit), dead]), ..Fake::default() };
    let (completion, line) = fake.logged_once(out(4, &list(1, 1)));
    assert_eq!(completion, GOOD);
    assert!(line.contains("another host preempted them"), "{line}");
    let fake = Fake { answers: None, ..fake };
    let (completion, line) = fake.logged_once(out(4, &list(1, 1)));
    assert_eq!(completion, GOOD);
    assert!(line.contains("sd0, sd1 could not be registered"), "{line}");
}
