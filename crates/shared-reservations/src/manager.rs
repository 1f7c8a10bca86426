//! [`SharedReservations`]: a manager that runs commands on the reservations in a store.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use scsi_pr::{Command, Completion, Error, Nexus, Opcode, PrManager, SenseCode, SenseKey, Status};
use tracing::{info, warn};

use crate::log::Sparse;
use crate::{Fault, InitiatorName, Store, StoreError, Unidentified, UnitId, Units};

/// The RELATIVE TARGET PORT IDENTIFIER of the one target port that shared units have.
const TARGET_PORT: u16 = 1;

/// Runs the commands of one initiator on the reservations that a store keeps.
///
/// The nexus is the initiator's name: the same name in another process or on another host is the same initiator, and finds
/// its registrations where it left them. So QEMU's CLEANUP, by which the host that a virtual machine has left forgets its
/// registration, is answered with GOOD and does nothing: it would unregister the virtual machine where it is now.
///
/// Every command reads the store, and a change is acknowledged once it is kept there; the same goes for a unit attention,
/// which is told once. PERSISTENT RESERVE IN writes nothing, unless it is a unit attention that it is answered with.
/// Nothing is ever done a second time: a change whose fate is not known is reported as that, and the next command finds out.
///
/// | what happens | answer | why |
/// | --- | --- | --- |
/// | the descriptor is of no disk, or of one that cannot be identified ([`Units`]), or that other hosts would not know by the same identifier (in a store that they share) | CHECK CONDITION 05/20/00 | what a unit without persistent reservations answers |
/// | the descriptor cannot be identified for the moment | BUSY | it passes |
/// | the store fails and has changed nothing ([`Fault::Unavailable`]) | CHECK CONDITION 02/04/00, LOGICAL UNIT NOT READY, CAUSE NOT REPORTABLE | SPC-4 5.12.5: while what keeps reservations is not ready, so is the unit; it may be tried again |
/// | the store waits for somebody to act ([`Fault::Refused`]) | CHECK CONDITION 02/04/03, LOGICAL UNIT NOT READY, MANUAL INTERVENTION REQUIRED | the same, and waiting does not help |
/// | others kept changing the unit ([`Fault::Contended`]) | BUSY | nothing was changed, and it passes |
/// | the store does not know whether the change is kept ([`Fault::OutcomeUnknown`]) | [`Error`] that [may have run](Error::may_have_run): over the helper protocol CHECK CONDITION 0B/08/00 | there is no answer |
///
/// PREEMPT AND ABORT is PREEMPT here: no reads and writes come this way that could be aborted.
///
/// Failures of the store are logged once a minute, and refused descriptors once a minute for each initiator.
pub struct SharedReservations {
    nexus: Nexus,
    units: Units,
    store: Arc<dyn Store>,
    /// Told by all initiators of a store, once.
    failures: Arc<Sparse>,
    refusals: Sparse,
    told_unstable: AtomicBool,
}

impl SharedReservations {
    /// The reservations in `store`, as `initiator`.
    pub fn new(store: Arc<dyn Store>, units: Units, initiator: InitiatorName) -> Self {
        Self::with(store, units, &initiator, Arc::default())
    }

    /// The same store, as another initiator; failures of the store are logged once for both.
    #[must_use]
    pub fn for_initiator(&self, initiator: &InitiatorName) -> Self {
        Self::with(Arc::clone(&self.store), self.units.clone(), initiator, Arc::clone(&self.failures))
    }

    fn with(store: Arc<dyn Store>, units: Units, initiator: &InitiatorName, failures: Arc<Sparse>) -> Self {
        let nexus = Nexus::new(initiator.transport_id().clone(), TARGET_PORT);
        Self { nexus, units, store, failures, refusals: Sparse::default(), told_unstable: AtomicBool::new(false) }
    }

    /// The I_T nexus whose commands these are.
    pub fn nexus(&self) -> &Nexus {
        &self.nexus
    }

    fn identify(&self, device: BorrowedFd<'_>) -> Result<UnitId, Unidentified> {
        let unit = match self.store.is_shared_between_hosts() {
            true => self.units.identify_between_hosts(device)?,
            false => self.units.identify(device)?,
        };
        if !unit.is_stable() && !self.told_unstable.swap(true, Ordering::Relaxed) {
            info!(
                "{unit} may be known by another identifier, without its reservations, after a restart of this host or a \
                 new mount; --unit=NAME=PATH gives it one that stays"
            );
        }
        Ok(unit)
    }

    fn refuse(&self, command: Command<'_>, why: &Unidentified) -> Completion {
        let completion = match why.passes() {
            true => Completion::Status(Status::BUSY),
            false => Completion::check(SenseCode::INVALID_OPCODE),
        };
        self.refusals.say(|| warn!("{command}, answered with {completion}: {why}"));
        completion
    }

    /// PERSISTENT RESERVE IN. `None` when it is to be answered with a unit attention.
    fn read(&self, unit: &UnitId, command: Command<'_>) -> Result<Option<Completion>, StoreError> {
        if command.opcode() != Opcode::ReserveIn {
            return Ok(None);
        }
        Ok(self.store.load(unit)?.reservations.answer(&self.nexus, command))
    }

    /// Any command, by a change that may turn out to be none. What is answered if the change is kept comes back also when
    /// it was not.
    fn change(&self, unit: &UnitId, command: Command<'_>) -> (Option<Completion>, Result<(), StoreError>) {
        let mut answer = None;
        let kept = self.store.update(unit, &mut |reservations| {
            let outcome = reservations.execute(&self.nexus, command);
            answer = Some(outcome.completion);
            outcome.changed
        });
        (answer, kept)
    }

    fn fail(&self, command: Command<'_>, unit: &UnitId, error: StoreError) -> Result<Completion, Error> {
        let completion = match error.fault() {
            Fault::Unavailable => Completion::check(SenseCode::NOT_READY),
            Fault::Refused => Completion::check(SenseCode::MANUAL_INTERVENTION_REQUIRED),
            Fault::Contended => Completion::Status(Status::BUSY),
            Fault::OutcomeUnknown => {
                return Err(Error::outcome_unknown(format!("tell what became of {command} on {unit}")).because(error));
            }
        };
        self.failures.say(|| warn!("{command} on {unit}, answered with {completion}: {error}"));
        Ok(completion)
    }
}

impl PrManager for SharedReservations {
    fn execute(&self, device: BorrowedFd<'_>, command: Command<'_>) -> Result<Completion, Error> {
        if command.opcode() == Opcode::Cleanup {
            return Ok(Completion::Good(Vec::new()));
        }
        let unit = match self.identify(device) {
            Ok(unit) => unit,
            Err(why) => return Ok(self.refuse(command, &why)),
        };
        match self.read(&unit, command) {
            Ok(Some(completion)) => return Ok(completion),
            Ok(None) => {}
            Err(error) => return self.fail(command, &unit, error),
        }
        match self.change(&unit, command) {
            (Some(completion), Ok(())) => Ok(completion),
            // It is true whether it is kept or not that it was told; and better told twice than never.
            (Some(completion), Err(error)) if is_unit_attention(&completion) && outcome_is_unknown(&error) => {
                Ok(completion)
            }
            (_, Err(error)) => self.fail(command, &unit, error),
            (None, Ok(())) => {
                Err(Error::not_run(format!("run {command} on {unit}: the store has not asked for the change")))
            }
        }
    }
}

fn is_unit_attention(completion: &Completion) -> bool {
    match completion {
        Completion::CheckCondition(sense) => sense.code().is_some_and(|code| code.key == SenseKey::UNIT_ATTENTION),
        _ => false,
    }
}

fn outcome_is_unknown(error: &StoreError) -> bool {
    error.fault() == Fault::OutcomeUnknown
}
