//! The class of every command (SPC-4 table 65, SBC-4 table 13), and what each reservation makes of each class
//! (SPC-4 tables 65 and 66, SPC-2 5.5.1).

use super::*;
use Access::{Always, Read, Status, Write};
use ReserveOutAction as Action;

/// The CDB of `operation_code` with `service_action` in its place.
fn cdb(operation_code: u8, service_action: u16) -> [u8; 32] {
    let mut cdb = [0; 32];
    cdb[0] = operation_code;
    let [high, low] = service_action.to_be_bytes();
    if operation_code == 0x7f {
        (cdb[8], cdb[9]) = (high, low)
    } else {
        cdb[1] = low
    }
    cdb
}

/// Every command that SPC-4 and SBC-4 have and that is more than an operation code.
const SERVICE_ACTIONS: &[(u8, u16, Access, &str)] = &[
    (0x7f, 0x0009, Read, "READ(32)"),
    (0x7f, 0x000a, Read, "VERIFY(32)"),
    (0x7f, 0x000b, Write, "WRITE(32)"),
    (0x7f, 0x000c, Write, "WRITE AND VERIFY(32)"),
    (0x7f, 0x000d, Write, "WRITE SAME(32)"),
    (0x7f, 0x000e, Write, "ORWRITE(32)"),
    (0x7f, 0x000f, Write, "WRITE ATOMIC(32)"),
    (0x7f, 0x0010, Write, "WRITE STREAM(32)"),
    (0x7f, 0x0011, Write, "WRITE SCATTERED(32)"),
    (0x7f, 0x0012, Read, "GET LBA STATUS(32)"),
    (0x7f, 0x1800, Write, "RECEIVE CREDENTIAL"),
    (0x83, 0x00, Write, "EXTENDED COPY(LID1)"),
    (0x83, 0x01, Write, "EXTENDED COPY(LID4)"),
    (0x83, 0x10, Read, "POPULATE TOKEN"),
    (0x83, 0x11, Write, "WRITE USING TOKEN"),
    (0x83, 0x1c, Write, "COPY OPERATION ABORT"),
    (0x84, 0x00, Status, "RECEIVE COPY STATUS(LID1)"),
    (0x84, 0x01, Status, "RECEIVE COPY DATA(LID1)"),
    (0x84, 0x03, Status, "RECEIVE COPY OPERATING PARAMETERS"),
    (0x84, 0x04, Status, "RECEIVE COPY FAILURE DETAILS(LID1)"),
    (0x84, 0x05, Status, "RECEIVE COPY STATUS(LID4)"),
    (0x84, 0x06, Status, "RECEIVE COPY DATA(LID4)"),
    (0x84, 0x07, Status, "RECEIVE ROD TOKEN INFORMATION"),
    (0x84, 0x08, Status, "REPORT ALL ROD TOKENS"),
    (0x9e, 0x10, Always, "READ CAPACITY(16)"),
    (0x9e, 0x11, Read, "READ LONG(16)"),
    (0x9e, 0x12, Read, "GET LBA STATUS(16)"),
    (0x9e, 0x13, Status, "REPORT REFERRALS"),
    (0x9e, 0x14, Write, "STREAM CONTROL"),
    (0x9e, 0x15, Write, "BACKGROUND CONTROL"),
    (0x9e, 0x16, Read, "GET STREAM STATUS"),
    (0x9e, 0x17, Read, "GET PHYSICAL ELEMENT STATUS"),
    (0x9e, 0x18, Write, "REMOVE ELEMENT AND TRUNCATE"),
    (0x9e, 0x19, Write, "RESTORE ELEMENTS AND REBUILD"),
    (0x9f, 0x11, Write, "WRITE LONG(16)"),
    (0x9f, 0x12, Write, "WRITE SCATTERED(16)"),
    (0xa3, 0x05, Status, "REPORT IDENTIFYING INFORMATION"),
    (0xa3, 0x0a, Status, "REPORT TARGET PORT GROUPS"),
    (0xa3, 0x0b, Status, "REPORT ALIASES"),
    (0xa3, 0x0c, Read, "REPORT SUPPORTED OPERATION CODES"),
    (0xa3, 0x0d, Read, "REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS"),
    (0xa3, 0x0e, Status, "REPORT PRIORITY"),
    (0xa3, 0x0f, Status, "REPORT TIMESTAMP"),
    (0xa3, 0x10, Read, "MANAGEMENT PROTOCOL IN"),
    (0xa3, 0x1d, Status, "REPORT PROVISIONING INITIALIZATION PATTERN"),
    (0xa4, 0x06, Write, "SET IDENTIFYING INFORMATION"),
    (0xa4, 0x0a, Write, "SET TARGET PORT GROUPS"),
    (0xa4, 0x0b, Write, "CHANGE ALIASES"),
    (0xa4, 0x0c, Write, "REMOVE I_T NEXUS"),
    (0xa4, 0x0e, Write, "SET PRIORITY"),
    (0xa4, 0x0f, Write, "SET TIMESTAMP"),
    (0xa4, 0x10, Write, "MANAGEMENT PROTOCOL OUT"),
    (0xab, 0x01, Status, "READ MEDIA SERIAL NUMBER"),
    (0x5e, 0x00, Access::ReserveIn, "READ KEYS"),
    (0x5e, 0x03, Access::ReserveIn, "READ FULL STATUS"),
    (0x5e, 0x1f, Access::ReserveIn, "PERSISTENT RESERVE IN that is reserved"),
    (0x5f, 0x00, Access::ReserveOut(Action::Register), "REGISTER"),
    (0x5f, 0x01, Access::ReserveOut(Action::Reserve), "RESERVE"),
    (0x5f, 0x02, Access::ReserveOut(Action::Release), "RELEASE"),
    (0x5f, 0x03, Access::ReserveOut(Action::Clear), "CLEAR"),
    (0x5f, 0x04, Access::ReserveOut(Action::Preempt), "PREEMPT"),
    (0x5f, 0x05, Access::ReserveOut(Action::PreemptAndAbort), "PREEMPT AND ABORT"),
    (0x5f, 0x06, Access::ReserveOut(Action::RegisterAndIgnoreExistingKey), "REGISTER AND IGNORE EXISTING KEY"),
    (0x5f, 0x07, Access::ReserveOut(Action::RegisterAndMove), "REGISTER AND MOVE"),
    (0x5f, 0x08, Access::ReserveOut(Action::ReplaceLostReservation), "REPLACE LOST RESERVATION"),
];

/// Every command that SPC-4 and SBC-4 have and whose operation code says it all.
const OPERATION_CODES: &[(u8, Access, &str)] = &[
    (0x00, Status, "TEST UNIT READY"),
    (0x03, Always, "REQUEST SENSE"),
    (0x04, Write, "FORMAT UNIT"),
    (0x07, Write, "REASSIGN BLOCKS"),
    (0x08, Read, "READ(6)"),
    (0x0a, Write, "WRITE(6)"),
    (0x12, Always, "INQUIRY"),
    (0x15, Write, "MODE SELECT(6)"),
    (0x16, Access::ReserveSpc2, "RESERVE(6)"),
    (0x17, Access::ReleaseSpc2, "RELEASE(6)"),
    (0x1a, Read, "MODE SENSE(6)"),
    (0x1c, Read, "RECEIVE DIAGNOSTIC RESULTS"),
    (0x1d, Write, "SEND DIAGNOSTIC"),
    (0x25, Always, "READ CAPACITY(10)"),
    (0x28, Read, "READ(10)"),
    (0x2a, Write, "WRITE(10)"),
    (0x2e, Write, "WRITE AND VERIFY(10)"),
    (0x2f, Read, "VERIFY(10)"),
    (0x34, Read, "PRE-FETCH(10)"),
    (0x35, Write, "SYNCHRONIZE CACHE(10)"),
    (0x37, Read, "READ DEFECT DATA(10)"),
    (0x38, Write, "FORMAT WITH PRESET"),
    (0x3b, Write, "WRITE BUFFER"),
    (0x3c, Read, "READ BUFFER(10)"),
    (0x3e, Read, "READ LONG(10)"),
    (0x3f, Write, "WRITE LONG(10)"),
    (0x41, Write, "WRITE SAME(10)"),
    (0x42, Write, "UNMAP"),
    (0x48, Write, "SANITIZE"),
    (0x4c, Write, "LOG SELECT"),
    (0x4d, Always, "LOG SENSE"),
    (0x55, Write, "MODE SELECT(10)"),
    (0x56, Access::ReserveSpc2, "RESERVE(10)"),
    (0x57, Access::ReleaseSpc2, "RELEASE(10)"),
    (0x5a, Read, "MODE SENSE(10)"),
    (0x86, Status, "ACCESS CONTROL IN"),
    (0x87, Status, "ACCESS CONTROL OUT"),
    (0x88, Read, "READ(16)"),
    (0x89, Write, "COMPARE AND WRITE"),
    (0x8a, Write, "WRITE(16)"),
    (0x8b, Write, "ORWRITE(16)"),
    (0x8c, Read, "READ ATTRIBUTE"),
    (0x8d, Write, "WRITE ATTRIBUTE"),
    (0x8e, Write, "WRITE AND VERIFY(16)"),
    (0x8f, Read, "VERIFY(16)"),
    (0x90, Read, "PRE-FETCH(16)"),
    (0x91, Write, "SYNCHRONIZE CACHE(16)"),
    (0x93, Write, "WRITE SAME(16)"),
    (0x9a, Write, "WRITE STREAM(16)"),
    (0x9b, Read, "READ BUFFER(16)"),
    (0x9c, Write, "WRITE ATOMIC(16)"),
    (0xa0, Always, "REPORT LUNS"),
    (0xa2, Read, "SECURITY PROTOCOL IN"),
    (0xa8, Read, "READ(12)"),
    (0xaa, Write, "WRITE(12)"),
    (0xae, Write, "WRITE AND VERIFY(12)"),
    (0xaf, Read, "VERIFY(12)"),
    (0xb5, Write, "SECURITY PROTOCOL OUT"),
    (0xb7, Read, "READ DEFECT DATA(12)"),
];

#[test]
fn every_command_has_its_class() {
    for (operation_code, access, name) in OPERATION_CODES {
        for service_action in [0, 0x1f, 0xff] {
            assert_eq!(Access::of_cdb(&cdb(*operation_code, service_action)), *access, "{name}");
        }
        assert_eq!(Access::of_cdb(&[*operation_code]), *access, "{name}");
    }
    for (operation_code, service_action, access, name) in SERVICE_ACTIONS {
        let mut cdb = cdb(*operation_code, *service_action);
        assert_eq!(Access::of_cdb(&cdb), *access, "{name}");
        // The bits beside a service action of five bits are not of it.
        if *operation_code != 0x7f {
            cdb[1] |= 0xe0;
            assert_eq!(Access::of_cdb(&cdb), *access, "{name}");
        }
    }
}

#[test]
fn what_is_not_known_writes() {
    for operation_code in 0..=u8::MAX {
        let whole = OPERATION_CODES.iter().any(|(known, ..)| *known == operation_code);
        // START STOP UNIT and PREVENT ALLOW MEDIUM REMOVAL have a test of their own.
        if whole || [0x1b, 0x1e].contains(&operation_code) {
            continue;
        }
        let known = |service_action: u16| {
            SERVICE_ACTIONS.iter().any(|(code, action, ..)| (*code, *action) == (operation_code, service_action))
        };
        let bits = if operation_code == 0x7f { 16 } else { 5 };
        for service_action in (0..=u16::MAX >> (16 - bits)).filter(|it| !known(*it) && operation_code != 0x5e) {
            assert_eq!(
                Access::of_cdb(&cdb(operation_code, service_action)),
                Write,
                "{operation_code:#x} {service_action:#x}"
            );
        }
    }
    assert_eq!(Access::of_cdb(&[]), Write);
    assert_eq!(Access::of_cdb(&[0x9e]), Write);
}

#[test]
fn starting_a_unit_and_allowing_removal_always_pass() {
    for byte in 0..=u8::MAX {
        // LOEJ and NO_FLUSH do not count.
        let starts = byte & 0x01 != 0 && byte >> 4 == 0;
        assert_eq!(Access::of_cdb(&[0x1b, 0, 0, 0, byte, 0]), if starts { Always } else { Write }, "{byte:#x}");
        let allows = byte & 0x03 == 0;
        assert_eq!(Access::of_cdb(&[0x1e, 0, 0, 0, byte, 0]), if allows { Always } else { Write }, "{byte:#x}");
    }
}

/// Initiator 1 has the reservation, 2 is registered, 3 is not.
fn permitted(unit: &Unit, access: Access) -> [bool; 3] {
    [1, 2, 3].map(|n| unit.0.permits(&nexus(n), access))
}

const ALL: [bool; 3] = [true; 3];
const NOBODY: [bool; 3] = [false; 3];
const HOLDER: [bool; 3] = [true, false, false];
const REGISTRANTS: [bool; 3] = [true, true, false];

/// SPC-4 table 65.
#[test]
fn reservations_permit_by_class() {
    for (reservation_type, read, write) in [
        (WE, ALL, HOLDER),
        (EA, HOLDER, HOLDER),
        (WE_RO, ALL, REGISTRANTS),
        (EA_RO, REGISTRANTS, REGISTRANTS),
        (WE_AR, ALL, REGISTRANTS),
        (EA_AR, REGISTRANTS, REGISTRANTS),
    ] {
        let unit = Unit::reserved(2, reservation_type);
        for access in [Always, Status, Access::ReserveIn] {
            assert_eq!(permitted(&unit, access), ALL, "{reservation_type}, {access:?}");
        }
        assert_eq!(permitted(&unit, Read), read, "{reservation_type}");
        assert_eq!(permitted(&unit, Write), write, "{reservation_type}");
        // SPC-4 5.13.3.
        for access in [Access::ReserveSpc2, Access::ReleaseSpc2] {
            assert_eq!(permitted(&unit, access), write, "{reservation_type}, {access:?}");
        }
    }
}

/// SPC-4 table 66. Of one of all registrants, registrants are holders.
#[test]
fn reservations_permit_by_service_action() {
    for reservation_type in Type::ALL {
        let unit = Unit::reserved(2, reservation_type);
        let holders = if reservation_type.is_all_registrants() { REGISTRANTS } else { HOLDER };
        for action in Action::ALL {
            let expected = match action {
                Action::Register | Action::RegisterAndIgnoreExistingKey => ALL,
                Action::Reserve | Action::RegisterAndMove => holders,
                _ => REGISTRANTS,
            };
            assert_eq!(permitted(&unit, Access::ReserveOut(action)), expected, "{reservation_type}, {action}");
        }
    }
}

#[test]
fn without_a_reservation_everything_is_permitted_but_a_second_kind_of_it() {
    let accesses = [Always, Status, Read, Write, Access::ReserveIn];
    let accesses = accesses.into_iter().chain(Action::ALL.map(Access::ReserveOut));
    for access in accesses {
        assert_eq!(permitted(&Unit::registered(2), access), ALL, "{access:?}");
    }
    for access in [Access::ReserveSpc2, Access::ReleaseSpc2] {
        assert_eq!(permitted(&Unit::registered(2), access), NOBODY);
        assert_eq!(permitted(&Unit::new(), access), ALL);
    }
}

/// SPC-2 5.5.1.
#[test]
fn a_spc2_reservation_permits_by_class() {
    let mut unit = Unit::new();
    assert_eq!(unit.0.reserve_spc2(&nexus(1)), GOOD);
    for access in [Always, Access::ReleaseSpc2] {
        assert_eq!(permitted(&unit, access), ALL, "{access:?}");
    }
    for access in [Status, Read, Write, Access::ReserveSpc2] {
        assert_eq!(permitted(&unit, access), HOLDER, "{access:?}");
    }
    let accesses = Action::ALL.map(Access::ReserveOut).into_iter().chain([Access::ReserveIn]);
    for access in accesses {
        assert_eq!(permitted(&unit, access), NOBODY, "{access:?}");
    }
}
