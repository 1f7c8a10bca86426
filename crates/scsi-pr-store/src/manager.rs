//! [`SharedReservations`]: a manager that runs commands on the reservations in a store.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use scsi_pr::{
    Command, Completion, Error, Generation, Nexus, Opcode, Outcome, PrManager, Reservations, SenseCode, Status,
};
use scsi_pr_daemon::RateLimiter;
use tracing::{info, warn};

use crate::initiators::{Initiator, Initiators};
use crate::log::PERIOD;
use crate::process::process;
use crate::{Fault, InitiatorName, Store, StoreError, Unidentified, UnitId, Units};

/// The RELATIVE TARGET PORT IDENTIFIER of the one target port that shared units have.
const TARGET_PORT: u16 = 1;

/// The number of units that an initiator may bring into a store.
const MAX_NEW_UNITS: u32 = 256;

/// The number of registrants for which a unit has room.
const DEFAULT_ROOM: usize = 10_000;

/// Runs the commands of one initiator on the reservations in a store.
///
/// The nexus is the initiator's name. The same name in another process or on another host is the same initiator, with
/// the same registrations. QEMU sends CLEANUP so that the host which a virtual machine has left forgets its
/// registration. Here that would unregister the virtual machine on its new host, so CLEANUP is GOOD and does nothing.
///
/// Every command reads the store. A change is acknowledged once the store has kept it. PERSISTENT RESERVE IN writes
/// nothing. The manager never repeats a command: if the outcome of a change is unknown, it says so, and the next
/// command finds out.
///
/// **Unit attentions** are never reported. Each change drops those in the record, unless a disk has served the unit and reports
/// them when it serves the unit again. An initiator fetches unit attentions with TEST UNIT READY, reads and writes, and these do
/// not come here. A unit attention would be the answer to a later PERSISTENT RESERVE IN instead, which cluster software takes
/// for a failed disk.
///
/// | event | answer | reason |
/// | --- | --- | --- |
/// | The descriptor is of no disk, or [`Units`] cannot identify it, or other hosts that share the store would not know it by the same identifier. | CHECK CONDITION 05/20/00 | A unit without persistent reservations answers this. |
/// | The descriptor cannot be identified for the moment. | BUSY | It passes. |
/// | The store fails and has changed nothing ([`Fault::Unavailable`]). | CHECK CONDITION 02/04/00, LOGICAL UNIT NOT READY, CAUSE NOT REPORTABLE | SPC-4 5.12.5: the unit is not ready while its reservations are not. The initiator may try again. |
/// | The store needs an administrator ([`Fault::Refused`]). | CHECK CONDITION 02/04/03, LOGICAL UNIT NOT READY, MANUAL INTERVENTION REQUIRED | The same, and waiting does not help. |
/// | Other initiators kept changing the unit ([`Fault::Contended`]). | BUSY | Nothing was changed, and it passes. |
/// | The store does not know whether the change is durable ([`Fault::OutcomeUnknown`]). | [`Error`] of unknown outcome; over the helper protocol CHECK CONDITION 0B/08/00 | There is no answer. |
///
/// # Bounds
///
/// **Commands.** An initiator may send any number of commands at the same time. On one unit, one of its reads and one
/// of its changes are in the store at a time; the others wait, whichever connection they came by. So the time of a
/// command depends on the number of other initiators that use the unit, not on the number of their commands. A command
/// whose turn does not come within 20 s is BUSY.
///
/// **Units.** A record stays in the store for good, and a client may make any number of files. So each initiator brings
/// at most 256 units into the store. The next one is refused as if it had no room for registrants (05/55/04).
///
/// **The log.** Failures of the store are logged once a minute, and refused descriptors once a minute for each
/// initiator.
///
/// **Disks.** While a disk owns a unit ([`Ownership`](crate::Ownership)), its commands are refused as those of a store that
/// needs an administrator.
///
/// PREEMPT AND ABORT is PREEMPT here: no reads and writes come this way that could be aborted.
pub struct SharedReservations {
    nexus: Nexus,
    initiator: Arc<Initiator>,
    units: Units,
    store: Arc<dyn Store>,
    /// The number of registrants for which a unit has room.
    room: usize,
    all: Arc<AllInitiators>,
    reported_unstable: AtomicBool,
}

/// The objects that the managers of all initiators of a store share.
struct AllInitiators {
    initiators: Initiators,
    failures: RateLimiter<()>,
}

impl SharedReservations {
    /// The reservations in `store`, as `initiator`.
    pub fn new(store: Arc<dyn Store>, units: Units, initiator: InitiatorName) -> Self {
        let all = AllInitiators { initiators: Initiators::default(), failures: RateLimiter::new(1, 1, PERIOD) };
        Self::with(store, units, &initiator, DEFAULT_ROOM, Arc::new(all))
    }

    /// The same with room for `registrants` of a unit instead of 10,000. Existing registrants stay. Other users of the
    /// store may have other room.
    #[must_use]
    pub fn with_room_for(self, registrants: usize) -> Self {
        Self { room: registrants, ..self }
    }

    /// The same store, as another initiator. The two take turns. A manager of the same initiator shares its turns and
    /// its bounds.
    #[must_use]
    pub fn for_initiator(&self, initiator: &InitiatorName) -> Self {
        Self::with(Arc::clone(&self.store), self.units.clone(), initiator, self.room, Arc::clone(&self.all))
    }

    fn with(
        store: Arc<dyn Store>,
        units: Units,
        initiator: &InitiatorName,
        room: usize,
        all: Arc<AllInitiators>,
    ) -> Self {
        let nexus = Nexus::new(initiator.transport_id().clone(), TARGET_PORT);
        let initiator = all.initiators.get(initiator);
        Self { nexus, initiator, units, store, room, all, reported_unstable: AtomicBool::new(false) }
    }

    /// The I_T nexus of these commands.
    pub fn nexus(&self) -> &Nexus {
        &self.nexus
    }

    fn identify(&self, device: BorrowedFd<'_>) -> Result<UnitId, Unidentified> {
        let unit = match self.store.is_shared_between_hosts() {
            true => self.units.identify_between_hosts(device)?,
            false => self.units.identify(device)?,
        };
        if !unit.is_stable() && !self.reported_unstable.swap(true, Ordering::Relaxed) {
            info!(
                "{unit} may get another identifier, and lose its reservations, after a restart of this host or a new mount; \
                 --unit=NAME=PATH gives it a name that stays"
            );
        }
        Ok(unit)
    }

    fn refuse(&self, command: Command<'_>, why: &Unidentified) -> Completion {
        let completion = match why.passes() {
            true => Completion::Status(Status::BUSY),
            false => Completion::check(SenseCode::INVALID_OPCODE),
        };
        if let Some(suppressed) = self.initiator.refusals.check(()) {
            warn!("{command}, answered with {completion}: {why}{suppressed}");
        }
        completion
    }

    /// PERSISTENT RESERVE IN; `None` for any other command.
    fn read(&self, unit: &UnitId, command: Command<'_>) -> Result<Option<Completion>, StoreError> {
        if command.opcode() != Opcode::ReserveIn {
            return Ok(None);
        }
        let _turn = self.initiator.reads.take(unit)?;
        let loaded = self.store.load(unit)?;
        // While the disk ends the commands that a new state forbids, no initiator may see that state.
        loaded.check_not_owned(unit)?;
        Ok(loaded.reservations.answer(&self.nexus, command))
    }

    /// PERSISTENT RESERVE OUT. `Ok` once the change, if there is one, is durable.
    fn change(&self, unit: &UnitId, command: Command<'_>) -> Result<Option<Completion>, StoreError> {
        let _turn = self.initiator.changes.take(unit)?;
        let mut completion = None;
        let mut adds_a_unit = false;
        let updated = self.store.update(unit, &mut |reservations, disk| {
            let is_new = is_new(reservations);
            let outcome = if is_new && self.initiator.new_units.load(Ordering::Relaxed) >= MAX_NEW_UNITS {
                self.refuse_new(unit, command, reservations)
            } else {
                reservations.set_room_for(self.room);
                process(reservations, disk, &self.nexus, command)
            };
            adds_a_unit = is_new && outcome.changed;
            completion = Some(outcome.completion);
            outcome.changed
        });
        if adds_a_unit {
            // A change of unknown outcome counts as well.
            self.initiator.new_units.fetch_add(1, Ordering::Relaxed);
        }
        updated.map(|()| completion)
    }

    /// The answer to a command on a unit that is not in the store, once this initiator may bring in no more.
    fn refuse_new(&self, unit: &UnitId, command: Command<'_>, reservations: &Reservations) -> Outcome {
        let outcome = reservations.clone().process(&self.nexus, command);
        if !outcome.changed {
            return outcome;
        }
        let completion = Completion::check(SenseCode::INSUFFICIENT_REGISTRATION_RESOURCES);
        if let Some(suppressed) = self.initiator.refusals.check(()) {
            warn!(
                "{command} on {unit}, answered with {completion}: this initiator has brought {MAX_NEW_UNITS} units into the \
                 store since this program was started; if all of them are disks of its own, restart this program{suppressed}"
            );
        }
        Outcome { completion, changed: false, aborted: Vec::new() }
    }

    fn fail(&self, command: Command<'_>, unit: &UnitId, error: StoreError) -> Result<Completion, Error> {
        let completion = match error.fault() {
            Fault::Unavailable => Completion::check(SenseCode::NOT_READY),
            Fault::Refused => Completion::check(SenseCode::MANUAL_INTERVENTION_REQUIRED),
            Fault::Contended => Completion::Status(Status::BUSY),
            Fault::OutcomeUnknown => {
                return Err(Error::outcome_unknown(format!("find the outcome of {command} on {unit}")).because(error));
            }
        };
        if let Some(suppressed) = self.all.failures.check(()) {
            warn!("{command} on {unit}, answered with {completion}: {error}{suppressed}");
        }
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
        let completion = match self.read(&unit, command) {
            Ok(None) => self.change(&unit, command),
            read => read,
        };
        match completion {
            Ok(Some(completion)) => Ok(completion),
            Ok(None) => Err(Error::not_run(format!("run {command} on {unit}: the store did not ask for the change"))),
            Err(error) => self.fail(command, &unit, error),
        }
    }
}

/// Whether the unit has no record: the first change counts the generation.
fn is_new(reservations: &Reservations) -> bool {
    reservations.generation() == Generation(0) && reservations.registrations().len() == 0
}
