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
//!
//! [`State`] has the steps, and its model checks every order of them. The gate has the lock, the waits and the store.

mod state;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use scsi_pr::{Access, Command, Completion, Nexus, Reservations, ReserveInAction, SenseCode};

use crate::commands::UnitAttention;
use crate::condition::{ChangeCondition, UnmetCondition};
use crate::store::{ReservationStore, StoreError};
use state::{Aborted, Begin, Entry, State, TaskKey};

/// A session of an initiator. Several sessions may have one nexus: while a virtual machine migrates, it has two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(u64);

/// The gate of one logical unit.
pub(crate) struct Gate {
    state: Mutex<State>,
    moved: Condvar,
    store: Box<dyn ReservationStore>,
}

/// The answer to a command that another nexus has aborted (SPC-4 7.5.8, TAS).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AbortedStatus {
    /// None; the session gets COMMANDS CLEARED BY ANOTHER INITIATOR (2F/00).
    UnitAttention,
    /// TASK ABORTED.
    TaskAborted,
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

impl Gate {
    /// # Errors
    ///
    /// The store could not be read.
    pub(crate) fn new(store: Box<dyn ReservationStore>) -> Result<Self, StoreError> {
        let (version, reservations) = store.load()?;
        Ok(Self { state: Mutex::new(State::new(version, reservations)), moved: Condvar::new(), store })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.moved.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// See [`State::open_session`].
    pub(crate) fn open_session(&self, nexus: Nexus) -> SessionId {
        self.state().open_session(nexus)
    }

    /// See [`State::close_session`].
    pub(crate) fn close_session(&self, id: SessionId) {
        self.state().close_session(id);
        self.moved.notify_all();
    }

    /// A command of `session`; `None` when the session has ended or has a command with this tag already.
    pub(crate) fn add_task(self: &Arc<Self>, session: SessionId, tag: u64) -> Option<Task> {
        let (nexus, aborted) = self.state().add_task(session, tag)?;
        Some(Task { gate: Arc::clone(self), session, tag, nexus, aborted })
    }

    /// Lets the command enter, or says why not.
    pub(crate) fn enter(&self, task: &Task, access: Access, unit_attention: UnitAttention) -> Result<(), Refusal> {
        let mut state = self.state();
        loop {
            state = match state.enter(task.key(), &task.nexus, access, unit_attention) {
                Entry::Entered => return Ok(()),
                Entry::Refused(refusal) => return Err(refusal),
                Entry::Wait => self.wait(state),
                Entry::Load => {
                    drop(state);
                    let loaded = self.store.load();
                    let mut state = self.state();
                    let result = state.loaded(loaded);
                    self.moved.notify_all();
                    if let Err(error) = result {
                        tracing::warn!("the reservations cannot be loaded, so that the unit stays not ready: {error}");
                        return Err(Refusal::Check(SenseCode::NOT_READY));
                    }
                    state
                }
            }
        }
    }

    /// Takes the next unit attention of the task's session: the data of REQUEST SENSE.
    pub(crate) fn take_attention(&self, task: &Task) -> Option<SenseCode> {
        self.state().take_attention(task.session, &task.nexus)
    }

    /// Repeats `step` until it has a result; `None` when the command was aborted meanwhile.
    fn wait_for<T>(&self, task: &Task, mut step: impl FnMut(&mut State) -> Option<T>) -> Option<T> {
        let mut state = self.state();
        loop {
            if task.is_aborted() {
                return None;
            }
            match step(&mut state) {
                Some(result) => return Some(result),
                None => state = self.wait(state),
            }
        }
    }

    /// PERSISTENT RESERVE IN, of a task that has entered; `None` when it was aborted meanwhile.
    pub(crate) fn reserve_in(&self, task: &Task, command: Command<'_>) -> Option<Completion> {
        self.wait_for(task, |state| state.reserve_in(&task.nexus, command))
    }

    /// GOOD with all data of PERSISTENT RESERVE IN, of a task that has entered; `None` when it was aborted meanwhile.
    pub(crate) fn reserve_in_data(&self, task: &Task, action: ReserveInAction) -> Option<Completion> {
        self.wait_for(task, |state| state.reserve_in_data(action))
    }

    /// RESERVE and RELEASE of SPC-2, of a task that has entered; `None` when it was aborted meanwhile.
    pub(crate) fn spc2(&self, task: &Task, act: fn(&mut Reservations, &Nexus) -> Completion) -> Option<Completion> {
        self.wait_for(task, |state| state.spc2(&task.nexus, act))
    }

    /// PERSISTENT RESERVE OUT, of a task that has entered. GOOD is the answer once the new state is durable and every
    /// command that it forbids has ended; `None` when the command was aborted meanwhile.
    pub(crate) fn reserve_out(&self, task: &Task, command: Command<'_>) -> Option<Completion> {
        let any = ChangeCondition::default();
        // The empty condition always holds.
        self.reserve_out_if(task, command, &any)?.ok()
    }

    /// The same, if `condition` holds when the rules decide the command.
    pub(crate) fn reserve_out_if(
        &self,
        task: &Task,
        command: Command<'_>,
        condition: &ChangeCondition,
    ) -> Option<Result<Completion, UnmetCondition>> {
        let begin = self.wait_for(task, |state| match state.check(task.session, condition)? {
            Ok(()) => match state.begin_change(&task.nexus, command) {
                Begin::Wait => None,
                begin => Some(Ok(begin)),
            },
            Err(unmet) => Some(Err(unmet)),
        })?;
        match begin {
            Ok(begin) => self.finish_change(task, command, begin).map(Ok),
            Err(unmet) => Some(Err(unmet)),
        }
    }

    fn finish_change(&self, task: &Task, command: Command<'_>, begin: Begin) -> Option<Completion> {
        let (expected, new) = match begin {
            Begin::Store { expected, new } => (expected, new),
            Begin::Answer(completion) => return Some(completion),
            Begin::Wait => return None,
        };
        let stored = self.store.replace(expected, &new);
        let completion = self.state().stored(task.key(), &task.nexus, command, &stored);
        self.moved.notify_all();
        match stored {
            Ok(version) => self.wait_for(task, |state| state.is_drained(version).then(|| completion.clone())),
            Err(error) => {
                tracing::warn!("{command} of {}: {error}", task.nexus);
                Some(completion)
            }
        }
    }

    /// Aborts commands, and waits until none of them can touch the medium any more. PERSISTENT RESERVE OUT whose new
    /// state is in force counts as ended: its drain goes on by itself.
    ///
    /// Returns the number of commands that were aborted.
    pub(crate) fn abort(&self, scope: AbortScope, by: Option<SessionId>) -> usize {
        let mut state = self.state();
        let aborted = state.abort(scope, by);
        self.moved.notify_all();
        while state.has_any(&aborted) {
            state = self.wait(state);
        }
        aborted.len()
    }

    /// A reset: commands are aborted, a SPC-2 reservation ends, and every session gets the unit attention `code`.
    pub(crate) fn reset(&self, code: SenseCode) -> usize {
        let aborted = self.abort(AbortScope::Everything, None);
        self.state().reset(code);
        aborted
    }

    /// Gives every session but that of `except` a unit attention.
    pub(crate) fn notify_sessions(&self, code: SenseCode, except: Option<&Task>) {
        self.state().notify_sessions(code, except.map(|task| task.session));
    }

    /// Sets the answer to commands that another nexus aborts.
    pub(crate) fn set_aborted_status(&self, status: AbortedStatus) {
        self.state().aborted_status = status;
    }

    /// The nexus of each session.
    pub(crate) fn sessions(&self) -> Vec<Nexus> {
        self.state().nexuses()
    }

    /// The number of commands in the task set.
    pub(crate) fn commands_in_flight(&self) -> usize {
        self.state().commands_in_flight()
    }

    fn end(&self, task: &Task) {
        let is_awaited = self.state().end(task.key(), &task.nexus);
        if is_awaited {
            self.moved.notify_all();
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

    fn key(&self) -> TaskKey {
        (self.session, self.tag)
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.gate.end(self);
    }
}
