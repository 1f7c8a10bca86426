//! [`State`]: the gate as a pure value. Every step is one call under the gate's lock; [`Gate`](super::Gate) adds the waits.

#[cfg(test)]
mod model;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use scsi_pr::{
    Access, Command, Completion, InitiatorPort, Nexus, Reservations, ReserveInAction, SenseCode, SenseKey, Status,
};

use super::{AbortScope, AbortedStatus, Refusal, SessionId};
use crate::commands::UnitAttention;
use crate::condition::{ChangeCondition, UnmetCondition};
use crate::sense_code;
use crate::store::StoreError;

/// The number of lost nexuses whose return the gate recognizes.
const MAX_LOST: usize = 1024;

/// A command of a session: the session and the tag.
pub(super) type TaskKey = (SessionId, u64);

/// The reservations, the sessions and the task set of one logical unit.
#[cfg_attr(test, derive(Clone))]
pub(super) struct State {
    reservations: Reservations,
    version: u64,
    store: StoreState,
    change: Change,
    sessions: HashMap<SessionId, Session>,
    tasks: HashMap<TaskKey, TaskEntry>,
    next_id: u64,
    /// TAS of the Control mode page.
    pub(super) aborted_status: AbortedStatus,
    /// Nexuses whose last session has ended, the last one at the end; bounded.
    lost: VecDeque<Nexus>,
    /// The number of commands on the medium whose session has ended. Their nexus' next commands wait for them: a write
    /// that a session has left behind must not land on top of the one that the initiator sends again.
    orphans: HashMap<Nexus, usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StoreState {
    /// The store has the state of the gate.
    Known,
    /// The store may have another state: no command enters.
    Unknown,
    /// A command loads the state again.
    Loading,
}

/// Whether a PERSISTENT RESERVE OUT is between the rules and the end of its drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    None,
    /// The rules have decided, and the store makes it durable.
    Storing,
    /// The new state is in force for new commands. So many commands in flight are still to end.
    Draining(usize),
}

#[cfg_attr(test, derive(Clone, Debug))]
struct Session {
    nexus: Nexus,
    /// Those of the device server; those of reservations are in [`State::reservations`].
    attentions: Vec<SenseCode>,
}

struct TaskEntry {
    id: u64,
    /// Set when the command has entered.
    access: Option<Access>,
    aborted: Arc<Aborted>,
    /// Whether the drain waits for it.
    is_drained: bool,
}

/// Whether a command was aborted, and with which answer.
#[derive(Debug, Default)]
pub(super) struct Aborted(AtomicU8);

/// The next step of a command that is to enter.
#[derive(Debug)]
pub(super) enum Entry {
    Entered,
    Refused(Refusal),
    /// It waits for the end of another command.
    Wait,
    /// It loads the reservations: [`State::loaded`] is the next step.
    Load,
}

/// The next step of PERSISTENT RESERVE OUT.
pub(super) enum Begin {
    /// It waits for the end of another change.
    Wait,
    /// It changes nothing.
    Answer(Completion),
    /// The store makes `new` durable in place of version `expected`: [`State::stored`] is the next step.
    Store { expected: u64, new: Reservations },
}

impl State {
    pub(super) fn new(version: u64, reservations: Reservations) -> Self {
        Self {
            reservations,
            version,
            store: StoreState::Known,
            change: Change::None,
            sessions: HashMap::new(),
            tasks: HashMap::new(),
            next_id: 0,
            aborted_status: AbortedStatus::TaskAborted,
            lost: VecDeque::new(),
            orphans: HashMap::new(),
        }
    }

    /// A new session, which has POWER ON (29/00) or, if its nexus was lost before, I_T NEXUS LOSS (29/07) pending.
    pub(super) fn open_session(&mut self, nexus: Nexus) -> SessionId {
        let id = SessionId(self.new_id());
        let attention = match self.lost.iter().position(|lost| *lost == nexus) {
            Some(index) => {
                self.lost.remove(index);
                SenseCode { key: SenseKey::UNIT_ATTENTION, ..SenseCode::NEXUS_LOSS }
            }
            None => SenseCode::RESET,
        };
        self.sessions.insert(id, Session { nexus, attentions: vec![attention] });
        id
    }

    /// The session ends: its commands are aborted. With the last session of a nexus, the nexus is lost: a SPC-2
    /// reservation ends, persistent reservations stay.
    pub(super) fn close_session(&mut self, id: SessionId) {
        let _ = self.abort(AbortScope::Session(id), None);
        let Some(session) = self.sessions.remove(&id) else { return };
        let left = self.tasks.iter().filter(|((owner, _), entry)| *owner == id && entry.is_on_medium()).count();
        if left > 0 {
            *self.orphans.entry(session.nexus.clone()).or_default() += left;
        }
        if !self.sessions.values().any(|other| other.nexus == session.nexus) {
            if self.reservations.spc2_holder() == Some(&session.nexus) {
                let _ = self.reservations.release_spc2(&session.nexus);
            }
            self.lost.push_back(session.nexus);
            if self.lost.len() > MAX_LOST {
                self.lost.pop_front();
            }
        }
    }

    /// A command of `session`; `None` when the session has ended or has a command with this tag already.
    pub(super) fn add_task(&mut self, session: SessionId, tag: u64) -> Option<(Nexus, Arc<Aborted>)> {
        let nexus = self.sessions.get(&session)?.nexus.clone();
        if self.tasks.contains_key(&(session, tag)) {
            return None;
        }
        let id = self.new_id();
        let aborted = Arc::new(Aborted::default());
        let entry = TaskEntry { id, access: None, aborted: Arc::clone(&aborted), is_drained: false };
        self.tasks.insert((session, tag), entry);
        Some((nexus, aborted))
    }

    /// Lets a command enter, or says why not.
    pub(super) fn enter(&mut self, key: TaskKey, nexus: &Nexus, access: Access, attention: UnitAttention) -> Entry {
        let Some(task) = self.tasks.get(&key).filter(|task| !task.aborted.is_set()) else {
            return Entry::Refused(Refusal::Aborted);
        };
        debug_assert!(task.access.is_none(), "a command enters once");
        match self.store {
            StoreState::Known => {}
            // Neither the medium nor the reservations are touched.
            _ if attention == UnitAttention::Deferred => {}
            StoreState::Loading => return Entry::Wait,
            StoreState::Unknown => {
                self.store = StoreState::Loading;
                return Entry::Load;
            }
        }
        let waits = match is_reservation_command(access) {
            true => self.change != Change::None,
            false => self.orphans.contains_key(nexus),
        };
        if waits {
            return Entry::Wait;
        }
        if attention == UnitAttention::Reported
            && let Some(code) = self.take_attention(key.0, nexus)
        {
            return Entry::Refused(Refusal::Check(code));
        }
        // The rules themselves decide about PERSISTENT RESERVE OUT, after the checks of its fields.
        let is_decided_later = matches!(access, Access::ReserveOut(_));
        if !is_decided_later && !self.reservations.permits(nexus, access) {
            return Entry::Refused(Refusal::ReservationConflict);
        }
        if let Some(task) = self.tasks.get_mut(&key) {
            task.access = Some(access);
        }
        Entry::Entered
    }

    /// The answer to PERSISTENT RESERVE IN; `None` while a change is not over. During the drain the new state must not be
    /// shown: commands that it forbids are still in flight.
    pub(super) fn reserve_in(&self, nexus: &Nexus, command: Command<'_>) -> Option<Completion> {
        if self.change != Change::None {
            return None;
        }
        let answer = self.reservations.answer(nexus, command);
        Some(answer.unwrap_or(Completion::check(SenseCode::INVALID_OPCODE)))
    }

    /// All data of PERSISTENT RESERVE IN; `None` as above.
    pub(super) fn reserve_in_data(&self, action: ReserveInAction) -> Option<Completion> {
        (self.change == Change::None).then(|| Completion::Good(self.reservations.reserve_in_data(action, usize::MAX)))
    }

    /// RESERVE and RELEASE of SPC-2; `None` while a change is not over: the rules have decided it without this command.
    pub(super) fn spc2(
        &mut self,
        nexus: &Nexus,
        act: fn(&mut Reservations, &Nexus) -> Completion,
    ) -> Option<Completion> {
        (self.change == Change::None).then(|| act(&mut self.reservations, nexus))
    }

    /// Whether `condition` holds for a change by the session `by`; `None` while another change is not over.
    pub(super) fn check(&self, by: SessionId, condition: &ChangeCondition) -> Option<Result<(), UnmetCondition>> {
        if self.change != Change::None {
            return None;
        }
        let ChangeCondition { reservation, holder, without_session } = condition;
        let is_of = |nexus: &Nexus, wanted: &str| matches!(nexus.initiator().port(), InitiatorPort::Iscsi { name, .. } if name == wanted);
        let has_session =
            |wanted: &str| self.sessions.iter().any(|(id, other)| *id != by && is_of(&other.nexus, wanted));
        Some(if without_session.as_deref().is_some_and(has_session) {
            Err(UnmetCondition::Session)
        } else if reservation.is_some_and(|expected| self.reservations.read_reservation() != expected)
            || holder.as_ref().is_some_and(|holder| !self.reservations.is_holder(holder))
        {
            Err(UnmetCondition::Reservation)
        } else {
            Ok(())
        })
    }

    /// The rules decide a PERSISTENT RESERVE OUT.
    pub(super) fn begin_change(&mut self, nexus: &Nexus, command: Command<'_>) -> Begin {
        if self.change != Change::None {
            return Begin::Wait;
        }
        if self.store != StoreState::Known {
            return Begin::Answer(Completion::check(SenseCode::NOT_READY));
        }
        let mut new = self.reservations.clone();
        let outcome = new.process(nexus, command);
        if !outcome.changed {
            return Begin::Answer(outcome.completion);
        }
        self.change = Change::Storing;
        Begin::Store { expected: self.version, new }
    }

    /// The store has made the change durable, or not. Returns the answer, which is due at the end
    /// of the [drain](Self::is_drained).
    pub(super) fn stored(
        &mut self,
        key: TaskKey,
        nexus: &Nexus,
        command: Command<'_>,
        result: &Result<u64, StoreError>,
    ) -> Completion {
        match result {
            Ok(version) => {
                self.version = *version;
                // Commands that ran meanwhile may have reported unit attentions, which the stored value still has.
                let outcome = self.reservations.process(nexus, command);
                self.begin_drain(Some(key), &outcome.aborted);
                outcome.completion
            }
            Err(StoreError::Unchanged(_)) => {
                self.change = Change::None;
                Completion::check(SenseCode::NOT_READY)
            }
            Err(StoreError::OutcomeUnknown(_)) => {
                self.change = Change::None;
                self.store = StoreState::Unknown;
                Completion::check(SenseCode::LUN_COMMUNICATION_FAILURE)
            }
        }
    }

    /// Whether the drain has ended of the change that the store knows as `version`. Changes follow one after the other.
    pub(super) fn is_drained(&self, version: u64) -> bool {
        self.change == Change::None || self.version != version
    }

    /// The store was read after an unknown outcome. Commands that the loaded state forbids are waited for.
    pub(super) fn loaded(&mut self, result: Result<(u64, Reservations), StoreError>) -> Result<(), StoreError> {
        match result {
            Ok((version, reservations)) => {
                (self.version, self.reservations) = (version, reservations);
                self.store = StoreState::Known;
                self.begin_drain(None, &[]);
                Ok(())
            }
            Err(error) => {
                self.store = StoreState::Unknown;
                Err(error)
            }
        }
    }

    /// A reset: a SPC-2 reservation ends, and every session gets the unit attention `code`.
    pub(super) fn reset(&mut self, code: SenseCode) {
        if let Some(holder) = self.reservations.spc2_holder().cloned() {
            let _ = self.reservations.release_spc2(&holder);
        }
        self.notify_sessions(code, None);
    }

    /// Gives every session but `except` a unit attention.
    pub(super) fn notify_sessions(&mut self, code: SenseCode, except: Option<SessionId>) {
        let others = self.sessions.iter_mut().filter(|(id, _)| Some(**id) != except);
        others.for_each(|(_, session)| session.add(code));
    }

    /// The command leaves the task set. Returns whether another command may wait for it.
    pub(super) fn end(&mut self, key: TaskKey, nexus: &Nexus) -> bool {
        let Some(task) = self.tasks.remove(&key) else { return false };
        if task.is_drained
            && let Change::Draining(left) = self.change
        {
            self.change = if left > 1 { Change::Draining(left - 1) } else { Change::None };
        }
        if task.is_on_medium() && !self.sessions.contains_key(&key.0) {
            self.end_orphan(nexus);
        }
        task.is_drained || task.aborted.is_set()
    }

    /// The nexus of each session.
    pub(super) fn nexuses(&self) -> Vec<Nexus> {
        self.sessions.values().map(|session| session.nexus.clone()).collect()
    }

    /// The number of commands in the task set.
    pub(super) fn commands_in_flight(&self) -> usize {
        self.tasks.len()
    }

    /// The next unit attention of a session: the data of REQUEST SENSE.
    pub(super) fn take_attention(&mut self, session: SessionId, nexus: &Nexus) -> Option<SenseCode> {
        let own = self.sessions.get_mut(&session);
        match own.filter(|session| !session.attentions.is_empty()) {
            Some(session) => Some(session.attentions.remove(0)),
            None => self.reservations.take_unit_attention(nexus),
        }
    }

    /// Marks the commands of `scope` as aborted, by the session `by` or by the device server. Returns those to wait for.
    pub(super) fn abort(&mut self, scope: AbortScope, by: Option<SessionId>) -> Vec<(TaskKey, u64)> {
        let Self { tasks, sessions, aborted_status, .. } = self;
        let mut aborted = Vec::new();
        for (key @ (session, tag), task) in tasks {
            let is_meant = match scope {
                AbortScope::Task(meant, meant_tag) => (*session, *tag) == (meant, meant_tag),
                AbortScope::Session(meant) => *session == meant,
                AbortScope::Everything => true,
            };
            if is_meant {
                match sessions.get_mut(session) {
                    Some(other) if by.is_some_and(|by| by != *session) => other.abort(task, *aborted_status),
                    _ => _ = task.aborted.set(Aborted::SILENTLY),
                }
                aborted.push((*key, task.id));
            }
        }
        aborted
    }

    /// Whether the task set has one of these commands.
    pub(super) fn has_any(&self, tasks: &[(TaskKey, u64)]) -> bool {
        tasks.iter().any(|(key, id)| self.tasks.get(key).is_some_and(|task| task.id == *id))
    }

    /// Begins to wait for every command in flight that the state forbids, and for those of `aborted` nexuses, which are
    /// aborted, but for `sender`: the command that aborts them.
    fn begin_drain(&mut self, sender: Option<TaskKey>, aborted: &[Nexus]) {
        let Self { tasks, sessions, reservations, aborted_status, .. } = self;
        let mut drained = 0;
        for (key, task) in tasks {
            let session = sessions.get_mut(&key.0);
            let is_aborted = session.as_ref().is_some_and(|session| aborted.contains(&session.nexus));
            if is_aborted
                && sender != Some(*key)
                && let Some(session) = session
            {
                session.abort(task, *aborted_status);
            }
            // Reservation commands wait for the drain, so the drain must not wait for them.
            let Some(access) = task.access.filter(|_| task.is_on_medium()) else { continue };
            task.is_drained = is_aborted
                || match sessions.get(&key.0) {
                    Some(session) => !reservations.permits(&session.nexus, access),
                    // The session has ended: the command was aborted, and is to end as well.
                    None => true,
                };
            drained += usize::from(task.is_drained);
        }
        self.change = if drained == 0 { Change::None } else { Change::Draining(drained) };
    }

    fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn end_orphan(&mut self, nexus: &Nexus) {
        if let Some(left) = self.orphans.get_mut(nexus) {
            *left -= 1;
            if *left == 0 {
                self.orphans.remove(nexus);
            }
        }
    }
}

impl TaskEntry {
    /// Whether the command has entered and may touch the medium.
    fn is_on_medium(&self) -> bool {
        self.access.is_some_and(|access| !is_reservation_command(access))
    }
}

impl Aborted {
    const SILENTLY: u8 = 1;
    const WITH_STATUS: u8 = 2;

    /// Whether this call aborted it.
    fn set(&self, how: u8) -> bool {
        self.0.compare_exchange(0, how, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed) != 0
    }

    /// The answer to the command; `None` when it has none.
    pub(super) fn completion(&self) -> Option<Completion> {
        let with_status = self.0.load(Ordering::Relaxed) == Self::WITH_STATUS;
        with_status.then_some(Completion::Status(Status::TASK_ABORTED))
    }
}

impl Session {
    fn add(&mut self, code: SenseCode) {
        if !self.attentions.contains(&code) {
            self.attentions.push(code);
        }
    }

    /// Another nexus aborts a command of this session.
    fn abort(&mut self, task: &TaskEntry, status: AbortedStatus) {
        match status {
            AbortedStatus::TaskAborted => _ = task.aborted.set(Aborted::WITH_STATUS),
            AbortedStatus::UnitAttention => {
                if task.aborted.set(Aborted::SILENTLY) {
                    self.add(sense_code::COMMANDS_CLEARED);
                }
            }
        }
    }
}

/// Whether the gate itself runs the command. Such a command does not run while a change is not over.
fn is_reservation_command(access: Access) -> bool {
    matches!(access, Access::ReserveIn | Access::ReserveOut(_) | Access::ReserveSpc2 | Access::ReleaseSpc2)
}
