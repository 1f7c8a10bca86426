use super::*;
use proptest::prelude::*;
use scsi_pr::{InitiatorPort, Sense, SenseKey, Type};

/// The TransportID of `port`.
pub(in super::super) fn id(port: InitiatorPort<'_>) -> TransportId {
    TransportId::new(port).unwrap()
}

fn keys() -> impl Strategy<Value = Key> {
    prop_oneof![Just(Key::ZERO), any::<u64>().prop_map(Key)]
}

fn ids() -> impl Strategy<Value = Vec<TransportId>> {
    let one = prop_oneof![
        8 => any::<u64>().prop_map(|port_name| id(InitiatorPort::FibreChannel { port_name })),
        8 => ("[a-z0-9.-]{1,40}", any::<Option<[u8; 6]>>()).prop_map(|(name, isid)| id(InitiatorPort::Iscsi { name: &name, isid })),
        1 => any::<u64>().prop_map(|address| id(InitiatorPort::Sas { address })),
        1 => any::<u64>().prop_map(|eui64| id(InitiatorPort::Sbp { eui64 })),
    ];
    prop_oneof![4 => prop::collection::vec(one, 0..5), 1 => prop::collection::vec(any::<u64>().prop_map(|port_name| id(InitiatorPort::FibreChannel { port_name })), 28..40)]
}

/// Anything that a guest may ask for.
pub(in super::super) fn reserve_outs() -> impl Strategy<Value = ReserveOut> {
    let types = || prop::sample::select(&Type::ALL[..]);
    prop_oneof![
        (keys(), keys(), prop::option::of(ids()), any::<(bool, bool)>()).prop_map(
            |(key, service_action_key, initiator_ports, (all_tg_pt, aptpl))| {
                ReserveOut::Register { key, service_action_key, initiator_ports, all_tg_pt, aptpl }
            }
        ),
        (keys(), types()).prop_map(|(key, reservation_type)| ReserveOut::Reserve { key, reservation_type }),
        (keys(), types()).prop_map(|(key, reservation_type)| ReserveOut::Release { key, reservation_type }),
        keys().prop_map(|key| ReserveOut::Clear { key }),
        (keys(), keys(), any::<u8>()).prop_map(|(key, service_action_key, byte)| {
            ReserveOut::Preempt { key, service_action_key, scope_type: ScopeType(byte) }
        }),
        (keys(), keys(), any::<u8>()).prop_map(|(key, service_action_key, byte)| {
            ReserveOut::PreemptAndAbort { key, service_action_key, scope_type: ScopeType(byte) }
        }),
        (keys(), any::<(bool, bool)>()).prop_map(|(service_action_key, (all_tg_pt, aptpl))| {
            ReserveOut::RegisterAndIgnoreExistingKey { service_action_key, all_tg_pt, aptpl }
        }),
        (keys(), keys(), types(), any::<bool>()).prop_map(|(key, service_action_key, reservation_type, aptpl)| {
            ReserveOut::ReplaceLostReservation { key, service_action_key, reservation_type, aptpl }
        }),
    ]
}

/// REGISTER for these initiator ports too.
fn register_for(ports: Vec<TransportId>) -> ReserveOut {
    let initiator_ports = Some(ports);
    ReserveOut::Register { key: Key::ZERO, service_action_key: Key(1), initiator_ports, all_tg_pt: false, aptpl: false }
}

const fn register(key: u64, service_action_key: u64) -> ReserveOut {
    ReserveOut::Register {
        key: Key(key),
        service_action_key: Key(service_action_key),
        initiator_ports: None,
        all_tg_pt: false,
        aptpl: false,
    }
}

fn request(out: &ReserveOut) -> Request {
    Request::new(out).unwrap()
}

#[test]
fn an_action_unknown_to_the_library_is_no_request() {
    let refused = Err(SenseCode::INVALID_FIELD_IN_CDB);
    let to_move = ReserveOut::parse(
        scsi_pr::CommandBuf::new(
            scsi_pr::Cdb::new([0x5f, 7, 0, 0, 0, 0, 0, 0, 48, 0, 0, 0, 0, 0, 0, 0]).unwrap(),
            [&[0; 23][..], &[24], &[0; 24]].concat(),
        )
        .unwrap()
        .command(),
    )
    .unwrap();
    assert_eq!(to_move.action(), ReserveOutAction::RegisterAndMove);
    assert_eq!(Request::new(&to_move), refused);
    let replace = ReserveOut::ReplaceLostReservation {
        key: Key::ZERO,
        service_action_key: Key(1),
        reservation_type: Type::WriteExclusive,
        aptpl: false,
    };
    assert_eq!(Request::new(&replace), refused);
}

/// QEMU's helper aborts at 33 (reference: defect 1 of its multipath code).
#[test]
fn there_is_room_for_32_transport_ids() {
    let ports = |count| (0..count).map(|port_name| id(InitiatorPort::FibreChannel { port_name })).collect();
    assert_eq!(request(&register_for(ports(32))).transport_ids.len(), 32);
    for count in [33, 34, 300] {
        assert_eq!(Request::new(&register_for(ports(count))), Err(SenseCode::INVALID_FIELD_IN_PARAMETER_LIST));
    }
}

/// The library would send 16 bytes of the 24 of a SAS address, and knows no protocol but two others.
#[test]
fn only_transport_ids_that_are_sent_as_they_are_are_handed_over() {
    let sent = |bytes: &[u8]| Request::new(&register_for(vec![TransportId::from_bytes(bytes).unwrap()]));
    let refused = Err(SenseCode::INVALID_FIELD_IN_PARAMETER_LIST);
    for port in [
        InitiatorPort::Sas { address: 0x5000_c500_0000_0001 },
        InitiatorPort::ParallelScsi { address: 7, relative_target_port: 1 },
        InitiatorPort::Sbp { eui64: 1 },
        InitiatorPort::Srp { port_identifier: 1 },
        InitiatorPort::Sop { routing_id: 1 },
    ] {
        assert_eq!(sent(id(port).bytes()), refused, "{port}");
        // Nor among others.
        let fibre_channel = id(InitiatorPort::FibreChannel { port_name: 1 });
        assert_eq!(Request::new(&register_for(vec![fibre_channel, id(port)])), refused);
    }
    let name = "iqn.2026-11.org.example:".to_owned() + &"x".repeat(199);
    for port in [
        InitiatorPort::FibreChannel { port_name: u64::MAX },
        InitiatorPort::Iscsi { name: "a", isid: None },
        InitiatorPort::Iscsi { name: &name, isid: None },
        InitiatorPort::Iscsi { name: &name, isid: Some([0xff; 6]) },
    ] {
        let request = sent(id(port).bytes()).unwrap();
        assert_eq!(request.transport_ids[0].as_sent(), id(port).bytes(), "{port}");
    }
    // Bytes that stand for nothing would be lost.
    for (port, reserved) in [
        (InitiatorPort::FibreChannel { port_name: 1 }, 1),
        (InitiatorPort::FibreChannel { port_name: 1 }, 23),
        (InitiatorPort::Iscsi { name: "a", isid: None }, 1),
    ] {
        let mut bytes = id(port).bytes().to_vec();
        bytes[reserved] = 1;
        assert_eq!(sent(&bytes), refused, "{port}");
    }
    // The longest that a parameter list may hold.
    let mut longest = vec![0; 256];
    longest[..5].copy_from_slice(&[0x05, 0, 0, 252, b'a']);
    assert_eq!(sent(&longest).unwrap().transport_ids[0].as_sent(), longest);
}

#[test]
fn only_0_is_good() {
    for out in [register(0, 1), register(1, 0), ReserveOut::Clear { key: Key(1) }] {
        let request = request(&out);
        for code in (-300..300).chain([i32::MIN, i32::MAX]) {
            let good = request.completion(code) == Completion::Good(Vec::new());
            assert_eq!(good, code == 0, "{code}");
        }
    }
}

#[test]
fn every_return_value_has_its_answer() {
    let check = |key, asc, ascq| Completion::check(SenseCode { key: SenseKey::from_byte(key), asc, ascq });
    let conflict = Completion::Status(Status::RESERVATION_CONFLICT);
    let failure = check(0xb, 0x08, 0x00);
    let expected = |code| match code {
        2 => check(0x2, 0x04, 0x00),
        3 => check(0x3, 0x11, 0x00),
        4 => check(0x4, 0x44, 0x00),
        5 => check(0x5, 0x26, 0x00),
        6 => check(0x6, 0x29, 0x02),
        7 => check(0x5, 0x20, 0x00),
        8 => check(0xb, 0x00, 0x06),
        11 => conflict.clone(),
        _ => failure.clone(),
    };
    let reserve = ReserveOut::Reserve { key: Key(1), reservation_type: Type::WriteExclusive };
    for out in [register(0, 1), reserve] {
        // Those of before 0.13, those that it uses inside (16, 17), those of the future.
        for code in [-1].into_iter().chain(2..40) {
            assert_eq!(request(&out).completion(code), expected(code), "{code}");
        }
    }
    // A guest that finds no sense key would take the command for done.
    for code in -300..300 {
        if let Completion::CheckCondition(sense) = request(&register(0, 1)).completion(code) {
            assert_ne!(sense.code().unwrap().key, SenseKey::NO_SENSE, "{code}");
            assert_ne!(sense, Sense::from_bytes(&[]));
        }
    }
}

#[test]
fn a_key_that_is_not_allowed_is_refused_or_in_conflict() {
    let refused = Completion::check(SenseCode::INVALID_FIELD_IN_PARAMETER_LIST);
    let conflict = Completion::Status(Status::RESERVATION_CONFLICT);
    let ignoring =
        |key| ReserveOut::RegisterAndIgnoreExistingKey { service_action_key: Key(key), all_tg_pt: false, aptpl: false };
    for out in [register(0, 1), register(2, 1), ignoring(1)] {
        assert!(request(&out).registers());
        assert_eq!(request(&out).completion(SYNTAX_ERROR), refused);
    }
    let reservation_type = Type::WriteExclusive;
    for out in [
        register(1, 0),
        ignoring(0),
        ReserveOut::Reserve { key: Key(1), reservation_type },
        ReserveOut::Clear { key: Key(1) },
        ReserveOut::Preempt { key: Key(1), service_action_key: Key(2), scope_type: reservation_type.into() },
    ] {
        assert!(!request(&out).registers());
        assert_eq!(request(&out).completion(SYNTAX_ERROR), conflict);
    }
}

#[test]
fn a_preempt_of_the_own_key_or_of_all_preempts_the_sender_itself() {
    let scope_type = Type::WriteExclusiveRegistrantsOnly.into();
    for (key, victim, expected) in [(1, 1, true), (1, 0, true), (0, 0, true), (1, 2, false)] {
        let (key, service_action_key) = (Key(key), Key(victim));
        for out in [
            ReserveOut::Preempt { key, service_action_key, scope_type },
            ReserveOut::PreemptAndAbort { key, service_action_key, scope_type },
        ] {
            assert_eq!(request(&out).preempts_itself(), expected);
        }
    }
    assert!(!request(&register(1, 1)).preempts_itself());
}

#[test]
fn every_return_value_has_a_name() {
    for code in [-1, 0, 7, 11, 15, 16, i32::MAX] {
        assert!(!meaning(code).is_empty());
    }
    assert_eq!(meaning(16), meaning(-1));
    assert_ne!(meaning(15), meaning(16));
}

proptest! {
    #[test]
    fn nothing_is_lost_but_refused(out in reserve_outs()) {
        let Ok(request) = Request::new(&out) else {
            let known = match &out {
                ReserveOut::Register { initiator_ports: Some(ids), .. } => {
                    ids.len() <= 32 && ids.iter().all(|id| matches!(id.bytes()[0], 0x00 | 0x05 | 0x45))
                }
                ReserveOut::ReplaceLostReservation { .. } | ReserveOut::RegisterAndMove { .. } => false,
                _ => true,
            };
            prop_assert!(!known);
            return Ok(());
        };
        prop_assert!(request.transport_ids.len() <= Request::MOST_TRANSPORT_IDS);
        prop_assert_eq!(request.action, out.action());
    }
}
