//! Workers that are killed in the middle of a command on a multipath map whose holder's path is dead.

use std::fs::File;
use std::os::fd::AsFd;
use std::thread;

use anyhow::{Result, bail};
use nix::sys::signal::{Signal, kill};
use scsi_pr::{Completion, PrManager, SenseCode, Status};

use crate::commands::{Request, preempt, register, release};
use crate::fixture::{Fixture, GOOD, OTHER, OURS, RO, THEIRS};
use crate::scenario::Scenario;
use crate::system::{run, wait_for};
use crate::tracer::{Action, Trace, Tracer, number};

/// Before each step of what takes a reservation from a dead path.
pub(super) const KILLED: Scenario = Scenario {
    name: "multipath-killed",
    boot: "multipath-lost",
    purpose: "a worker killed at any step, with the holder's path dead: 0B/08/01, no map suspended, no foreign key lost",
    run: |lab, report| Fixture::new(lab, report, 2)?.killed(),
};

/// More steps than a command has.
const MOST_STEPS: usize = 100;

impl Fixture<'_> {
    fn killed(mut self) -> Result<()> {
        // The helper says no more than so many lines a minute, so of those that come later it may not.
        let logged = self.kill_at_each_step(&release(OURS, RO))?;
        let outcome = if logged { Ok(()) } else { Err("it does not".to_owned()) };
        self.report.check("the log says what is registered after a kill", outcome);
        self.kill_at_each_step(&preempt(OURS, OURS, RO))?;
        self.kill_at_each_step(&register(OURS, OTHER))?;
        self.leave_suspended()
    }

    /// Has the worker killed before its first step, before its second one, and so on, until it is done before it is killed.
    /// Whether the log has said what is registered then.
    fn kill_at_each_step(&mut self, request: &Request) -> Result<bool> {
        let mut logged = false;
        for step in 1..MOST_STEPS {
            self.hold_by_dead_path()?;
            let tracer = Tracer::start(self.helper.process(), number(step), Action::Kill)?;
            let answer = self.answer(request);
            let seen = tracer.wait_for_answer()?;
            if !seen.hit {
                let outcome = if answer == GOOD { Ok(()) } else { Err(answer.to_string()) };
                self.report.check(format!("{request}: not killed in {} steps, it is GOOD", seen.steps.len()), outcome);
                self.map.pair()[0].set_alive(true)?;
                return Ok(logged);
            }
            logged |= self
                .logged()
                .iter()
                .any(|line| line.contains("as it is now after the process of a command died: registered: "));
            let outcome = self.judge(&answer, &seen);
            // A second try succeeds as far as the unit permits.
            let again = self.answer(request);
            self.report.check(
                format!("{request}, killed before {seen}: {answer}; again: {again}"),
                outcome.map_err(|error| format!("{error:#}")),
            );
        }
        bail!("{request} has more than {MOST_STEPS} steps")
    }

    /// The state after a worker was killed.
    fn judge(&self, answer: &Completion, seen: &Trace) -> Result<()> {
        let unknown = Completion::check(SenseCode::LUN_COMMUNICATION_TIMEOUT);
        // Before it has taken the command, nothing was done.
        let untouched = seen.steps.len() <= 1 && *answer == Completion::Status(Status::BUSY);
        if *answer != unknown && !untouched {
            bail!("the answer is {answer}");
        }
        wait_for("map that is not suspended", || self.is_resumed())?;
        let registrations = self.registrations()?;
        let theirs = &self.map.other_host.initiator;
        if !registrations.iter().any(|(initiator, key, _)| initiator == theirs && *key == THEIRS) {
            bail!("the other host's key is lost: {registrations:?}");
        }
        if registrations.iter().any(|(initiator, _, held)| initiator == theirs && *held) {
            bail!("the other host holds the reservation: {registrations:?}");
        }
        Ok(())
    }

    fn is_resumed(&self) -> Result<()> {
        let state = run("dmsetup", &["info", "--columns", "--noheadings", "-o", "suspended", &self.map.name()])?;
        if state.trim() == "Active" { Ok(()) } else { bail!("{state}") }
    }

    /// The first path holds the reservation and is dead, the second is registered, and so is the other host.
    fn hold_by_dead_path(&mut self) -> Result<()> {
        self.hold()?;
        self.map.pair()[0].set_alive(false)
    }

    /// libmpathpersist of Debian 12 (0.9.4) suspends no map; later ones do, in the middle of a command. So it is done for it.
    fn leave_suspended(&mut self) -> Result<()> {
        self.hold_by_dead_path()?;
        let tracer = Tracer::start(self.helper.process(), number(3), Action::Stop)?;
        let map = File::options().read(true).write(true).open(&self.map.device)?;
        let (client, request) = (self.helper.client(), release(OURS, RO));
        let (answer, seen) = thread::scope(|scope| {
            let lost = scope.spawn(|| client.execute(map.as_fd(), request.command()));
            let seen = tracer.wait_for_action()?;
            run("dmsetup", &["suspend", "--noflush", &self.map.name()])?;
            if let Some(worker) = seen.stopped {
                kill(worker, Signal::SIGKILL)?;
            }
            anyhow::Ok((lost.join().expect("it does not panic")?, seen))
        })?;
        let log = self.logged();
        let logged = log.iter().any(|line| line.contains("was left suspended") && line.contains("and is resumed"));
        let outcome = match self.is_resumed() {
            Ok(()) if logged && seen.hit => Ok(()),
            outcome => Err(format!("{answer}, {seen}, {outcome:?}, {log:#?}")),
        };
        self.report.check("a map that is suspended when its worker is killed is resumed, and the log says so", outcome);
        self.map.pair()[0].set_alive(true)?;
        self.map.wait_for_paths(2)
    }
}
