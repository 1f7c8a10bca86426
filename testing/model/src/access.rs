//! The tables of commands that conflict with a reservation (SPC-4 table 65, SBC-4 table 13).

use crate::model::{Model, Nexus};

/// The class of a command with respect to reservations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    /// Always allowed.
    Free,
    /// Conflicts with exclusive access.
    Reads,
    /// Conflicts with every reservation.
    Writes,
    /// PERSISTENT RESERVE OUT, which has a separate table (SPC-4 table 66).
    Reserves,
    /// SPC-2's RESERVE and RELEASE.
    Spc2,
}

/// The commands of one class: the opcode, and the service action if the opcode has service actions of several classes.
type Commands = &'static [(u8, Option<u16>)];

/// Commands that are always allowed. START STOP UNIT and PREVENT ALLOW MEDIUM REMOVAL depend on further bits.
const FREE: Commands = &[
    (0x00, None),       // TEST UNIT READY
    (0x03, None),       // REQUEST SENSE
    (0x12, None),       // INQUIRY
    (0x25, None),       // READ CAPACITY (10)
    (0x4d, None),       // LOG SENSE
    (0x5e, None),       // PERSISTENT RESERVE IN
    (0x84, Some(0x00)), // RECEIVE COPY STATUS (LID1)
    (0x84, Some(0x01)), // RECEIVE COPY DATA (LID1)
    (0x84, Some(0x03)), // RECEIVE COPY OPERATING PARAMETERS
    (0x84, Some(0x04)), // RECEIVE COPY FAILURE DETAILS (LID1)
    (0x84, Some(0x05)), // RECEIVE COPY STATUS (LID4)
    (0x84, Some(0x06)), // RECEIVE COPY DATA (LID4)
    (0x84, Some(0x07)), // RECEIVE ROD TOKEN INFORMATION
    (0x84, Some(0x08)), // REPORT ALL ROD TOKENS
    (0x86, None),       // ACCESS CONTROL IN
    (0x87, None),       // ACCESS CONTROL OUT
    (0x9e, Some(0x10)), // READ CAPACITY (16)
    (0x9e, Some(0x13)), // REPORT REFERRALS
    (0xa0, None),       // REPORT LUNS
    (0xa3, Some(0x05)), // REPORT IDENTIFYING INFORMATION
    (0xa3, Some(0x0a)), // REPORT TARGET PORT GROUPS
    (0xa3, Some(0x0b)), // REPORT ALIASES
    (0xa3, Some(0x0e)), // REPORT PRIORITY
    (0xa3, Some(0x0f)), // REPORT TIMESTAMP
    (0xa3, Some(0x1d)), // REPORT PROVISIONING INITIALIZATION PATTERN
    (0xab, Some(0x01)), // READ MEDIA SERIAL NUMBER
];

/// Commands that conflict with exclusive access.
const READS: Commands = &[
    (0x08, None),       // READ (6)
    (0x1a, None),       // MODE SENSE (6)
    (0x1c, None),       // RECEIVE DIAGNOSTIC RESULTS
    (0x28, None),       // READ (10)
    (0x2f, None),       // VERIFY (10)
    (0x34, None),       // PRE-FETCH (10)
    (0x37, None),       // READ DEFECT DATA (10)
    (0x3c, None),       // READ BUFFER (10)
    (0x5a, None),       // MODE SENSE (10)
    (0x7f, Some(0x09)), // READ (32)
    (0x7f, Some(0x0a)), // VERIFY (32)
    (0x83, Some(0x10)), // POPULATE TOKEN
    (0x88, None),       // READ (16)
    (0x8c, None),       // READ ATTRIBUTE
    (0x8f, None),       // VERIFY (16)
    (0x90, None),       // PRE-FETCH (16)
    (0x9e, Some(0x12)), // GET LBA STATUS
    (0x9e, Some(0x16)), // GET STREAM STATUS
    (0x9e, Some(0x17)), // GET PHYSICAL ELEMENT STATUS
    (0xa2, None),       // SECURITY PROTOCOL IN
    (0xa3, Some(0x0c)), // REPORT SUPPORTED OPERATION CODES
    (0xa3, Some(0x0d)), // REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS
    (0xa3, Some(0x10)), // MANAGEMENT PROTOCOL IN
    (0xa8, None),       // READ (12)
    (0xaf, None),       // VERIFY (12)
    (0xb7, None),       // READ DEFECT DATA (12)
];

/// Commands that conflict with every reservation.
const WRITES: Commands = &[
    (0x04, None),         // FORMAT UNIT
    (0x07, None),         // REASSIGN BLOCKS
    (0x0a, None),         // WRITE (6)
    (0x15, None),         // MODE SELECT (6)
    (0x1d, None),         // SEND DIAGNOSTIC
    (0x2a, None),         // WRITE (10)
    (0x2e, None),         // WRITE AND VERIFY (10)
    (0x35, None),         // SYNCHRONIZE CACHE (10)
    (0x38, None),         // FORMAT WITH PRESET
    (0x3b, None),         // WRITE BUFFER
    (0x3f, None),         // WRITE LONG (10)
    (0x41, None),         // WRITE SAME (10)
    (0x42, None),         // UNMAP
    (0x48, None),         // SANITIZE
    (0x4c, None),         // LOG SELECT
    (0x55, None),         // MODE SELECT (10)
    (0x7f, Some(0x0b)),   // WRITE (32)
    (0x7f, Some(0x0c)),   // WRITE AND VERIFY (32)
    (0x7f, Some(0x0d)),   // WRITE SAME (32)
    (0x7f, Some(0x0e)),   // ORWRITE (32)
    (0x7f, Some(0x0f)),   // WRITE ATOMIC (32)
    (0x7f, Some(0x10)),   // WRITE STREAM (32)
    (0x7f, Some(0x11)),   // WRITE SCATTERED (32)
    (0x7f, Some(0x1800)), // RECEIVE CREDENTIAL
    (0x83, Some(0x00)),   // EXTENDED COPY (LID1)
    (0x83, Some(0x01)),   // EXTENDED COPY (LID4)
    (0x83, Some(0x11)),   // WRITE USING TOKEN
    (0x83, Some(0x1c)),   // COPY OPERATION ABORT
    (0x89, None),         // COMPARE AND WRITE
    (0x8a, None),         // WRITE (16)
    (0x8b, None),         // ORWRITE (16)
    (0x8d, None),         // WRITE ATTRIBUTE
    (0x8e, None),         // WRITE AND VERIFY (16)
    (0x91, None),         // SYNCHRONIZE CACHE (16)
    (0x93, None),         // WRITE SAME (16)
    (0x9a, None),         // WRITE STREAM (16)
    (0x9c, None),         // WRITE ATOMIC (16)
    (0x9e, Some(0x14)),   // STREAM CONTROL
    (0x9e, Some(0x15)),   // BACKGROUND CONTROL
    (0x9e, Some(0x18)),   // REMOVE ELEMENT AND TRUNCATE
    (0x9e, Some(0x19)),   // RESTORE ELEMENTS AND REBUILD
    (0x9f, Some(0x11)),   // WRITE LONG (16)
    (0x9f, Some(0x12)),   // WRITE SCATTERED (16)
    (0xa4, Some(0x06)),   // SET IDENTIFYING INFORMATION
    (0xa4, Some(0x0a)),   // SET TARGET PORT GROUPS
    (0xa4, Some(0x0b)),   // CHANGE ALIASES
    (0xa4, Some(0x0c)),   // REMOVE I_T NEXUS
    (0xa4, Some(0x0e)),   // SET PRIORITY
    (0xa4, Some(0x0f)),   // SET TIMESTAMP
    (0xa4, Some(0x10)),   // MANAGEMENT PROTOCOL OUT
    (0xaa, None),         // WRITE (12)
    (0xae, None),         // WRITE AND VERIFY (12)
    (0xb5, None),         // SECURITY PROTOCOL OUT
];

fn class(cdb: &[u8]) -> Option<Class> {
    let service_action = match cdb[0] {
        0x7f => u16::from_be_bytes([cdb[8], cdb[9]]),
        _ => u16::from(cdb[1] & 0x1f),
    };
    let is_in = |commands: Commands| {
        commands.iter().any(|(opcode, action)| *opcode == cdb[0] && action.is_none_or(|one| one == service_action))
    };
    match cdb[0] {
        // START STOP UNIT: with START, and without a power condition.
        0x1b => Some(if cdb[4] & 0xf1 == 1 { Class::Free } else { Class::Writes }),
        // PREVENT ALLOW MEDIUM REMOVAL: without PREVENT.
        0x1e => Some(if cdb[4] & 3 == 0 { Class::Free } else { Class::Writes }),
        0x5f => Some(Class::Reserves),
        0x16 | 0x17 | 0x56 | 0x57 => Some(Class::Spc2),
        _ if is_in(FREE) => Some(Class::Free),
        _ if is_in(READS) => Some(Class::Reads),
        _ if is_in(WRITES) => Some(Class::Writes),
        _ => None,
    }
}

impl Model {
    /// Whether the unit permits a command of `nexus`.
    ///
    /// # Panics
    ///
    /// If the command is not one of [`commands`].
    pub fn permits(&self, nexus: &Nexus, cdb: &[u8]) -> bool {
        let class = class(cdb).expect("a command of the standard");
        let registered = self.key_of(nexus).is_some();
        if let Some(holder) = &self.spc2_holder {
            return match cdb[0] {
                0x5e | 0x5f => false,
                _ if holder == nexus => true,
                // INQUIRY, LOG SENSE, REPORT LUNS, REQUEST SENSE, READ CAPACITY, RELEASE.
                0x12 | 0x4d | 0xa0 | 0x03 | 0x25 | 0x17 | 0x57 => true,
                0x9e => cdb[1] == 0x10,
                0x1b | 0x1e => class == Class::Free,
                _ => false,
            };
        }
        let Some(reservation) = &self.reservation else {
            // Reservations of SPC-2 conflict with registrations (SPC-4 5.13.3).
            return class != Class::Spc2 || self.registrants.is_empty();
        };
        let has_access = match reservation.kind {
            5..=8 => registered,
            _ => self.is_holder(nexus),
        };
        match class {
            Class::Free => true,
            Class::Reads => has_access || [1, 5, 7].contains(&reservation.kind),
            Class::Writes | Class::Spc2 => has_access,
            Class::Reserves => match cdb[1] & 0x1f {
                0 | 6 => true,
                1 | 7 => self.is_holder(nexus),
                _ => registered,
            },
        }
    }
}

/// A CDB of every command.
pub fn commands() -> Vec<[u8; 32]> {
    let mut all = Vec::new();
    for (opcode, action) in [FREE, READS, WRITES].concat() {
        let mut cdb = [0; 32];
        cdb[0] = opcode;
        match (opcode, action) {
            (0x7f, Some(action)) => cdb[8..10].copy_from_slice(&action.to_be_bytes()),
            (_, Some(action)) => cdb[1] = action as u8,
            (_, None) => {}
        }
        all.push(cdb);
    }
    for (opcode, byte) in [(0x1b, 0x00), (0x1b, 0x01), (0x1b, 0x11), (0x1b, 0x02), (0x1e, 0x00), (0x1e, 0x01)] {
        let mut cdb = [0; 32];
        (cdb[0], cdb[4]) = (opcode, byte);
        all.push(cdb);
    }
    for (opcode, actions) in [(0x5f, 9), (0x16, 1), (0x17, 1), (0x56, 1), (0x57, 1)] {
        for action in 0..actions {
            let mut cdb = [0; 32];
            (cdb[0], cdb[1]) = (opcode, action);
            all.push(cdb);
        }
    }
    all
}
