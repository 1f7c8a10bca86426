//! [`Ours`]: `scsi_pr::Reservations` beside the target, command by command, as long as the target does what the standard
//! has it do; then from where the target went.

use model::{Answer, Holding, Model};
use scsi_pr::{Cdb, Command, Completion, Key, Nexus, Reservations, ReserveOut, Status, TransportId, Type};

/// The reservations, while they are known to be those of the target.
#[derive(Default)]
pub(crate) struct Ours(Option<Reservations>);

impl Ours {
    /// Follows the target into the state that `model` is in; not while somebody has a unit attention to be told, which
    /// cannot be made without what led to it.
    pub(crate) fn follow(&mut self, model: &Model) {
        if self.0.is_none() && model.attentions.is_empty() {
            self.0 = reservations(model);
        }
    }

    /// The target went another way.
    pub(crate) fn lose(&mut self) {
        self.0 = None;
    }

    /// The answer to a persistent reservation command, when PRGENERATION is `generation`.
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
                // Ours have not seen all that happened before, and so have not counted it.
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

/// Reservations in the state of the model, PRGENERATION aside; `None` if no commands lead there.
fn reservations(model: &Model) -> Option<Reservations> {
    let mut ours = Reservations::with_target_ports(model.target_ports.iter().copied());
    let mut send = |from: &model::Nexus, command: ReserveOut| {
        let good = Completion::Good(Vec::new());
        (ours.execute(&nexus(from)?, command.encode().ok()?.command()).completion == good).then_some(())
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
        let _ = ours.reserve_spc2(&nexus(holder)?);
    }
    (ours.aptpl() == model.aptpl).then_some(ours)
}

fn nexus(nexus: &model::Nexus) -> Option<Nexus> {
    Some(Nexus::new(TransportId::from_bytes(&nexus.initiator).ok()?, nexus.target_port))
}
