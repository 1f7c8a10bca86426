use proptest::prelude::*;

use super::*;
use crate::reservation_type::tests::types;
use crate::transport_id::tests::transport_ids;
use crate::{Cdb, Command, CommandBuf, InitiatorPort, InvalidCommand, SenseCode};

fn keys() -> impl Strategy<Value = Key> {
    prop_oneof![Just(Key::ZERO), any::<u64>().prop_map(Key)]
}

/// Anything that can be asked for.
pub(crate) fn reserve_outs() -> impl Strategy<Value = ReserveOut> {
    let ports = || prop::option::of(prop::collection::vec(transport_ids(), 0..4));
    prop_oneof![
        (keys(), keys(), ports(), any::<(bool, bool)>()).prop_map(
            |(key, service_action_key, initiator_ports, (all_tg_pt, aptpl))| {
                ReserveOut::Register { key, service_action_key, initiator_ports, all_tg_pt, aptpl }
            }
        ),
        (keys(), types()).prop_map(|(key, reservation_type)| ReserveOut::Reserve { key, reservation_type }),
        (keys(), types()).prop_map(|(key, reservation_type)| ReserveOut::Release { key, reservation_type }),
        keys().prop_map(|key| ReserveOut::Clear { key }),
        (keys(), keys(), any::<(u8, bool)>()).prop_map(|(key, service_action_key, (scope_type, abort))| {
            let scope_type = ScopeType(scope_type);
            if abort {
                ReserveOut::PreemptAndAbort { key, service_action_key, scope_type }
            } else {
                ReserveOut::Preempt { key, service_action_key, scope_type }
            }
        }),
        (keys(), any::<(bool, bool)>()).prop_map(|(service_action_key, (all_tg_pt, aptpl))| {
            ReserveOut::RegisterAndIgnoreExistingKey { service_action_key, all_tg_pt, aptpl }
        }),
        moves(keys, transport_ids(), any::<u16>()),
        (keys(), keys(), types(), any::<bool>()).prop_map(|(key, service_action_key, reservation_type, aptpl)| {
            ReserveOut::ReplaceLostReservation { key, service_action_key, reservation_type, aptpl }
        }),
    ]
}

/// REGISTER AND MOVE.
pub(crate) fn moves<K: Strategy<Value = Key>>(
    keys: fn() -> K,
    ids: impl Strategy<Value = TransportId>,
    ports: impl Strategy<Value = u16>,
) -> impl Strategy<Value = ReserveOut> {
    (keys(), keys(), ids, ports, any::<(bool, bool)>()).prop_map(
        |(key, service_action_key, transport_id, relative_target_port, (unregister, aptpl))| {
            ReserveOut::RegisterAndMove {
                key,
                service_action_key,
                unregister,
                aptpl,
                relative_target_port,
                transport_id,
            }
        },
    )
}

/// A command of these bytes; the CDB says how long the list is.
pub(crate) fn out(service_action: u8, scope_type: u8, list: &[u8]) -> CommandBuf {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1], cdb[2]) = (0x5f, service_action, scope_type);
    cdb[7..9].copy_from_slice(&u16::try_from(list.len()).unwrap().to_be_bytes());
    CommandBuf::new(Cdb::new(cdb).unwrap(), list.to_vec()).unwrap()
}

fn parse(service_action: u8, scope_type: u8, list: &[u8]) -> Result<ReserveOut, SenseCode> {
    ReserveOut::parse(out(service_action, scope_type, list).command())
}

/// A basic parameter list with these flags in byte 20.
fn basic(key: u64, service_action_key: u64, flags: u8) -> Vec<u8> {
    let mut list = [key.to_be_bytes(), service_action_key.to_be_bytes(), [0; 8]].concat();
    list[20] = flags;
    list
}

#[test]
fn each_service_action_has_its_bytes() {
    let (key, sark) = (Key(0x1122_3344_5566_7788), Key(0x99aa_bbcc_ddee_ff00));
    let (initiator_ports, aptpl) = (None, true);
    let we_ro = Type::WriteExclusiveRegistrantsOnly;
    let register = ReserveOut::Register { key, service_action_key: sark, initiator_ports, all_tg_pt: false, aptpl };
    let ignore = ReserveOut::RegisterAndIgnoreExistingKey { service_action_key: sark, all_tg_pt: true, aptpl };
    let preempt = ReserveOut::Preempt { key, service_action_key: sark, scope_type: we_ro.into() };
    let abort = ReserveOut::PreemptAndAbort { key, service_action_key: sark, scope_type: ScopeType(0xff) };
    let replace = ReserveOut::ReplaceLostReservation {
        key: Key::ZERO,
        service_action_key: sark,
        reservation_type: Type::ExclusiveAccess,
        aptpl,
    };
    for (value, service_action, scope_type, list) in [
        (register, 0, 0, basic(key.0, sark.0, 0x01)),
        (ReserveOut::Reserve { key, reservation_type: we_ro }, 1, 5, basic(key.0, 0, 0)),
        (ReserveOut::Release { key, reservation_type: we_ro }, 2, 5, basic(key.0, 0, 0)),
        (ReserveOut::Clear { key }, 3, 0, basic(key.0, 0, 0)),
        (preempt, 4, 5, basic(key.0, sark.0, 0)),
        (abort, 5, 0xff, basic(key.0, sark.0, 0)),
        (ignore, 6, 0, basic(0, sark.0, 0x05)),
        (replace, 8, 3, basic(0, sark.0, 0x01)),
    ] {
        assert_eq!(value.encode().unwrap(), out(service_action, scope_type, &list), "{value:?}");
        assert_eq!(parse(service_action, scope_type, &list), Ok(value));
    }
}

#[test]
fn specified_initiator_ports_follow_the_basic_list() {
    let ids =
        [InitiatorPort::Sas { address: 1 }, InitiatorPort::Iscsi { name: "iqn.2026-11.org.example:b", isid: None }]
            .map(|port| TransportId::new(port).unwrap());
    let mut list = basic(0, 2, 0x0c);
    list.extend([0, 0, 0, 24 + 32]);
    ids.iter().for_each(|id| list.extend(id.bytes()));
    let expected = ReserveOut::Register {
        key: Key::ZERO,
        service_action_key: Key(2),
        initiator_ports: Some(ids.into()),
        all_tg_pt: true,
        aptpl: false,
    };
    assert_eq!(parse(0, 0, &list), Ok(expected.clone()));
    assert_eq!(expected.encode().unwrap(), out(0, 0, &list));
}

#[test]
fn register_and_move_has_a_list_of_its_own() {
    let transport_id = TransportId::new(InitiatorPort::FibreChannel { port_name: 0x2100_0024_ff3d_5a1c }).unwrap();
    let mut list = [1u64.to_be_bytes(), 2u64.to_be_bytes()].concat();
    list.extend([0, 0x03, 0x12, 0x34, 0, 0, 0, 24]);
    list.extend(transport_id.bytes());
    let expected = ReserveOut::RegisterAndMove {
        key: Key(1),
        service_action_key: Key(2),
        unregister: true,
        aptpl: true,
        relative_target_port: 0x1234,
        transport_id,
    };
    assert_eq!(parse(7, 0xff, &list), Ok(expected.clone()));
    assert_eq!(expected.encode().unwrap(), out(7, 0, &list));
}

/// Bytes of another program: those that `sg_persist` of sg3_utils 1.46 sends for REGISTER with three `--transport-id`s, and for
/// REGISTER AND MOVE.
#[test]
fn what_sg_persist_sends_is_read_and_written() {
    let iscsi = |name, isid| TransportId::new(InitiatorPort::Iscsi { name, isid }).unwrap();
    let register = ReserveOut::Register {
        key: Key::ZERO,
        service_action_key: Key(1),
        initiator_ports: Some(vec![
            TransportId::new(InitiatorPort::Sas { address: 0x5001_4057_0000_abcd }).unwrap(),
            iscsi("iqn.1994-05.com.redhat:a", None),
            TransportId::new(InitiatorPort::FibreChannel { port_name: 0x2100_0024_0000_0001 }).unwrap(),
        ]),
        all_tg_pt: false,
        aptpl: false,
    };
    let list = b"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\
        \x00\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00\x50\x06\x00\x00\x00\
        \x50\x01\x40\x57\x00\x00\xab\xcd\x00\x00\x00\x00\x00\x00\x00\x00\
        \x00\x00\x00\x00\x05\x00\x00\x1ciqn.1994-05.com.redhat:a\x00\x00\x00\x00\
        \x00\x00\x00\x00\x00\x00\x00\x00\x21\x00\x00\x24\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00";
    assert_eq!(register.encode().unwrap(), out(0, 0, list));
    assert_eq!(parse(0, 0, list), Ok(register));

    let register_and_move = ReserveOut::RegisterAndMove {
        key: Key(1),
        service_action_key: Key(2),
        unregister: true,
        aptpl: true,
        relative_target_port: 0x1234,
        transport_id: iscsi("iqn.1994-05.com.redhat:a", Some([0, 2, 0x3d, 0, 0, 1])),
    };
    let list = b"\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x02\
        \x00\x03\x12\x34\x00\x00\x00\x30\x45\x00\x00\x2ciqn.1994-05.com.redhat:a,i,0x00023d000001\x00\x00\x00";
    assert_eq!(register_and_move.encode().unwrap(), out(7, 0, list));
    assert_eq!(parse(7, 0, list), Ok(register_and_move));
}

#[test]
fn a_list_of_the_wrong_length_is_refused_before_anything_else() {
    for length in [0, 1, 20, 21, 23, 25, 28, 48] {
        let mut list = basic(1, 2, 0);
        list.resize(length, 0);
        for service_action in 0..=0x1f {
            assert_eq!(
                parse(service_action, 0xff, &list),
                Err(SenseCode::PARAMETER_LIST_LENGTH_ERROR),
                "{service_action:#x} {length}"
            );
        }
    }
    // SPEC_I_PT without, or with a part of, the length of what it announces.
    for length in 24..28 {
        let mut list = basic(0, 2, 0x08);
        list.resize(length, 0);
        assert_eq!(parse(0, 0, &list), Err(SenseCode::PARAMETER_LIST_LENGTH_ERROR), "{length}");
    }
}

#[test]
fn a_length_of_more_than_16_bits_is_refused() {
    for byte in [5, 6] {
        let command = out(0, 0, &basic(0, 2, 0));
        let mut cdb = *command.cdb().bytes();
        cdb[byte] = 1;
        let command = CommandBuf::new(Cdb::new(cdb).unwrap(), basic(0, 2, 0)).unwrap();
        assert_eq!(ReserveOut::parse(command.command()), Err(SenseCode::PARAMETER_LIST_LENGTH_ERROR));
    }
}

#[test]
fn unknown_service_actions_scopes_and_types_are_refused_where_they_count() {
    let list = basic(1, 2, 0x08);
    for service_action in (9..=0xff).filter(|action| action & 0x1f != 7) {
        assert_eq!(parse(service_action, 5, &list), Err(SenseCode::INVALID_FIELD_IN_CDB), "{service_action:#x}");
    }
    let list = basic(1, 2, 0);
    for scope_type in 0..=u8::MAX {
        let valid = ScopeType(scope_type).reservation_type().is_some();
        for service_action in [1, 2, 8] {
            match parse(service_action, scope_type, &list) {
                Ok(_) => assert!(valid, "{service_action:#x} {scope_type:#x}"),
                Err(code) => assert!(!valid && code == SenseCode::INVALID_FIELD_IN_CDB),
            }
        }
        for service_action in [0, 3, 4, 5, 6] {
            assert!(parse(service_action, scope_type, &list).is_ok(), "{service_action:#x} {scope_type:#x}");
        }
    }
}

#[test]
fn only_register_specifies_initiator_ports() {
    let mut list = basic(1, 2, 0x08);
    list.extend([0; 4]);
    assert!(parse(0, 0, &list).is_ok());
    for service_action in [1, 2, 3, 4, 5, 6, 8] {
        assert_eq!(parse(service_action, 5, &list), Err(SenseCode::INVALID_FIELD_IN_PARAMETER_LIST));
        // The CDB is looked at first.
        let expected = if [1, 2, 8].contains(&service_action) {
            SenseCode::INVALID_FIELD_IN_CDB
        } else {
            SenseCode::INVALID_FIELD_IN_PARAMETER_LIST
        };
        assert_eq!(parse(service_action, 0, &list), Err(expected));
    }
}

#[test]
fn transport_ids_that_do_not_fill_the_list_are_refused() {
    let id = TransportId::new(InitiatorPort::Sas { address: 1 }).unwrap();
    // The last is a length that wraps when it is added to 28, as one helper did.
    for (announced, given) in [(24u32, 23), (24, 25), (24, 0), (0, 24), (48, 24), (23, 23), (0xffff_ffe4, 0)] {
        let mut list = basic(0, 2, 0x08);
        list.extend(announced.to_be_bytes());
        list.extend(id.bytes().iter().chain(&[0; 24]).take(given));
        assert_eq!(parse(0, 0, &list), Err(SenseCode::INVALID_FIELD_IN_PARAMETER_LIST), "{announced} {given}");
    }
}

#[test]
fn a_move_to_what_is_no_port_is_refused() {
    let move_to = |announced: u32, id: &[u8]| {
        let mut list = [[0; 8], [1; 8], [0; 8]].concat();
        list[20..24].copy_from_slice(&announced.to_be_bytes());
        list.extend(id);
        parse(7, 0, &list)
    };
    let id = TransportId::new(InitiatorPort::Sas { address: 1 }).unwrap();
    assert!(move_to(24, id.bytes()).is_ok());
    for (announced, id) in [(24, &id.bytes()[..23]), (23, id.bytes()), (u32::MAX, &[])] {
        assert_eq!(move_to(announced, id), Err(SenseCode::PARAMETER_LIST_LENGTH_ERROR));
    }
    let two = [id.bytes(), id.bytes()].concat();
    for (announced, id) in [(0, &[][..]), (23, &id.bytes()[..23]), (48, &two), (24, &[0xff; 24])] {
        assert_eq!(move_to(announced, id), Err(SenseCode::INVALID_FIELD_IN_PARAMETER_LIST));
    }
}

#[test]
fn other_commands_are_none() {
    assert_eq!(ReserveOut::parse(Command::cleanup()), Err(SenseCode::INVALID_OPCODE));
}

#[test]
fn more_ports_than_a_command_can_carry_are_not_encoded() {
    let id = TransportId::new(InitiatorPort::Sas { address: 1 }).unwrap();
    let register = |count| ReserveOut::Register {
        key: Key::ZERO,
        service_action_key: Key(1),
        initiator_ports: Some(vec![id.clone(); count]),
        all_tg_pt: false,
        aptpl: false,
    };
    assert_eq!(register(2729).encode().unwrap().command().parameter_list().len(), 28 + 2729 * 24);
    assert!(matches!(register(2730).encode(), Err(InvalidCommand::TransferLength { length: 65_548, .. })));
    assert!(register(30_000).encode().is_err());
}

/// Whether `code` is one that [`ReserveOut::parse`] may give.
fn is_refusal(code: SenseCode) -> bool {
    [
        SenseCode::PARAMETER_LIST_LENGTH_ERROR,
        SenseCode::INVALID_FIELD_IN_CDB,
        SenseCode::INVALID_FIELD_IN_PARAMETER_LIST,
    ]
    .contains(&code)
}

proptest! {
    #[test]
    fn a_value_survives_its_bytes(value in reserve_outs()) {
        let encoded = value.encode().unwrap();
        prop_assert_eq!(ReserveOut::parse(encoded.command()), Ok(value.clone()));
        prop_assert_eq!(encoded.cdb().service_action(), value.action().code());
        prop_assert_eq!(ReserveOutAction::from_code(value.action().code()), Some(value.action()));
    }

    #[test]
    fn bytes_are_a_value_or_refused(
        value in reserve_outs(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        service_action in prop::option::of(0u8..0x20),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let encoded = value.encode().unwrap();
        let mut list = encoded.command().parameter_list().to_vec();
        for (index, byte) in changes {
            *index.get_mut(&mut list) = byte;
        }
        if let Some(cut) = cut {
            list.truncate(cut.index(list.len()));
        }
        let cdb = encoded.cdb().bytes();
        let command = out(service_action.unwrap_or(cdb[1]), cdb[2], &list);
        match ReserveOut::parse(command.command()) {
            // Reserved fields are ignored and not kept.
            Ok(value) => prop_assert_eq!(ReserveOut::parse(value.encode().unwrap().command()), Ok(value)),
            Err(code) => prop_assert!(is_refusal(code), "{}", code),
        }
    }

    #[test]
    fn noise_is_a_value_or_refused(
        service_action: u8,
        scope_type: u8,
        list in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        match ReserveOut::parse(out(service_action, scope_type, &list).command()) {
            Ok(value) => prop_assert_eq!(ReserveOut::parse(value.encode().unwrap().command()), Ok(value)),
            Err(code) => prop_assert!(is_refusal(code), "{}", code),
        }
    }
}
