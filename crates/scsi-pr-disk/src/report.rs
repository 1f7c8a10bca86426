//! The commands that report what the device server is and supports.

use scsi_pr::SenseCode;

use crate::call::{Call, Failure};
use crate::commands::{COMMANDS, Command, Operation};

/// REPORT LUNS (SPC-4 6.33) of a target with these logical unit numbers: the data, and the allocation length.
pub(crate) fn luns(cdb: &[u8; 16], numbers: &[u8]) -> Result<(Vec<u8>, usize), SenseCode> {
    let list: &[u8] = match cdb[2] {
        // All but well-known units, and all; there are no well-known ones.
        0x00 | 0x02 => numbers,
        0x01 => &[],
        _ => return Err(SenseCode::INVALID_FIELD_IN_CDB),
    };
    let allocation_length = u32::from_be_bytes([cdb[6], cdb[7], cdb[8], cdb[9]]) as usize;
    if allocation_length < 16 {
        return Err(SenseCode::INVALID_FIELD_IN_CDB);
    }
    let mut data = ((list.len() * 8) as u32).to_be_bytes().to_vec();
    data.extend_from_slice(&[0; 4]);
    // Peripheral device addressing.
    list.iter().for_each(|number| data.extend_from_slice(&[0, *number, 0, 0, 0, 0, 0, 0]));
    Ok((data, allocation_length))
}

/// REPORT SUPPORTED OPERATION CODES (SPC-4 6.35).
pub(crate) fn operation_codes(call: &mut Call<'_>) -> Result<(), Failure> {
    let with_timeouts = call.cdb[2] & 0x80 != 0;
    let opcode = call.cdb[3];
    let service_action = call.be16(4);
    let same_opcode = || COMMANDS.iter().filter(move |command| command.opcode == opcode);
    let exact = || same_opcode().find(|command| command.service_action.map(u16::from) == Some(service_action));
    let has_service_actions = same_opcode().any(|command| command.service_action.is_some());
    let invalid = Failure::from(SenseCode::INVALID_FIELD_IN_CDB);
    let data = match call.cdb[2] & 0x07 {
        0 => all_commands(with_timeouts),
        1 if has_service_actions => return Err(invalid),
        1 => one_command(same_opcode().next(), with_timeouts),
        2 if !has_service_actions && same_opcode().next().is_some() => return Err(invalid),
        2 => one_command(exact(), with_timeouts),
        3 if has_service_actions => one_command(exact(), with_timeouts),
        3 => one_command(same_opcode().next().filter(|_| service_action == 0), with_timeouts),
        _ => return Err(invalid),
    };
    let allocation_length = call.be32(6) as usize;
    call.answer(&data, allocation_length);
    Ok(())
}

/// A command timeouts descriptor (SPC-4 6.35.4) that names no times.
const TIMEOUTS: [u8; 12] = [0x00, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn all_commands(with_timeouts: bool) -> Vec<u8> {
    const SERVICE_ACTION_VALID: u8 = 0x01;
    const TIMEOUTS_PRESENT: u8 = 0x02;
    let mut data = vec![0; 4];
    for command in COMMANDS {
        let service_action = u16::from(command.service_action.unwrap_or(0)).to_be_bytes();
        let flags = if command.service_action.is_some() { SERVICE_ACTION_VALID } else { 0 }
            | if with_timeouts { TIMEOUTS_PRESENT } else { 0 };
        let length = (command.usage.len() as u16).to_be_bytes();
        data.extend_from_slice(&[
            command.opcode,
            0,
            service_action[0],
            service_action[1],
            0,
            flags,
            length[0],
            length[1],
        ]);
        if with_timeouts {
            data.extend_from_slice(&TIMEOUTS);
        }
    }
    let length = ((data.len() - 4) as u32).to_be_bytes();
    data[..4].copy_from_slice(&length);
    data
}

fn one_command(command: Option<&Command>, with_timeouts: bool) -> Vec<u8> {
    const NOT_SUPPORTED: u8 = 1;
    const SUPPORTED: u8 = 3;
    const TIMEOUTS_PRESENT: u8 = 0x80;
    let Some(command) = command else { return vec![0, NOT_SUPPORTED, 0, 0] };
    let usage = command.usage_data();
    let mut data = vec![0, SUPPORTED | if with_timeouts { TIMEOUTS_PRESENT } else { 0 }, 0, usage.len() as u8];
    data.extend_from_slice(&usage);
    if with_timeouts {
        data.extend_from_slice(&TIMEOUTS);
    }
    data
}

/// REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS (SPC-4 6.36).
pub(crate) fn task_management_functions(call: &mut Call<'_>) -> Result<(), Failure> {
    /// ATS, ATSS, CTSS, LURS; without CACAS, and QTS.
    const FUNCTIONS: u8 = 0x80 | 0x40 | 0x10 | 0x08;
    let extended = call.cdb[2] & 0x80 != 0;
    let allocation_length = call.be32(6) as usize;
    if allocation_length < 4 {
        return Err(SenseCode::INVALID_FIELD_IN_CDB.into());
    }
    let mut data = vec![FUNCTIONS, 0, 0, 0];
    if extended {
        data[3] = 12;
        data.resize(16, 0);
    }
    call.answer(&data, allocation_length);
    Ok(())
}

/// READ DEFECT DATA (SBC-4 5.18): empty lists.
pub(crate) fn defects(call: &mut Call<'_>, operation: Operation) -> Result<(), Failure> {
    match operation {
        Operation::ReadDefectData10 => {
            let allocation_length = usize::from(call.be16(7));
            let lists = call.cdb[2] & 0x1f;
            call.answer(&[0, lists, 0, 0], allocation_length);
        }
        _ => {
            let allocation_length = call.be32(6) as usize;
            let lists = call.cdb[1] & 0x1f;
            call.answer(&[0, lists, 0, 0, 0, 0, 0, 0], allocation_length);
        }
    }
    Ok(())
}
