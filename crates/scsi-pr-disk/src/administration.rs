//! The functions of [`Disk`] for the program that serves it, and for the administrator.

use scsi_pr::{Access, Command, Completion, Nexus, ReserveInAction, Status};

use crate::commands::UnitAttention;
use crate::condition::{ChangeCondition, UnmetCondition};
use crate::disk::Disk;
use crate::gate::{Refusal, Task};
use crate::{Identity, MediumError};

impl Disk {
    /// Runs PERSISTENT RESERVE IN or OUT as `nexus`, without a session of it: what an administrator has to say. It takes
    /// the same way as a command of an initiator: GOOD comes after every command in flight that it forbids has ended. Unit
    /// attentions of the nexus stay for its sessions.
    pub fn administer(&self, nexus: Nexus, command: Command<'_>) -> Completion {
        let access = Access::of_cdb(command.cdb().bytes());
        self.run_without_session(nexus, access, |task| match access {
            Access::ReserveIn => self.gate.reserve_in(task, command),
            _ => self.gate.reserve_out(task, command),
        })
    }

    /// The same of PERSISTENT RESERVE OUT, if `condition` holds at the moment of the change.
    ///
    /// # Errors
    ///
    /// The condition does not hold, and nothing was changed.
    pub fn administer_if(
        &self,
        nexus: Nexus,
        command: Command<'_>,
        condition: &ChangeCondition,
    ) -> Result<Completion, UnmetCondition> {
        let mut unmet = None;
        let completion = self.run_without_session(nexus, Access::of_cdb(command.cdb().bytes()), |task| {
            match self.gate.reserve_out_if(task, command, condition)? {
                Ok(completion) => Some(completion),
                Err(part) => {
                    unmet = Some(part);
                    None
                }
            }
        });
        unmet.map_or(Ok(completion), Err)
    }

    /// GOOD with all data of PERSISTENT RESERVE IN, also beyond the 65,535 bytes that an allocation length can ask for.
    pub fn read_reservations(&self, nexus: Nexus, action: ReserveInAction) -> Completion {
        self.run_without_session(nexus, Access::ReserveIn, |task| self.gate.reserve_in_data(task, action))
    }

    fn run_without_session(
        &self,
        nexus: Nexus,
        access: Access,
        run: impl FnOnce(&Task) -> Option<Completion>,
    ) -> Completion {
        let session = self.open_session(nexus);
        let completion = match self.add_task(session, 0) {
            Some(task) => match self.gate.enter(&task, access, UnitAttention::Preserved) {
                Ok(()) => run(&task),
                Err(Refusal::Check(code)) => Some(Completion::check(code)),
                Err(Refusal::ReservationConflict) => Some(Completion::Status(Status::RESERVATION_CONFLICT)),
                Err(Refusal::Aborted) => None,
            },
            None => None,
        };
        self.close_session(session);
        // A reset, or the end of the unit.
        completion.unwrap_or(Completion::Status(Status::TASK_ABORTED))
    }

    /// The I_T nexuses that have sessions: one for each session.
    pub fn sessions(&self) -> Vec<Nexus> {
        self.gate.sessions()
    }

    /// The number of commands in the task set.
    pub fn commands_in_flight(&self) -> usize {
        self.gate.commands_in_flight()
    }

    /// The names of the disk.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The size that the medium has now, in bytes.
    pub fn size(&self) -> u64 {
        self.medium.size()
    }

    /// Makes every write that has ended durable.
    ///
    /// # Errors
    ///
    /// Writes may be lost in a power cut.
    pub fn flush_medium(&self) -> Result<(), MediumError> {
        self.medium.flush()
    }
}
