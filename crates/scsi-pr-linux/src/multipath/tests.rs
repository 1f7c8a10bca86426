mod diagnoses;
mod fake;

use super::translate::tests::id;
use super::*;
use crate::log::Log;
use crate::policy::tests::{keys, reserve_in, reserve_out};
use crate::sg_io::Reached;
use fake::*;
use proptest::prelude::*;
use scsi_pr::{Cdb, InitiatorPort};
use std::fs::File;
use std::os::fd::AsFd;

const fn shareable<T: Send + Sync>() {}
const _: () = shareable::<Multipath>();

#[test]
fn changes_go_through_the_library() {
    for (action, list, name) in [
        (0, list(0, 1), "REGISTER"),
        (0, list(1, 0), "REGISTER"),
        (1, list(1, 0), "RESERVE"),
        (3, list(1, 0), "CLEAR"),
        (4, list(1, 2), "PREEMPT"),
        (5, list(1, 2), "PREEMPT AND ABORT"),
        (6, list(0, 1), "REGISTER AND IGNORE EXISTING KEY"),
    ] {
        let fake = Fake::default();
        assert_eq!(fake.quiet(out(action, &list)), GOOD, "{name}");
        let asked = fake.asked();
        let [before @ .., last] = &asked[..] else { panic!("{name}: nothing was asked") };
        assert_eq!(*last, format!("library: {name}"));
        // That no path is without the key is seen to before a key is changed.
        assert_eq!(before.is_empty(), action != 0 || list[7] == 0, "{asked:?}");
    }
}

#[test]
fn a_register_by_an_unregistered_host_is_a_conflict() {
    let conflict = Completion::Status(Status::RESERVATION_CONFLICT);
    let refusing = (conflict.clone(), Reached::Unit);
    let fake = Fake { answers: Some([(GOOD, Reached::Unit), refusing]), ..Fake::default() };
    for list in [list(1, 2), list(1, 0)] {
        assert_eq!(fake.quiet(out(0, &list)), conflict);
        assert!(fake.asked().iter().all(|what| what.starts_with("path: ")));
    }
}

#[test]
fn a_host_that_unregisters_releases_its_reservation_first() {
    // A path is dead, or none is yet.
    for paths in [vec![true, false], vec![true, true]] {
        let ours = Some([(reserved_by(1), Reached::Unit), (GOOD, Reached::Unit)]);
        let held = full_status(&[(HOST_PORT, 1, true)]);
        let fake = Fake { paths: [paths.clone(), paths], answers: ours, full_status: held, ..Fake::default() };
        // The reservation of the fake unit stays whatever is sent, and is taken over.
        assert_eq!(fake.quiet(out(0, &list(1, 0))), GOOD);
        let asked = fake.asked();
        assert!(asked.iter().any(|what| what.contains("RESERVE OUT, RELEASE")), "{asked:?}");
        assert_eq!(asked.last().unwrap(), REGISTERED);
        // With another key, or for another reservation, nothing is given up.
        fake.quiet(out(0, &list(1, 2)));
        let theirs = Some([(reserved_by(2), Reached::Unit), (GOOD, Reached::Unit)]);
        Fake { answers: theirs, ..fake.clone() }.quiet(out(0, &list(1, 0)));
        assert!(!fake.asked().iter().any(|what| what.contains("RESERVE OUT, RELEASE")));
    }
}

#[test]
fn a_registration_left_half_done_by_a_dying_path_is_completed() {
    let conflict = Completion::Status(Status::RESERVATION_CONFLICT);
    let calls = |fake: &Fake| -> Vec<String> {
        fake.asked().into_iter().filter(|what| what.starts_with("library: ")).collect()
    };
    let dying =
        Fake { library: Ok(-1), library_again: Some(0), paths: [vec![true; 2], vec![true, false]], ..Fake::default() };
    for (action, list) in [(0, list(0, 1)), (0, list(1, 2)), (0, list(1, 0)), (6, list(0, 1)), (6, list(0, 0))] {
        assert_eq!(dying.quiet(out(action, &list)), GOOD, "{list:?}");
        let asked = calls(&dying);
        assert_eq!(asked.len(), 2, "{asked:?}");
        assert_eq!(asked[1], "library: REGISTER AND IGNORE EXISTING KEY");
        // It is not done if it is not.
        let dead = Fake { library_again: Some(-1), ..dying.clone() };
        assert_eq!(dead.logged_once(out(action, &list)).0, check(SenseCode::LUN_COMMUNICATION_FAILURE));
        assert_eq!(calls(&dead).len(), 2);
        // The unit's answer is the answer, and so is the library's refusal of a key.
        for code in [translate::RESERVATION_CONFLICT, translate::NOT_READY, translate::SYNTAX_ERROR] {
            let refused = Fake { library: Ok(code), ..dying.clone() };
            refused.run(out(action, &list));
            assert_eq!(calls(&refused).len(), 1, "{code}");
        }
        // There is no half of one path.
        let alone = Fake { paths: [vec![true], vec![true]], ..dying.clone() };
        alone.run(out(action, &list));
        assert_eq!(calls(&alone).len(), 1);
    }
    // Nothing that the unit has not accepted, or that may be of before.
    let keys = scsi_pr::Keys { keys: vec![Key(1)], ..Default::default() }.encode();
    for answers in [
        [(Completion::Good(vec![0; 8]), Reached::Unit), (conflict, Reached::Unit)],
        [(Completion::Good(keys), Reached::Unit), (GOOD, Reached::Unit)],
    ] {
        let fake = Fake { answers: Some(answers), ..dying.clone() };
        for action in [0, 6] {
            assert_eq!(fake.logged_once(out(action, &REGISTER)).0, check(SenseCode::LUN_COMMUNICATION_FAILURE));
            assert_eq!(calls(&fake).len(), 1);
        }
    }
}

/// The library sends most commands by one path, which may be the one that lacks its registration.
#[test]
fn a_command_refused_to_an_unregistered_path_is_repeated_once_it_is_registered() {
    for (code, again) in [(translate::RESERVATION_CONFLICT, true), (translate::NOT_READY, true), (15, false)] {
        // Every path takes a registration, so one had none.
        let fake = Fake { library: Ok(code), ..Fake::default() };
        for (action, list) in [(1, list(1, 0)), (3, list(1, 0)), (4, list(1, 2)), (5, list(1, 2))] {
            fake.run(out(action, &list));
            let asked = fake.asked();
            let calls = asked.iter().filter(|what| what.starts_with("library: ")).count();
            assert_eq!(calls, 1 + usize::from(again), "{code} {action}: {asked:?}");
        }
        // Not where there is no other path.
        let alone = Fake { paths: [vec![true], vec![true]], ..fake };
        alone.run(out(3, &list(1, 0)));
        assert_eq!(alone.asked(), ["library: CLEAR"]);
    }
}

#[test]
fn no_return_value_but_0_is_good() {
    for code in (-3..40).chain([i32::MIN, i32::MAX]) {
        let refusing = (Completion::Status(Status::RESERVATION_CONFLICT), Reached::Unit);
        let answers = Some([(GOOD, Reached::Unit), refusing]);
        let fake = Fake { paths: [vec![true], vec![true]], library: Ok(code), answers, ..Fake::default() };
        for (action, list) in [(0, list(0, 1)), (0, list(1, 0)), (1, list(1, 0)), (3, list(1, 0)), (4, list(1, 2))] {
            let (completion, lines) = fake.run(out(action, &list));
            assert_eq!(completion == GOOD, code == 0, "{code}");
            // A failure that is not the unit's answer is logged.
            let unit_said = matches!(code, 0 | 2..=8 | 11);
            assert_eq!(lines.len(), usize::from(!unit_said), "{code}: {lines:?}");
            if let [line] = &lines[..] {
                assert!(line.contains("on multipath map mpatha (dm-0, 3600140)"), "{line}");
                assert!(code == 1 || line.contains(&format!("returned {code},")), "{line}");
            }
        }
    }
}

#[test]
fn an_action_unknown_to_the_library_is_refused() {
    let fake = Fake::default();
    let to_move = [&[0; 23][..], &[24], &[0; 24]].concat();
    assert_eq!(fake.quiet(out(7, &to_move)), check(SenseCode::INVALID_FIELD_IN_CDB));
    for action in 8..0x20 {
        assert_eq!(fake.quiet(out(action, &REGISTER)), check(SenseCode::INVALID_FIELD_IN_CDB));
    }
    assert!(fake.asked().is_empty());
}

/// Reference: defects 1, 2 and 9 of the multipath code of QEMU's helper, which aborts at the first, answers GOOD to the
/// second, and has the library send a list cut short in the third.
#[test]
fn transport_ids_reach_the_library_whole_or_are_refused() {
    let with_ids = |length: u32, ids: &[u8]| {
        let mut list = REGISTER.to_vec();
        list[20] = 0x08;
        list.extend(length.to_be_bytes());
        list.extend(ids);
        list
    };
    let id = |port| id(port).bytes().to_vec();
    let fibre_channel = id(InitiatorPort::FibreChannel { port_name: 1 });
    let refused = check(SenseCode::INVALID_FIELD_IN_PARAMETER_LIST);
    let one_path = Fake { paths: [vec![true], vec![true]], ..Fake::default() };
    let many = |count| fibre_channel.repeat(count);
    for list in [
        with_ids(33 * 24, &many(33)),
        with_ids(300 * 24, &many(300)),
        with_ids(0xffff_fff0, &[]),
        with_ids(0xffff_fff0, &many(1)),
        with_ids(0xffff_fffc, &many(1)),
        with_ids(23, &many(1)),
        with_ids(48, &many(1)),
        with_ids(24, &id(InitiatorPort::Sas { address: 1 })),
        with_ids(24, &id(InitiatorPort::Srp { port_identifier: 1 })),
    ] {
        assert_eq!(one_path.quiet(out(0, &list)), refused);
        assert!(one_path.asked().is_empty(), "{list:?}");
    }
    let list = with_ids(32 * 24, &many(32));
    assert_eq!(one_path.quiet(out(0, &list)), GOOD);
    assert_eq!(one_path.asked(), [REGISTERED]);
    // With more than one path, the library may forget them.
    let fake = Fake::default();
    let (completion, line) = fake.logged_once(out(0, &list));
    assert_eq!(completion, refused);
    assert!(line.contains("SPEC_I_PT") && line.contains("this has 2"), "{line}");
    assert!(fake.asked().is_empty());
}

#[test]
fn a_parameter_list_of_a_wrong_length_is_refused() {
    for length in [0, 8, 23, 25, 28, 8192] {
        let fake = Fake::default();
        let list = vec![0; length];
        assert_eq!(fake.quiet(out(0, &list)), check(SenseCode::PARAMETER_LIST_LENGTH_ERROR));
        assert!(fake.asked().is_empty());
    }
}

/// The library of 0.13 and later would preempt its own key, which another host may have as well.
#[test]
fn a_release_goes_by_the_paths_and_multipathd_forgets_the_holder() {
    for holder in [1, 9] {
        let answers = Some([(reserved_by(holder), Reached::Unit), (GOOD, Reached::Unit)]);
        let fake = Fake { answers, ..Fake::default() };
        fake.run(out(2, &list(1, 0)));
        let asked = fake.asked();
        let (last, before) = asked.split_last().unwrap();
        let is_release = |what: &String| what.starts_with("path: PERSISTENT RESERVE OUT, RELEASE");
        assert!(before.iter().all(is_release) && last == "forget holder", "{asked:?}");
        // Older ones do not know the order.
        Fake { forgets: false, ..fake.clone() }.run(out(2, &list(1, 0)));
        fake.asked();
        // A refused RELEASE tells multipathd nothing.
        let refusing = (Completion::Status(Status::RESERVATION_CONFLICT), Reached::Unit);
        let fake = Fake { answers: Some([(reserved_by(holder), Reached::Unit), refusing]), ..fake };
        fake.run(out(2, &list(1, 0)));
        assert!(!fake.asked().contains(&"forget holder".to_owned()));
    }
}

#[test]
fn a_preempt_of_the_own_key_registers_the_other_paths_again() {
    let conflict = (Completion::Status(Status::RESERVATION_CONFLICT), Reached::Unit);
    let fake = Fake { answers: Some([(GOOD, Reached::Unit), conflict]), ..Fake::default() };
    for (action, list, again) in
        [(4, list(1, 1), true), (5, list(1, 1), true), (4, list(1, 0), true), (4, list(1, 2), false)]
    {
        let (completion, _) = fake.run(out(action, &list));
        assert_eq!(completion, GOOD);
        let asked = fake.asked();
        assert!(asked[0].starts_with("library: PREEMPT"), "{asked:?}");
        assert_eq!(asked.len() > 1, again, "{asked:?}");
    }
    // On a map of one path there is nothing to do.
    let fake = Fake { paths: [vec![true], vec![true]], ..fake };
    assert_eq!(fake.quiet(out(4, &list(1, 1))), GOOD);
    assert_eq!(fake.asked(), ["library: PREEMPT"]);
}

#[test]
fn multipathd_notices_each_dead_path_before_the_command_ends() {
    let paths = vec![true, false];
    for (action, list) in [(0, list(0, 1)), (6, list(0, 1)), (4, list(1, 1))] {
        for noticed in [Notice::BeforeFailing, Notice::OnceDeviceMapperHasFailedIt] {
            let fake = Fake { paths: [paths.clone(), paths.clone()], noticed: Some(noticed), ..Fake::default() };
            assert_eq!(fake.quiet(out(action, &list)), GOOD);
            let failed = fake.asked().iter().any(|what| what == "fail path sd1");
            assert_eq!(failed, noticed == Notice::OnceDeviceMapperHasFailedIt);
        }
        let fake = Fake { paths: [paths.clone(), paths.clone()], noticed: None, ..Fake::default() };
        let (completion, line) = fake.logged_once(out(action, &list));
        assert_eq!(completion, GOOD);
        let command = "mpathpersist --out --register-ignore --param-sark=0x0000000000000001";
        assert!(line.contains("sd1 are dead") && line.contains(command), "{line}");
        // A path that is back before multipathd has noticed is registered at once.
        let fake = Fake { paths: [paths.clone(), vec![true, true]], noticed: None, ..Fake::default() };
        assert_eq!(fake.quiet(out(action, &list)), GOOD);
    }
    // Without a dead path, multipathd is not asked.
    let fake = Fake { noticed: None, ..Fake::default() };
    assert_eq!(fake.quiet(out(0, &list(0, 1))), GOOD);
    assert!(!fake.asked().iter().any(|what| what.starts_with("fail path")));
}

/// Two hosts have one key, and the other one holds the reservation.
#[test]
fn a_shared_key_is_never_preempted() {
    let answers = Some([(reserved_by(1), Reached::Unit), (GOOD, Reached::Unit)]);
    let of_other = full_status(&[(HOST_PORT, 1, false), (OTHER_PORT, 1, true)]);
    let of_this = full_status(&[(HOST_PORT, 1, true), (OTHER_PORT, 1, false)]);
    let unreadable = Completion::check(SenseCode::INVALID_FIELD_IN_CDB);
    for (full_status, line) in [
        (of_other, None),
        (of_this, Some((check(SenseCode::LUN_COMMUNICATION_FAILURE), "a key of its own"))),
        (unreadable, Some((GOOD, "its holder may be another host"))),
    ] {
        let fake = Fake { answers: answers.clone(), full_status, ..Fake::default() };
        for (action, list) in [(2, list(1, 0)), (0, list(1, 0)), (0, list(1, 2))] {
            let (completion, lines) = fake.run(out(action, &list));
            let asked = fake.asked();
            assert!(!asked.iter().any(|what| what.contains("PREEMPT")), "{asked:?}");
            match &line {
                Some((expected, part)) if list[15] == 0 => {
                    assert_eq!(completion, *expected);
                    assert!(lines.len() == 1 && lines[0].contains(part), "{lines:?}");
                }
                _ => assert_eq!((completion, lines), (GOOD, vec![])),
            }
        }
    }
}

#[test]
fn a_refused_reserve_is_sent_by_every_path() {
    let fake = Fake { library: Ok(translate::RESERVATION_CONFLICT), ..Fake::default() };
    assert_eq!(fake.quiet(out(1, &list(1, 0))), GOOD);
    let conflict = Completion::Status(Status::RESERVATION_CONFLICT);
    let refusing = Some([(GOOD, Reached::Unit), (conflict.clone(), Reached::Unit)]);
    let fake = Fake { answers: refusing, ..fake };
    fake.asked();
    assert_eq!(fake.quiet(out(1, &list(1, 0))), conflict);
    let reserves = fake.asked().iter().filter(|what| what.contains("RESERVE OUT, RESERVE")).count();
    assert_eq!(reserves, 2);
    // No other command is.
    assert_eq!(fake.quiet(out(4, &list(1, 2))), conflict);
    assert!(!fake.asked().iter().any(|what| what.contains("RESERVE OUT, PREEMPT")));
}

#[test]
fn a_reserve_in_is_answered_by_a_working_path() {
    let fake = Fake::default();
    assert_eq!(fake.quiet(reserve_in(3)), Completion::Good(vec![0; 8]));
    let dead = check(SenseCode::LUN_NOT_RESPONDING);
    let answers = Some([(dead.clone(), Reached::Path), (GOOD, Reached::Unit)]);
    let fake = Fake { answers, ..fake };
    assert_eq!(fake.quiet(reserve_in(0)), dead);
    assert!(fake.asked().is_empty());
}

#[test]
fn cleanup_makes_multipathd_forget_before_it_unregisters() {
    let fake = Fake::default();
    assert_eq!(fake.quiet(Command::cleanup()), GOOD);
    assert_eq!(fake.asked(), ["forget", "library: REGISTER AND IGNORE EXISTING KEY"]);
    // multipathd would register again a key that it has not forgotten.
    let silent = Fake { forgets: false, ..fake.clone() };
    let (completion, line) = silent.logged_once(Command::cleanup());
    assert_eq!(completion, check(SenseCode::LUN_COMMUNICATION_FAILURE));
    assert!(line.contains("CLEANUP") && line.contains("systemctl start multipathd"), "{line}");
    assert_eq!(silent.asked(), ["forget"]);
    let failing = Fake { library: Ok(15), ..fake };
    assert_eq!(failing.logged_once(Command::cleanup()).0, check(SenseCode::LUN_COMMUNICATION_FAILURE));
}

/// Reference: defects 3, 4, 5 and 11 of the multipath code of QEMU's helper: what a descriptor is ends no process, is
/// looked up anew for each command, by the device number of block devices alone, and once.
#[test]
fn a_device_that_is_no_map_gets_an_answer() {
    let manager = Multipath::new();
    let answers = |device: BorrowedFd<'_>| {
        [reserve_in(0), out(0, &REGISTER), Command::cleanup()].map(|command| manager.execute(device, command).unwrap())
    };
    let expected = [check(SenseCode::IO_PROCESS_TERMINATED), check(SenseCode::INVALID_OPCODE), GOOD];
    let null = File::open("/dev/null").unwrap();
    let path_only = rustix::fs::open("/dev/null", rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    let pipe = std::io::pipe().unwrap();
    let file = tempfile::tempfile().unwrap();
    for device in [null.as_fd(), path_only.as_fd(), pipe.0.as_fd(), file.as_fd()] {
        assert_eq!(answers(device), expected);
    }
}

proptest! {
    /// Every command has an answer, and it is GOOD only if the library's or the unit's is.
    #[test]
    fn every_command_has_an_answer(
        action in 0..0x20_u8,
        scope_type: u8,
        key in 0..3_u64,
        service_action_key in 0..3_u64,
        flags in prop::sample::select(&[0, 1, 4, 8, 0xff][..]),
        code in prop_oneof![2 => Just(0), 1 => -2..20],
        configuration in prop::sample::select(&[Some(FILE), Some(ONLY_1), Some(UNSET), None][..]),
        paths in prop::collection::vec(any::<bool>(), 0..4),
        installed: bool,
        refusing: bool,
    ) {
        let to_out = if refusing { Completion::Status(Status::RESERVATION_CONFLICT) } else { GOOD };
        let fake = Fake {
            paths: [paths.clone(), paths],
            answers: Some([(reserved_by(1), Reached::Unit), (to_out, Reached::Unit)]),
            library: if installed { Ok(code) } else { Err(Unavailable::OldInterface(9)) },
            configuration,
            ..Fake::default()
        };
        let mut list = keys(key, service_action_key);
        list[20] = flags;
        let mut cdb = *reserve_out(action, &list).cdb().bytes();
        cdb[2] = scope_type;
        let command = Command::new(Cdb::new(cdb).unwrap(), &list).unwrap();
        let (completion, _) = fake.run(command);
        let asked = fake.asked();
        if completion == GOOD {
            prop_assert!(!asked.is_empty());
            let by_library = asked.iter().any(|what| what.starts_with("library"));
            prop_assert!(!refusing || (by_library && code == 0));
        }
        let registering = (action == 0 || action == 6) && service_action_key != 0;
        if registering && !matches!((configuration, service_action_key), (Some(FILE), _) | (Some(ONLY_1), 1)) {
            prop_assert!(asked.is_empty(), "{asked:?}");
        }
    }
}
