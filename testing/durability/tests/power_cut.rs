//! The power is cut after each thing that a program which changes a store does to its files.
#![cfg(target_arch = "x86_64")]

use std::cell::RefCell;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

use durability::changer::{Changer, Report};
use durability::disk::{Chance, Disk, Effect, Recorder, Rest, put};
use durability::tracer::{Decision, run};
use durability::{KINDS, Place, check};

const CHANGER: &str = env!("CARGO_BIN_EXE_changer");

/// How many times chance decides what is kept, at each point.
const CHANCES: u64 = 6;

/// What changes did to files, and what was there before.
struct Recording {
    kind: &'static str,
    before: u32,
    changes: u32,
    initial: Vec<Effect>,
    effects: Vec<Effect>,
}

impl Recording {
    /// Of `changes` changes after `before` others, and of opening the store if there were none before.
    fn new(kind: &'static str, before: u32, changes: u32) -> Self {
        let place = Place::new();
        let mut changer = Changer::start(Path::new(CHANGER), &place.store(kind), before, changes);
        let recorder = RefCell::new(Recorder::new(&place.path()));
        let look = |call: &_| {
            recorder.borrow_mut().before(call);
            Decision::Go
        };
        run(&mut changer, look, |call, result| recorder.borrow_mut().after(call, result));
        let report = changer.report();
        assert!(report.closed && report.kept == changes, "{report:?}");
        let Recorder { initial, effects, .. } = recorder.into_inner();
        Self { kind, before, changes, initial, effects }
    }

    /// Cuts the power after each effect, and keeps of the rest one thing or another. How many different ways there were;
    /// or the first of them that leaves what it should not.
    fn cut(&self) -> Result<usize, String> {
        let mut disk = Disk::with(&self.initial);
        let mut report = Report::default();
        let mut seen = HashSet::new();
        for (number, effect) in self.effects.iter().enumerate() {
            disk.add(effect);
            if let Effect::Said(text) = effect {
                text.lines().for_each(|line| report.add(line));
            }
            let seed = number as u64 * CHANCES;
            let by_chance = (0..CHANCES).map(|n| Rest::Chance(Chance::new(seed + n), [1, 4, 7][n as usize % 3]));
            for rest in [Rest::Lost, Rest::Kept, Rest::Bytes, Rest::Names].into_iter().chain(by_chance) {
                let mut tree = disk.after_power_cut(rest.clone());
                // What was written there through memory is not recorded, and may be anything.
                if let Some(Some(index)) = tree.get_mut(&PathBuf::from("store-shm")) {
                    index.fill(0xa5);
                }
                if !seen.insert((tree.clone(), report.kept)) {
                    continue;
                }
                let place = Place::new();
                put(&tree, &place.path());
                let pending = u32::from(report.kept < self.changes);
                check(&place.store(self.kind), self.before + report.kept, pending).map_err(|wrong| {
                    let done = &self.effects[number.saturating_sub(30)..=number];
                    format!(
                        "{}: {wrong}, with power cut after effect {number}, the rest {rest:?}, {done:#?}",
                        self.kind
                    )
                })?;
            }
        }
        Ok(seen.len())
    }

    /// The same without some of what was done.
    fn without(&self, is_left_out: impl Fn(&Effect) -> bool) -> Self {
        let left =
            |effects: &[Effect]| effects.iter().filter(|effect| !is_left_out(effect)).cloned().collect::<Vec<_>>();
        let Self { kind, before, changes, .. } = *self;
        let less = Self { kind, before, changes, initial: self.initial.clone(), effects: left(&self.effects) };
        assert!(less.effects.len() < self.effects.len(), "nothing was left out");
        less
    }
}

#[track_caller]
fn survives(recording: &Recording) {
    let ways = recording.cut().unwrap_or_else(|wrong| panic!("{wrong}"));
    assert!(ways > 20, "there was nothing to lose");
    println!("{}: {} effects, power cuts that leave {ways} different things", recording.kind, recording.effects.len());
}

#[test]
fn a_store_that_is_made_and_changed() {
    KINDS.iter().for_each(|kind| survives(&Recording::new(kind, 0, 3)));
}

#[test]
fn a_directory_that_removes_old_versions() {
    survives(&Recording::new("dir", 33, 3));
}

#[test]
fn a_database_that_copies_its_log_back() {
    let recording = Recording::new("sqlite", 244, 12);
    let is_database = |effect: &&Effect| matches!(effect, Effect::Name(path, _) if path == Path::new("store"));
    let Some(Effect::Name(_, database)) = recording.initial.iter().find(is_database) else { panic!("no database") };
    let last = recording.effects.iter().rposition(|effect| matches!(effect, Effect::Said(text) if text == "kept\n"));
    let copied = recording.effects.iter().position(|effect| *effect == Effect::Sync(*database));
    assert!(copied.expect("the log is copied back") < last.expect("changes"), "only when the database was closed");
    survives(&recording);
}

/// What shows that a power cut would be noticed.
#[test]
fn without_fsync_something_is_lost() {
    for kind in KINDS {
        for (before, changes) in [(0, 3), (3, 2)] {
            let recording = Recording::new(kind, before, changes);
            let files = recording.without(|effect| matches!(effect, Effect::Sync(_)));
            assert!(files.cut().is_err(), "{kind}: files are synced in vain");
            if before == 0 || kind == "dir" {
                let directories = recording.without(|effect| matches!(effect, Effect::SyncDirectory(_)));
                assert!(directories.cut().is_err(), "{kind}: directories are synced in vain");
            }
        }
    }
}
