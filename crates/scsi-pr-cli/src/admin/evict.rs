//! `scsi-pr evict`: removes the registrations of a machine that no longer exists.
//!
//! The rules, by the state of the reservation (SPC-4 5.13.11):
//!
//! | NAME | command | effect for others |
//! | --- | --- | --- |
//! | does not hold the reservation, or holds it as one of all registrants | REGISTER with key 0, as NAME | none |
//! | alone holds the reservation, and others are registered | PREEMPT by another registrant | that one is the holder; the unit is reserved all the while |
//! | is the only registrant | REGISTER with key 0, as NAME | the unit is not reserved any more |
//!
//! REGISTER keeps APTPL as it is. PREEMPT removes every registration with the key, so it is not used where another initiator has the same key. After a
//! PREEMPT, a machine that comes back finds the unit attention REGISTRATIONS PREEMPTED.

mod plan;

use std::collections::HashSet;
use std::io::Write;

use rustix::process::getuid;
use scsi_pr_daemon::log::{Destinations, Fields, Log, Record, escape};
use scsi_pr_store::InitiatorName;
use serde_json::{Value, json};

use super::access::{Access, Condition, ListedUnit, Sender, Unit};
use super::failure::{Code, Effect, Failure};
use super::options::Evict;
use super::output::{self, Format, Reader};
use super::read::Registrants;
use super::report::{KeyReport, ReservationReport};
use super::{causes, change, consent, read, show, text};
use plan::{Step, plan};

/// The steps for one unit.
struct Planned {
    unit: Unit,
    steps: Vec<Step>,
}

/// An eviction that runs.
struct Eviction {
    access: Access,
    name: InitiatorName,
    successor: Option<InitiatorName>,
    log: AuditLog,
}

/// Removes the registrations of NAME.
pub(crate) fn run(options: &Evict) -> Result<(), Failure> {
    if options.access.store.is_none() && options.access.disk.is_none() {
        return Err(Failure::usage(
            "a machine is evicted from a store or a disk: give --store or --disk. Of another unit, remove its key by \
             \"scsi-pr preempt\"",
        ));
    }
    let access = Access::open(&options.access)?;
    let name = access.initiator(&options.name)?;
    let successor = options.successor.as_ref().map(|name| access.initiator(name)).transpose()?;
    let format = Format::of(options.output.json);
    let eviction = Eviction { access, name, successor, log: AuditLog::open() };
    let plans = eviction.plan_all(options, format)?;
    consent::ask(options.consent, &intention(&eviction.name, &plans))?;
    // Nothing is changed anywhere if one plan does not hold any more.
    for Planned { unit, steps } in &plans {
        eviction.check_no_session(unit, Code::Conflict).map_err(|failure| failure.of(&unit.name))?;
        eviction.check_plan(unit, steps).map_err(|failure| failure.of(&unit.name))?;
    }
    eviction.carry_out_all(&plans, format)
}

impl Eviction {
    /// The plans of all units where NAME is registered. If one unit cannot be planned, nothing is changed anywhere.
    fn plan_all(&self, options: &Evict, format: Format) -> Result<Vec<Planned>, Failure> {
        let mut plans = Vec::new();
        let mut failures = Vec::new();
        let mut seen = HashSet::new();
        for listed in units(&self.access, options)? {
            let planned = listed.unit.and_then(|unit| {
                let is_new = seen.insert(unit.identifier.clone().unwrap_or_else(|| unit.name.clone()));
                let steps = if is_new { self.plan(&unit)? } else { Vec::new() };
                Ok(Planned { unit, steps })
            });
            match planned {
                Ok(Planned { steps, .. }) if steps.is_empty() => {}
                Ok(planned) => plans.push(planned),
                Err(failure) => failures.push((listed.name.clone(), causes::explain(failure).of(&listed.name))),
            }
        }
        if failures.is_empty() && plans.is_empty() {
            let text = format!("{} is registered with none of the units", self.name);
            return Err(Failure::new(Code::Failure, text));
        }
        if format == Format::Json && !failures.is_empty() {
            let values = failures.iter().map(|(unit, failure)| show::of_failure(unit, failure)).collect();
            // The failures of planning matter more, and standard error has them.
            let _ = print_report(&self.name, values);
        }
        show::finish(failures.into_iter().map(|(_, failure)| failure).collect()).map(|()| plans)
    }

    fn plan(&self, unit: &Unit) -> Result<Vec<Step>, Failure> {
        let Registrants { status, aptpl, .. } = read::registrants(unit)?;
        let steps = plan(&status, aptpl, &self.name, self.successor.as_ref())?;
        if !steps.is_empty() {
            self.check_no_session(unit, Code::Failure)?;
        }
        Ok(steps)
    }

    /// Fails with `code` if the machine has a session.
    fn check_no_session(&self, unit: &Unit, code: Code) -> Result<(), Failure> {
        let name = &self.name;
        match self.access.has_session(unit, name)? {
            Some(true) => {
                let text = "has a session with the unit now, so its machine is there: use \"scsi-pr preempt\"";
                Err(Failure::new(code, format!("nothing was changed: {name} {text}")))
            }
            _ => Ok(()),
        }
    }

    /// Plans again from a new reading. `steps` must be the same. Returns the condition under which they may be carried out.
    fn check_plan(&self, unit: &Unit, steps: &[Step]) -> Result<Condition, Failure> {
        let Registrants { status, reservation, aptpl } = read::registrants(unit)?;
        match plan(&status, aptpl, &self.name, self.successor.as_ref()) {
            Ok(now) if now == steps => {
                let condition = Condition::new(reservation, Some(&status.value));
                Ok(Condition { without_session: Some(self.name.clone()), ..condition })
            }
            _ => Err(Failure::changed_meanwhile()),
        }
    }

    /// Carries out all plans, also after one failed or after the output was lost.
    fn carry_out_all(&self, plans: &[Planned], format: Format) -> Result<(), Failure> {
        let mut failures = Vec::new();
        let mut values = Vec::new();
        let mut changed = Vec::new();
        let mut printed = Ok(Reader::Present);
        for Planned { unit, steps } in plans {
            let mut removed = Vec::new();
            let result = self.carry_out(unit, steps, &mut removed);
            if !removed.is_empty() {
                changed.push(unit.name.clone());
            }
            let mut value = show::with_names(json!({ "removed": removed }), &unit.name, unit.identifier.as_deref());
            match result {
                Ok(reservation) => {
                    value["reservation"] = json!(reservation);
                    if format == Format::Text {
                        let reservation = text::reservation(reservation.as_ref());
                        let name = escape(&self.name.to_string());
                        let line = format!("{}: evicted {name}; reservation: {reservation}\n", escape(&unit.name));
                        printed = printed.and_then(|_| output::print(&line));
                    }
                }
                Err(failure) => {
                    let failure = match removed.len() {
                        0 => failure,
                        count => {
                            let text = format!("{failure}; before that, {count} registrations were removed");
                            Failure::new(Code::PartlyDone, text)
                        }
                    };
                    let failure = failure.of(&unit.name);
                    value["error"] = json!(failure.to_string());
                    value["exit-code"] = json!(failure.code() as u8);
                    failures.push(failure);
                }
            }
            values.push(value);
        }
        if format == Format::Json {
            printed = print_report(&self.name, values);
        }
        if let Err(failure) = printed {
            let text = match changed.is_empty() {
                true => failure.to_string(),
                false => {
                    format!("the change is made ({} was evicted from {}), but {failure}", self.name, changed.join(", "))
                }
            };
            failures.push(Failure::new(failure.code(), text));
            if failures.len() == 1 {
                return show::finish(failures);
            }
        }
        if !failures.is_empty() && !changed.is_empty() {
            failures.iter().for_each(output::report_failure);
            let text = format!("partly done: {} was evicted from {}", self.name, changed.join(", "));
            return Err(Failure::new(Code::PartlyDone, text));
        }
        // A change that may have been made matters most.
        failures.sort_by_key(|failure| failure.code() != Code::OutcomeUnknown);
        show::finish(failures)
    }

    /// Carries out the steps of one unit, and checks the result. `removed` has the steps that are done, also after a failure.
    fn carry_out(
        &self,
        unit: &Unit,
        steps: &[Step],
        removed: &mut Vec<Value>,
    ) -> Result<Option<ReservationReport>, Failure> {
        let name = &self.name;
        for (index, step) in steps.iter().enumerate() {
            let condition = self.check_plan(unit, &steps[index..])?;
            let request = step.request();
            let hint = "the registrations have changed meanwhile: look with \"scsi-pr show\", and try again";
            let result = change::send(unit, Sender::Nexus(step.sender()), &request, Some(&condition), hint);
            let outcome =
                result.as_ref().map_or_else(ToString::to_string, |()| format!("{} is done", request.action()));
            let unit_name = unit.identifier.as_deref().unwrap_or(&unit.name);
            let (key, user) = (step.key().to_string(), administrator());
            let message = format!("evict {name} from {unit_name}, key {key}, by {user}: {outcome}");
            let fields =
                [("initiator", name.to_string()), ("unit", unit_name.to_owned()), ("key", key), ("user", user)];
            self.log.write(&message, fields.into());
            result?;
            removed.push(json!({ "key": KeyReport::from(step.key()).key, "preempted-by": step.preempted_by() }));
        }
        let status = read::full_status(unit)?;
        if !plan(&status, false, name, None).is_ok_and(|rest| rest.is_empty()) {
            let text = format!("{name} has registered again meanwhile: its machine still runs");
            return Err(Failure::new(Code::Failure, text));
        }
        Ok(read::reservation(unit)?.held.map(ReservationReport::from))
    }
}

fn print_report(name: &InitiatorName, units: Vec<Value>) -> Result<Reader, Failure> {
    output::print_json(&json!({ "initiator": name.to_string(), "units": units }))
}

fn units(access: &Access, options: &Evict) -> Result<Vec<ListedUnit>, Failure> {
    if options.devices.is_empty() {
        return access.units();
    }
    let listed = |device: &std::path::PathBuf| ListedUnit {
        name: device.display().to_string(),
        owner: None,
        unit: access.unit(device, Effect::Reads),
    };
    Ok(options.devices.iter().map(listed).collect())
}

fn intention(name: &InitiatorName, plans: &[Planned]) -> String {
    let mut lines =
        vec![format!("This removes the registrations of {name}. Its machine must be gone for good, or fenced:")];
    for Planned { unit, steps } in plans {
        lines.extend(steps.iter().map(|step| format!("  {}: {}", unit.name, step.intention(name))));
    }
    lines.join("\n")
}

/// The user behind this process, also behind sudo.
fn administrator() -> String {
    let user = getuid().as_raw();
    // 4294967295 stands for no login (audit's loginuid).
    let login = std::fs::read_to_string("/proc/self/loginuid").ok().and_then(|text| text.trim().parse::<u32>().ok());
    match login.filter(|login| *login != u32::MAX && *login != user) {
        Some(login) => format!("user {user} (login of user {login})"),
        None => format!("user {user}"),
    }
}

/// Writes to standard error for the administrator, and to the journal or syslog as a record.
struct AuditLog(Log);

impl AuditLog {
    fn open() -> Self {
        Self(Log::to_stderr("scsi-pr", Destinations::default()))
    }

    fn write(&self, message: &str, fields: Fields) {
        let message = escape(message);
        let _ = writeln!(std::io::stderr(), "scsi-pr: {message}");
        self.0.write_to_journal(Record { level: tracing::Level::WARN, line: &message, message: &message }, fields);
    }
}
