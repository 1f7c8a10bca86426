//! [`Access`]: the class of a command, as reservations see it (SPC-4 5.13.1, SBC-4 4.17).

use crate::{Opcode, ReserveOutAction};

/// The access to the logical unit that a command needs, as reservations see it.
///
/// | class | WE, other nexus | EA, other nexus | RO or AR, registrant | WE-RO/AR, not registered | EA-RO/AR, not registered | SPC-2, other nexus |
/// | --- | --- | --- | --- | --- | --- | --- |
/// | `Always` | passes | passes | passes | passes | passes | passes |
/// | `Status` | passes | passes | passes | passes | passes | conflict |
/// | `Read` | passes | conflict | passes | passes | conflict | conflict |
/// | `Write` | conflict | conflict | passes | conflict | conflict | conflict |
///
/// An unknown command is `Write`: it conflicts with every reservation that leaves its sender out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Access {
    /// Passes every reservation: INQUIRY, REPORT LUNS, REQUEST SENSE, LOG SENSE, READ CAPACITY, PREVENT ALLOW MEDIUM
    /// REMOVAL that allows, START STOP UNIT that starts.
    Always,
    /// Passes every persistent reservation: TEST UNIT READY and reports about the unit.
    Status,
    /// Looks at the medium or the unit's settings. As ALLOW COMMANDS 100b has it, MODE SENSE and READ BUFFER too.
    Read,
    /// Changes the medium, the caches or the settings; also every unknown command.
    Write,
    /// PERSISTENT RESERVE IN: passes every persistent reservation; conflicts with a SPC-2 one, the holder's own included.
    ReserveIn,
    /// PERSISTENT RESERVE OUT with this service action; conflicts with a SPC-2 reservation, the holder's own included.
    /// Under a persistent one of another nexus:
    ///
    /// | service action | registered | not registered |
    /// | --- | --- | --- |
    /// | REGISTER, REGISTER AND IGNORE EXISTING KEY | passes | passes |
    /// | RELEASE, CLEAR, PREEMPT, PREEMPT AND ABORT, REPLACE LOST RESERVATION | passes | conflict |
    /// | RESERVE, REGISTER AND MOVE | conflict | conflict |
    ReserveOut(ReserveOutAction),
    /// RESERVE(6) and RESERVE(10) of SPC-2.
    ReserveSpc2,
    /// RELEASE(6) and RELEASE(10) of SPC-2.
    ReleaseSpc2,
}

impl Access {
    /// The class of a command of SPC-4 or SBC-4, by its CDB. Bytes that a CDB lacks are taken for zero; one without any,
    /// an operation code or a service action that neither standard has is [`Access::Write`].
    pub fn of_cdb(cdb: &[u8]) -> Self {
        let byte = |index: usize| cdb.get(index).copied().unwrap_or(0);
        let service_action = byte(1) & 0x1f;
        let Some(operation_code) = cdb.first() else { return Self::Write };
        match operation_code {
            // REQUEST SENSE, INQUIRY, READ CAPACITY(10), LOG SENSE, REPORT LUNS.
            0x03 | 0x12 | 0x25 | 0x4d | 0xa0 => Self::Always,
            // TEST UNIT READY, ACCESS CONTROL IN, ACCESS CONTROL OUT.
            0x00 | 0x86 | 0x87 => Self::Status,
            // READ(6), READ(10), READ(16), READ(12).
            0x08 | 0x28 | 0x88 | 0xa8
            // VERIFY(10), VERIFY(16), VERIFY(12).
            | 0x2f | 0x8f | 0xaf
            // PRE-FETCH(10), PRE-FETCH(16), READ DEFECT DATA(10), READ DEFECT DATA(12), READ LONG(10).
            | 0x34 | 0x90 | 0x37 | 0xb7 | 0x3e
            // MODE SENSE(6), MODE SENSE(10), RECEIVE DIAGNOSTIC RESULTS, READ BUFFER(10), READ BUFFER(16).
            | 0x1a | 0x5a | 0x1c | 0x3c | 0x9b
            // READ ATTRIBUTE, SECURITY PROTOCOL IN.
            | 0x8c | 0xa2 => Self::Read,
            0x16 | 0x56 => Self::ReserveSpc2,
            0x17 | 0x57 => Self::ReleaseSpc2,
            // START STOP UNIT: POWER CONDITION zero, START set.
            0x1b if byte(4) & 0xf1 == 0x01 => Self::Always,
            // PREVENT ALLOW MEDIUM REMOVAL: PREVENT zero.
            0x1e if byte(4) & 0x03 == 0 => Self::Always,
            code if *code == Opcode::ReserveIn.byte() => Self::ReserveIn,
            code if *code == Opcode::ReserveOut.byte() => {
                ReserveOutAction::from_code(service_action).map_or(Self::Write, Self::ReserveOut)
            }
            0x7f => variable_length(u16::from_be_bytes([byte(8), byte(9)])),
            0x83 => third_party_copy_out(service_action),
            0x84 => third_party_copy_in(service_action),
            0x9e => service_action_in_16(service_action),
            0xa3 => maintenance_in(service_action),
            // SERVICE ACTION IN(12): READ MEDIA SERIAL NUMBER.
            0xab if service_action == 0x01 => Self::Status,
            // All of MAINTENANCE OUT (A4h), SERVICE ACTION OUT(12) and (16) (A9h, 9Fh) and SERVICE ACTION BIDIRECTIONAL
            // (9Dh); FORMAT UNIT, REASSIGN BLOCKS, MODE SELECT, LOG SELECT, SEND DIAGNOSTIC, SYNCHRONIZE CACHE, UNMAP,
            // SANITIZE, COMPARE AND WRITE, everything that writes, and what is not known.
            _ => Self::Write,
        }
    }

    /// Whether it passes a SPC-2 reservation of another nexus (SPC-2 5.5.1). RELEASE does, without effect.
    pub(super) const fn passes_spc2_of_another(self) -> bool {
        matches!(self, Self::Always | Self::ReleaseSpc2)
    }

    /// Whether it conflicts even with a SPC-2 reservation of its own nexus.
    pub(super) const fn conflicts_with_own_spc2(self) -> bool {
        matches!(self, Self::ReserveIn | Self::ReserveOut(_))
    }
}

const fn variable_length(service_action: u16) -> Access {
    match service_action {
        // READ(32), VERIFY(32), GET LBA STATUS(32).
        0x0009 | 0x000a | 0x0012 => Access::Read,
        // WRITE(32), WRITE AND VERIFY(32), WRITE SAME(32), ORWRITE(32), WRITE ATOMIC(32), WRITE STREAM(32),
        // WRITE SCATTERED(32), RECEIVE CREDENTIAL.
        _ => Access::Write,
    }
}

const fn third_party_copy_out(service_action: u8) -> Access {
    match service_action {
        // POPULATE TOKEN reads what the token stands for.
        0x10 => Access::Read,
        // EXTENDED COPY, WRITE USING TOKEN, COPY OPERATION ABORT.
        _ => Access::Write,
    }
}

const fn third_party_copy_in(service_action: u8) -> Access {
    match service_action {
        // RECEIVE COPY STATUS, DATA, OPERATING PARAMETERS and FAILURE DETAILS, RECEIVE ROD TOKEN INFORMATION,
        // REPORT ALL ROD TOKENS.
        0x00 | 0x01 | 0x03..=0x08 => Access::Status,
        _ => Access::Write,
    }
}

const fn service_action_in_16(service_action: u8) -> Access {
    match service_action {
        // READ CAPACITY(16).
        0x10 => Access::Always,
        // REPORT REFERRALS.
        0x13 => Access::Status,
        // READ LONG(16), GET LBA STATUS(16), GET STREAM STATUS, GET PHYSICAL ELEMENT STATUS.
        0x11 | 0x12 | 0x16 | 0x17 => Access::Read,
        // STREAM CONTROL, BACKGROUND CONTROL, REMOVE ELEMENT AND TRUNCATE, RESTORE ELEMENTS AND REBUILD …
        _ => Access::Write,
    }
}

const fn maintenance_in(service_action: u8) -> Access {
    match service_action {
        // REPORT IDENTIFYING INFORMATION, TARGET PORT GROUPS, ALIASES, PRIORITY, TIMESTAMP, PROVISIONING INITIALIZATION
        // PATTERN.
        0x05 | 0x0a | 0x0b | 0x0e | 0x0f | 0x1d => Access::Status,
        // REPORT SUPPORTED OPERATION CODES, REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS, MANAGEMENT PROTOCOL IN.
        0x0c | 0x0d | 0x10 => Access::Read,
        _ => Access::Write,
    }
}
