//! [`WorkerCounters`]: the workers that were started, and the commands that none has run.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Event;
use crate::monitor_channel::WorkerKind;

/// Counts workers, without a lock.
#[derive(Debug, Default)]
pub(crate) struct WorkerCounters {
    running: Arc<AtomicU64>,
    started: [AtomicU64; WorkerKind::ALL.len()],
    failures: [AtomicU64; FAILURES.len()],
}

/// The names of the failures. The last one is of commands that a worker may have run.
const FAILURES: [&str; 6] = ["no-monitor", "turn-timeout", "unfinished", "not-started", "not-taken", "no-answer"];

impl WorkerCounters {
    /// Counts a start. The caller counts in the result while the worker runs.
    pub(super) fn start(&self, kind: WorkerKind) -> Arc<AtomicU64> {
        self.started[kind as usize].fetch_add(1, Ordering::Relaxed);
        Arc::clone(&self.running)
    }

    /// Counts a command that no worker has run, or that none has answered.
    pub(super) fn fail(&self, event: Event) {
        let index = match event {
            Event::NoMonitor => 0,
            Event::TurnTimeout => 1,
            Event::Unfinished => 2,
            Event::NotStarted => 3,
            Event::NotTaken => 4,
            Event::NoAnswer => 5,
            // A line of a worker is not the end of a command.
            Event::Line(_) => return,
        };
        self.failures[index].fetch_add(1, Ordering::Relaxed);
    }

    /// The workers that run now.
    pub(crate) fn running(&self) -> u64 {
        self.running.load(Ordering::Relaxed)
    }

    /// The workers that were started, by kind.
    pub(crate) fn started(&self) -> impl Iterator<Item = (&'static str, u64)> {
        WorkerKind::ALL.iter().map(|kind| (kind.argument(), self.started[*kind as usize].load(Ordering::Relaxed)))
    }

    /// The commands that no worker has run or answered, by reason.
    pub(crate) fn failures(&self) -> impl Iterator<Item = (&'static str, u64)> {
        FAILURES.into_iter().zip(&self.failures).map(|(reason, count)| (reason, count.load(Ordering::Relaxed)))
    }
}
