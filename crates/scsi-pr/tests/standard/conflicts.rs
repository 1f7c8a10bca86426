//! Which commands conflict (SPC-4 tables 65 and 66, SBC-4 table 13): every command, in each column of the tables.

use scsi_pr::{Access, ReserveOutAction, Type};

use crate::unit::*;

/// A command: its name, and as much of its CDB as tells it apart.
type Row = (&'static str, &'static [u8]);

/// Allowed whatever is reserved.
const ALWAYS: &[Row] = &[
    ("TEST UNIT READY", &[0x00]),
    ("REQUEST SENSE", &[0x03]),
    ("INQUIRY", &[0x12]),
    ("START STOP UNIT, START 1, POWER CONDITION 0", &[0x1b, 0, 0, 0, 1]),
    ("START STOP UNIT, START 1, immediately", &[0x1b, 1, 0, 0, 1]),
    ("PREVENT ALLOW MEDIUM REMOVAL, PREVENT 0", &[0x1e, 0, 0, 0, 0]),
    ("READ CAPACITY(10)", &[0x25]),
    ("LOG SENSE", &[0x4d]),
    ("PERSISTENT RESERVE IN, READ KEYS", &[0x5e, 0]),
    ("PERSISTENT RESERVE IN, READ FULL STATUS", &[0x5e, 3]),
    ("RECEIVE COPY STATUS(LID1)", &[0x84, 0x00]),
    ("RECEIVE COPY DATA(LID1)", &[0x84, 0x01]),
    ("RECEIVE COPY OPERATING PARAMETERS", &[0x84, 0x03]),
    ("RECEIVE COPY FAILURE DETAILS(LID1)", &[0x84, 0x04]),
    ("RECEIVE COPY STATUS(LID4)", &[0x84, 0x05]),
    ("RECEIVE COPY DATA(LID4)", &[0x84, 0x06]),
    ("RECEIVE ROD TOKEN INFORMATION", &[0x84, 0x07]),
    ("REPORT ALL ROD TOKENS", &[0x84, 0x08]),
    ("ACCESS CONTROL IN", &[0x86]),
    ("ACCESS CONTROL OUT", &[0x87]),
    ("READ CAPACITY(16)", &[0x9e, 0x10]),
    ("REPORT REFERRALS", &[0x9e, 0x13]),
    ("REPORT LUNS", &[0xa0]),
    ("REPORT IDENTIFYING INFORMATION", &[0xa3, 0x05]),
    ("REPORT TARGET PORT GROUPS", &[0xa3, 0x0a]),
    ("REPORT TARGET PORT GROUPS, extended", &[0xa3, 0x2a]),
    ("REPORT ALIASES", &[0xa3, 0x0b]),
    ("REPORT PRIORITY", &[0xa3, 0x0e]),
    ("REPORT TIMESTAMP", &[0xa3, 0x0f]),
    ("REPORT PROVISIONING INITIALIZATION PATTERN", &[0xa3, 0x1d]),
    ("READ MEDIA SERIAL NUMBER", &[0xab, 0x01]),
];

/// Conflicts with exclusive access.
const READS: &[Row] = &[
    ("READ(6)", &[0x08]),
    ("MODE SENSE(6)", &[0x1a]),
    ("RECEIVE DIAGNOSTIC RESULTS", &[0x1c]),
    ("READ(10)", &[0x28]),
    ("VERIFY(10)", &[0x2f]),
    ("VERIFY(10) with data", &[0x2f, 2]),
    ("PRE-FETCH(10)", &[0x34]),
    ("READ DEFECT DATA(10)", &[0x37]),
    ("READ BUFFER", &[0x3c]),
    ("MODE SENSE(10)", &[0x5a]),
    ("READ(32)", &[0x7f, 0, 0, 0, 0, 0, 0, 0x18, 0, 0x09]),
    ("VERIFY(32)", &[0x7f, 0, 0, 0, 0, 0, 0, 0x18, 0, 0x0a]),
    ("GET LBA STATUS(32)", &[0x7f, 0, 0, 0, 0, 0, 0, 0x18, 0, 0x12]),
    ("POPULATE TOKEN", &[0x83, 0x10]),
    ("READ(16)", &[0x88]),
    ("READ ATTRIBUTE", &[0x8c]),
    ("VERIFY(16)", &[0x8f]),
    ("PRE-FETCH(16)", &[0x90]),
    ("GET LBA STATUS(16)", &[0x9e, 0x12]),
    ("GET STREAM STATUS", &[0x9e, 0x16]),
    ("GET PHYSICAL ELEMENT STATUS", &[0x9e, 0x17]),
    ("SECURITY PROTOCOL IN", &[0xa2]),
    ("REPORT SUPPORTED OPERATION CODES", &[0xa3, 0x0c]),
    ("REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS", &[0xa3, 0x0d]),
    ("MANAGEMENT PROTOCOL IN", &[0xa3, 0x10]),
    ("READ(12)", &[0xa8]),
    ("VERIFY(12)", &[0xaf]),
    ("READ DEFECT DATA(12)", &[0xb7]),
];

/// Conflicts with every reservation.
const WRITES: &[Row] = &[
    ("FORMAT UNIT", &[0x04]),
    ("REASSIGN BLOCKS", &[0x07]),
    ("WRITE(6)", &[0x0a]),
    ("MODE SELECT(6)", &[0x15]),
    ("START STOP UNIT, START 0", &[0x1b, 0, 0, 0, 0]),
    ("START STOP UNIT, eject", &[0x1b, 0, 0, 0, 2]),
    ("START STOP UNIT, with a power condition", &[0x1b, 0, 0, 0, 0x11]),
    ("SEND DIAGNOSTIC", &[0x1d]),
    ("PREVENT ALLOW MEDIUM REMOVAL, PREVENT 1", &[0x1e, 0, 0, 0, 1]),
    ("WRITE(10)", &[0x2a]),
    ("WRITE AND VERIFY(10)", &[0x2e]),
    ("SYNCHRONIZE CACHE(10)", &[0x35]),
    ("FORMAT WITH PRESET", &[0x38]),
    ("WRITE BUFFER", &[0x3b]),
    ("WRITE LONG(10)", &[0x3f]),
    ("WRITE SAME(10)", &[0x41]),
    ("UNMAP", &[0x42]),
    ("SANITIZE", &[0x48]),
    ("LOG SELECT", &[0x4c]),
    ("MODE SELECT(10)", &[0x55]),
    ("WRITE(32)", &[0x7f, 0, 0, 0, 0, 0, 0, 0x18, 0, 0x0b]),
    ("WRITE AND VERIFY(32)", &[0x7f, 0, 0, 0, 0, 0, 0, 0x18, 0, 0x0c]),
    ("WRITE SAME(32)", &[0x7f, 0, 0, 0, 0, 0, 0, 0x18, 0, 0x0d]),
    ("ORWRITE(32)", &[0x7f, 0, 0, 0, 0, 0, 0, 0x18, 0, 0x0e]),
    ("WRITE ATOMIC(32)", &[0x7f, 0, 0, 0, 0, 0, 0, 0x18, 0, 0x0f]),
    ("WRITE STREAM(32)", &[0x7f, 0, 0, 0, 0, 0, 0, 0x18, 0, 0x10]),
    ("WRITE SCATTERED(32)", &[0x7f, 0, 0, 0, 0, 0, 0, 0x18, 0, 0x11]),
    ("RECEIVE CREDENTIAL", &[0x7f, 0, 0, 0, 0, 0, 0, 0, 0x18, 0x00]),
    ("EXTENDED COPY(LID1)", &[0x83, 0x00]),
    ("EXTENDED COPY(LID4)", &[0x83, 0x01]),
    ("WRITE USING TOKEN", &[0x83, 0x11]),
    ("COPY OPERATION ABORT", &[0x83, 0x1c]),
    ("COMPARE AND WRITE", &[0x89]),
    ("WRITE(16)", &[0x8a]),
    ("ORWRITE(16)", &[0x8b]),
    ("WRITE ATTRIBUTE", &[0x8d]),
    ("WRITE AND VERIFY(16)", &[0x8e]),
    ("SYNCHRONIZE CACHE(16)", &[0x91]),
    ("WRITE SAME(16)", &[0x93]),
    ("WRITE STREAM(16)", &[0x9a]),
    ("WRITE ATOMIC(16)", &[0x9c]),
    ("STREAM CONTROL", &[0x9e, 0x14]),
    ("BACKGROUND CONTROL", &[0x9e, 0x15]),
    ("REMOVE ELEMENT AND TRUNCATE", &[0x9e, 0x18]),
    ("RESTORE ELEMENTS AND REBUILD", &[0x9e, 0x19]),
    ("WRITE LONG(16)", &[0x9f, 0x11]),
    ("WRITE SCATTERED(16)", &[0x9f, 0x12]),
    ("SET IDENTIFYING INFORMATION", &[0xa4, 0x06]),
    ("SET TARGET PORT GROUPS", &[0xa4, 0x0a]),
    ("CHANGE ALIASES", &[0xa4, 0x0b]),
    ("REMOVE I_T NEXUS", &[0xa4, 0x0c]),
    ("SET PRIORITY", &[0xa4, 0x0e]),
    ("SET TIMESTAMP", &[0xa4, 0x0f]),
    ("MANAGEMENT PROTOCOL OUT", &[0xa4, 0x10]),
    ("WRITE(12)", &[0xaa]),
    ("WRITE AND VERIFY(12)", &[0xae]),
    ("SECURITY PROTOCOL OUT", &[0xb5]),
    ("what no standard has", &[0xc0]),
    ("the last there is", &[0xff, 0xff]),
    ("an unknown command of variable length", &[0x7f, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]),
    ("an unknown SERVICE ACTION IN(16)", &[0x9e, 0x1f]),
    ("an unknown MAINTENANCE IN", &[0xa3, 0x1f]),
    ("nothing", &[]),
];

/// A, and B as a registrant; A holds it.
fn held(kind: Type) -> Unit {
    Unit::after(&[register(A, NONE, KEY_A), register(B, NONE, KEY_B), reserve(A, KEY_A, kind)])
}

/// Checks a column: what `who` may do of each class.
fn column(unit: &Unit, who: Who, reads: bool, writes: bool) {
    for (commands, allowed) in [(ALWAYS, true), (READS, reads), (WRITES, writes)] {
        for (name, cdb) in commands {
            assert_eq!(unit.0.permits(&who.nexus(), Access::of_cdb(cdb)), allowed, "{name}");
        }
    }
}

#[test]
fn without_a_reservation_everybody_does_everything() {
    let unit = Unit::after(&[register(A, NONE, KEY_A)]);
    column(&unit, A, true, true);
    column(&unit, B, true, true);
}

#[test]
fn the_holder_does_everything() {
    for kind in Type::ALL {
        column(&held(kind), A, true, true);
    }
}

#[test]
fn write_exclusive_from_a_registrant() {
    column(&held(WE), B, true, false);
}

#[test]
fn write_exclusive_from_an_unregistered_nexus() {
    column(&held(WE), C, true, false);
}

#[test]
fn exclusive_access_from_a_registrant() {
    column(&held(EA), B, false, false);
}

#[test]
fn exclusive_access_from_an_unregistered_nexus() {
    column(&held(EA), C, false, false);
}

#[test]
fn registrants_only_or_all_from_a_registrant() {
    for kind in [WE_RO, EA_RO, WE_AR, EA_AR] {
        column(&held(kind), B, true, true);
    }
}

#[test]
fn write_exclusive_for_registrants_from_an_unregistered_nexus() {
    column(&held(WE_RO), C, true, false);
    column(&held(WE_AR), C, true, false);
}

#[test]
fn exclusive_access_for_registrants_from_an_unregistered_nexus() {
    column(&held(EA_RO), C, false, false);
    column(&held(EA_AR), C, false, false);
}

#[test]
fn the_holder_at_another_target_port_is_another_nexus() {
    column(&held(EA), A2, false, false);
    column(&held(EA_RO), A2, false, false);
}

#[test]
fn who_was_preempted_is_shut_out_at_once() {
    let mut unit = held(WE_RO);
    unit.send(&preempt(B, KEY_B, KEY_A, WE_RO));
    column(&unit, A, true, false);
    column(&unit, B, true, true);
}

/// Table 66: under a reservation of another.
#[test]
fn persistent_reserve_out_under_the_reservation_of_another() {
    use ReserveOutAction as Out;
    for kind in [WE, EA, WE_RO, EA_RO] {
        for (action, registered, unregistered) in [
            (Out::Clear, true, false),
            (Out::Preempt, true, false),
            (Out::PreemptAndAbort, true, false),
            (Out::Register, true, true),
            (Out::RegisterAndIgnoreExistingKey, true, true),
            (Out::RegisterAndMove, false, false),
            (Out::Release, true, false),
            (Out::Reserve, false, false),
            (Out::ReplaceLostReservation, true, false),
        ] {
            let cdb = [0x5f, action.code()];
            assert_eq!(Access::of_cdb(&cdb), Access::ReserveOut(action));
            let passes = |who: Who| held(kind).0.permits(&who.nexus(), Access::of_cdb(&cdb));
            assert_eq!((passes(B), passes(C)), (registered, unregistered), "{action} under {kind}");
        }
    }
}

#[test]
fn each_of_all_registrants_is_a_holder() {
    for kind in [WE_AR, EA_AR] {
        for action in ReserveOutAction::ALL {
            let access = Access::ReserveOut(action);
            assert!(held(kind).0.permits(&B.nexus(), access), "{action}");
            let registers =
                matches!(action, ReserveOutAction::Register | ReserveOutAction::RegisterAndIgnoreExistingKey);
            assert_eq!(held(kind).0.permits(&C.nexus(), access), registers, "{action}");
        }
    }
}
