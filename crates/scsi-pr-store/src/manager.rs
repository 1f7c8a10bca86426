//! [`SharedReservations`]: a manager that runs commands on the reservations in a store.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use scsi_pr::{
    Command, Completion, Error, Generation, Nexus, Opcode, Outcome, PrManager, Reservations, SenseCode, SenseKey,
    Status,
};
use tracing::{info, warn};

use crate::contention::{self, PATIENCE};
use crate::log::Sparse;
use crate::queue::Queue;
use crate::{Fault, InitiatorName, Store, StoreError, Unidentified, UnitId, Units};

/// The RELATIVE TARGET PORT IDENTIFIER of the one target port that shared units have.
const TARGET_PORT: u16 = 1;

/// How many units an initiator may bring into a store.
const MOST_NEW_UNITS: u32 = 256;

/// How many units an initiator may change at the same time. A store may have one writer, who takes those that wait in the
/// order in which they came: hundreds of one initiator's are not to be before every one of another's.
const MOST_CHANGES: usize = 4;

/// How many registrants a unit has room for.
const DEFAULT_ROOM: usize = 10_000;

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
/// A record stays in the store for good, and a client may make as many files as it likes. So each of these brings at most
/// 256 units into the store that were not in it, as long as it lives; the next one is refused as if it had no room for
/// registrants (05/55/04), and units that are in the store are served as before.
///
/// PREEMPT AND ABORT is PREEMPT here: no reads and writes come this way that could be aborted.
///
/// Failures of the store are logged once a minute, and refused descriptors once a minute for each initiator.
pub struct SharedReservations {
    nexus: Nexus,
    units: Units,
    store: Arc<dyn Store>,
    /// How many registrants there may be.
    room: usize,
    /// Those who want to change something; those of one unit are in one queue.
    turns: [Queue<()>; MOST_CHANGES],
    /// How many units this has brought into the store.
    new_units: AtomicU32,
    /// Told by all initiators of a store, once.
    failures: Arc<Sparse>,
    refusals: Sparse,
    told_unstable: AtomicBool,
}

impl SharedReservations {
    /// The reservations in `store`, as `initiator`.
    pub fn new(store: Arc<dyn Store>, units: Units, initiator: InitiatorName) -> Self {
        Self::with(store, units, &initiator, DEFAULT_ROOM, Arc::default())
    }

    /// The same with room for `registrants` of a unit instead of 10,000. Who is registered already stays, and others who
    /// use the store may have other room.
    #[must_use]
    pub fn with_room_for(self, registrants: usize) -> Self {
        Self { room: registrants, ..self }
    }

    /// The same store, as another initiator; failures of the store are logged once for both.
    #[must_use]
    pub fn for_initiator(&self, initiator: &InitiatorName) -> Self {
        Self::with(Arc::clone(&self.store), self.units.clone(), initiator, self.room, Arc::clone(&self.failures))
    }

    fn with(
        store: Arc<dyn Store>,
        units: Units,
        initiator: &InitiatorName,
        room: usize,
        failures: Arc<Sparse>,
    ) -> Self {
        let nexus = Nexus::new(initiator.transport_id().clone(), TARGET_PORT);
        Self {
            nexus,
            units,
            store,
            room,
            turns: Default::default(),
            new_units: AtomicU32::new(0),
            failures,
            refusals: Sparse::default(),
            told_unstable: AtomicBool::new(false),
        }
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
        let Some(_turn) = self.turns[queue_of(unit)].take(PATIENCE) else {
            return (None, Err(contention::too_long(unit)));
        };
        let mut answer = None;
        let mut adds_a_unit = false;
        let kept = self.store.update(unit, &mut |reservations| {
            let is_new = is_new(reservations);
            let outcome = if is_new && self.new_units.load(Ordering::Relaxed) >= MOST_NEW_UNITS {
                self.refuse_new(unit, command, reservations)
            } else {
                reservations.set_room_for(self.room);
                reservations.execute(&self.nexus, command)
            };
            adds_a_unit = is_new && outcome.changed;
            answer = Some(outcome.completion);
            outcome.changed
        });
        if adds_a_unit {
            // Also if it is not known whether it did.
            self.new_units.fetch_add(1, Ordering::Relaxed);
        }
        (answer, kept)
    }

    /// What a command on a unit that is not in the store is answered with when no more come into it.
    fn refuse_new(&self, unit: &UnitId, command: Command<'_>, reservations: &Reservations) -> Outcome {
        let outcome = reservations.clone().execute(&self.nexus, command);
        if !outcome.changed {
            return outcome;
        }
        let completion = Completion::check(SenseCode::INSUFFICIENT_REGISTRATION_RESOURCES);
        self.refusals.say(|| {
            warn!(
                "{command} on {unit}, answered with {completion}: this initiator has brought {MOST_NEW_UNITS} units into \
                 the store since this program was started; if all of them are disks of its own, restart this program"
            );
        });
        Outcome { completion, changed: false, aborted: Vec::new() }
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

/// Where those who want to change `unit` queue.
fn queue_of(unit: &UnitId) -> usize {
    let mut hasher = DefaultHasher::new();
    unit.hash(&mut hasher);
    // One of a few, whatever the width of the number.
    hasher.finish() as usize % MOST_CHANGES
}

/// Whether there is nothing of the unit in the store: whatever comes into it first counts the generation.
fn is_new(reservations: &Reservations) -> bool {
    reservations.generation() == Generation(0) && reservations.registrations().len() == 0
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
