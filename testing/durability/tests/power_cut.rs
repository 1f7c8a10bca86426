//! The power is cut after each effect of the changer on its files.
#![cfg(target_arch = "x86_64")]

use std::cell::RefCell;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

use durability::changer::{Changer, Report};
use durability::disk::{Disk, Effect, Random, Recorder, Unsynced, create};
use durability::tracer::{Decision, run};
use durability::{KINDS, StoreDirectory, check};

const CHANGER: &str = env!("CARGO_BIN_EXE_changer");

/// The number of random selections of durable data after each effect.
const SELECTIONS: u64 = 6;

/// The effects of changes on files, and the initial contents.
struct Recording {
    kind: &'static str,
    before: u32,
    changes: u32,
    initial: Vec<Effect>,
    effects: Vec<Effect>,
}

impl Recording {
    /// Records `changes` changes after `before` others. If `before` is 0, opening the store is included.
    fn new(kind: &'static str, before: u32, changes: u32) -> Self {
        let directory = StoreDirectory::new();
        let mut changer = Changer::start(Path::new(CHANGER), &directory.store(kind), before, changes);
        let recorder = RefCell::new(Recorder::new(&directory.path()));
        let look = |call: &_| {
            recorder.borrow_mut().before(call);
            Decision::Run
        };
        run(&mut changer, look, |call, result| recorder.borrow_mut().after(call, result));
        let report = changer.report();
        assert!(report.closed && report.acknowledged == changes, "{report:?}");
        let Recorder { initial, effects, .. } = recorder.into_inner();
        Self { kind, before, changes, initial, effects }
    }

    /// Cuts the power after each effect, with different selections of durable data. Returns the number of different
    /// results, or the first result that fails the check.
    fn cut(&self) -> Result<usize, String> {
        let mut disk = Disk::with(&self.initial);
        let mut report = Report::default();
        let mut seen = HashSet::new();
        for (number, effect) in self.effects.iter().enumerate() {
            disk.add(effect);
            if let Effect::Output(text) = effect {
                text.lines().for_each(|line| report.add(line));
            }
            let seed = number as u64 * SELECTIONS;
            let random = (0..SELECTIONS).map(|n| Unsynced::Random(Random::new(seed + n), [1, 4, 7][n as usize % 3]));
            for unsynced in [Unsynced::Lost, Unsynced::Durable, Unsynced::BytesDurable, Unsynced::NamesDurable]
                .into_iter()
                .chain(random)
            {
                let mut tree = disk.after_power_cut(unsynced.clone());
                // Writes through memory are not recorded, so this file may have any contents.
                if let Some(Some(index)) = tree.get_mut(&PathBuf::from("store-shm")) {
                    index.fill(0xa5);
                }
                if !seen.insert((tree.clone(), report.acknowledged)) {
                    continue;
                }
                let directory = StoreDirectory::new();
                create(&tree, &directory.path());
                let pending = u32::from(report.acknowledged < self.changes);
                check(&directory.store(self.kind), self.before + report.acknowledged, pending).map_err(|wrong| {
                    let done = &self.effects[number.saturating_sub(30)..=number];
                    format!(
                        "{}: {wrong}, with a power cut after effect {number}, unsynced data {unsynced:?}, {done:#?}",
                        self.kind
                    )
                })?;
            }
        }
        Ok(seen.len())
    }

    /// The same recording without some effects.
    fn without(&self, is_left_out: impl Fn(&Effect) -> bool) -> Self {
        let left =
            |effects: &[Effect]| effects.iter().filter(|effect| !is_left_out(effect)).cloned().collect::<Vec<_>>();
        let Self { kind, before, changes, .. } = *self;
        let less = Self { kind, before, changes, initial: self.initial.clone(), effects: left(&self.effects) };
        assert!(less.effects.len() < self.effects.len(), "every effect is still there");
        less
    }
}

#[track_caller]
fn survives(recording: &Recording) {
    let ways = recording.cut().unwrap_or_else(|wrong| panic!("{wrong}"));
    assert!(ways > 20, "too few different results");
    println!("{}: {} effects, {ways} different results of power cuts", recording.kind, recording.effects.len());
}

#[test]
fn new_store_survives_power_cut() {
    KINDS.iter().for_each(|kind| survives(&Recording::new(kind, 0, 3)));
}

#[test]
fn directory_that_removes_old_versions_survives_power_cut() {
    survives(&Recording::new("dir", 33, 3));
}

#[test]
fn database_during_checkpoint_survives_power_cut() {
    let recording = Recording::new("sqlite", 244, 12);
    let is_database = |effect: &&Effect| matches!(effect, Effect::Name(path, _) if path == Path::new("store"));
    let Some(Effect::Name(_, database)) = recording.initial.iter().find(is_database) else { panic!("no database") };
    let last =
        recording.effects.iter().rposition(|effect| matches!(effect, Effect::Output(text) if text == "acknowledged\n"));
    let copied = recording.effects.iter().position(|effect| *effect == Effect::Sync(*database));
    assert!(
        copied.expect("a checkpoint") < last.expect("changes"),
        "the checkpoint ran only when the database was closed"
    );
    survives(&recording);
}

/// Shows that the other tests would notice lost data.
#[test]
fn power_cut_without_fsync_loses_changes() {
    for kind in KINDS {
        for (before, changes) in [(0, 3), (3, 2)] {
            let recording = Recording::new(kind, before, changes);
            let files = recording.without(|effect| matches!(effect, Effect::Sync(_)));
            assert!(files.cut().is_err(), "{kind}: no data are lost without fsync of files");
            if before == 0 || kind == "dir" {
                let directories = recording.without(|effect| matches!(effect, Effect::SyncDirectory(_)));
                assert!(directories.cut().is_err(), "{kind}: no data are lost without fsync of directories");
            }
        }
    }
}
