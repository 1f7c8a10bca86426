//! The table of commands. The device server dispatches by it, and REPORT SUPPORTED OPERATION CODES answers from it.

/// The command that a CDB stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    TestUnitReady,
    RequestSense,
    Inquiry,
    ModeSense6,
    ModeSense10,
    ModeSelect6,
    ModeSelect10,
    StartStopUnit,
    PreventAllow,
    ReadCapacity10,
    ReadCapacity16,
    Read,
    Write,
    WriteAndVerify,
    Verify,
    SynchronizeCache,
    PreFetch,
    WriteSame,
    Unmap,
    GetLbaStatus,
    OrWrite,
    CompareAndWrite,
    ReadDefectData10,
    ReadDefectData12,
    ReserveSpc2,
    ReleaseSpc2,
    PersistentReserveIn,
    PersistentReserveOut,
    ReportLuns,
    ReportSupportedOperationCodes,
    ReportSupportedTaskManagementFunctions,
}

/// Whether a pending unit attention is the answer to a command (SPC-4 4.2.1: INQUIRY, REPORT LUNS and REQUEST SENSE are
/// processed without it).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UnitAttention {
    Reported,
    Deferred,
    /// It stays for the sessions of the nexus: the command is of an administrator.
    Preserved,
}

/// One supported command.
#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) operation: Operation,
    pub(crate) opcode: u8,
    pub(crate) service_action: Option<u8>,
    /// CDB USAGE DATA of REPORT SUPPORTED OPERATION CODES (SPC-4 6.35.3): a bit is set where the device server looks at
    /// it. Its length is that of the CDB; its first byte, and a service action, stand for themselves.
    pub(crate) usage: &'static [u8],
    pub(crate) unit_attention: UnitAttention,
}

const fn command(operation: Operation, opcode: u8, usage: &'static [u8]) -> Command {
    Command { operation, opcode, service_action: None, usage, unit_attention: UnitAttention::Reported }
}

impl Command {
    const fn service_action(self, service_action: u8) -> Self {
        Self { service_action: Some(service_action), ..self }
    }

    const fn defers_unit_attention(self) -> Self {
        Self { unit_attention: UnitAttention::Deferred, ..self }
    }
}

const LBA32: [u8; 4] = [0xff; 4];

/// Usage of a ten-byte CDB with an LBA, a length of 16 bits, and these bits of byte 1.
const fn lba10(byte1: u8) -> [u8; 10] {
    [0, byte1, LBA32[0], LBA32[1], LBA32[2], LBA32[3], 0, 0xff, 0xff, 0x07]
}

const fn lba12(byte1: u8) -> [u8; 12] {
    [0, byte1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0x07]
}

const fn lba16(byte1: u8) -> [u8; 16] {
    [0, byte1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0x07]
}

/// RDPROTECT or WRPROTECT, DPO, FUA.
const PROTECT_DPO_FUA: u8 = 0xf8;
/// VRPROTECT, DPO, BYTCHK.
const PROTECT_DPO_BYTCHK: u8 = 0xf6;

/// Every supported command, in the order of operation codes and service actions.
pub(crate) static COMMANDS: &[Command] = &[
    command(Operation::TestUnitReady, 0x00, &[0, 0, 0, 0, 0, 0x07]),
    command(Operation::RequestSense, 0x03, &[0, 0x01, 0, 0, 0xff, 0x07]).defers_unit_attention(),
    command(Operation::Read, 0x08, &[0, 0x1f, 0xff, 0xff, 0xff, 0x07]),
    command(Operation::Write, 0x0a, &[0, 0x1f, 0xff, 0xff, 0xff, 0x07]),
    command(Operation::Inquiry, 0x12, &[0, 0x01, 0xff, 0xff, 0xff, 0x07]).defers_unit_attention(),
    command(Operation::ModeSelect6, 0x15, &[0, 0x11, 0, 0, 0xff, 0x07]),
    command(Operation::ReserveSpc2, 0x16, &[0, 0, 0, 0, 0, 0x07]),
    command(Operation::ReleaseSpc2, 0x17, &[0, 0, 0, 0, 0, 0x07]),
    command(Operation::ModeSense6, 0x1a, &[0, 0x08, 0xff, 0xff, 0xff, 0x07]),
    command(Operation::StartStopUnit, 0x1b, &[0, 0x01, 0, 0, 0xf3, 0x07]),
    command(Operation::PreventAllow, 0x1e, &[0, 0, 0, 0, 0x03, 0x07]),
    command(Operation::ReadCapacity10, 0x25, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0x07]),
    command(Operation::Read, 0x28, &lba10(PROTECT_DPO_FUA)),
    command(Operation::Write, 0x2a, &lba10(PROTECT_DPO_FUA)),
    command(Operation::WriteAndVerify, 0x2e, &lba10(PROTECT_DPO_BYTCHK)),
    command(Operation::Verify, 0x2f, &lba10(PROTECT_DPO_BYTCHK)),
    command(Operation::PreFetch, 0x34, &lba10(0x02)),
    command(Operation::SynchronizeCache, 0x35, &lba10(0x02)),
    command(Operation::ReadDefectData10, 0x37, &[0, 0, 0x1f, 0, 0, 0, 0, 0xff, 0xff, 0x07]),
    command(Operation::WriteSame, 0x41, &lba10(0xf8)),
    command(Operation::Unmap, 0x42, &[0, 0x01, 0, 0, 0, 0, 0, 0xff, 0xff, 0x07]),
    command(Operation::ModeSelect10, 0x55, &[0, 0x11, 0, 0, 0, 0, 0, 0xff, 0xff, 0x07]),
    command(Operation::ReserveSpc2, 0x56, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0x07]),
    command(Operation::ReleaseSpc2, 0x57, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0x07]),
    command(Operation::ModeSense10, 0x5a, &[0, 0x18, 0xff, 0xff, 0, 0, 0, 0xff, 0xff, 0x07]),
    persistent_reserve_in(0),
    persistent_reserve_in(1),
    persistent_reserve_in(2),
    persistent_reserve_in(3),
    persistent_reserve_out(0),
    persistent_reserve_out(1),
    persistent_reserve_out(2),
    persistent_reserve_out(3),
    persistent_reserve_out(4),
    persistent_reserve_out(5),
    persistent_reserve_out(6),
    persistent_reserve_out(7),
    command(Operation::Read, 0x88, &lba16(PROTECT_DPO_FUA)),
    command(
        Operation::CompareAndWrite,
        0x89,
        &[0, PROTECT_DPO_FUA, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0xff, 0, 0x07],
    ),
    command(Operation::Write, 0x8a, &lba16(PROTECT_DPO_FUA)),
    command(Operation::OrWrite, 0x8b, &lba16(PROTECT_DPO_FUA)),
    command(Operation::WriteAndVerify, 0x8e, &lba16(PROTECT_DPO_BYTCHK)),
    command(Operation::Verify, 0x8f, &lba16(PROTECT_DPO_BYTCHK)),
    command(Operation::PreFetch, 0x90, &lba16(0x02)),
    command(Operation::SynchronizeCache, 0x91, &lba16(0x02)),
    command(Operation::WriteSame, 0x93, &lba16(0xf9)),
    command(Operation::ReadCapacity16, 0x9e, &[0, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0x07])
        .service_action(0x10),
    command(Operation::GetLbaStatus, 0x9e, &lba16(0x1f)).service_action(0x12),
    command(Operation::ReportLuns, 0xa0, &[0, 0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0x07])
        .defers_unit_attention(),
    command(
        Operation::ReportSupportedOperationCodes,
        0xa3,
        &[0, 0x1f, 0x87, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0x07],
    )
    .service_action(0x0c),
    command(
        Operation::ReportSupportedTaskManagementFunctions,
        0xa3,
        &[0, 0x1f, 0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0x07],
    )
    .service_action(0x0d),
    command(Operation::Read, 0xa8, &lba12(PROTECT_DPO_FUA)),
    command(Operation::Write, 0xaa, &lba12(PROTECT_DPO_FUA)),
    command(Operation::WriteAndVerify, 0xae, &lba12(PROTECT_DPO_BYTCHK)),
    command(Operation::Verify, 0xaf, &lba12(PROTECT_DPO_BYTCHK)),
    command(Operation::ReadDefectData12, 0xb7, &[0, 0x1f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0x07]),
];

const fn persistent_reserve_in(service_action: u8) -> Command {
    command(Operation::PersistentReserveIn, 0x5e, &[0, 0x1f, 0, 0, 0, 0, 0, 0xff, 0xff, 0x07])
        .service_action(service_action)
}

const fn persistent_reserve_out(service_action: u8) -> Command {
    command(Operation::PersistentReserveOut, 0x5f, &[0, 0x1f, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x07])
        .service_action(service_action)
}

/// The result of [`find`].
pub(crate) enum Lookup {
    Command(&'static Command),
    UnknownOpcode,
    /// The operation code is supported, with other service actions.
    UnknownServiceAction,
}

/// The command of a CDB.
pub(crate) fn find(opcode: u8, byte1: u8) -> Lookup {
    let mut same_opcode = COMMANDS.iter().filter(|command| command.opcode == opcode).peekable();
    if same_opcode.peek().is_none() {
        return Lookup::UnknownOpcode;
    }
    let service_action = byte1 & 0x1f;
    match same_opcode.find(|command| command.service_action.is_none_or(|own| own == service_action)) {
        Some(command) => Lookup::Command(command),
        None => Lookup::UnknownServiceAction,
    }
}

impl Command {
    /// CDB USAGE DATA, complete.
    pub(crate) fn usage_data(&self) -> Vec<u8> {
        let mut usage = self.usage.to_vec();
        usage[0] = self.opcode;
        if let Some(service_action) = self.service_action {
            usage[1] = (usage[1] & !0x1f) | service_action;
        }
        usage
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_in_order_and_each_is_found() {
        let order: Vec<_> = COMMANDS.iter().map(|command| (command.opcode, command.service_action)).collect();
        assert!(order.windows(2).all(|pair| pair[0] < pair[1]), "{order:02x?}");
        for command in COMMANDS {
            let Lookup::Command(found) = find(command.opcode, command.service_action.unwrap_or(0)) else {
                panic!("{command:?} is not found");
            };
            assert!(std::ptr::eq(found, command));
        }
    }

    #[test]
    fn the_length_of_a_cdb_is_that_of_its_group() {
        for command in COMMANDS {
            let length = match command.opcode >> 5 {
                0 => 6,
                1 | 2 => 10,
                4 => 16,
                5 => 12,
                group => panic!("no command is of group {group}"),
            };
            assert_eq!(command.usage.len(), length, "{command:?}");
            assert_eq!(command.usage[0], 0, "usage_data fills the operation code in");
        }
    }

    #[test]
    fn extended_copy_and_replace_lost_reservation_are_not_supported() {
        assert!(matches!(find(0x83, 0), Lookup::UnknownOpcode));
        assert!(matches!(find(0x5f, 8), Lookup::UnknownServiceAction));
    }
}
