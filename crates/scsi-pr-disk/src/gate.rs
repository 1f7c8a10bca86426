//! [`Gate`]: decides which commands may touch the medium, and knows those that do.
//!
//! The order of effects makes a reservation worth something:
//!
//! 1. A command enters atomically: unit attention, reservation, entry in the task set.
//! 2. PERSISTENT RESERVE OUT: the rules decide, the store makes the new state durable, the gate publishes it, then the
//!    gate waits for every command in flight that the new state forbids, then the answer is GOOD.
//! 3. While that wait (the drain) lasts, no PERSISTENT RESERVE IN or OUT enters: no initiator sees the new state before it is
//!    in force. The drain outlives the command that began it.
//! 4. When the outcome of the store is unknown, the gate is closed for everyone until a load succeeds.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use scsi_pr::{Access, Command, Completion, Nexus, Reservations, SenseCode, SenseKey, Status};

use crate::commands::UnitAttention;
use crate::sense_code;
use crate::store::{ReservationStore, StoreError};

/// A session of an initiator. Several sessions may have one nexus: while a virtual machine migrates, it has two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(u64);

/// The gate of one logical unit.
pub(crate) struct Gate {
    state: Mutex<State>,
    moved: Condvar,
    store: Box<dyn ReservationStore>,
}

struct State {
    reservations: Reservations,
    version: u64,
    store: StoreState,
    /// Whether a PERSISTENT RESERVE OUT is between the rules and the end of its drain.
    change: Change,
    sessions: HashMap<SessionId, Session>,
    /// By session and tag.
    tasks: HashMap<(SessionId, u64), TaskEntry>,
    next_id: u64,
    /// TAS of the Control mode page.
    aborted_status: AbortedStatus,
    /// Nexuses whose last session has ended, the last one at the end; bounded.
    lost: VecDeque<Nexus>,
    /// The number of commands on the medium whose session has ended. Their nexus' next commands wait for them: a write
    /// that a session has left behind must not land on top of the one that the initiator sends again.
    orphans: HashMap<Nexus, usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StoreState {
    /// The store has what the gate has.
    Known,
    /// The store may have another state: no command enters.
    Unknown,
    /// A command loads the state again.
    Loading,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    None,
    /// The rules have decided, and the store makes it durable.
    Storing,
    /// The new state is in force for new commands. So many commands in flight are still to end.
    Draining(usize),
}

struct Session {
    nexus: Nexus,
    /// Those of the device server; those of reservations are in [`State::reservations`].
    attentions: Vec<SenseCode>,
}

/// The answer to a command that another nexus has aborted (SPC-4 7.5.8, TAS).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AbortedStatus {
    /// None; the session gets COMMANDS CLEARED BY ANOTHER INITIATOR (2F/00).
    UnitAttention,
    /// TASK ABORTED.
    TaskAborted,
}

struct TaskEntry {
    id: u64,
    /// Set when the command has entered.
    access: Option<Access>,
    aborted: Arc<Aborted>,
    /// Whether the drain waits for it.
    is_drained: bool,
}

impl TaskEntry {
    /// Whether the command has entered and may touch the medium.
    fn is_on_medium(&self) -> bool {
        self.access.is_some_and(|access| !is_reservation_command(access))
    }
}

/// Whether a command was aborted, and with which answer.
#[derive(Debug, Default)]
struct Aborted(AtomicU8);

impl Aborted {
    const SILENTLY: u8 = 1;
    const WITH_STATUS: u8 = 2;

    /// Whether this call aborted it.
    fn set(&self, how: u8) -> bool {
        self.0.compare_exchange(0, how, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed) != 0
    }

    fn completion(&self) -> Option<Completion> {
        let with_status = self.0.load(Ordering::Relaxed) == Self::WITH_STATUS;
        with_status.then_some(Completion::Status(Status::TASK_ABORTED))
    }
}

/// A command in the task set; it leaves the set when this is dropped.
pub struct Task {
    gate: Arc<Gate>,
    session: SessionId,
    tag: u64,
    nexus: Nexus,
    aborted: Arc<Aborted>,
}

/// The reason why a command does not enter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Check(SenseCode),
    ReservationConflict,
    /// The command was aborted.
    Aborted,
}

/// The commands that a task management function aborts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AbortScope {
    Task(SessionId, u64),
    Session(SessionId),
    Everything,
}

/// The number of lost nexuses whose return the gate recognizes.
const MAX_LOST: usize = 1024;

impl Gate {
    /// # Errors
    ///
    /// The store could not be read.
    pub(crate) fn new(store: Box<dyn ReservationStore>) -> Result<Self, StoreError> {
        let (version, reservations) = store.load()?;
        let state = State {
            reservations,
            version,
            store: StoreState::Known,
            change: Change::None,
            sessions: HashMap::new(),
            tasks: HashMap::new(),
            next_id: 0,
            aborted_status: AbortedStatus::UnitAttention,
            lost: VecDeque::new(),
            orphans: HashMap::new(),
        };
        Ok(Self { state: Mutex::new(state), moved: Condvar::new(), store })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.moved.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// A new session, which has POWER ON (29/00) or, if its nexus was lost before, I_T NEXUS LOSS (29/07) pending.
    pub(crate) fn open_session(&self, nexus: Nexus) -> SessionId {
        let mut state = self.state();
        let id = SessionId(state.new_id());
        let attention = match state.lost.iter().position(|lost| *lost == nexus) {
            Some(index) => {
                state.lost.remove(index);
                SenseCode { key: SenseKey::UNIT_ATTENTION, ..SenseCode::NEXUS_LOSS }
            }
            None => SenseCode::RESET,
        };
        state.sessions.insert(id, Session { nexus, attentions: vec![attention] });
        id
    }

    /// The session ends: its commands are aborted. With the last session of a nexus, the nexus is lost: a SPC-2
    /// reservation ends, persistent reservations stay.
    pub(crate) fn close_session(&self, id: SessionId) {
        let mut state = self.state();
        state.abort(AbortScope::Session(id), None);
        let Some(session) = state.sessions.remove(&id) else { return };
        let left = state.tasks.iter().filter(|((owner, _), entry)| *owner == id && entry.is_on_medium()).count();
        if left > 0 {
            *state.orphans.entry(session.nexus.clone()).or_default() += left;
        }
        if !state.sessions.values().any(|other| other.nexus == session.nexus) {
            if state.reservations.spc2_holder() == Some(&session.nexus) {
                let _ = state.reservations.release_spc2(&session.nexus);
            }
            state.lost.push_back(session.nexus);
            if state.lost.len() > MAX_LOST {
                state.lost.pop_front();
            }
        }
        drop(state);
        self.moved.notify_all();
    }

    /// A command of `session`; `None` when the session has ended or has a command with this tag already.
    pub(crate) fn add_task(self: &Arc<Self>, session: SessionId, tag: u64) -> Option<Task> {
        let mut state = self.state();
        let nexus = state.sessions.get(&session)?.nexus.clone();
        if state.tasks.contains_key(&(session, tag)) {
            return None;
        }
        let id = state.new_id();
        let aborted = Arc::new(Aborted::default());
        let entry = TaskEntry { id, access: None, aborted: Arc::clone(&aborted), is_drained: false };
        state.tasks.insert((session, tag), entry);
        Some(Task { gate: Arc::clone(self), session, tag, nexus, aborted })
    }

    /// Lets the command enter, or says why not.
    pub(crate) fn enter(&self, task: &Task, access: Access, unit_attention: UnitAttention) -> Result<(), Refusal> {
        let mut state = self.state();
        loop {
            if task.is_aborted() {
                return Err(Refusal::Aborted);
            }
            match state.store {
                StoreState::Known => {}
                // Neither the medium nor the reservations are touched.
                _ if unit_attention == UnitAttention::Deferred => {}
                StoreState::Loading => {
                    state = self.wait(state);
                    continue;
                }
                StoreState::Unknown => {
                    state = self.load_again(state);
                    if state.store == StoreState::Unknown {
                        return Err(Refusal::Check(SenseCode::NOT_READY));
                    }
                    continue;
                }
            }
            if state.orphans.contains_key(&task.nexus) && !is_reservation_command(access) {
                state = self.wait(state);
                continue;
            }
            if is_reservation_command(access) && state.change != Change::None {
                state = self.wait(state);
                continue;
            }
            if unit_attention == UnitAttention::Reported
                && let Some(code) = state.take_attention(task)
            {
                return Err(Refusal::Check(code));
            }
            if !state.reservations.permits(&task.nexus, access) {
                return Err(Refusal::ReservationConflict);
            }
            if let Some(entry) = state.tasks.get_mut(&task.key()) {
                entry.access = Some(access);
            }
            return Ok(());
        }
    }

    /// Takes the next unit attention of the task's session: the data of REQUEST SENSE.
    pub(crate) fn take_attention(&self, task: &Task) -> Option<SenseCode> {
        self.state().take_attention(task)
    }

    /// PERSISTENT RESERVE IN, of a task that has entered.
    pub(crate) fn reserve_in(&self, task: &Task, command: Command<'_>) -> Completion {
        // A unit attention that came after the command had entered is for the next one.
        let answer = self.state().reservations.answer(&task.nexus, command);
        answer.unwrap_or(Completion::check(SenseCode::INVALID_OPCODE))
    }

    /// RESERVE and RELEASE of SPC-2, of a task that has entered.
    pub(crate) fn spc2(&self, task: &Task, act: fn(&mut Reservations, &Nexus) -> Completion) -> Completion {
        act(&mut self.state().reservations, &task.nexus)
    }

    /// PERSISTENT RESERVE OUT, of a task that has entered. GOOD is the answer once the new state is durable and every
    /// command that it forbids has ended; `None` when the command was aborted meanwhile.
    pub(crate) fn reserve_out(&self, task: &Task, command: Command<'_>) -> Option<Completion> {
        let mut state = self.state();
        while state.change != Change::None {
            if task.is_aborted() {
                return None;
            }
            state = self.wait(state);
        }
        let mut new = state.reservations.clone();
        let outcome = new.process(&task.nexus, command);
        if !outcome.changed {
            return Some(outcome.completion);
        }
        state.change = Change::Storing;
        let expected = state.version;
        drop(state);

        let stored = self.store.replace(expected, &new);

        let mut state = self.state();
        match stored {
            Ok(version) => {
                state.version = version;
                // Commands that ran meanwhile may have reported unit attentions, which `new` still has.
                let outcome = state.reservations.process(&task.nexus, command);
                let drained = state.begin_drain(&outcome.aborted);
                state.change = if drained == 0 { Change::None } else { Change::Draining(drained) };
                self.moved.notify_all();
                while state.change != Change::None && !task.is_aborted() {
                    state = self.wait(state);
                }
                if task.is_aborted() { None } else { Some(outcome.completion) }
            }
            Err(error) => {
                state.change = Change::None;
                let code = match error {
                    StoreError::Unchanged(_) => SenseCode::NOT_READY,
                    StoreError::OutcomeUnknown(_) => {
                        state.store = StoreState::Unknown;
                        SenseCode::LUN_COMMUNICATION_FAILURE
                    }
                };
                tracing::warn!("{command} of {}: {error}", task.nexus);
                drop(state);
                self.moved.notify_all();
                Some(Completion::check(code))
            }
        }
    }

    /// Loads the state again after an unknown outcome, and begins the drain of what the loaded state forbids.
    fn load_again<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        state.store = StoreState::Loading;
        drop(state);
        let loaded = self.store.load();
        let mut state = self.state();
        state.store = match loaded {
            Ok((version, reservations)) => {
                (state.version, state.reservations) = (version, reservations);
                let drained = state.begin_drain(&[]);
                state.change = if drained == 0 { Change::None } else { Change::Draining(drained) };
                StoreState::Known
            }
            Err(error) => {
                tracing::warn!("the reservations cannot be loaded, so that the unit stays not ready: {error}");
                StoreState::Unknown
            }
        };
        self.moved.notify_all();
        state
    }

    /// Aborts commands, and waits until none of them can touch the medium any more. PERSISTENT RESERVE OUT whose new
    /// state is in force counts as ended: its drain goes on by itself.
    ///
    /// Returns the number of commands that were aborted.
    pub(crate) fn abort(&self, scope: AbortScope, by: Option<SessionId>) -> usize {
        let mut state = self.state();
        let aborted = state.abort(scope, by);
        self.moved.notify_all();
        while aborted.iter().any(|(key, id)| state.tasks.get(key).is_some_and(|task| task.id == *id)) {
            state = self.wait(state);
        }
        aborted.len()
    }

    /// A reset: commands are aborted, a SPC-2 reservation ends, and every session gets the unit attention `code`.
    pub(crate) fn reset(&self, code: SenseCode) -> usize {
        let aborted = self.abort(AbortScope::Everything, None);
        let mut state = self.state();
        if let Some(holder) = state.reservations.spc2_holder().cloned() {
            let _ = state.reservations.release_spc2(&holder);
        }
        state.sessions.values_mut().for_each(|session| session.add(code));
        aborted
    }

    /// Gives every session but `except` a unit attention.
    pub(crate) fn notify_sessions(&self, code: SenseCode, except: Option<&Task>) {
        let mut state = self.state();
        let except = except.map(|task| task.session);
        let others = state.sessions.iter_mut().filter(|(id, _)| Some(**id) != except);
        others.for_each(|(_, session)| session.add(code));
    }

    /// Sets the answer to commands that another nexus aborts.
    pub(crate) fn set_aborted_status(&self, status: AbortedStatus) {
        self.state().aborted_status = status;
    }

    fn end(&self, task: &Task) {
        let mut state = self.state();
        let Some(entry) = state.tasks.remove(&task.key()) else { return };
        if entry.is_drained
            && let Change::Draining(left) = state.change
        {
            state.change = if left > 1 { Change::Draining(left - 1) } else { Change::None };
        }
        if entry.is_on_medium() && !state.sessions.contains_key(&task.session) {
            state.end_orphan(&task.nexus);
        }
        let is_awaited = entry.is_drained || entry.aborted.is_set();
        drop(state);
        if is_awaited {
            self.moved.notify_all();
        }
    }
}

impl State {
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

    fn take_attention(&mut self, task: &Task) -> Option<SenseCode> {
        let own = self.sessions.get_mut(&task.session);
        match own.filter(|session| !session.attentions.is_empty()) {
            Some(session) => Some(session.attentions.remove(0)),
            None => self.reservations.take_unit_attention(&task.nexus),
        }
    }

    /// Marks every command in flight that the state forbids, and those of `aborted` nexuses, which are aborted. Returns
    /// the number of commands that the drain waits for: those that may touch the medium.
    fn begin_drain(&mut self, aborted: &[Nexus]) -> usize {
        let Self { tasks, sessions, reservations, aborted_status, .. } = self;
        let mut drained = 0;
        for ((session, _), entry) in tasks {
            // PERSISTENT RESERVE IN and OUT wait for the drain, so the drain must not wait for them.
            let Some(access) = entry.access.filter(|_| entry.is_on_medium()) else { continue };
            // A command of a session that has ended was aborted, and is to end as well.
            entry.is_drained = match sessions.get_mut(session) {
                None => true,
                Some(session) if aborted.contains(&session.nexus) => {
                    session.abort(entry, *aborted_status);
                    true
                }
                Some(session) => !reservations.permits(&session.nexus, access),
            };
            drained += usize::from(entry.is_drained);
        }
        drained
    }

    /// Marks the commands of `scope` as aborted, by the session `by` or by the device server. Returns those to wait for.
    fn abort(&mut self, scope: AbortScope, by: Option<SessionId>) -> Vec<((SessionId, u64), u64)> {
        let Self { tasks, sessions, aborted_status, .. } = self;
        let mut aborted = Vec::new();
        for (key @ (session, tag), entry) in tasks {
            let is_meant = match scope {
                AbortScope::Task(meant, meant_tag) => (*session, *tag) == (meant, meant_tag),
                AbortScope::Session(meant) => *session == meant,
                AbortScope::Everything => true,
            };
            if is_meant {
                match sessions.get_mut(session) {
                    Some(other) if by.is_some_and(|by| by != *session) => other.abort(entry, *aborted_status),
                    _ => _ = entry.aborted.set(Aborted::SILENTLY),
                }
                aborted.push((*key, entry.id));
            }
        }
        aborted
    }
}

impl Session {
    fn add(&mut self, code: SenseCode) {
        if !self.attentions.contains(&code) {
            self.attentions.push(code);
        }
    }

    /// Another nexus aborts a command of this session.
    fn abort(&mut self, entry: &TaskEntry, status: AbortedStatus) {
        match status {
            AbortedStatus::TaskAborted => _ = entry.aborted.set(Aborted::WITH_STATUS),
            AbortedStatus::UnitAttention => {
                if entry.aborted.set(Aborted::SILENTLY) {
                    self.add(sense_code::COMMANDS_CLEARED);
                }
            }
        }
    }
}

impl Task {
    /// The I_T nexus that sent the command.
    pub fn nexus(&self) -> &Nexus {
        &self.nexus
    }

    /// Whether the command was aborted: it must not touch the medium any more, and has no answer.
    pub fn is_aborted(&self) -> bool {
        self.aborted.is_set()
    }

    /// The answer to an aborted command; `None` when it has none.
    pub(crate) fn aborted_completion(&self) -> Option<Completion> {
        self.aborted.completion()
    }

    fn key(&self) -> (SessionId, u64) {
        (self.session, self.tag)
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.gate.end(self);
    }
}

/// Whether the gate itself runs the command.
fn is_reservation_command(access: Access) -> bool {
    matches!(access, Access::ReserveIn | Access::ReserveOut(_))
}
