//! Paths of a multipath map that are lost before a command, in the middle of it, and after it; and what the other host can
//! do meanwhile.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use anyhow::{Result, bail};
use scsi_pr::Key;

use crate::commands::{clear, preempt, preempt_and_abort, register, register_ignoring, release, reserve};
use crate::disk::{self, is_conflict};
use crate::fixture::{Fixture, GOOD, OTHER, OURS, RO, Registration, THEIRS};
use crate::map::{Disk, is_alive};
use crate::scenario::Scenario;
use crate::system::wait_for;
use crate::tracer::{Action, Tracer, first_out};

/// Every service action.
pub(super) const LOST: Scenario = Scenario {
    name: "multipath-lost",
    boot: "multipath-lost",
    purpose: "every service action with a path that is dead before it, or dies just when it is used for it",
    run: |lab, report| Fixture::new(lab, report, 2)?.lost(),
};

/// Writes of both hosts.
pub(super) const FAILOVER: Scenario = Scenario {
    name: "multipath-failover",
    boot: "multipath-lost",
    purpose: "three of four paths die, the holder's first: our writes pass, and none of another host's ever does",
    run: |lab, report| Fixture::new(lab, report, 4)?.failover(),
};

/// A path that is dead for a moment only.
pub(super) const FLAPPING: Scenario = Scenario {
    name: "multipath-flapping",
    boot: "multipath-lost",
    purpose: "the holder's path dies, loses its registration to a preempt and is back at once: it is registered again",
    run: |lab, report| Fixture::new(lab, report, 2)?.flapping(),
};

/// The state before a command.
#[derive(Clone, Copy, Debug)]
enum Before {
    /// The other host alone is registered.
    Nothing,
    /// All are registered.
    Registered,
    /// The first path holds a reservation, too.
    Held,
    /// The other host does.
    HeldByThem,
}

/// The state after it.
#[derive(Clone, Copy, Debug)]
enum After {
    /// Our paths are registered with this key, if it is not zero; the other host is, or not.
    Registered(Key, bool),
    /// And one of our paths holds the reservation.
    Held(bool),
}

impl Fixture<'_> {
    fn lost(mut self) -> Result<()> {
        use {After as A, Before as B};
        let none = Key::ZERO;
        self.report.differs("multipath-dying-path");
        for (before, request, after) in [
            (B::Nothing, register(none, OURS), A::Registered(OURS, true)),
            (B::Nothing, register_ignoring(OURS), A::Registered(OURS, true)),
            (B::Registered, register(OURS, OTHER), A::Registered(OTHER, true)),
            (B::Registered, reserve(OURS, RO), A::Held(true)),
            (B::Held, release(OURS, RO), A::Registered(OURS, true)),
            (B::Held, preempt(OURS, OURS, RO), A::Held(true)),
            (B::HeldByThem, preempt(OURS, THEIRS, RO), A::Held(false)),
            (B::HeldByThem, preempt_and_abort(OURS, THEIRS, RO), A::Held(false)),
            (B::Held, register(OURS, none), A::Registered(none, true)),
            (B::Held, clear(OURS), A::Registered(none, false)),
        ] {
            self.prepare(before)?;
            let [first, _] = self.map.pair();
            first.set_alive(false)?;
            let answer = self.answer(&request);
            let log = self.logged();
            let outcome = if answer == GOOD { self.check_after(after) } else { Err(format!("{answer}, {log:#?}")) };
            self.report.check(format!("{request}, a path lost before: GOOD, and so it is"), outcome);
            self.return_of(first, after, &format!("{request}, the path lost before is back"))?;

            self.prepare(before)?;
            let (sender, lost) = std::sync::mpsc::channel();
            let paths = self.map.paths.clone();
            let act = Action::Do(Box::new(move |what| {
                let path = paths.iter().find(|path| what.ends_with(&path.name));
                let _ = sender.send(path.map(|path| path.set_alive(false).map(|()| path.clone())));
            }));
            let tracer =
                Tracer::start(self.helper.process(), first_out(request.command().cdb().service_action()), act)?;
            let answer = self.answer(&request);
            let seen = tracer.wait_for_answer()?;
            let log = self.logged();
            let Ok(Some(Ok(path))) = lost.try_recv() else { bail!("{request}: no path was lost: {seen}, {answer}") };
            let what = format!("{request}, lost at {seen}: {answer}");
            let outcome = match answer == GOOD {
                true => self.check_after(after),
                // Nothing is claimed, and who tries again gets there.
                false => match self.answer(&request) {
                    again if again == GOOD => self.check_after(after).map_err(|error| format!("{error}; {log:#?}")),
                    again => Err(format!("again: {again}, {log:#?}")),
                },
            };
            self.report.check(&what, outcome);
            let what = format!("{request}, the path lost in it is back");
            match after {
                // A path that dies before it is unregistered keeps its registration at the unit.
                After::Registered(Key::ZERO, true) => self.come_back(&path, &what)?,
                after => self.return_of(&path, after, &what)?,
            }
        }
        self.register_them()?;
        self.map.wait_for_paths(2)
    }

    fn prepare(&mut self, before: Before) -> Result<()> {
        match before {
            Before::Nothing => self.register_them(),
            Before::Registered => self.register_all(),
            Before::Held => self.hold(),
            Before::HeldByThem => {
                self.register_all()?;
                self.theirs(&reserve(THEIRS, RO)).map(drop)
            }
        }
    }

    /// Whether that is so by all paths that work.
    fn check_after(&self, after: After) -> Result<(), String> {
        let registrations = self.registrations().map_err(|error| format!("{error:#}"))?;
        let alive = self.map.paths.iter().filter(|path| is_alive(path));
        is_so(&registrations, after, alive, &self.map.other_host)
    }

    /// A path comes back, and is registered if the others are.
    fn return_of(&mut self, path: &Disk, after: After, what: &str) -> Result<()> {
        self.map.wait_for_paths(1)?;
        path.set_alive(true)?;
        self.map.wait_for_paths(2)?;
        let outcome = wait_for("such registrations", || self.check_after(after).map_err(anyhow::Error::msg));
        self.report.check(what, outcome.map_err(|error| format!("{error:#}")));
        Ok(())
    }

    /// A path comes back, and may still be registered; the host can register again all the same.
    fn come_back(&mut self, path: &Disk, what: &str) -> Result<()> {
        self.map.wait_for_paths(1)?;
        path.set_alive(true)?;
        self.map.wait_for_paths(2)?;
        let answer = self.answer(&register_ignoring(OURS));
        let outcome = self.check_after(After::Registered(OURS, true)).map_err(|error| format!("{answer}, {error}"));
        self.report.check(format!("{what}, and can be registered"), outcome);
        Ok(())
    }

    fn failover(mut self) -> Result<()> {
        self.answer(&register(Key::ZERO, OURS));
        self.expect(&reserve(OURS, RO), &GOOD);
        let theirs = disk::Disk::open(&self.map.other_host.path())?;
        let (stop, refused) = (AtomicBool::new(false), AtomicUsize::new(0));
        let others = thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut other = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    match theirs.write(9) {
                        Err(error) if is_conflict(&error) => {
                            refused.fetch_add(1, Ordering::Relaxed);
                        }
                        outcome => other.push(format!("{outcome:?}")),
                    }
                }
                other
            });
            let outcome = self.lose_three(&refused);
            stop.store(true, Ordering::Relaxed);
            outcome.map(|()| writer.join().expect("it does not panic"))
        })?;
        let refused = refused.into_inner();
        let outcome = if others.is_empty() && refused > 0 { Ok(()) } else { Err(format!("{others:?}, {refused}")) };
        self.report.check("every write of the other host was refused", outcome);
        for path in &self.map.paths {
            path.set_alive(true)?;
        }
        self.map.wait_for_paths(4)?;
        self.expect(&clear(OURS), &GOOD);
        Ok(())
    }

    fn flapping(mut self) -> Result<()> {
        self.answer(&register_ignoring(OURS));
        self.expect(&reserve(OURS, RO), &GOOD);
        for round in 0..20 {
            let (holder, rest) = self.holder_and_rest()?;
            holder.set_alive(false)?;
            // A write makes the kernel fail the path; without one, it learns that later.
            if round % 2 == 0 {
                self.expect_our_write("the holder's path dead");
            }
            self.expect(&preempt(OURS, OURS, RO), &GOOD);
            holder.set_alive(true)?;
            let expected = self.all_with_holder(OURS, rest[0]);
            self.wait_for_registrations("the path that is back is registered", &expected)?;
        }
        self.map.wait_for_paths(2)?;
        self.expect(&clear(OURS), &GOOD);
        Ok(())
    }

    fn lose_three(&mut self, refused: &AtomicUsize) -> Result<()> {
        let (holder, rest) = self.holder_and_rest()?;
        for (number, path) in [holder, rest[0], rest[1]].into_iter().enumerate() {
            let before = refused.load(Ordering::Relaxed);
            path.set_alive(false)?;
            for _ in 0..3 {
                self.expect_our_write(&format!("{} of four paths dead", number + 1));
            }
            self.map.wait_for_paths(3 - number)?;
            self.expect_our_write("and noticed");
            wait_for("writes of the other host", || match refused.load(Ordering::Relaxed) - before {
                0 => bail!("none"),
                _ => Ok(()),
            })?;
        }
        // The reservation moves to the path that is left, and is never free meanwhile.
        self.expect(&preempt(OURS, OURS, RO), &GOOD);
        for path in [holder, rest[0], rest[1]] {
            path.set_alive(true)?;
        }
        self.map.wait_for_paths(4)?;
        self.expect_our_write("all paths back");
        let (now, _) = self.holder_and_rest()?;
        self.report.equal("the holder is the path that was left", &rest[2].name, &now.name);
        let expected = self.all_with_holder(OURS, now);
        self.wait_for_registrations("every path that came back is registered", &expected)
    }
}

fn is_so<'a>(
    registrations: &[Registration],
    after: After,
    alive: impl Iterator<Item = &'a Disk>,
    other_host: &Disk,
) -> Result<(), String> {
    let of = |disk: &Disk| registrations.iter().find(|(initiator, ..)| *initiator == disk.initiator);
    let (ours, theirs, held) = match after {
        After::Registered(key, theirs) => (key, theirs, 0),
        After::Held(theirs) => (OURS, theirs, 1),
    };
    let right = alive.into_iter().all(|disk| match of(disk) {
        Some((_, key, _)) => *key == ours,
        None => ours.is_zero(),
    });
    let holders = registrations.iter().filter(|(initiator, _, held)| *held && *initiator != other_host.initiator);
    let theirs_right = of(other_host).is_some() == theirs && !of(other_host).is_some_and(|(.., held)| *held);
    if right && theirs_right && holders.count() == held {
        Ok(())
    } else {
        Err(format!("{registrations:?}, not {after:?}"))
    }
}
