//! Who holds what, and whose turn is next: the bounds of the server as a value. No I/O, no clock, no threads.
//!
//! Every connection has a *place*: parked on epoll, waiting for its turn, or attended by a thread. A thread attends a
//! connection on a *seat*. Seats for commands are bounded, as is the share of one peer process, because a command may
//! hang for ever. What needs no more than a moment but could be made to hang by a hostile peer (to answer BUSY, to
//! close a connection: closing may wait for the owner of a file) has seats of its own, bounded likewise, so that it
//! does not depend on the end of hanging commands.
//!
//! What finds no seat, or too many commands running on its device, waits in the order of arrival.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::Hash;
use std::time::{Duration, Instant};

/// A connection's place in the books; used again once it is closed.
pub(super) type Id = usize;

/// The kinds of seats, as indices.
const COMMAND: usize = 0;
const ERRAND: usize = 1;

/// What the books bound.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Connections, of all peers.
    pub(super) connections: usize,
    /// Connections of one peer.
    pub(super) connections_of_peer: usize,
    /// Seats of each kind (for commands, for errands), of all peers.
    pub(super) seats: [usize; 2],
    /// Seats of each kind that one peer may hold.
    pub(super) seats_of_peer: [usize; 2],
    /// Commands running on one device.
    pub(super) per_device: usize,
    /// How long a command waits for its turn.
    pub(super) wait: Duration,
}

/// What a thread is to do with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task<D> {
    /// Read, run commands, answer. With the slot of a device when its command had to wait for it.
    Serve(Option<D>),
    /// Answer BUSY to the command that is there.
    Busy,
    /// Close it.
    Close(Closing),
}

/// Why a connection that has done nothing wrong is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Closing {
    /// The server stops.
    Stop,
    /// Its peer has its share of connections.
    Refused,
    /// It sent a part of a request, too long ago.
    HalfSent,
    /// It does not fit on epoll.
    Unwatched,
}

impl<D> Task<D> {
    /// The kind of seat that it takes.
    fn kind(&self) -> usize {
        match self {
            Self::Serve(_) => COMMAND,
            Self::Busy | Self::Close(_) => ERRAND,
        }
    }
}

/// A place in the order of arrival, and until when to wait; errands wait for as long as it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Turn {
    number: u64,
    deadline: Option<Instant>,
}

/// A connection with a seat: to be attended by the next free thread.
#[derive(Debug)]
pub(super) struct Job<C, P, D> {
    pub(super) id: Id,
    pub(super) connection: C,
    pub(super) peer: P,
    pub(super) task: Task<D>,
    /// When it became readable: the turn of its first command.
    pub(super) turn: Turn,
}

enum Place<C, D> {
    /// On epoll; until when, if a request is half sent.
    Parked { connection: C, half_sent: Option<Instant> },
    /// Waits for a seat.
    Queued { connection: C, task: Task<D>, turn: Turn },
    /// Its command waits for the slot of a device.
    Held { connection: C, device: D, turn: Turn },
    /// A thread has it.
    Attended,
}

#[derive(Default)]
struct Account {
    connections: usize,
    seats: [usize; 2],
    /// What waits for a seat, by arrival.
    queues: [BTreeMap<u64, Id>; 2],
    /// Parked connections with a half-sent request, the oldest first.
    half_sent: BTreeSet<(Instant, Id)>,
}

#[derive(Default)]
struct Device {
    running: usize,
    /// Commands that wait for a slot, by arrival.
    waiting: BTreeMap<u64, Id>,
}

/// The books; `C` is a connection, `P` a peer process, `D` a device.
pub(super) struct Books<C, P, D> {
    bounds: Bounds,
    places: Vec<Option<(P, Place<C, D>)>>,
    vacant: Vec<Id>,
    accounts: HashMap<P, Account>,
    devices: HashMap<D, Device>,
    seats: [usize; 2],
    /// How many wait for a seat.
    queued: [usize; 2],
    arrivals: u64,
    /// When a wait is over or a half-sent request is given up.
    deadlines: BTreeSet<(Instant, Id)>,
    /// What has a seat and no thread yet.
    jobs: VecDeque<Job<C, P, D>>,
}

impl<C, P: Copy + Eq + Hash, D: Copy + Eq + Hash> Books<C, P, D> {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            places: Vec::new(),
            vacant: Vec::new(),
            accounts: HashMap::new(),
            devices: HashMap::new(),
            seats: [0; 2],
            queued: [0; 2],
            arrivals: 0,
            deadlines: BTreeSet::new(),
            jobs: VecDeque::new(),
        }
    }

    /// How many connections there are.
    pub(super) fn connections(&self) -> usize {
        self.places.len() - self.vacant.len()
    }

    /// Whether no further connection may be accepted.
    pub(super) fn is_full(&self) -> bool {
        self.connections() >= self.bounds.connections
    }

    /// A place for a new connection of `peer`, attended by the caller; `Err` with it when the peer has its share
    /// already: the connection is then to be closed. A half-sent request of the same peer makes room, the oldest first.
    pub(super) fn open(&mut self, peer: P) -> Result<Id, Id> {
        let account = self.accounts.entry(peer).or_default();
        let over = account.connections >= self.bounds.connections_of_peer;
        let makes_room = account.half_sent.first().filter(|_| over).copied();
        account.connections += 1;
        let id = self.vacant.pop().unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() - 1
        });
        self.places[id] = Some((peer, Place::Attended));
        match makes_room {
            Some((_, half_sent)) => {
                self.give_up(half_sent);
                Ok(id)
            }
            None if over => Err(id),
            None => Ok(id),
        }
    }

    /// The connection is closed.
    pub(super) fn closed(&mut self, id: Id) {
        let (peer, _) = self.places[id].take().expect("a connection is closed once");
        self.vacant.push(id);
        self.account(peer).connections -= 1;
        self.forget_if_idle(peer);
    }

    /// An attended connection goes to epoll; until when, if a request is half sent.
    pub(super) fn park(&mut self, id: Id, connection: C, half_sent: Option<Instant>) {
        let peer = self.peer(id);
        if let Some(deadline) = half_sent {
            self.account(peer).half_sent.insert((deadline, id));
            self.deadlines.insert((deadline, id));
        }
        self.places[id] = Some((peer, Place::Parked { connection, half_sent }));
    }

    /// Takes a connection off epoll; `None` when it is not there.
    fn unpark(&mut self, id: Id) -> Option<C> {
        let (peer, place) = self.places.get_mut(id)?.as_mut()?;
        let peer = *peer;
        if !matches!(place, Place::Parked { .. }) {
            return None;
        }
        let Place::Parked { connection, half_sent } = std::mem::replace(place, Place::Attended) else {
            unreachable!("it is parked")
        };
        if let Some(deadline) = half_sent {
            self.deadlines.remove(&(deadline, id));
            self.account(peer).half_sent.remove(&(deadline, id));
        }
        Some(connection)
    }

    /// A parked connection has become readable. Nothing happens when it is not parked (any more).
    pub(super) fn readable(&mut self, id: Id, now: Instant) {
        if let Some(connection) = self.unpark(id) {
            let turn = self.turn(Some(now + self.bounds.wait));
            self.assign(id, connection, Task::Serve(None), turn);
        }
    }

    /// An attended connection without a seat is to be closed by a thread.
    pub(super) fn dispose(&mut self, id: Id, connection: C, why: Closing) {
        self.errand(id, connection, Task::Close(why));
    }

    fn give_up(&mut self, half_sent: Id) {
        if let Some(connection) = self.unpark(half_sent) {
            self.errand(half_sent, connection, Task::Close(Closing::HalfSent));
        }
    }

    fn errand(&mut self, id: Id, connection: C, task: Task<D>) {
        let turn = self.turn(None);
        self.assign(id, connection, task, turn);
    }

    /// Gives a seat, or a place in the queue for one.
    fn assign(&mut self, id: Id, connection: C, task: Task<D>, turn: Turn) {
        let (peer, kind) = (self.peer(id), task.kind());
        if self.has_seat(peer, kind) {
            self.sit(id, connection, task, turn);
        } else {
            self.queued[kind] += 1;
            self.account(peer).queues[kind].insert(turn.number, id);
            self.deadlines.extend(turn.deadline.map(|deadline| (deadline, id)));
            self.places[id] = Some((peer, Place::Queued { connection, task, turn }));
        }
    }

    fn sit(&mut self, id: Id, connection: C, task: Task<D>, turn: Turn) {
        let (peer, kind) = (self.peer(id), task.kind());
        self.seats[kind] += 1;
        self.account(peer).seats[kind] += 1;
        self.places[id] = Some((peer, Place::Attended));
        self.jobs.push_back(Job { id, connection, peer, task, turn });
    }

    fn turn(&mut self, deadline: Option<Instant>) -> Turn {
        self.arrivals += 1;
        Turn { number: self.arrivals, deadline }
    }

    fn forget_deadline(&mut self, id: Id, turn: Turn) {
        if let Some(deadline) = turn.deadline {
            self.deadlines.remove(&(deadline, id));
        }
    }

    fn has_seat(&self, peer: P, kind: usize) -> bool {
        let held = self.accounts.get(&peer).map_or(0, |account| account.seats[kind]);
        self.seats[kind] < self.bounds.seats[kind] && held < self.bounds.seats_of_peer[kind]
    }

    /// The next connection to attend.
    pub(super) fn next_job(&mut self) -> Option<Job<C, P, D>> {
        self.jobs.pop_front()
    }

    /// How many jobs no thread has taken yet.
    pub(super) fn jobs(&self) -> usize {
        self.jobs.len()
    }

    /// The thread of a `task` is done with a connection of `peer`: its seat goes to whoever has waited longest.
    pub(super) fn leave_seat(&mut self, peer: P, task: &Task<D>) {
        let kind = task.kind();
        self.seats[kind] -= 1;
        self.account(peer).seats[kind] -= 1;
        self.forget_if_idle(peer);
        while self.queued[kind] > 0 && self.seats[kind] < self.bounds.seats[kind] {
            let first = self
                .accounts
                .values()
                .filter(|account| account.seats[kind] < self.bounds.seats_of_peer[kind])
                .filter_map(|account| account.queues[kind].first_key_value())
                .min();
            let Some((_, id)) = first else { break };
            let (id, task, connection, turn) = self.dequeue(*id);
            self.sit(id, connection, task, turn);
        }
    }

    /// Whether somebody waits for the seat that a connection of `peer` has: it should not linger then.
    pub(super) fn should_yield(&self, peer: P) -> bool {
        self.queued[COMMAND] > 0
            && (self.seats[COMMAND] >= self.bounds.seats[COMMAND]
                || self.accounts.get(&peer).is_some_and(|account| !account.queues[COMMAND].is_empty()))
    }

    fn dequeue(&mut self, id: Id) -> (Id, Task<D>, C, Turn) {
        let (peer, place) = self.places[id].take().expect("who waits has a place");
        self.places[id] = Some((peer, Place::Attended));
        let Place::Queued { connection, task, turn } = place else { unreachable!("the queue knows who waits in it") };
        let kind = task.kind();
        self.queued[kind] -= 1;
        self.account(peer).queues[kind].remove(&turn.number);
        self.forget_deadline(id, turn);
        (id, task, connection, turn)
    }

    /// A slot of `device` for a command, if there is one.
    pub(super) fn take_slot(&mut self, device: D) -> bool {
        let running = &mut self.devices.entry(device).or_default().running;
        let free = *running < self.bounds.per_device;
        *running += usize::from(free);
        free
    }

    /// The command of an attended connection waits for a slot of `device`: from its turn on, or from `now`. Its seat is
    /// to be left.
    pub(super) fn hold(&mut self, id: Id, connection: C, device: D, turn: Option<Turn>, now: Instant) {
        let turn = turn.unwrap_or_else(|| self.turn(Some(now + self.bounds.wait)));
        let peer = self.peer(id);
        self.devices.entry(device).or_default().waiting.insert(turn.number, id);
        self.deadlines.extend(turn.deadline.map(|deadline| (deadline, id)));
        self.places[id] = Some((peer, Place::Held { connection, device, turn }));
    }

    /// Gives a slot back: to the command that has waited longest for it.
    pub(super) fn leave_slot(&mut self, device: D) {
        let Entry::Occupied(mut entry) = self.devices.entry(device) else { unreachable!("a slot of it is held") };
        match entry.get_mut().waiting.pop_first() {
            Some((_, id)) => {
                let (connection, turn) = self.unhold(id);
                self.assign(id, connection, Task::Serve(Some(device)), turn);
            }
            None => {
                entry.get_mut().running -= 1;
                if entry.get().running == 0 {
                    entry.remove();
                }
            }
        }
    }

    /// Takes a command that waits out of its place; the device's queue has lost it already.
    fn unhold(&mut self, id: Id) -> (C, Turn) {
        let (peer, place) = self.places[id].take().expect("who waits has a place");
        self.places[id] = Some((peer, Place::Attended));
        let Place::Held { connection, turn, .. } = place else { unreachable!("the device knows who waits for it") };
        self.forget_deadline(id, turn);
        (connection, turn)
    }

    /// When [`expire`](Self::expire) has something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Whoever has waited too long is answered BUSY; requests half sent for too long are given up.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some((_, id)) = self.deadlines.first().copied().filter(|(deadline, _)| *deadline <= now) {
            match &self.places[id] {
                Some((_, Place::Parked { .. })) => self.give_up(id),
                Some((_, Place::Queued { .. } | Place::Held { .. })) => {
                    let connection = self.withdraw(id);
                    self.errand(id, connection, Task::Busy);
                }
                Some((_, Place::Attended)) | None => unreachable!("only who waits has a deadline"),
            }
        }
    }

    /// Takes a command that waits, for a seat or a slot, out of its place.
    fn withdraw(&mut self, id: Id) -> C {
        if let Some((_, Place::Held { device, turn, .. })) = &self.places[id] {
            let (device, number) = (*device, turn.number);
            if let Some(device) = self.devices.get_mut(&device) {
                device.waiting.remove(&number);
            }
            return self.unhold(id).0;
        }
        let (_, task, connection, _) = self.dequeue(id);
        if let Task::Serve(Some(device)) = task {
            self.leave_slot(device);
        }
        connection
    }

    /// Everything that no thread has is to be closed; `farewell` is called with each connection before.
    pub(super) fn close_all(&mut self, mut farewell: impl FnMut(&C)) {
        for id in 0..self.places.len() {
            let connection = match &self.places[id] {
                Some((_, Place::Parked { .. })) => self.unpark(id).expect("it is parked"),
                Some((_, Place::Queued { task: Task::Serve(_), .. } | Place::Held { .. })) => self.withdraw(id),
                _ => continue,
            };
            farewell(&connection);
            self.errand(id, connection, Task::Close(Closing::Stop));
        }
    }

    fn peer(&self, id: Id) -> P {
        self.places[id].as_ref().expect("a connection has a place").0
    }

    fn account(&mut self, peer: P) -> &mut Account {
        self.accounts.get_mut(&peer).expect("a peer with connections has an account")
    }

    fn forget_if_idle(&mut self, peer: P) {
        if let Entry::Occupied(entry) = self.accounts.entry(peer)
            && entry.get().connections == 0
            && entry.get().seats == [0; 2]
        {
            entry.remove();
        }
    }
}

#[cfg(test)]
mod tests;
