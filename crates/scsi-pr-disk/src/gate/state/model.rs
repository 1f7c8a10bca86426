//! Every order of the gate's steps: a preempt among commands in flight, aborts, resets, a store that fails, and a crash
//! between any two steps. The checker takes the steps of the real [`State`].

use std::fmt;
use std::hash::{Hash, Hasher};

use scsi_pr::{Cdb, CommandBuf, InitiatorPort, TransportId};
use stateright::{Checker, Model, Property};

use super::*;

const LOSER: usize = 0;
const WINNER: usize = 1;
const WRITE_EXCLUSIVE_REGISTRANTS_ONLY: u8 = 5;

/// A variant of the model.
struct GateModel {
    /// The reservations at the beginning.
    start: Reservations,
    /// PERSISTENT RESERVE OUT of the winner.
    change: CommandBuf,
    events: Events,
    left_out: LeftOut,
}

/// A part of the order of effects that a variant leaves out, so that the checker must find the harm.
#[derive(Clone, Copy, PartialEq)]
enum LeftOut {
    Nothing,
    /// GOOD does not wait for commands in flight.
    Drain,
    /// A successor does not wait for the medium's lock.
    Lock,
}

/// The events that may still happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Events {
    writes: u8,
    changes: u8,
    reads_of_keys: u8,
    spc2_reserves: u8,
    aborts: u8,
    resets: u8,
    closes: u8,
    crashes: u8,
    failures: u8,
}

/// The server, its store, its medium and its initiators.
#[derive(Clone)]
struct World {
    /// `None` after a crash.
    gate: Option<State>,
    durable: (u64, Reservations),
    sessions: [Option<SessionId>; 2],
    commands: Vec<Pending>,
    /// The request to the store that has no answer yet.
    storing: Option<(u64, Reservations)>,
    /// Writes of the loser that the kernel has, of a server that is gone.
    kernel_writes: u8,
    next_tag: u64,
    events: Events,
    /// Whether an initiator was answered that the loser cannot write any more.
    is_fenced: bool,
    seen: Seen,
}

/// The facts that the properties are about.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
struct Seen {
    write_after_fence: bool,
    good_not_durable: bool,
    change_is_good: bool,
    write_is_refused: bool,
    fenced_by_keys_alone: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Pending {
    initiator: usize,
    session: SessionId,
    tag: u64,
    kind: Kind,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    /// A write of the loser.
    Write,
    /// The winner's PERSISTENT RESERVE OUT.
    Change,
    /// READ KEYS of the winner.
    ReadKeys,
    /// RESERVE(6) of SPC-2 of the loser.
    Spc2Reserve,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    New,
    Loading,
    Entered,
    Storing,
    Draining { version: u64, is_good: bool },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Step {
    Send(Kind),
    /// The next step of the command with this tag.
    Advance(u64),
    /// The store answers the command with this tag.
    Store(u64, Stored),
    /// The load for the command with this tag succeeds or fails.
    Load(u64, Stored),
    AbortTasksOfWinner,
    Reset,
    CloseLoser,
    OpenLoser,
    Crash(Stored),
    /// The last write of a server that is gone reaches the medium.
    KernelWriteLands,
    /// It is lost.
    KernelWriteIsLost,
    Restart,
}

/// The effect of a request to the store, and what its answer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stored {
    Durable,
    Unchanged,
    UnknownAndDurable,
    UnknownAndUnchanged,
}

impl GateModel {
    /// The loser holds Write Exclusive – Registrants Only, and the winner, a registrant too, takes it away.
    fn fencing(action: u8, left_out: LeftOut, events: Events) -> Self {
        let mut start = Reservations::new();
        for (initiator, key) in [(LOSER, 1), (WINNER, 2)] {
            assert!(start.process(&nexus(initiator), reserve_out(0, 0, 0, key).command()).changed);
        }
        let reserve = reserve_out(1, WRITE_EXCLUSIVE_REGISTRANTS_ONLY, 1, 0);
        assert!(start.process(&nexus(LOSER), reserve.command()).changed);
        let change = reserve_out(action, WRITE_EXCLUSIVE_REGISTRANTS_ONLY, 2, 1);
        Self { start, change, events, left_out }
    }

    fn check(self) -> impl Checker<Self> {
        self.checker().threads(1).spawn_bfs().join()
    }
}

impl Model for GateModel {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        let mut gate = State::new(0, self.start.clone());
        let sessions = [LOSER, WINNER].map(|initiator| Some(open(&mut gate, initiator)));
        vec![World {
            gate: Some(gate),
            durable: (0, self.start.clone()),
            sessions,
            commands: Vec::new(),
            storing: None,
            kernel_writes: 0,
            next_tag: 0,
            events: self.events,
            is_fenced: false,
            seen: Seen::default(),
        }]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        let Events { writes, changes, reads_of_keys, spc2_reserves, aborts, resets, closes, crashes, failures } =
            world.events;
        if world.gate.is_none() {
            if world.kernel_writes > 0 {
                steps.extend([Step::KernelWriteLands, Step::KernelWriteIsLost]);
            }
            if world.kernel_writes == 0 || self.left_out == LeftOut::Lock {
                steps.push(Step::Restart);
            }
            return;
        }
        if self.left_out == LeftOut::Lock && world.kernel_writes > 0 {
            steps.push(Step::KernelWriteLands);
        }
        for (kind, left) in [
            (Kind::Write, writes),
            (Kind::Change, changes),
            (Kind::ReadKeys, reads_of_keys),
            (Kind::Spc2Reserve, spc2_reserves),
        ] {
            if left > 0 && world.sessions[kind.initiator()].is_some() {
                steps.push(Step::Send(kind));
            }
        }
        for Pending { tag, phase, .. } in &world.commands {
            match phase {
                Phase::Storing => {
                    steps.push(Step::Store(*tag, Stored::Durable));
                    if failures > 0 {
                        let failed = [Stored::Unchanged, Stored::UnknownAndDurable, Stored::UnknownAndUnchanged];
                        steps.extend(failed.map(|stored| Step::Store(*tag, stored)));
                    }
                }
                Phase::Loading => {
                    steps.push(Step::Load(*tag, Stored::Durable));
                    if failures > 0 {
                        steps.push(Step::Load(*tag, Stored::Unchanged));
                    }
                }
                _ => steps.push(Step::Advance(*tag)),
            }
        }
        let extra = [
            (aborts, Step::AbortTasksOfWinner),
            (resets, Step::Reset),
            (if world.sessions[LOSER].is_some() { closes } else { 0 }, Step::CloseLoser),
            (u8::from(world.sessions[LOSER].is_none()), Step::OpenLoser),
            (crashes, Step::Crash(Stored::UnknownAndDurable)),
            (crashes, Step::Crash(Stored::UnknownAndUnchanged)),
        ];
        steps.extend(extra.into_iter().filter(|(left, _)| *left > 0).map(|(_, step)| step));
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        let mut next = world.clone();
        next.take(self, step).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("no write of the loser lands after the fence", |_, world: &World| {
                !world.seen.write_after_fence
            }),
            Property::always("GOOD is durable", |_, world: &World| !world.seen.good_not_durable),
            Property::always("the gate has the reservations of the store", |_, world: &World| {
                world.gate.as_ref().is_none_or(|gate| {
                    let is_settled = gate.change == Change::None && gate.store == StoreState::Known;
                    !is_settled || without_attentions(&gate.reservations) == without_attentions(&world.durable.1)
                })
            }),
            Property::always("a command that is not over can go on", |model: &Self, world: &World| {
                let can_go_on = |step| model.next_state(world, step).is_some();
                let progress = |pending: &Pending| match pending.phase {
                    Phase::Storing => can_go_on(Step::Store(pending.tag, Stored::Durable)),
                    Phase::Loading => can_go_on(Step::Load(pending.tag, Stored::Durable)),
                    _ => can_go_on(Step::Advance(pending.tag)),
                };
                world.commands.is_empty() || world.commands.iter().any(progress)
            }),
        ]
    }
}

impl World {
    /// Takes a step; `false` if it changes nothing.
    fn take(&mut self, model: &GateModel, step: Step) -> bool {
        match step {
            Step::Restart => {
                let mut gate = State::new(self.durable.0, self.durable.1.clone());
                self.sessions = [LOSER, WINNER].map(|initiator| Some(open(&mut gate, initiator)));
                self.gate = Some(gate);
            }
            Step::KernelWriteLands => {
                self.kernel_writes -= 1;
                self.write_lands();
            }
            Step::KernelWriteIsLost => self.kernel_writes -= 1,
            Step::Crash(stored) => {
                self.events.crashes -= 1;
                self.crash(stored);
            }
            _ => {
                let Some(mut gate) = self.gate.take() else { return false };
                let has_effect = self.take_in(model, &mut gate, step);
                self.gate = Some(gate);
                return has_effect;
            }
        }
        true
    }

    fn take_in(&mut self, model: &GateModel, gate: &mut State, step: Step) -> bool {
        match step {
            Step::Send(kind) => {
                let Some(session) = self.sessions[kind.initiator()] else { return false };
                *self.events.left_of(kind) -= 1;
                let tag = self.next_tag;
                self.next_tag += 1;
                assert!(gate.add_task(session, tag).is_some());
                self.commands.push(Pending { initiator: kind.initiator(), session, tag, kind, phase: Phase::New });
            }
            Step::AbortTasksOfWinner => {
                self.events.aborts -= 1;
                let Some(session) = self.sessions[WINNER] else { return false };
                return !gate.abort(AbortScope::Session(session), Some(session)).is_empty();
            }
            Step::Reset => {
                self.events.resets -= 1;
                let _ = gate.abort(AbortScope::Everything, None);
                gate.reset(SenseCode::BUS_RESET);
            }
            Step::CloseLoser => {
                self.events.closes -= 1;
                let Some(session) = self.sessions[LOSER].take() else { return false };
                gate.close_session(session);
            }
            Step::OpenLoser => self.sessions[LOSER] = Some(open(gate, LOSER)),
            Step::Advance(tag) | Step::Store(tag, _) | Step::Load(tag, _) => {
                let Some(index) = self.commands.iter().position(|pending| pending.tag == tag) else { return false };
                let mut pending = self.commands.remove(index);
                let (before, key) = (pending.phase, pending.key());
                if self.advance(model, gate, &mut pending, step) {
                    self.commands.insert(index, pending);
                    // A command that waits stays as it was.
                    return self.commands[index].phase != before;
                }
                let _ = gate.end(key, &nexus(pending.initiator));
            }
            Step::Crash(_) | Step::KernelWriteLands | Step::KernelWriteIsLost | Step::Restart => return false,
        }
        true
    }

    /// Takes a command further. `false` when it has ended.
    fn advance(&mut self, model: &GateModel, gate: &mut State, pending: &mut Pending, step: Step) -> bool {
        let (key, nexus) = (pending.key(), nexus(pending.initiator));
        let is_aborted = gate.tasks[&key].aborted.is_set();
        match (pending.phase, step) {
            (Phase::New, _) => match gate.enter(key, &nexus, pending.kind.access(model), UnitAttention::Reported) {
                Entry::Entered => pending.phase = Phase::Entered,
                Entry::Wait => {}
                Entry::Load => pending.phase = Phase::Loading,
                Entry::Refused(refusal) => {
                    self.seen.write_is_refused |=
                        pending.kind == Kind::Write && refusal == Refusal::ReservationConflict;
                    return false;
                }
            },
            (Phase::Loading, Step::Load(_, stored)) => {
                let loaded = match stored {
                    Stored::Durable => Ok(self.durable.clone()),
                    _ => {
                        self.events.failures -= 1;
                        Err(StoreError::Unchanged(String::new()))
                    }
                };
                if gate.loaded(loaded).is_err() {
                    return false;
                }
                pending.phase = Phase::New;
            }
            // A command that is on the medium is not recalled: it lands although it was aborted.
            (Phase::Entered, _) if pending.kind == Kind::Write => {
                self.write_lands();
                return false;
            }
            (_, _) if is_aborted && pending.phase != Phase::Storing => return false,
            (Phase::Entered, _) => return self.process(model, gate, pending),
            (Phase::Storing, Step::Store(_, stored)) => {
                let answer = self.store(stored);
                let completion = gate.stored(key, &nexus, model.change.command(), &answer);
                let Ok(version) = answer else { return false };
                let is_good = matches!(completion, Completion::Good(_));
                pending.phase = Phase::Draining { version, is_good };
            }
            (Phase::Draining { version, is_good }, _)
                if gate.is_drained(version) || model.left_out == LeftOut::Drain =>
            {
                if is_good {
                    self.change_is_good(model);
                }
                return false;
            }
            _ => {}
        }
        true
    }

    /// The next step of a command that the gate itself runs.
    fn process(&mut self, model: &GateModel, gate: &mut State, pending: &mut Pending) -> bool {
        let nexus = nexus(pending.initiator);
        match pending.kind {
            Kind::ReadKeys => {
                let Some(completion) = gate.reserve_in(&nexus, read_keys().command()) else { return true };
                let Completion::Good(data) = completion else { return false };
                let is_fenced = !data[8..].chunks_exact(8).any(|key| key == 1_u64.to_be_bytes());
                self.seen.fenced_by_keys_alone |= is_fenced && !self.is_fenced;
                self.is_fenced |= is_fenced;
                false
            }
            Kind::Spc2Reserve => gate.spc2(&nexus, Reservations::reserve_spc2).is_none(),
            Kind::Change => match gate.begin_change(&nexus, model.change.command()) {
                Begin::Wait => true,
                Begin::Answer(_) => false,
                Begin::Store { expected, new } => {
                    self.storing = Some((expected, new));
                    pending.phase = Phase::Storing;
                    true
                }
            },
            Kind::Write => false,
        }
    }

    fn store(&mut self, stored: Stored) -> Result<u64, StoreError> {
        let (expected, new) = self.storing.take().unwrap();
        assert_eq!(self.durable.0, expected, "the gate changes what the store has");
        if matches!(stored, Stored::Durable | Stored::UnknownAndDurable) {
            self.durable = (expected + 1, new);
        }
        if stored != Stored::Durable {
            self.events.failures -= 1;
        }
        match stored {
            Stored::Durable => Ok(expected + 1),
            Stored::Unchanged => Err(StoreError::Unchanged(String::new())),
            Stored::UnknownAndDurable | Stored::UnknownAndUnchanged => Err(StoreError::OutcomeUnknown(String::new())),
        }
    }

    fn change_is_good(&mut self, model: &GateModel) {
        self.seen.change_is_good = true;
        let mut expected = model.start.clone();
        let _ = expected.process(&nexus(WINNER), model.change.command());
        let keys = |reservations: &Reservations| -> Vec<_> {
            reservations.registrations().map(|registrant| registrant.key).collect()
        };
        self.seen.good_not_durable |= keys(&expected) != keys(&self.durable.1);
        self.is_fenced = keys(&model.start).len() > keys(&expected).len();
    }

    fn write_lands(&mut self) {
        self.seen.write_after_fence |= self.is_fenced;
    }

    /// Only the store and the writes that the kernel has outlive the server.
    fn crash(&mut self, stored: Stored) {
        let on_medium = |pending: &&Pending| (pending.kind, pending.phase) == (Kind::Write, Phase::Entered);
        self.kernel_writes = self.commands.iter().filter(on_medium).count() as u8;
        self.commands.clear();
        if let Some((expected, new)) = self.storing.take()
            && stored == Stored::UnknownAndDurable
        {
            self.durable = (expected + 1, new);
        }
        self.gate = None;
        self.sessions = [None, None];
    }
}

impl Events {
    fn left_of(&mut self, kind: Kind) -> &mut u8 {
        match kind {
            Kind::Write => &mut self.writes,
            Kind::Change => &mut self.changes,
            Kind::ReadKeys => &mut self.reads_of_keys,
            Kind::Spc2Reserve => &mut self.spc2_reserves,
        }
    }
}

impl Kind {
    fn initiator(self) -> usize {
        match self {
            Self::Write | Self::Spc2Reserve => LOSER,
            Self::Change | Self::ReadKeys => WINNER,
        }
    }

    fn access(self, model: &GateModel) -> Access {
        match self {
            Self::Write => Access::Write,
            Self::ReadKeys => Access::ReserveIn,
            Self::Spc2Reserve => Access::ReserveSpc2,
            Self::Change => Access::of_cdb(model.change.cdb().bytes()),
        }
    }
}

impl Pending {
    fn key(&self) -> TaskKey {
        (self.session, self.tag)
    }
}

fn nexus(initiator: usize) -> Nexus {
    let name = ["iqn.2026-11.test:loser", "iqn.2026-11.test:winner"][initiator];
    let port = InitiatorPort::Iscsi { name, isid: Some([0; 6]) };
    Nexus::new(TransportId::new(port).unwrap(), 1)
}

/// A session whose first unit attention is reported.
fn open(gate: &mut State, initiator: usize) -> SessionId {
    let session = gate.open_session(nexus(initiator));
    while gate.take_attention(session, &nexus(initiator)).is_some() {}
    session
}

fn reserve_out(action: u8, reservation_type: u8, key: u64, service_action_key: u64) -> CommandBuf {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1], cdb[2], cdb[8]) = (0x5f, action, reservation_type, 24);
    let list = [&key.to_be_bytes()[..], &service_action_key.to_be_bytes(), &[0; 8]].concat();
    CommandBuf::new(Cdb::new(cdb).unwrap(), list).unwrap()
}

fn read_keys() -> CommandBuf {
    let mut cdb = [0; 16];
    (cdb[0], cdb[8]) = (0x5e, 255);
    CommandBuf::new(Cdb::new(cdb).unwrap(), Vec::new()).unwrap()
}

fn without_attentions(reservations: &Reservations) -> Vec<u8> {
    let mut reservations = reservations.clone();
    reservations.clear_unit_attentions();
    reservations.to_record()
}

impl World {
    /// The part of the state that decides what can happen next.
    fn identity(&self) -> impl Hash + Eq + fmt::Debug + use<> {
        let gate = self.gate.as_ref().map(|gate| {
            let mut tasks: Vec<_> = gate
                .tasks
                .iter()
                .map(|(key, task)| (*key, task.access, task.aborted.0.load(Ordering::Relaxed), task.is_drained))
                .collect();
            tasks.sort_by_key(|(key, ..)| *key);
            let mut sessions: Vec<_> =
                gate.sessions.iter().map(|(id, session)| (*id, format!("{session:?}"))).collect();
            sessions.sort();
            let mut orphans: Vec<_> = gate.orphans.iter().map(|(nexus, left)| (nexus.to_string(), *left)).collect();
            orphans.sort();
            let spc2 = gate.reservations.spc2_holder().map(ToString::to_string);
            let changes = format!("{:?} {:?}", gate.store, gate.change);
            (gate.reservations.to_record(), spc2, gate.version, changes, sessions, tasks, orphans)
        });
        let record = |(version, reservations): &(u64, Reservations)| (*version, reservations.to_record());
        let store = (record(&self.durable), self.storing.as_ref().map(record));
        (gate, store, self.sessions, self.commands.clone(), self.kernel_writes, self.events, self.is_fenced, self.seen)
    }
}

impl PartialEq for World {
    fn eq(&self, other: &Self) -> bool {
        self.identity() == other.identity()
    }
}

impl Eq for World {}

impl Hash for World {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.identity().hash(state);
    }
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.identity())
    }
}

/// A copy that shares nothing with the original.
impl Clone for TaskEntry {
    fn clone(&self) -> Self {
        let aborted = Arc::new(Aborted(AtomicU8::new(self.aborted.0.load(Ordering::Relaxed))));
        Self { id: self.id, access: self.access, aborted, is_drained: self.is_drained }
    }
}

const NONE: Events = Events {
    writes: 0,
    changes: 0,
    reads_of_keys: 0,
    spc2_reserves: 0,
    aborts: 0,
    resets: 0,
    closes: 0,
    crashes: 0,
    failures: 0,
};

/// A write of the loser, a preempt of the winner and its time-out.
const FENCE: Events = Events { writes: 1, changes: 1, reads_of_keys: 1, aborts: 1, ..NONE };
const PREEMPT: u8 = 4;
const PREEMPT_AND_ABORT: u8 = 5;

#[test]
fn no_write_lands_after_a_preempt_in_any_order_of_steps() {
    for action in [PREEMPT, PREEMPT_AND_ABORT] {
        for events in [
            Events { writes: 2, ..FENCE },
            Events { closes: 1, ..FENCE },
            Events { failures: 2, crashes: 1, ..FENCE },
            Events { resets: 1, ..FENCE },
        ] {
            let checker = GateModel::fencing(action, LeftOut::Nothing, events).check();
            checker.assert_properties();
            println!("{action} {events:?}: {} states", checker.unique_state_count());
        }
    }
}

#[test]
fn spc2_reserve_beside_a_first_registration_leaves_gate_and_store_equal() {
    let start = Reservations::new();
    let events = Events { spc2_reserves: 2, changes: 1, closes: 1, crashes: 1, failures: 1, ..NONE };
    let model = GateModel { start, change: reserve_out(0, 0, 0, 2), events, left_out: LeftOut::Nothing };
    model.check().assert_properties();
}

#[test]
fn without_the_drain_or_the_lock_a_write_lands_after_the_fence() {
    for (left_out, events) in [(LeftOut::Drain, FENCE), (LeftOut::Lock, Events { crashes: 1, ..FENCE })] {
        let checker = GateModel::fencing(PREEMPT, left_out, events).check();
        assert!(checker.discovery("no write of the loser lands after the fence").is_some());
    }
}

#[test]
fn the_model_reaches_each_way_to_be_fenced() {
    let reached = |is_reached: fn(&Seen) -> bool| {
        let model = GateModel::fencing(PREEMPT_AND_ABORT, LeftOut::Nothing, Events { writes: 2, ..FENCE });
        let mut found = false;
        let mut queue = model.init_states();
        let mut known = std::collections::HashSet::new();
        while let Some(world) = queue.pop() {
            found |= is_reached(&world.seen);
            if found {
                break;
            }
            queue.extend(model.next_states(&world).into_iter().filter(|next| known.insert(format!("{next:?}"))));
        }
        found
    };
    assert!(reached(|seen| seen.change_is_good));
    assert!(reached(|seen| seen.write_is_refused));
    assert!(reached(|seen| seen.fenced_by_keys_alone));
}
