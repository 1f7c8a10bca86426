//! [`CommandMetrics`]: the commands by service action, status and device, and the time that they took.

use std::array;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use scsi_pr::{Command, Completion, Error, Opcode, ReserveInAction, ReserveOutAction, Status};

use super::client::RefusalReason;
use crate::policy::deny::name;
use crate::routing::table::Target;

/// The service actions with their opcodes: each that the standard has, the others of each opcode as one, and CLEANUP.
const ACTIONS: usize = ReserveInAction::ALL.len() + 1 + ReserveOutAction::ALL.len() + 1 + 1;

const STATUSES: [&str; 7] =
    ["good", "check-condition", "reservation-conflict", "busy", "task-set-full", "other", "no-answer"];

/// The targets, and one for a device whose target was not looked up.
const DEVICES: usize = Target::ALL.len() + 1;

const OPCODES: [(Opcode, &str); 3] =
    [(Opcode::ReserveIn, "in"), (Opcode::ReserveOut, "out"), (Opcode::Cleanup, "cleanup")];

/// The upper bounds of the buckets of [`Latency`], in microseconds. A command is one system call (microseconds), a few on
/// a target (milliseconds), or waits for a path that fails (seconds).
const BOUNDS: [u64; 17] = [
    20, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 500_000, 1_000_000, 5_000_000,
    10_000_000, 60_000_000,
];

/// Counts the commands of a helper by service action, status and device, without a lock. Every count exists from the start,
/// so nothing that a client sends takes memory.
#[derive(Debug)]
pub struct CommandMetrics {
    /// By device, then status, then service action.
    commands: Box<[[[AtomicU64; ACTIONS]; STATUSES.len()]; DEVICES]>,
    refusals: [AtomicU64; RefusalReason::ALL.len()],
    latencies: [AtomicLatency; OPCODES.len()],
}

/// The number of commands with the same properties.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CommandCount {
    /// `in`, `out` or `cleanup`.
    pub command: &'static str,
    /// The standard's name in small letters with hyphens; `reserved` for a code without a name, `none` for CLEANUP.
    pub service_action: String,
    /// The status in small letters with hyphens; `no-answer` where no device answered.
    pub status: &'static str,
    /// The class of the device; `unknown` where it was not looked up.
    pub device: &'static str,
    /// How many have ended so.
    pub count: u64,
}

/// The times that commands took.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Latency {
    /// `in`, `out` or `cleanup`.
    pub command: &'static str,
    /// The sum of all times.
    pub sum: Duration,
    /// The number of commands in each bucket: its upper bound in seconds, and the commands above the bound before. The
    /// last bound is infinite.
    pub buckets: Vec<(f64, u64)>,
}

#[derive(Debug)]
struct AtomicLatency {
    nanoseconds: AtomicU64,
    buckets: [AtomicU64; BOUNDS.len() + 1],
}

impl Default for CommandMetrics {
    fn default() -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            commands: Box::new(array::from_fn(|_| array::from_fn(|_| array::from_fn(|_| zero())))),
            refusals: array::from_fn(|_| zero()),
            latencies: array::from_fn(|_| AtomicLatency { nanoseconds: zero(), buckets: array::from_fn(|_| zero()) }),
        }
    }
}

impl CommandMetrics {
    /// Counts a command that has ended.
    pub(super) fn end(
        &self,
        command: Command<'_>,
        result: &Result<Completion, Error>,
        target: Option<Target>,
        refusal: Option<RefusalReason>,
        took: Duration,
    ) {
        let device = target.map_or(Target::ALL.len(), |target| target as usize);
        add(&self.commands[device][status(result)][action(command)], 1);
        if let (Some(reason), false) = (refusal, matches!(result, Ok(Completion::Good(_)))) {
            add(&self.refusals[reason as usize], 1);
        }
        let latency = &self.latencies[opcode(command)];
        let microseconds = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        add(&latency.nanoseconds, u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
        add(&latency.buckets[BOUNDS.iter().position(|bound| microseconds <= *bound).unwrap_or(BOUNDS.len())], 1);
    }

    /// The counts that are not zero.
    pub fn commands(&self) -> Vec<CommandCount> {
        let mut counts = Vec::new();
        for (device, by_status) in self.commands.iter().enumerate() {
            for (status, by_action) in by_status.iter().enumerate() {
                for (action, count) in by_action.iter().enumerate().map(|(action, count)| (action, load(count))) {
                    if count > 0 {
                        let (command, service_action) = action_names(action);
                        let device = Target::ALL.get(device).map_or("unknown", |target| target.name());
                        counts.push(CommandCount { command, service_action, status: STATUSES[status], device, count });
                    }
                }
            }
        }
        counts
    }

    /// The commands that were refused, by reason. The reasons are always the same, in the same order.
    pub fn refusals(&self) -> impl Iterator<Item = (&'static str, u64)> {
        RefusalReason::ALL.into_iter().map(|reason| (reason.name(), load(&self.refusals[reason as usize])))
    }

    /// The times of the commands, for each opcode.
    pub fn latencies(&self) -> impl Iterator<Item = Latency> {
        self.latencies.iter().zip(OPCODES).map(|(latency, (_, command))| {
            let bounds = BOUNDS.iter().map(|bound| *bound as f64 / 1e6).chain([f64::INFINITY]);
            Latency {
                command,
                sum: Duration::from_nanos(load(&latency.nanoseconds)),
                buckets: bounds.zip(latency.buckets.iter().map(load)).collect(),
            }
        })
    }
}

fn add(counter: &AtomicU64, number: u64) {
    counter.fetch_add(number, Ordering::Relaxed);
}

fn load(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

fn opcode(command: Command<'_>) -> usize {
    OPCODES.iter().position(|(opcode, _)| *opcode == command.opcode()).unwrap_or_default()
}

/// The index of a service action. Those without a name have one for each opcode.
fn action(command: Command<'_>) -> usize {
    const RESERVE_OUT: usize = ReserveInAction::ALL.len() + 1;
    let code = usize::from(command.cdb().service_action());
    match command.opcode() {
        Opcode::ReserveIn => code.min(ReserveInAction::ALL.len()),
        Opcode::ReserveOut => RESERVE_OUT + code.min(ReserveOutAction::ALL.len()),
        Opcode::Cleanup => ACTIONS - 1,
    }
}

/// The names of the command and of the service action with this index.
fn action_names(index: usize) -> (&'static str, String) {
    let reads = ReserveInAction::ALL.iter().map(|action| ("in", name(action))).chain([("in", "reserved".to_owned())]);
    let changes =
        ReserveOutAction::ALL.iter().map(|action| ("out", name(action))).chain([("out", "reserved".to_owned())]);
    reads.chain(changes).nth(index).unwrap_or_else(|| ("cleanup", "none".to_owned()))
}

/// The index in [`STATUSES`].
fn status(result: &Result<Completion, Error>) -> usize {
    match result {
        Ok(Completion::Good(_)) => 0,
        Ok(Completion::CheckCondition(_)) => 1,
        Ok(Completion::Status(Status::RESERVATION_CONFLICT)) => 2,
        Ok(Completion::Status(Status::BUSY)) => 3,
        Ok(Completion::Status(Status::TASK_SET_FULL)) => 4,
        Ok(Completion::Status(_)) => 5,
        Err(_) => 6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::tests::{reserve_in, reserve_out};
    use scsi_pr::SenseCode;

    const NO_TIME: Duration = Duration::ZERO;

    fn good() -> Result<Completion, Error> {
        Ok(Completion::Good(Vec::new()))
    }

    fn names(count: &CommandCount) -> (&str, &str, &str, &str, u64) {
        (count.command, &count.service_action, count.status, count.device, count.count)
    }

    #[test]
    fn every_service_action_is_counted_under_its_name() {
        for (command, expected) in [
            (reserve_in(0), ("in", "read-keys")),
            (reserve_in(3), ("in", "read-full-status")),
            (reserve_in(4), ("in", "reserved")),
            (reserve_in(31), ("in", "reserved")),
            (reserve_out(0, &[]), ("out", "register")),
            (reserve_out(5, &[]), ("out", "preempt-and-abort")),
            (reserve_out(8, &[]), ("out", "replace-lost-reservation")),
            (reserve_out(9, &[]), ("out", "reserved")),
            (reserve_out(31, &[]), ("out", "reserved")),
            (Command::cleanup(), ("cleanup", "none")),
        ] {
            let metrics = CommandMetrics::default();
            metrics.end(command, &good(), None, None, NO_TIME);
            let counts = metrics.commands();
            let [count] = &counts[..] else { panic!("{counts:?}") };
            assert_eq!(names(count), (expected.0, expected.1, "good", "unknown", 1));
        }
    }

    #[test]
    fn status_and_device_are_counted_under_their_names() {
        let metrics = CommandMetrics::default();
        let device = |target| Some(target);
        for (result, target) in [
            (good(), device(Target::ScsiUnit)),
            (good(), device(Target::ScsiUnit)),
            (Ok(Completion::check(SenseCode::NO_SENSE)), device(Target::MultipathMap)),
            (Ok(Completion::Status(Status::RESERVATION_CONFLICT)), device(Target::NvmeNamespace)),
            (Ok(Completion::Status(Status::BUSY)), device(Target::NotABlockDevice)),
            (Ok(Completion::Status(Status::TASK_ABORTED)), device(Target::Stack)),
            (Err(Error::not_run("x")), None),
        ] {
            metrics.end(reserve_in(1), &result, target, None, NO_TIME);
        }
        let counts = metrics.commands();
        let found: Vec<_> =
            counts.iter().map(names).map(|(_, _, status, device, count)| (status, device, count)).collect();
        assert_eq!(
            found,
            [
                ("good", "scsi-disk", 2),
                ("check-condition", "multipath", 1),
                ("reservation-conflict", "nvme", 1),
                ("other", "stack", 1),
                ("busy", "not-a-block-device", 1),
                ("no-answer", "unknown", 1),
            ]
        );
    }

    #[test]
    fn time_is_counted_in_the_bucket_of_its_bound() {
        let metrics = CommandMetrics::default();
        for microseconds in [0, 20, 21, 60_000_000, 60_000_001] {
            metrics.end(reserve_out(0, &[]), &good(), None, None, Duration::from_micros(microseconds));
        }
        let [read, change, cleanup] = metrics.latencies().collect::<Vec<_>>().try_into().unwrap();
        assert_eq!((read.command, change.command, cleanup.command), ("in", "out", "cleanup"));
        assert_eq!((read.sum, cleanup.sum), (NO_TIME, NO_TIME));
        assert_eq!(change.sum, Duration::from_micros(20 + 21 + 60_000_000 + 60_000_001));
        let filled: Vec<_> = change.buckets.iter().copied().filter(|(_, count)| *count > 0).collect();
        assert_eq!(filled, [(0.00002, 2), (0.00005, 1), (60.0, 1), (f64::INFINITY, 1)]);
    }

    #[test]
    fn refusal_is_counted_unless_the_command_is_good() {
        let metrics = CommandMetrics::default();
        let refused = Ok(Completion::check(SenseCode::INVALID_OPCODE));
        metrics.end(reserve_out(0, &[]), &refused, None, Some(RefusalReason::Denied), NO_TIME);
        metrics.end(reserve_out(0, &[]), &good(), None, Some(RefusalReason::Worker), NO_TIME);
        let counts: Vec<_> = metrics.refusals().collect();
        assert_eq!(counts, [("denied", 1), ("read-only", 0), ("device", 0), ("worker", 0)]);
    }
}
