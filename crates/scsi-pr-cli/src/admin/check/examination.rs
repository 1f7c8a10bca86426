//! [`Examination`]: the commands of the check, and what the unit must report after each.

use std::cell::Cell;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use scsi_pr::{
    Completion, FullStatus, Generation, Held, Key, Keys, Reservation, ReserveOut, ScopeType, SenseKey, Status, Type,
};
use scsi_pr_daemon::signals::SignalFd;

use super::verdict::{Outcome, Requirement, Test};
use crate::admin::access::{Sender, Unit};
use crate::admin::failure::{Code, Effect, Failure};
use crate::admin::read;

/// How long the readings of a reservation may take before the check releases it. With the RELEASE, it lasts less than a
/// second.
const READING_TIMEOUT: Duration = Duration::from_millis(500);

/// How often the check tries to remove its registration.
const MAX_REMOVALS: u32 = 5;

/// The pause between two of these.
const PAUSE: Duration = Duration::from_millis(200);

/// Why PREEMPT and CLEAR are not sent.
const NEEDS_ANOTHER: &str = "needs a second initiator";

/// The signals that end the check.
pub(super) struct Signals(pub(super) SignalFd);

impl Signals {
    /// A failure, if a signal has come.
    fn check(&self) -> Result<(), Failure> {
        let Ok(Some(signal)) = self.0.read_signal() else { return Ok(()) };
        let (code, name) = match signal.ssi_signo {
            1 => (Code::HungUp, "SIGHUP"),
            2 => (Code::Interrupted, "SIGINT"),
            _ => (Code::Terminated, "SIGTERM"),
        };
        Err(Failure::new(code, format!("{name} ended the check")))
    }
}

/// The tests of a unit.
pub(super) struct Examination<'a> {
    unit: &'a Unit,
    /// Sends RELEASE, where `unit` cannot while a reading hangs.
    second: Option<&'a Unit>,
    key: Key,
    signals: &'a Signals,
    tests: Vec<Test>,
    /// PTPL_A before the check.
    ptpl_a: bool,
    longest_reservation: Cell<Duration>,
}

impl<'a> Examination<'a> {
    pub(super) fn new(unit: &'a Unit, second: Option<&'a Unit>, key: Key, signals: &'a Signals) -> Self {
        let longest_reservation = Cell::default();
        Self { unit, second, key, signals, tests: Vec::new(), ptpl_a: false, longest_reservation }
    }

    /// The longest time from before a RESERVE to the answer to its RELEASE.
    pub(super) fn longest_reservation(&self) -> Duration {
        self.longest_reservation.get()
    }

    pub(super) fn into_tests(self) -> Vec<Test> {
        self.tests
    }

    fn add(&mut self, requirement: Requirement, outcome: Outcome) {
        self.tests.push(Test { requirement, outcome });
    }

    /// Reads, and refuses a unit that is in use. Returns whether the other tests are possible.
    pub(super) fn begin(&mut self) -> Result<bool, Failure> {
        let identifiers = self.unit.path.identifiers();
        self.add(Requirement::Identifiers, identifiers.present());
        self.add(Requirement::SameIdentifiers, identifiers.same_by_all_paths());
        self.add(Requirement::MultipathMap, identifiers.map());
        let keys = tested(read::keys(self.unit))?;
        if let Ok(keys) = &keys {
            refuse_registered(&keys.value.keys, keys.is_whole)?;
        }
        let reservation = tested(read::reservation(self.unit))?;
        if reservation.as_ref().is_ok_and(|reservation| reservation.held.is_some()) {
            return Err(Failure::new(Code::Conflict, "the unit is reserved; the check changed nothing"));
        }
        let capabilities = tested(read::capabilities(self.unit))?;
        let status = tested(read::full_status(self.unit))?;
        let can_be_tested = keys.is_ok() && reservation.is_ok();
        self.ptpl_a = capabilities.as_ref().is_ok_and(|capabilities| capabilities.ptpl_a);
        self.add(Requirement::ReadKeys, outcome(keys));
        self.add(Requirement::ReadReservation, outcome(reservation));
        self.add(Requirement::ReportCapabilities, outcome(capabilities));
        self.add(Requirement::ReadFullStatus, outcome(status));
        self.signals.check()?;
        Ok(can_be_tested)
    }

    /// Registers the key, and tests everything else with it. The caller then calls [`clean_up`](Self::clean_up).
    pub(super) fn run(&mut self) -> Result<(), Failure> {
        let before = read::keys(self.unit)?;
        refuse_registered(&before.value.keys, before.is_whole)?;
        // With RESERVATION KEY 0, a unit refuses an initiator that is registered already.
        let registered = self.send(&self.register(Key::ZERO, self.key, false))?;
        let is_registered = registered.is_ok();
        let after = self.register_outcome(registered)?;
        self.add(Requirement::Register, after.outcome);
        if !is_registered {
            return Ok(());
        }
        let mut grows = after.generation.is_none_or(|generation| generation != before.value.generation);

        let aptpl = self.send(&self.register(self.key, self.key, true))?;
        let outcome = match aptpl {
            Err(why) => Outcome::Fails(why),
            Ok(()) => match tested(read::capabilities(self.unit))? {
                Ok(capabilities) if capabilities.ptpl_a => Outcome::Works,
                Ok(_) => Outcome::Fails("REPORT CAPABILITIES has PTPL_A 0 after it".to_owned()),
                Err(why) => Outcome::NotExamined(format!("REPORT CAPABILITIES: {why}")),
            },
        };
        self.add(Requirement::RegisterWithAptpl, outcome);

        // Here too: another program of this host may have changed the key by the same initiator port.
        let generation = self.read_own_keys()?.generation;
        let request = ReserveOut::RegisterAndIgnoreExistingKey {
            service_action_key: self.key,
            all_tg_pt: false,
            aptpl: self.ptpl_a,
        };
        let ignored = self.send(&request)?;
        let after = self.register_outcome(ignored)?;
        let is_good = after.outcome == Outcome::Works;
        grows &= !is_good || after.generation.is_none_or(|after| after != generation);
        self.add(Requirement::RegisterAndIgnoreExistingKey, after.outcome);

        let generation = self.read_own_keys()?.generation;
        for reservation_type in Type::ALL {
            let outcome = self.reserve(reservation_type)?;
            self.add(Requirement::Reserve(reservation_type), outcome);
        }
        let is_same = self.read_own_keys()?.generation == generation;
        self.add(
            Requirement::Generation,
            match (grows, is_same) {
                (true, true) => Outcome::Works,
                (false, _) => Outcome::Fails("REGISTER does not change it".to_owned()),
                (true, false) => Outcome::Fails("RESERVE or RELEASE changes it".to_owned()),
            },
        );
        self.preempt()?;
        self.add(Requirement::Clear, Outcome::NotExamined("it would remove registrations of others".to_owned()));
        self.add(Requirement::Exclusion, Outcome::NotExamined(NEEDS_ANOTHER.to_owned()));
        let unregistered = self.send(&self.register(self.key, Key::ZERO, self.ptpl_a))?;
        let keys = self.read_own_keys()?.keys;
        let outcome = match unregistered {
            Err(why) => Outcome::Fails(why),
            Ok(()) if keys.is_empty() => Outcome::Works,
            Ok(()) => Outcome::Fails("READ KEYS still has the key".to_owned()),
        };
        self.add(Requirement::Unregister, outcome);
        self.signals.check()
    }

    fn register(&self, key: Key, service_action_key: Key, aptpl: bool) -> ReserveOut {
        ReserveOut::Register { key, service_action_key, initiator_ports: None, all_tg_pt: false, aptpl }
    }

    /// Sends a change. The inner error is an answer of the unit that makes a test fail.
    fn send(&self, request: &ReserveOut) -> Result<Result<(), String>, Failure> {
        self.signals.check()?;
        let answer = self.send_by(self.unit, request);
        if answer.as_ref().is_ok_and(|sent| sent.is_err()) {
            // A key of another initiator explains each conflict.
            self.read_own_keys()?;
        }
        answer
    }

    fn send_by(&self, unit: &Unit, request: &ReserveOut) -> Result<Result<(), String>, Failure> {
        let command = request.encode().map_err(|error| Failure::new(Code::Failure, error))?;
        match unit.execute(Sender::Own, command.command())? {
            Completion::Good(_) => Ok(Ok(())),
            // LIO returns NOT READY if it cannot save a registration (APTPL), and to an initiator that is not registered.
            Completion::CheckCondition(sense) if sense.code().is_some_and(|code| code.key == SenseKey::NOT_READY) => {
                Ok(Err(format!("{}: {}", request.action(), Completion::CheckCondition(sense))))
            }
            other => {
                let hint = "no other initiator is registered";
                refusal(Failure::of_completion(&other, Effect::Changes, hint).of(request.action())).map(Err)
            }
        }
    }

    /// The keys. One of another initiator is a failure.
    fn read_own_keys(&self) -> Result<Keys, Failure> {
        let keys = read::keys(self.unit)?.value;
        match keys.keys.iter().find(|key| **key != self.key) {
            None => Ok(keys),
            Some(other) => Err(Failure::new(
                Code::Conflict,
                format!("another initiator uses the unit: the key {other} appeared during the check"),
            )),
        }
    }

    /// Whether the key is there after a REGISTER.
    fn register_outcome(&self, sent: Result<(), String>) -> Result<Registered, Failure> {
        if let Err(why) = sent {
            return Ok(Registered { outcome: Outcome::Fails(why), generation: None });
        }
        let Keys { generation, keys } = self.read_own_keys()?;
        let outcome = match tested(read::full_status(self.unit))? {
            _ if !keys.contains(&self.key) => Outcome::Fails("READ KEYS does not have the key".to_owned()),
            Ok(status) if !has_registration(&status.value, self.key) => {
                Outcome::Fails("READ FULL STATUS does not have the key".to_owned())
            }
            _ => Outcome::Works,
        };
        Ok(Registered { outcome, generation: Some(generation) })
    }

    /// RESERVE, readings, RELEASE. Signals are not looked at in between, so that each RESERVE has its RELEASE.
    fn reserve(&self, reservation_type: Type) -> Result<Outcome, Failure> {
        self.signals.check()?;
        let begin = Instant::now();
        let reserved = self.send_by(self.unit, &ReserveOut::Reserve { key: self.key, reservation_type })?;
        if let Err(why) = reserved {
            self.read_own_keys()?;
            return Ok(Outcome::Fails(why));
        }
        let (unit, release) = (self.unit, ReserveOut::Release { key: self.key, reservation_type });
        let (reading, released) = thread::scope(|scope| {
            let (sender, receiver) = mpsc::channel();
            let read = scope.spawn(move || {
                let _ = sender.send(read_reservation(unit));
            });
            let reading = receiver.recv_timeout(READING_TIMEOUT).ok();
            let releaser = if reading.is_none() { self.second.unwrap_or(self.unit) } else { self.unit };
            let released = self.send_by(releaser, &release);
            let lasted = begin.elapsed();
            self.longest_reservation.set(self.longest_reservation.get().max(lasted));
            let _ = read.join();
            (reading, released)
        });
        if let Err(why) = released? {
            return Err(Failure::new(Code::Failure, format!("the unit did not release the reservation: {why}")));
        }
        let Some(reading) = reading else {
            let text = format!("the unit needs over {READING_TIMEOUT:?} to report the reservation");
            return Ok(Outcome::Fails(text));
        };
        let (reservation, status) = reading?;
        self.read_own_keys()?;
        let rest = read::reservation(self.unit)?;
        Ok(match wrong_reading(reservation.held, status.as_ref(), self.key, reservation_type) {
            Some(why) => Outcome::Fails(why.to_owned()),
            None if rest.held.is_some() => Outcome::Fails("READ RESERVATION has it also after RELEASE".to_owned()),
            None => Outcome::Works,
        })
    }

    /// PREEMPT and PREEMPT AND ABORT of a key that no initiator has, which the unit must refuse with RESERVATION CONFLICT
    /// (SPC-4 5.13.11.4). Another answer tells that it does not know the command.
    fn preempt(&mut self) -> Result<(), Failure> {
        let key = self.key;
        let service_action_key = Key(!key.0);
        let scope_type = ScopeType::from(Type::WriteExclusiveRegistrantsOnly);
        for (requirement, request) in [
            (Requirement::Preempt, ReserveOut::Preempt { key, service_action_key, scope_type }),
            (Requirement::PreemptAndAbort, ReserveOut::PreemptAndAbort { key, service_action_key, scope_type }),
        ] {
            self.signals.check()?;
            self.read_own_keys()?;
            let command = request.encode().map_err(|error| Failure::new(Code::Failure, error))?;
            let outcome = match self.unit.execute(Sender::Own, command.command())? {
                Completion::Status(Status::RESERVATION_CONFLICT) => {
                    Outcome::NotExamined(format!("the unit knows the command; its effect {NEEDS_ANOTHER}"))
                }
                Completion::Good(_) => Outcome::Fails("GOOD for a key that is not registered".to_owned()),
                other => Outcome::Fails(refusal(Failure::of_completion(&other, Effect::Changes, ""))?),
            };
            self.add(requirement, outcome);
        }
        Ok(())
    }

    /// Removes the registration of the check, and with it its reservation.
    pub(super) fn clean_up(&self) -> Result<(), Failure> {
        let mut removed = self.remove();
        for _ in 1..MAX_REMOVALS {
            if removed.is_ok() {
                break;
            }
            thread::sleep(PAUSE);
            removed = self.remove();
        }
        removed
    }

    fn remove(&self) -> Result<(), Failure> {
        let has_key = || Ok::<_, Failure>(read::keys(self.unit)?.value.keys.contains(&self.key));
        if !has_key()? {
            return Ok(());
        }
        let request = self.register(self.key, Key::ZERO, self.ptpl_a);
        let sent = self.send_by(self.unit, &request)?;
        match (has_key()?, sent) {
            (false, _) => Ok(()),
            (true, Ok(())) => Err(Failure::new(Code::Failure, "READ KEYS still has the key")),
            (true, Err(why)) => Err(Failure::new(Code::Failure, why)),
        }
    }
}

struct Registered {
    outcome: Outcome,
    /// After it, if the unit has the registration.
    generation: Option<Generation>,
}

fn refuse_registered(keys: &[Key], is_whole: bool) -> Result<(), Failure> {
    let more = if is_whole { "" } else { " or more" };
    match keys {
        [] if is_whole => Ok(()),
        keys => Err(Failure::new(
            Code::Conflict,
            format!(
                "the unit has {}{more} registrations: check it when no cluster uses it; the check changed nothing",
                keys.len()
            ),
        )),
    }
}

/// A refusal of the unit as the outcome of a test. No answer, or a unit that is busy, ends the check.
fn tested<T>(result: Result<T, Failure>) -> Result<Result<T, String>, Failure> {
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(failure) => refusal(failure).map(Err),
    }
}

/// The text of a refusal.
fn refusal(failure: Failure) -> Result<String, Failure> {
    match failure.code() {
        Code::Failure | Code::Conflict | Code::Unsupported => Ok(failure.to_string()),
        _ => Err(failure),
    }
}

fn outcome<T>(result: Result<T, String>) -> Outcome {
    result.map_or_else(Outcome::Fails, |_| Outcome::Works)
}

fn has_registration(status: &FullStatus, key: Key) -> bool {
    status.descriptors.iter().any(|descriptor| descriptor.key == key)
}

/// READ RESERVATION, and READ FULL STATUS where the unit supports it.
fn read_reservation(unit: &Unit) -> Result<(Reservation, Option<FullStatus>), Failure> {
    let reservation = read::reservation(unit)?;
    let status = tested(read::full_status(unit))?.ok().map(|reading| reading.value);
    Ok((reservation, status))
}

/// Why readings are not those of this reservation.
fn wrong_reading(held: Option<Held>, status: Option<&FullStatus>, key: Key, expected: Type) -> Option<&'static str> {
    let is_holder = |held: Held| expected.is_all_registrants() || held.key == key;
    let is_in_status =
        |status: &FullStatus| status.descriptors.iter().any(|one| one.key == key && one.held == Some(expected));
    match (held, status) {
        (None, _) => Some("READ RESERVATION has no reservation after RESERVE"),
        (Some(held), _) if held.reservation_type != expected => Some("READ RESERVATION has another type"),
        (Some(held), _) if !is_holder(held) => Some("READ RESERVATION has another key"),
        (_, Some(status)) if !is_in_status(status) => Some("READ FULL STATUS has no holder with this key and type"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_of_another_reservation_is_wrong() {
        let (key, wero) = (Key(1), Type::WriteExclusiveRegistrantsOnly);
        let held = |key, reservation_type| Some(Held { key, reservation_type });
        assert_eq!(wrong_reading(held(key, wero), None, key, wero), None);
        let all = Type::WriteExclusiveAllRegistrants;
        assert_eq!(wrong_reading(held(Key::ZERO, all), None, key, all), None);
        for (held, status) in [
            (None, None),
            (held(Key(2), wero), None),
            (held(key, all), None),
            (held(key, wero), Some(FullStatus::default())),
        ] {
            assert!(wrong_reading(held, status.as_ref(), key, wero).is_some(), "{held:?}");
        }
    }

    #[test]
    fn unit_with_registrations_or_a_cut_list_is_refused() {
        assert!(refuse_registered(&[], true).is_ok());
        for (keys, is_whole) in [(&[Key(1)][..], true), (&[], false)] {
            assert_eq!(refuse_registered(keys, is_whole).unwrap_err().code(), Code::Conflict);
        }
    }

    #[test]
    fn busy_unit_ends_the_check_and_a_refusal_fails_a_test() {
        assert!(tested::<()>(Err(Failure::new(Code::Unavailable, "BUSY"))).is_err());
        assert_eq!(tested::<()>(Err(Failure::new(Code::Unsupported, "no"))).unwrap(), Err("no".to_owned()));
    }
}
