//! [`Workers`]: commands that take more privileges than the helper has, each run by a process of its own.

mod counters;
mod worker_log;

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FileType, fstat, major, minor};
use scsi_pr::{Command, Completion, Error, Opcode, PrManager, SenseCode, Status};
use scsi_pr_daemon::{FifoMutex, RepeatLimiter};
use scsi_pr_helper::HelperClient;
use scsi_pr_helper::client::Config;
use scsi_pr_linux::device::{Device, DeviceClass, Number};
use scsi_pr_linux::multipath;
use scsi_pr_linux::policy::{Client, RefusalReason};
use tracing::warn;

use crate::monitor_channel::{MonitorChannel, StartError, StartedWorker, WorkerKind, WorkerTask};
pub(crate) use counters::WorkerCounters;
use worker_log::WorkerLog;

/// The times that the helper waits.
#[derive(Clone, Copy)]
struct Timeouts {
    /// For earlier commands on the device.
    turn: Duration,
    /// For a worker to take its command, once it is started.
    beginning: Duration,
    /// For a worker to answer. It is left to finish then.
    answer: Duration,
    /// For a worker to end after its answer. Its device is BUSY from then on until it ends.
    ending: Duration,
    /// For the recovery of a map whose worker died: longer than it takes, if the paths answer.
    recovery: Duration,
}

impl Timeouts {
    const DEFAULT: Self = Self {
        turn: Duration::from_secs(30),
        beginning: Duration::from_secs(10),
        answer: Duration::from_secs(60),
        ending: Duration::from_secs(2),
        recovery: Duration::from_secs(8),
    };
}

/// A kind of log line about a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// There is no monitor to start a worker.
    NoMonitor,
    /// Commands waited too long for earlier ones.
    TurnTimeout,
    /// A worker of an earlier command still runs.
    Unfinished,
    /// A worker could not be started.
    NotStarted,
    /// A worker did not take its command.
    NotTaken,
    /// A worker took its command and did not answer.
    NoAnswer,
    /// A line of a worker's log, by its hash.
    Line(u64),
}

/// The parts of the log that do not suppress each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Helper,
    Worker,
    /// A worker that died, and the recovery of its map: an administrator needs these lines.
    DeadWorker,
}

/// The state that workers of all kinds share.
pub(crate) struct Pool {
    /// `None` where there is no monitor.
    monitor: Option<Arc<MonitorChannel>>,
    /// The devices that have a command.
    locks: Mutex<Vec<(Number, Arc<FifoMutex<()>>)>>,
    /// The devices whose worker was left to finish. A thread for each reads the worker's log until the worker ends.
    unfinished: Mutex<Vec<Number>>,
    lines: RepeatLimiter<(Number, Source), Event>,
    counters: WorkerCounters,
    timeouts: Timeouts,
}

/// A [`PrManager`] that has each command run by a worker: the monitor starts it as root, it runs the command with the
/// manager of its kind, answers, and ends.
///
/// * Commands on one device run one after the other, in the order in which they came. After a wait of 30 s a command is
///   BUSY. So is a command that no worker took: it has not been run.
/// * A device has one worker at a time, so a map that hangs holds one of the 64.
/// * A worker may take a command and not answer it, because it died or for a minute. The command is CHECK CONDITION
///   0B/08/01 then: it may have been run, and is never run again. The worker is left to finish; until then its device is
///   BUSY.
/// * Without a monitor, PERSISTENT RESERVE OUT and CLEANUP are CHECK CONDITION 0B/00/06, as from a kernel that does not
///   permit them. PERSISTENT RESERVE IN is `Err`, as there may be another way to answer.
/// * On other descriptors than block devices, commands are CHECK CONDITION 05/20/00, as with each of the managers.
///
/// The log has the device, the reason and the remedy, once a minute for each.
pub(crate) struct Workers {
    pool: Arc<Pool>,
    kind: WorkerKind,
}

impl Workers {
    pub(crate) fn new(pool: &Arc<Pool>, kind: WorkerKind) -> Self {
        Self { pool: Arc::clone(pool), kind }
    }
}

impl PrManager for Workers {
    fn execute(&self, device: BorrowedFd<'_>, command: Command<'_>) -> Result<Completion, Error> {
        let stat = fstat(device).map_err(|errno| Error::not_run("tell what the descriptor is").because(errno))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::BlockDevice {
            return Ok(match command.opcode() {
                // There is nothing to clean up.
                Opcode::Cleanup => Completion::Good(Vec::new()),
                _ => Completion::check(SenseCode::INVALID_OPCODE),
            });
        }
        let number = Number { major: major(stat.st_rdev), minor: minor(stat.st_rdev) };
        let execution = Execution { pool: &self.pool, kind: self.kind, number, device, command };
        let Some(monitor) = &self.pool.monitor else { return execution.without_monitor(&NO_MONITOR) };
        match self.pool.in_turn(number, || execution.run(monitor)) {
            Some(answer) => answer,
            None => Ok(execution.busy(Event::TurnTimeout, &"it waited for 30 s for earlier commands on the device")),
        }
    }

    fn is_connected(&self) -> bool {
        self.pool.monitor.as_ref().is_some_and(|monitor| monitor.is_alive())
    }
}

const NO_MONITOR: &str = "no worker process can be started: start the helper as root, where /proc is mounted";

impl Pool {
    pub(crate) fn new(monitor: Option<Arc<MonitorChannel>>) -> Self {
        let lines = RepeatLimiter::new(32, 512, Duration::from_secs(60));
        Self {
            monitor,
            locks: Mutex::default(),
            unfinished: Mutex::default(),
            lines,
            counters: WorkerCounters::default(),
            timeouts: Timeouts::DEFAULT,
        }
    }

    /// The workers, counted.
    pub(crate) const fn counters(&self) -> &WorkerCounters {
        &self.counters
    }

    /// Runs `act` after all earlier commands on the device; `None` when they take too long.
    fn in_turn<T>(&self, number: Number, act: impl FnOnce() -> T) -> Option<T> {
        let lock = self.lock_of(number);
        let result = lock.lock_timeout(self.timeouts.turn).map(|_guard| act());
        let mut all = self.locks();
        // Only the list and this thread refer to the lock, so no other thread holds it or waits for it.
        if Arc::strong_count(&lock) == 2 {
            all.retain(|(other, _)| *other != number);
        }
        result
    }

    fn lock_of(&self, number: Number) -> Arc<FifoMutex<()>> {
        let mut all = self.locks();
        if let Some((_, lock)) = all.iter().find(|(other, _)| *other == number) {
            return Arc::clone(lock);
        }
        let lock = Arc::default();
        all.push((number, Arc::clone(&lock)));
        lock
    }

    fn locks(&self) -> MutexGuard<'_, Vec<(Number, Arc<FifoMutex<()>>)>> {
        self.locks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unfinished(&self) -> MutexGuard<'_, Vec<Number>> {
        self.unfinished.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Logs the lines of a worker until it ends: for `timeout` on this thread, and after that on another.
    fn reap(self: &Arc<Self>, number: Number, source: Source, mut log: WorkerLog, timeout: Duration) {
        const AGAIN: Duration = Duration::from_secs(3600);
        if self.relay(number, source, &mut log, timeout) {
            return;
        }
        self.unfinished().push(number);
        let pool = Arc::clone(self);
        let reap = move || {
            while !pool.relay(number, source, &mut log, AGAIN) {}
            pool.unfinished().retain(|other| *other != number);
        };
        // Without a thread its lines are lost. The monitor knows too that it still runs.
        if thread::Builder::new().name("pr-worker-log".into()).spawn(reap).is_err() {
            self.unfinished().retain(|other| *other != number);
        }
    }

    /// Logs the lines of a worker for at most `timeout`. Whether it has ended.
    fn relay(&self, number: Number, source: Source, log: &mut WorkerLog, timeout: Duration) -> bool {
        log.read(timeout, &mut |line| {
            Client::note_refusal(RefusalReason::Worker);
            if let Some(suppressed) = self.lines.check((number, source), Event::Line(worker_log::hash(line))) {
                warn!("worker for {number}: {line}{suppressed}");
            }
        })
    }
}

/// One command, for a worker.
struct Execution<'a> {
    pool: &'a Arc<Pool>,
    kind: WorkerKind,
    number: Number,
    device: BorrowedFd<'a>,
    command: Command<'a>,
}

impl Execution<'_> {
    fn run(&self, monitor: &MonitorChannel) -> Result<Completion, Error> {
        if self.pool.unfinished().contains(&self.number) {
            return Ok(self.busy(Event::Unfinished, &StartError::Busy));
        }
        let StartedWorker { stream, log } = match monitor.start(&self.task()) {
            Ok(started) => started,
            Err(ended @ StartError::MonitorEnded) => return self.without_monitor(&ended),
            Err(why) => return Ok(self.busy(Event::NotStarted, &format_args!("no worker is started: {why}"))),
        };
        let log = WorkerLog::new(log, self.pool.counters.start(self.kind));
        let Timeouts { beginning, answer: longest, ending, recovery, .. } = self.pool.timeouts;
        let config = Config::default().with_connect(beginning).with_answer(longest);
        let worker = HelperClient::over(stream).with_config(config);
        let begun = Instant::now();
        let answer = worker.execute(self.device, self.command);
        // This tells the worker that no client waits any more.
        drop(worker);
        match answer {
            Ok(completion) => {
                self.pool.reap(self.number, Source::Worker, log, ending);
                Ok(completion)
            }
            Err(error) if !error.may_have_run() => {
                let completion = self.busy(Event::NotTaken, &error);
                self.pool.reap(self.number, Source::Worker, log, ending);
                Ok(completion)
            }
            Err(_) => {
                let hangs = begun.elapsed() >= longest;
                let completion = Completion::check(SenseCode::LUN_COMMUNICATION_TIMEOUT);
                let what = match hangs {
                    true => "its worker has not answered for a minute, and is left to finish",
                    false => "its worker ended without an answer",
                };
                let why = format_args!("{what}; it may have been run: {}", self.remedy());
                self.log(Event::NoAnswer, &completion, &why);
                let timeout = if hangs { Duration::ZERO } else { recovery };
                self.pool.reap(self.number, Source::DeadWorker, log, timeout);
                Ok(completion)
            }
        }
    }

    fn task(&self) -> WorkerTask {
        let uuid = match (self.kind, Device::of(self.device)) {
            (WorkerKind::Multipath, Ok(device)) => match device.class() {
                // A map that another process has suspended must not be resumed.
                DeviceClass::Multipath { uuid, .. } if !multipath::is_suspended(self.number) => uuid.clone(),
                _ => String::new(),
            },
            _ => String::new(),
        };
        WorkerTask { kind: self.kind, device: self.number.to_string(), uuid }
    }

    /// How to find out what became of a command.
    const fn remedy(&self) -> &'static str {
        match self.kind {
            WorkerKind::Multipath => {
                "see `mpathpersist --in --read-keys` and `--read-reservation` before anything else is done"
            }
            WorkerKind::Block | WorkerKind::Nvme => "see which keys are registered before anything else is done",
        }
    }

    fn busy(&self, event: Event, why: &dyn fmt::Display) -> Completion {
        let completion = Completion::Status(Status::BUSY);
        self.log(event, &completion, why);
        completion
    }

    fn without_monitor(&self, why: &dyn fmt::Display) -> Result<Completion, Error> {
        let completion = Completion::check(SenseCode::IO_PROCESS_TERMINATED);
        if self.command.opcode() == Opcode::ReserveIn {
            return Err(Error::not_run("start a worker process").because(why.to_string()));
        }
        self.log(Event::NoMonitor, &completion, why);
        Ok(completion)
    }

    fn log(&self, event: Event, completion: &Completion, why: &dyn fmt::Display) {
        Client::note_refusal(RefusalReason::Worker);
        self.pool.counters.fail(event);
        let Some(suppressed) = self.pool.lines.check((self.number, Source::Helper), event) else { return };
        let device = Device::of(self.device).map_or_else(|_| self.number.to_string(), |device| device.to_string());
        let client = Client::current().map(|client| format!(", for {client}")).unwrap_or_default();
        warn!("{}, on {device}{client}: {completion}: {why}{suppressed}", self.command);
    }
}

#[cfg(test)]
mod tests;
