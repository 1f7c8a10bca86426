//! [`Library`]: the rules of `scsi_pr::Reservations`, compared with the target's answers command by command.
//!
//! The comparison pauses when the target deviates from the standard, and resumes from the state that the target is in then.

use model::{Answer, Holding, Model};
use scsi_pr::{Cdb, Command, Completion, Key, Nexus, Reservations, ReserveOut, Status, TransportId, Type};

/// The library's state, while it equals the target's.
#[derive(Default)]
pub(crate) struct Library(Option<Reservations>);

impl Library {
    /// Resumes in the state of `model`. A pending unit attention prevents that, because only the commands that led to it
    /// can produce it.
    pub(crate) fn resume(&mut self, model: &Model) {
        if self.0.is_none() && model.attentions.is_empty() {
            self.0 = reservations(model);
        }
    }

    /// Pauses, because the target's state is no longer the one of the standard.
    pub(crate) fn pause(&mut self) {
        self.0 = None;
    }

    /// The answer to a persistent reservation command, with PRGENERATION replaced by `generation`. `None` while paused.
    pub(crate) fn answer(
        &mut self,
        from: &model::Nexus,
        cdb: &[u8; 16],
        list: &[u8],
        generation: u32,
    ) -> Option<Answer> {
        let command = Command::new(Cdb::new(*cdb).ok()?, list).ok()?;
        match self.0.as_mut()?.execute(&nexus(from)?, command).completion {
            Completion::Good(mut data) => {
                // The library has counted only since it resumed.
                if cdb[0] == 0x5e && cdb[1] != 2 {
                    data.iter_mut().zip(generation.to_be_bytes()).for_each(|(byte, known)| *byte = known);
                }
                Some(Answer::Good(data))
            }
            Completion::Status(Status::RESERVATION_CONFLICT) => Some(Answer::Conflict),
            Completion::CheckCondition(sense) => {
                let code = sense.code()?;
                Some(Answer::Check(code.key.byte(), code.asc, code.ascq))
            }
            Completion::Status(_) => None,
        }
    }
}

/// Reservations in the state of the model, except PRGENERATION. `None` if no commands lead to that state.
fn reservations(model: &Model) -> Option<Reservations> {
    let mut reservations = Reservations::with_target_ports(model.target_ports.iter().copied());
    let mut send = |from: &model::Nexus, command: ReserveOut| {
        let good = Completion::Good(Vec::new());
        (reservations.execute(&nexus(from)?, command.encode().ok()?.command()).completion == good).then_some(())
    };
    for one in &model.registrants {
        let service_action_key = Key(one.key);
        let aptpl = model.aptpl;
        send(&one.nexus, ReserveOut::RegisterAndIgnoreExistingKey { service_action_key, all_tg_pt: false, aptpl })?;
    }
    if let Some(Holding { kind, holder }) = &model.reservation {
        let holder = holder.as_ref().or(model.registrants.first().map(|one| &one.nexus))?;
        let key = Key(model.key_of(holder)?);
        send(holder, ReserveOut::Reserve { key, reservation_type: Type::from_code(*kind)? })?;
    }
    if let Some(holder) = &model.spc2_holder {
        let _ = reservations.reserve_spc2(&nexus(holder)?);
    }
    (reservations.aptpl() == model.aptpl).then_some(reservations)
}

fn nexus(nexus: &model::Nexus) -> Option<Nexus> {
    Some(Nexus::new(TransportId::from_bytes(&nexus.initiator).ok()?, nexus.target_port))
}
