//! The rules of reservations: commands of several nexuses to one unit, and the unit's record.

use scsi_pr::{
    Access, Cdb, Command, Completion, InitiatorPort, InvalidRecord, Nexus, Opcode, Reservations, ReserveOut,
    TransportId,
};

/// The most registrants. It is small, so that histories reach it.
const MAX_REGISTRANTS: usize = 6;

/// One of four initiators on one of two target ports.
fn nexus(byte: u8) -> Nexus {
    let port = InitiatorPort::Sas { address: u64::from(byte & 3) + 1 };
    Nexus::new(TransportId::new(port).expect("every SAS address is valid"), u16::from(byte >> 2 & 1) + 1)
}

/// Commands, one after the other: a byte for the nexus, 16 bytes of CDB, and the parameter list of the CDB's length.
pub fn reservation_commands(mut data: &[u8]) {
    let mut unit = Reservations::with_target_ports([1, 2]).with_room_for(MAX_REGISTRANTS);
    while let Some(([sender, cdb @ ..], rest)) = data.split_first_chunk::<17>() {
        let sender = nexus(*sender);
        let Ok(cdb) = Cdb::new(*cdb) else { break };
        let Some((list, rest)) = rest.split_at_checked(cdb.parameter_list_length()) else { break };
        data = rest;
        one_command(&mut unit, &sender, Command::new(cdb, list).expect("it is as long as the CDB says"));
    }
    let record = unit.to_record();
    let again = Reservations::from_record(&record).expect("it has just been written");
    assert_eq!(again, unit);
    assert_eq!(again.to_record(), record);
}

fn one_command(unit: &mut Reservations, sender: &Nexus, command: Command<'_>) {
    let before = unit.clone();
    let permitted = unit.permits(sender, Access::of_cdb(command.cdb().bytes()));
    let outcome = unit.execute(sender, command);
    assert_eq!(outcome.changed, *unit != before, "{command}");

    let mut expected = before.clone();
    if command.opcode() != Opcode::Cleanup
        && let Some(code) = expected.take_unit_attention(sender)
    {
        assert_eq!(outcome.completion, Completion::check(code));
        assert_eq!(*unit, expected, "a unit attention changes nothing else");
        return;
    }
    match outcome.completion {
        Completion::Good(data) => {
            assert!(data.len() <= command.cdb().allocation_length());
            let well_formed = command.opcode() != Opcode::ReserveOut || ReserveOut::parse(command).is_ok();
            assert!(well_formed && (permitted || command.opcode() == Opcode::Cleanup), "{command}");
        }
        _ => assert_eq!(*unit, before, "{command} was refused"),
    }
    let keys = unit.registrations().map(|it| it.key);
    assert!(keys.len() <= MAX_REGISTRANTS && keys.into_iter().all(|key| !key.is_zero()));
    assert!(outcome.aborted.iter().all(|nexus| before.key_of(nexus).is_some()));
}

/// Version and body of a record in a valid frame, and the same bytes as a complete record.
pub fn reservation_record(data: &[u8]) {
    if let Ok(value) = Reservations::from_record(data) {
        assert_eq!(Reservations::from_record(&value.to_record()), Ok(value));
    }
    let Some((version, body)) = data.split_first_chunk::<2>() else { return };
    let length = u32::try_from(8 + 2 + 4 + body.len() + 4).expect("no input is so long");
    let mut record = [b"scsi-pr\0", &version[..], &length.to_be_bytes(), body].concat();
    record.extend(crc32fast::hash(&record).to_be_bytes());
    match Reservations::from_record(&record) {
        Ok(value) => {
            assert_eq!(*version, [0, 1]);
            let again = value.to_record();
            assert_eq!(Reservations::from_record(&again), Ok(value));
        }
        Err(InvalidRecord::Newer(newer)) => assert!(newer > 1 && newer.to_be_bytes() == *version),
        Err(refusal) => assert_eq!(refusal, InvalidRecord::Damaged),
    }
}
