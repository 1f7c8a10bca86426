//! [`Workers`]: commands that take more privileges than the helper has, each run by a process of its own.

mod log;
mod told;

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FileType, fstat, major, minor};
use scsi_pr::{Command, Completion, Error, Opcode, PrManager, SenseCode, Status};
use scsi_pr_helper::HelperClient;
use scsi_pr_helper::client::Config;
use scsi_pr_helper::turn::Turns;
use scsi_pr_linux::device::{Device, Kind, Number};
use scsi_pr_linux::multipath;
use tracing::warn;

use crate::link::{Duty, Link, NotStarted, Started, Task};
use log::Log;
use told::{Event, Told};

/// How long things are waited for.
#[derive(Clone, Copy)]
struct Patience {
    /// For the commands before one on its device.
    turn: Duration,
    /// For a worker to take its command, once it is started.
    beginning: Duration,
    /// For a worker to answer. It is left to finish then.
    answer: Duration,
    /// For a worker to end that has answered, before it counts as one that hangs.
    ending: Duration,
    /// For a map to be recovered whose worker died: longer than that takes, if its paths answer.
    recovering: Duration,
}

impl Patience {
    const DEFAULT: Self = Self {
        turn: Duration::from_secs(30),
        beginning: Duration::from_secs(10),
        answer: Duration::from_secs(60),
        ending: Duration::from_secs(2),
        recovering: Duration::from_secs(8),
    };
}

/// What the helper has of workers, whatever their duty.
pub(crate) struct Pool {
    /// `None` where there is no monitor.
    monitor: Option<Arc<Link>>,
    /// Of devices that have a command.
    turns: Mutex<Vec<(Number, Arc<Turns>)>>,
    /// Of which devices a worker is left behind. A thread for each tells what it logs, until it ends.
    left: Mutex<Vec<Number>>,
    told: Told,
    patience: Patience,
}

/// A [`PrManager`] that has each command run by a worker: the monitor starts it as root, it runs the command with the
/// manager of its duty, answers, and ends.
///
/// * Commands on one device run one after the other, in the order in which they came; who waits for more than 30 s is
///   answered BUSY. So is a command that no worker took: nothing has been done.
/// * A command that a worker took and did not answer, because it died or for a minute, is CHECK CONDITION 0B/08/01: it
///   may have been run. It is never run again. The worker is left to finish; until then its device is BUSY.
/// * Where there is no monitor, CHECK CONDITION 0B/00/06 to PERSISTENT RESERVE OUT and CLEANUP, as from a kernel that does
///   not permit them; to PERSISTENT RESERVE IN `Err`, as there may be another way to answer.
/// * What is no block device is not handed to anybody: 05/20/00, as each of the managers answers.
///
/// Of each of these the log says the device, the reason and what to do, once a minute.
pub(crate) struct Workers {
    pool: Arc<Pool>,
    duty: Duty,
}

impl Workers {
    pub(crate) fn new(pool: &Arc<Pool>, duty: Duty) -> Self {
        Self { pool: Arc::clone(pool), duty }
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
        let task = Worker { pool: &self.pool, duty: self.duty, number, device, command };
        let Some(monitor) = &self.pool.monitor else { return task.without_monitor(&NO_MONITOR) };
        match self.pool.in_turn(number, || task.run(monitor)) {
            Some(answer) => answer,
            None => Ok(task.busy(Event::Turn, &"it waited too long for those before it")),
        }
    }

    fn is_connected(&self) -> bool {
        self.pool.monitor.as_ref().is_some_and(|monitor| monitor.is_alive())
    }
}

/// Why there are no workers.
const NO_MONITOR: &str = "no worker process can be started: start the helper as root, where /proc is mounted";

impl Pool {
    pub(crate) fn new(monitor: Option<Arc<Link>>) -> Self {
        let (turns, left) = (Mutex::default(), Mutex::default());
        Self { monitor, turns, left, told: Told::new(), patience: Patience::DEFAULT }
    }

    /// Runs `act` when it is the turn of who asks for it, among those for the device; `None` when it did not come in time.
    fn in_turn<T>(&self, number: Number, act: impl FnOnce() -> T) -> Option<T> {
        let turns = self.turns_of(number);
        let turn = turns.take(self.patience.turn);
        let result = turn.as_ref().map(|_| act());
        drop(turn);
        let mut all = self.turns();
        // Nobody else has it or waits for it: who would has to come by here.
        if Arc::strong_count(&turns) == 2 {
            all.retain(|(other, _)| *other != number);
        }
        result
    }

    fn turns_of(&self, number: Number) -> Arc<Turns> {
        let mut all = self.turns();
        if let Some((_, turns)) = all.iter().find(|(other, _)| *other == number) {
            return Arc::clone(turns);
        }
        let turns = Arc::default();
        all.push((number, Arc::clone(&turns)));
        turns
    }

    fn turns(&self) -> MutexGuard<'_, Vec<(Number, Arc<Turns>)>> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn left(&self) -> MutexGuard<'_, Vec<Number>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what a worker has logged, until it ends: at most for `patience`, and after that on another thread.
    fn see_off(self: &Arc<Self>, number: Number, mut log: Log, patience: Duration) {
        const AGAIN: Duration = Duration::from_secs(3600);
        if log.say(number, &self.told, patience) {
            return;
        }
        self.left().push(number);
        let pool = Arc::clone(self);
        let see_off = move || {
            while !log.say(number, &pool.told, AGAIN) {}
            pool.left().retain(|other| *other != number);
        };
        // Without a thread its lines are lost. That it still runs, the monitor knows too.
        if thread::Builder::new().name("pr-worker-log".into()).spawn(see_off).is_err() {
            self.left().retain(|other| *other != number);
        }
    }
}

/// One command, for a worker.
struct Worker<'a> {
    pool: &'a Arc<Pool>,
    duty: Duty,
    number: Number,
    device: BorrowedFd<'a>,
    command: Command<'a>,
}

impl Worker<'_> {
    #[cold]
    #[inline(never)]
    fn run(&self, monitor: &Link) -> Result<Completion, Error> {
        if self.pool.left().contains(&self.number) {
            return Ok(self.busy(Event::Left, &NotStarted::Busy));
        }
        let Started { stream, log } = match monitor.start(&self.task()) {
            Ok(started) => started,
            Err(gone @ NotStarted::Gone) => return self.without_monitor(&gone),
            Err(why) => return Ok(self.busy(Event::NotStarted, &format_args!("no worker is started: {why}"))),
        };
        let log = Log::new(log);
        let Patience { beginning, answer: longest, ending, recovering, .. } = self.pool.patience;
        let config = Config { connect: beginning, answer: longest, ..Config::default() };
        let worker = HelperClient::over(stream).with_config(config);
        let begun = Instant::now();
        let answer = worker.execute(self.device, self.command);
        // It learns that nobody waits any more.
        drop(worker);
        match answer {
            Ok(completion) => {
                self.pool.see_off(self.number, log, ending);
                Ok(completion)
            }
            Err(error) if !error.may_have_run() => {
                let completion = self.busy(Event::NotTaken, &error);
                self.pool.see_off(self.number, log, ending);
                Ok(completion)
            }
            Err(_) => {
                let hangs = begun.elapsed() >= longest;
                let completion = Completion::check(SenseCode::LUN_COMMUNICATION_TIMEOUT);
                let what = match hangs {
                    true => "its worker has not answered for a minute, and is left to finish",
                    false => "its worker ended without an answer",
                };
                self.tell(Event::Lost, &completion, &format_args!("{what}; it may have been run: {}", self.remedy()));
                self.pool.see_off(self.number, log.of_a_loss(), if hangs { Duration::ZERO } else { recovering });
                Ok(completion)
            }
        }
    }

    fn task(&self) -> Task {
        let uuid = match (self.duty, Device::of(self.device)) {
            (Duty::Multipath, Ok(device)) => match device.kind() {
                // What somebody else has suspended is not for us to resume.
                Kind::Multipath { uuid, .. } if !multipath::is_suspended(self.number) => uuid.clone(),
                _ => String::new(),
            },
            _ => String::new(),
        };
        Task { duty: self.duty, device: self.number.to_string(), uuid }
    }

    /// Where to look for what became of a command.
    const fn remedy(&self) -> &'static str {
        match self.duty {
            Duty::Multipath => {
                "see `mpathpersist --in --read-keys` and `--read-reservation` before anything else is done"
            }
            Duty::Block | Duty::Nvme => "see which keys are registered before anything else is done",
        }
    }

    fn busy(&self, event: Event, why: &dyn fmt::Display) -> Completion {
        let completion = Completion::Status(Status::BUSY);
        self.tell(event, &completion, why);
        completion
    }

    fn without_monitor(&self, why: &dyn fmt::Display) -> Result<Completion, Error> {
        let completion = Completion::check(SenseCode::IO_PROCESS_TERMINATED);
        if self.command.opcode() == Opcode::ReserveIn {
            return Err(Error::not_run("start a worker process").because(why.to_string()));
        }
        self.tell(Event::NoMonitor, &completion, why);
        Ok(completion)
    }

    fn tell(&self, event: Event, completion: &Completion, why: &dyn fmt::Display) {
        if self.pool.told.permits(self.number, event) {
            let device = Device::of(self.device).map_or_else(|_| self.number.to_string(), |device| device.to_string());
            warn!("{}, on {device}: {completion}: {why}", self.command);
        }
    }
}

#[cfg(test)]
mod tests;
