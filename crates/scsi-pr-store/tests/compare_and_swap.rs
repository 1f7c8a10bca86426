//! A model of the compare-and-swap loop over a directory, checked in all orders of its steps: with processes that end
//! between any two of them, and power cuts that take what was not fsynced.
//!
//! The steps are those of the `dir:` store, which has the most of them; a store that replaces a record in one
//! transaction has
//! fewer to be interrupted between. A record is modelled as the list of the changes that were made, so that a change
//! which
//! was lost, undone or made twice can be seen. That the model can see it, is a test, too: each step that is left out is
//! found.

use stateright::{Checker, Model, Property};

/// The changes that were made, by who made them, in order.
type Record = Vec<u8>;

/// A name in the directory.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct File {
    version: u8,
    /// `None` when it is damaged.
    record: Option<Record>,
    /// Whether its bytes were fsynced.
    whole: bool,
    /// Whether the directory was fsynced since it got its name.
    named: bool,
}

/// The progress of one process with its command.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Step {
    /// Nothing, or nothing that counts: it begins.
    Begin,
    /// It has read a version, of which it does not know whether it will last.
    Read(u8, Record),
    /// It has fsynced the directory.
    Loaded(u8, Record),
    /// It has written the next version to a file without a name.
    Written(u8, Record),
    /// It has fsynced that file.
    Synced(u8, Record),
    /// It has given the file the name of the version, unless that was taken.
    Linked {
        version: u8,
        linked: bool,
    },
    /// It has listed the directory after that.
    Listed {
        version: u8,
        linked: bool,
        newest: u8,
    },
    /// It has fsynced the directory.
    Settled {
        version: u8,
        linked: bool,
        newest: u8,
    },
    /// It has answered, that it made its change; or what the record is.
    Acknowledged,
    Answered(Record),
    /// Its client learned that the outcome is unknown, or lost the connection.
    Unknown,
    /// The next command of that client has read a version, and has fsynced the directory.
    Looked(Record),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    directory: Vec<File>,
    /// Removed, but for a power cut.
    removed: Vec<File>,
    processes: Vec<Step>,
    crashes: u8,
    power_cuts: u8,
}

/// The behaviour of a faulty store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    /// The new record is not fsynced before it gets its name.
    NoSyncOfFile,
    /// The directory is not fsynced before the change is acknowledged.
    NoSyncOfDirectory,
    /// A reader does not fsync the directory before it answers.
    NoSyncByReader,
    /// rename(2), which replaces, in place of link(2).
    Rename,
    /// The change is acknowledged when it is written, before it has a name.
    EarlyAcknowledgement,
    /// The directory is not listed after the link, so that a name which was removed is taken for one that never was.
    NoList,
    /// A process repeats a change of unknown outcome.
    Replay,
    /// A change that was not first is acknowledged.
    LostIsDone,
}

/// Which of several things were made durable by chance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mask(u8);

impl Mask {
    fn next(&mut self) -> bool {
        let next = self.0 & 1 == 1;
        self.0 >>= 1;
        next
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Action {
    Step(u8),
    /// A process ends, or its answer is lost: its client does not know what became of its command.
    Crash(u8),
    /// All processes end; of what was not durable, what is not in the masks is as if it had not been done.
    PowerCut {
        names: Mask,
        removals: Mask,
    },
}

/// Processes of which each makes one change, others that only read, and how much goes wrong.
#[derive(Clone, Copy)]
struct Store {
    writers: u8,
    readers: u8,
    crashes: u8,
    power_cuts: u8,
    /// How many versions back are kept.
    kept: u8,
    flaw: Option<Flaw>,
}

impl State {
    /// The version that counts, and what it says.
    fn newest(&self) -> (u8, Option<Record>) {
        let newest = self.directory.iter().max_by_key(|file| file.version);
        newest.map_or((0, Some(Record::new())), |file| (file.version, file.record.clone()))
    }

    fn sync_directory(&mut self) {
        self.directory.iter_mut().for_each(|file| file.named = true);
        self.removed.clear();
    }

    fn sort(mut self) -> Self {
        self.directory.sort();
        self.removed.sort();
        self
    }
}

impl Store {
    fn has(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }

    fn is_outdated(&self, version: u8, newest: u8) -> bool {
        newest.saturating_sub(version) >= self.kept
    }

    /// The next step of process `number`. `None` when it has none.
    fn step(&self, state: &mut State, number: u8) -> Option<()> {
        let is_writer = number < self.writers;
        let step = &mut state.processes[usize::from(number)];
        let next = match step.clone() {
            Step::Begin => {
                let (version, record) = state.newest();
                // A damaged record ends in an error, and the change in a refusal.
                Step::Read(version, record?)
            }
            Step::Read(version, record) => {
                if !self.has(Flaw::NoSyncByReader) {
                    state.sync_directory();
                }
                match is_writer {
                    true => Step::Loaded(version, record),
                    false => Step::Answered(record),
                }
            }
            Step::Loaded(version, mut record) => match state.newest().0 == version {
                true => {
                    record.push(number);
                    Step::Written(version + 1, record)
                }
                false => Step::Begin,
            },
            Step::Written(..) if self.has(Flaw::EarlyAcknowledgement) => Step::Acknowledged,
            Step::Written(version, record) => Step::Synced(version, record),
            Step::Synced(version, record) => {
                let is_taken = state.directory.iter().any(|file| file.version == version);
                if self.has(Flaw::Rename) {
                    state.directory.retain(|file| file.version != version);
                }
                let linked = !is_taken || self.has(Flaw::Rename);
                if linked {
                    let whole = !self.has(Flaw::NoSyncOfFile);
                    state.directory.push(File { version, record: Some(record), whole, named: false });
                }
                Step::Linked { version, linked }
            }
            Step::Linked { version, linked } => {
                let newest = if self.has(Flaw::NoList) { version } else { state.newest().0 };
                Step::Listed { version, linked, newest }
            }
            Step::Listed { version, linked, newest } => {
                if !self.has(Flaw::NoSyncOfDirectory) {
                    state.sync_directory();
                }
                Step::Settled { version, linked, newest }
            }
            Step::Settled { version, linked, newest } => {
                if self.is_outdated(version, newest) {
                    Step::Unknown
                } else if linked || self.has(Flaw::LostIsDone) {
                    let is_outdated = |file: &File| self.is_outdated(file.version, newest);
                    let (outdated, left) = state.directory.drain(..).partition(is_outdated);
                    state.directory = left;
                    state.removed.extend::<Vec<_>>(outdated);
                    Step::Acknowledged
                } else {
                    Step::Begin
                }
            }
            Step::Unknown if self.has(Flaw::Replay) => Step::Begin,
            // The client's next command finds out, as a reader does.
            Step::Unknown => {
                let record = state.newest().1?;
                state.sync_directory();
                Step::Looked(record)
            }
            Step::Looked(record) => match record.contains(&number) {
                true => Step::Answered(record),
                // A reader that found nothing may read again.
                false => Step::Begin,
            },
            Step::Acknowledged | Step::Answered(_) => return None,
        };
        state.processes[usize::from(number)] = next;
        Some(())
    }

    /// Whether a process still has something to lose.
    fn runs(step: &Step) -> bool {
        !matches!(step, Step::Begin | Step::Acknowledged | Step::Answered(_) | Step::Unknown)
    }

    fn power_cut(state: &mut State, mut names: Mask, mut removals: Mask) {
        state.directory.retain(|file| file.named || names.next());
        for file in std::mem::take(&mut state.removed) {
            let is_back = !removals.next() && state.directory.iter().all(|other| other.version != file.version);
            state.directory.extend(is_back.then_some(file));
        }
        for file in &mut state.directory {
            file.named = true;
            if !file.whole {
                file.record = None;
            }
        }
        state.processes.iter_mut().filter(|step| Self::runs(step)).for_each(|step| *step = Step::Unknown);
    }
}

impl Model for Store {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let processes = vec![Step::Begin; usize::from(self.writers + self.readers)];
        vec![State { directory: Vec::new(), removed: Vec::new(), processes, crashes: 0, power_cuts: 0 }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for number in 0..self.writers + self.readers {
            actions.push(Action::Step(number));
            let step = &state.processes[usize::from(number)];
            if state.crashes < self.crashes && (Self::runs(step) || *step == Step::Acknowledged) {
                actions.push(Action::Crash(number));
            }
        }
        if state.power_cuts < self.power_cuts {
            let names = state.directory.iter().filter(|file| !file.named).count();
            for names in 0..1u8 << names {
                for removals in 0..1u8 << state.removed.len() {
                    actions.push(Action::PowerCut { names: Mask(names), removals: Mask(removals) });
                }
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Step(number) => self.step(&mut state, number)?,
            Action::Crash(number) => {
                state.crashes += 1;
                state.processes[usize::from(number)] = Step::Unknown;
            }
            Action::PowerCut { names, removals } => {
                state.power_cuts += 1;
                Self::power_cut(&mut state, names, removals);
            }
        }
        Some(state.sort())
    }

    fn properties(&self) -> Vec<Property<Self>> {
        fn acknowledged(state: &State) -> impl Iterator<Item = u8> {
            (0..).zip(&state.processes).filter(|(_, step)| **step == Step::Acknowledged).map(|(number, _)| number)
        }
        vec![
            Property::always(WHOLE, |_, state: &State| state.newest().1.is_some()),
            Property::always(KEPT, |_, state: &State| {
                state.newest().1.is_none_or(|record| acknowledged(state).all(|number| record.contains(&number)))
            }),
            Property::always(ONCE, |_, state: &State| {
                state.newest().1.is_none_or(|record| {
                    record.iter().all(|number| record.iter().filter(|other| *other == number).count() == 1)
                })
            }),
            Property::always(BUILT_ON, |_, state: &State| {
                let (version, record) = state.newest();
                record.is_none_or(|record| record.len() == usize::from(version))
            }),
            Property::always(SEEN, |_, state: &State| {
                state.newest().1.is_none_or(|record| {
                    state.processes.iter().all(|step| match step {
                        Step::Answered(answer) | Step::Looked(answer) => record.starts_with(answer),
                        _ => true,
                    })
                })
            }),
            // The states that show that the checks are reached.
            Property::sometimes("all changes are made", |store: &Self, state: &State| {
                state.processes[..usize::from(store.writers)].iter().all(|step| *step == Step::Acknowledged)
            }),
            Property::sometimes("a change is made and its client does not know", |_, state: &State| {
                let record = state.newest().1.unwrap_or_default();
                (0..).zip(&state.processes).any(|(number, step)| *step == Step::Unknown && record.contains(&number))
            }),
            Property::sometimes("a change is found not to have been made", |_, state: &State| {
                (0..).zip(&state.processes).any(|(number, step)| match step {
                    Step::Looked(record) => !record.contains(&number),
                    _ => false,
                })
            }),
        ]
    }

    /// Some flaws have no end.
    fn within_boundary(&self, state: &State) -> bool {
        state.newest().0 <= self.writers + 1
    }
}

const WHOLE: &str = "what is kept can be read";
const KEPT: &str = "no acknowledged change is undone";
const ONCE: &str = "no change is made twice";
const BUILT_ON: &str = "each version adds one change to the one before";
const SEEN: &str = "nothing that was read is undone";

const TWO_AND_A_READER: Store = Store { writers: 2, readers: 1, crashes: 1, power_cuts: 1, kept: 2, flaw: None };
/// One of whom may stand still until the version that it is about to make has come and gone.
const THREE: Store = Store { writers: 3, readers: 0, crashes: 1, power_cuts: 0, kept: 1, flaw: None };

#[test]
fn nothing_is_lost_undone_or_made_twice() {
    for store in [TWO_AND_A_READER, THREE] {
        let checker = store.checker().spawn_bfs().join();
        println!("{} states", checker.unique_state_count());
        checker.assert_properties();
    }
}

/// The model finds what a step that is left out leads to; so it would find that in the right one, too.
#[test]
fn every_step_is_needed() {
    for (store, flaw, violated) in [
        (TWO_AND_A_READER, Flaw::NoSyncOfFile, WHOLE),
        (TWO_AND_A_READER, Flaw::NoSyncOfDirectory, KEPT),
        (TWO_AND_A_READER, Flaw::NoSyncByReader, SEEN),
        (TWO_AND_A_READER, Flaw::Rename, KEPT),
        (TWO_AND_A_READER, Flaw::EarlyAcknowledgement, KEPT),
        (TWO_AND_A_READER, Flaw::LostIsDone, KEPT),
        (TWO_AND_A_READER, Flaw::Replay, ONCE),
        (THREE, Flaw::NoList, KEPT),
    ] {
        let checker = Store { flaw: Some(flaw), ..store }.checker().spawn_bfs().join();
        assert!(checker.discovery(violated).is_some(), "{flaw:?} goes unnoticed");
    }
}
