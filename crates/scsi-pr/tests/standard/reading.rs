//! PERSISTENT RESERVE IN: the data, byte by byte (6.15), their truncation, and that everybody may read.

use scsi_pr::{Completion, ReserveInAction};

use crate::unit::*;

use ReserveInAction::{ReadFullStatus, ReadKeys, ReadReservation, ReportCapabilities};

fn data(unit: &mut Unit, from: Who, action: ReserveInAction, room: usize) -> Vec<u8> {
    match unit.send(&read(from, action, room)) {
        Completion::Good(data) => data,
        other => panic!("{other}"),
    }
}

fn bytes(hexadecimal: &str) -> Vec<u8> {
    hexadecimal.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
}

fn two(kind: scsi_pr::Type) -> Unit {
    Unit::after(&[register(A, NONE, KEY_A), register(B2, NONE, KEY_B), reserve(A, KEY_A, kind)])
}

#[test]
fn read_keys_without_registrations() {
    assert_eq!(data(&mut Unit::new(), A, ReadKeys, 8192), bytes("00 00 00 00 00 00 00 00"));
}

#[test]
fn read_keys_lists_one_key_for_each_nexus() {
    let mut unit = Unit::after(&[register(B, NONE, OTHER), register_for(A, NONE, KEY_A, &[C])]);
    let expected = "00 00 00 02 00 00 00 18 00 00 00 00 00 00 07 e4 00 00 00 00 00 00 00 0a 00 00 00 00 00 00 00 0a";
    assert_eq!(data(&mut unit, D, ReadKeys, 8192), bytes(expected));
}

#[test]
fn read_reservation_of_none() {
    let mut unit = Unit::after(&[register(A, NONE, KEY_A)]);
    assert_eq!(data(&mut unit, B, ReadReservation, 8192), bytes("00 00 00 01 00 00 00 00"));
}

#[test]
fn read_reservation_of_one_holder_has_its_key() {
    let expected = "00 00 00 02 00 00 00 10 00 00 00 00 00 00 00 0a 00 00 00 00 00 06 00 00";
    assert_eq!(data(&mut two(EA_RO), B, ReadReservation, 8192), bytes(expected));
}

#[test]
fn read_reservation_has_the_holders_new_key() {
    let mut unit = Unit::after(&[register(A, NONE, KEY_A), reserve(A, KEY_A, WE), register(A, KEY_A, OTHER)]);
    let expected = "00 00 00 02 00 00 00 10 00 00 00 00 00 00 07 e4 00 00 00 00 00 01 00 00";
    assert_eq!(data(&mut unit, B, ReadReservation, 8192), bytes(expected));
}

#[test]
fn read_reservation_of_all_registrants_has_no_key() {
    let expected = "00 00 00 02 00 00 00 10 00 00 00 00 00 00 00 00 00 00 00 00 00 07 00 00";
    assert_eq!(data(&mut two(WE_AR), B, ReadReservation, 8192), bytes(expected));
}

#[test]
fn report_capabilities_names_all_that_is_done() {
    // CRH, SIP_C, ATP_C, PTPL_C; TMV, ALLOW COMMANDS 100b; the six types.
    assert_eq!(data(&mut Unit::new(), A, ReportCapabilities, 8192), bytes("00 08 1d c0 ea 01 00 00"));
    let mut unit = Unit::after(&[register_for_good(A, NONE, KEY_A)]);
    assert_eq!(data(&mut unit, A, ReportCapabilities, 8192), bytes("00 08 1d c1 ea 01 00 00"));
}

const DESCRIPTOR_A: &str = "00 00 00 00 00 00 00 0a 00 00 00 00 HH TT 00 00 00 00 00 01 00 00 00 18 \
                            06 00 00 00 00 00 00 00 00 00 00 01 00 00 00 00 00 00 00 00 00 00 00 00";
const DESCRIPTOR_B2: &str = "00 00 00 00 00 00 00 0b 00 00 00 00 HH TT 00 00 00 00 00 02 00 00 00 18 \
                             06 00 00 00 00 00 00 00 00 00 00 02 00 00 00 00 00 00 00 00 00 00 00 00";

fn full_status(a: [&str; 2], b2: [&str; 2]) -> Vec<u8> {
    let filled = |text: &str, with: [&str; 2]| text.replace("HH", with[0]).replace("TT", with[1]);
    bytes(&["00 00 00 02 00 00 00 60", &filled(DESCRIPTOR_A, a), &filled(DESCRIPTOR_B2, b2)].join(" "))
}

#[test]
fn read_full_status_marks_the_holder() {
    assert_eq!(data(&mut two(EA), D, ReadFullStatus, 8192), full_status(["01", "03"], ["00", "00"]));
}

#[test]
fn read_full_status_marks_each_of_all_registrants() {
    assert_eq!(data(&mut two(EA_AR), D, ReadFullStatus, 8192), full_status(["01", "08"], ["01", "08"]));
}

#[test]
fn data_are_cut_and_their_lengths_are_not() {
    for action in ReserveInAction::ALL {
        let mut unit = two(EA_AR);
        let whole = data(&mut unit, A, action, 8192);
        for room in 0..whole.len() + 2 {
            assert_eq!(data(&mut unit, A, action, room), whole[..room.min(whole.len())], "{action} into {room}");
        }
    }
}

#[test]
fn keys_of_more_registrants_than_fit_are_cut() {
    let mut unit = Unit::new();
    for key in 1..2000 {
        let nexus =
            scsi_pr::Nexus::new(scsi_pr::TransportId::new(scsi_pr::InitiatorPort::Sas { address: key }).unwrap(), 1);
        let step = register(A, NONE, scsi_pr::Key(key));
        let _ = unit.0.execute(&nexus, step.command.command());
    }
    let keys = data(&mut unit, D, ReadKeys, 8192);
    assert_eq!((keys.len(), &keys[4..8]), (8192, &(1999u32 * 8).to_be_bytes()[..]));
    assert_eq!(keys[8184..], 1023u64.to_be_bytes());
}

#[test]
fn unknown_service_actions_are_refused() {
    let Answer::Check(code) = BAD_CDB else { unreachable!() };
    for action in 4..32 {
        let step = changed(read(A, ReadKeys, 8192), |cdb, _| cdb[1] = action);
        assert_eq!(Unit::new().send(&step), Completion::check(code), "{action:#x}");
    }
}

#[test]
fn everybody_reads_under_every_reservation() {
    for kind in scsi_pr::Type::ALL {
        for action in ReserveInAction::ALL {
            for from in [A, B2, C] {
                assert!(!data(&mut two(kind), from, action, 8192).is_empty());
            }
        }
    }
}
