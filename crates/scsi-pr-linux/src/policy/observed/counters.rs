//! [`Counters`]: how many commands came and how they ended.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use scsi_pr::{Completion, Error, Opcode, Status};
use scsi_pr_daemon::{RateLimiter, Suppressed};

use super::super::refusals::RefusalLimiter;
use super::metrics::CommandMetrics;

/// Counts commands, from any number of threads, since it was made.
#[derive(Debug)]
pub struct Counters {
    reserve_in: AtomicU64,
    reserve_out: AtomicU64,
    cleanup: AtomicU64,
    good: AtomicU64,
    check_condition: AtomicU64,
    reservation_conflict: AtomicU64,
    busy: AtomicU64,
    other_status: AtomicU64,
    errors: AtomicU64,
    /// The lines about all commands that are counted here.
    pub(super) lines: AuditLimiter,
    pub(super) refusals: RefusalLimiter,
    /// `None` where there is no use for it.
    pub(super) metrics: Option<CommandMetrics>,
}

impl Default for Counters {
    fn default() -> Self {
        let counter = || AtomicU64::new(0);
        Self {
            reserve_in: counter(),
            reserve_out: counter(),
            cleanup: counter(),
            good: counter(),
            check_condition: counter(),
            reservation_conflict: counter(),
            busy: counter(),
            other_status: counter(),
            errors: counter(),
            lines: AuditLimiter::new(),
            refusals: RefusalLimiter::new(),
            metrics: None,
        }
    }
}

/// The limit on lines about PERSISTENT RESERVE OUT. A process has one for commands that were GOOD and one for the others,
/// so refused commands do not suppress the line of a change.
#[derive(Debug)]
pub(super) struct AuditLimiter {
    good: RateLimiter<u32>,
    others: RateLimiter<u32>,
}

impl AuditLimiter {
    const fn new() -> Self {
        const PERIOD: Duration = Duration::from_secs(10);
        Self { good: RateLimiter::new(100, 1_000, PERIOD), others: RateLimiter::new(100, 1_000, PERIOD) }
    }

    /// As [`RateLimiter::check`], for a command of process `pid`.
    pub(super) fn check(&self, pid: u32, is_good: bool) -> Option<Suppressed> {
        if is_good { self.good.check(pid) } else { self.others.check(pid) }
    }
}

/// The values of [`Counters`] at one moment. The first three count commands that came, the others those that ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// PERSISTENT RESERVE IN.
    pub reserve_in: u64,
    /// PERSISTENT RESERVE OUT.
    pub reserve_out: u64,
    /// CLEANUP.
    pub cleanup: u64,
    /// Ended in GOOD.
    pub good: u64,
    /// Ended in CHECK CONDITION.
    pub check_condition: u64,
    /// Ended in RESERVATION CONFLICT.
    pub reservation_conflict: u64,
    /// Ended in BUSY or TASK SET FULL: to be sent again later.
    pub busy: u64,
    /// Ended in another status.
    pub other_status: u64,
    /// Ended without an answer.
    pub errors: u64,
}

impl Counts {
    /// How many have come and not ended.
    pub const fn running(&self) -> u64 {
        let came = self.reserve_in + self.reserve_out + self.cleanup;
        let ended =
            self.good + self.check_condition + self.reservation_conflict + self.busy + self.other_status + self.errors;
        came.saturating_sub(ended)
    }
}

impl fmt::Display for Counts {
    /// For a log line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {}, {} {} and {} {} came; {} ended in GOOD, {} in CHECK CONDITION, {} in RESERVATION CONFLICT, {} in BUSY \
             or TASK SET FULL, {} in another status, and {} without an answer",
            self.reserve_in,
            Opcode::ReserveIn,
            self.reserve_out,
            Opcode::ReserveOut,
            self.cleanup,
            Opcode::Cleanup,
            self.good,
            self.check_condition,
            self.reservation_conflict,
            self.busy,
            self.other_status,
            self.errors,
        )
    }
}

impl Counters {
    /// All at zero.
    pub fn new() -> Self {
        Self::default()
    }

    /// All at zero, with [`CommandMetrics`]. They take two readings of the clock for each command.
    pub fn with_metrics() -> Self {
        Self { metrics: Some(CommandMetrics::default()), ..Self::default() }
    }

    /// The metrics, if there are any.
    pub const fn metrics(&self) -> Option<&CommandMetrics> {
        self.metrics.as_ref()
    }

    /// The counts now. They are read one after the other while commands go on.
    pub fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            reserve_in: read(&self.reserve_in),
            reserve_out: read(&self.reserve_out),
            cleanup: read(&self.cleanup),
            good: read(&self.good),
            check_condition: read(&self.check_condition),
            reservation_conflict: read(&self.reservation_conflict),
            busy: read(&self.busy),
            other_status: read(&self.other_status),
            errors: read(&self.errors),
        }
    }

    pub(super) fn begin(&self, opcode: Opcode) {
        let counter = match opcode {
            Opcode::ReserveIn => &self.reserve_in,
            Opcode::ReserveOut => &self.reserve_out,
            Opcode::Cleanup => &self.cleanup,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn end(&self, result: &Result<Completion, Error>) {
        let counter = match result {
            Ok(Completion::Good(_)) => &self.good,
            Ok(Completion::CheckCondition(_)) => &self.check_condition,
            Ok(Completion::Status(Status::RESERVATION_CONFLICT)) => &self.reservation_conflict,
            Ok(Completion::Status(Status::BUSY | Status::TASK_SET_FULL)) => &self.busy,
            Ok(Completion::Status(_)) => &self.other_status,
            Err(_) => &self.errors,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}
