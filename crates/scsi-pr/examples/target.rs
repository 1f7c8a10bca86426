//! A disk that enforces persistent reservations: `cargo run -p scsi-pr --example target`.
//!
//! The disk asks [`Reservations::permits`] before every read and write, and [`Reservations::execute`] runs the reservation
//! commands. A real target also stores the record of each change before it answers.

use scsi_pr::{
    Access, Cdb, Command, Completion, InitiatorPort, InvalidCommand, Key, Nexus, Reservations, ReserveOut, SenseCode,
    Status, TransportId, Type,
};

const BLOCK: usize = 512;

/// A disk in memory.
struct Disk {
    blocks: Vec<[u8; BLOCK]>,
    reservations: Reservations,
}

impl Disk {
    /// Runs one command of `nexus`. `data_out` is the data or the parameter list that comes with it.
    fn execute(&mut self, nexus: &Nexus, cdb: &[u8], data_out: &[u8]) -> Completion {
        match cdb.first() {
            Some(0x5e | 0x5f) => match self.reserve(nexus, cdb, data_out) {
                Ok(completion) => completion,
                Err(InvalidCommand::ParameterList { .. }) => Completion::check(SenseCode::PARAMETER_LIST_LENGTH_ERROR),
                Err(_) => Completion::check(SenseCode::INVALID_FIELD_IN_CDB),
            },
            _ => self.access(nexus, cdb, data_out),
        }
    }

    fn reserve(&mut self, nexus: &Nexus, cdb: &[u8], list: &[u8]) -> Result<Completion, InvalidCommand> {
        let outcome = self.reservations.execute(nexus, Command::new(Cdb::from_slice(cdb)?, list)?);
        if outcome.changed {
            // Here a real target makes this durable, and aborts the commands of `outcome.aborted`.
            let _record = self.reservations.to_record();
        }
        Ok(outcome.completion)
    }

    fn access(&mut self, nexus: &Nexus, cdb: &[u8], data_out: &[u8]) -> Completion {
        if let Some(code) = self.reservations.take_unit_attention(nexus) {
            return Completion::check(code);
        }
        if !self.reservations.permits(nexus, Access::of_cdb(cdb)) {
            return Completion::Status(Status::RESERVATION_CONFLICT);
        }
        // READ(10) and WRITE(10) of one block.
        match (cdb, <&[u8; BLOCK]>::try_from(data_out)) {
            ([0x28, _, a, b, c, d, ..], _) => match self.blocks.get(index([*a, *b, *c, *d])) {
                Some(block) => Completion::Good(block.to_vec()),
                None => Completion::check(SenseCode::INVALID_FIELD_IN_CDB),
            },
            ([0x2a, _, a, b, c, d, ..], Ok(data)) => match self.blocks.get_mut(index([*a, *b, *c, *d])) {
                Some(block) => {
                    *block = *data;
                    Completion::Good(Vec::new())
                }
                None => Completion::check(SenseCode::INVALID_FIELD_IN_CDB),
            },
            _ => Completion::check(SenseCode::INVALID_OPCODE),
        }
    }
}

fn index(address: [u8; 4]) -> usize {
    usize::try_from(u32::from_be_bytes(address)).unwrap_or(usize::MAX)
}

fn initiator(address: u64) -> Nexus {
    let port = TransportId::new(InitiatorPort::Sas { address }).expect("every SAS address has a TransportID");
    Nexus::new(port, 1)
}

fn main() {
    let mut disk = Disk { blocks: vec![[0; BLOCK]; 8], reservations: Reservations::new() };
    let (holder, other) = (initiator(1), initiator(2));
    let register =
        ReserveOut::RegisterAndIgnoreExistingKey { service_action_key: Key(0x1111), all_tg_pt: false, aptpl: true };
    let reserve = ReserveOut::Reserve { key: Key(0x1111), reservation_type: Type::WriteExclusive };
    for command in [register, reserve].map(|value| value.encode().expect("a short parameter list")) {
        let list = command.command().parameter_list();
        println!("holder: {}", disk.execute(&holder, command.cdb().bytes(), list));
    }
    let write = [0x2a, 0, 0, 0, 0, 1, 0, 0, 1, 0];
    println!("holder writes: {}", disk.execute(&holder, &write, &[7; BLOCK]));
    println!("other writes:  {}", disk.execute(&other, &write, &[8; BLOCK]));
    println!("other reads:   {}", disk.execute(&other, &[0x28, 0, 0, 0, 0, 1, 0, 0, 1, 0], &[]));
    assert_eq!(disk.blocks[1], [7; BLOCK]);
}
