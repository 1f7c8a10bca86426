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

use std::io::Write;

use rustix::process::getuid;
use scsi_pr::Nexus;
use scsi_pr_daemon::log::{Destinations, Fields, Log, Record, escape};
use scsi_pr_store::InitiatorName;
use serde_json::{Value, json};

use super::access::{Access, ListedUnit, Sender, Unit};
use super::failure::{Code, Effect, Failure};
use super::options::Evict;
use super::output::{self, Format};
use super::report::{KeyReport, ReservationReport};
use super::{causes, change, consent, read, show, text};
use plan::{Step, plan};

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
    let mut failures = Vec::new();
    let mut values = Vec::new();
    let mut plans = Vec::new();
    for listed in units(&access, options)? {
        let planned = listed.unit.and_then(|unit| {
            let status = read::full_status(&unit)?;
            let aptpl = read::capabilities(&unit)?.ptpl_a;
            let steps = plan(&status, aptpl, &name, successor.as_ref())?;
            if !steps.is_empty() && access.has_session(&unit, &name)? == Some(true) {
                let text =
                    format!("{name} has a session with the unit now, so its machine is there: use \"scsi-pr preempt\"");
                return Err(Failure::new(Code::Failure, text));
            }
            Ok((unit, steps))
        });
        match planned {
            Ok((_, steps)) if steps.is_empty() => {}
            Ok(planned) => plans.push(planned),
            Err(failure) => {
                let failure = causes::explain(failure).of(&listed.name);
                values.push(show::of_failure(&listed.name, &failure));
                failures.push(failure);
            }
        }
    }
    if plans.is_empty() && failures.is_empty() {
        return Err(Failure::new(Code::Failure, format!("{name} is registered with none of the units")));
    }
    if !plans.is_empty() {
        consent::ask(options.consent, &intention(&name, &plans))?;
    }
    let format = Format::of(options.output.json);
    let log = AuditLog::open();
    for (unit, steps) in &plans {
        let mut removed = Vec::new();
        let result = carry_out(unit, &name, steps, &log, &mut removed);
        let mut value = show::with_names(json!({ "removed": removed }), &unit.name, unit.identifier.as_deref());
        match result {
            Ok(reservation) => {
                value["reservation"] = json!(reservation);
                if format == Format::Text {
                    let reservation = text::reservation(reservation.as_ref());
                    let name = escape(&name.to_string());
                    output::print(&format!("{}: evicted {name}; reservation: {reservation}\n", escape(&unit.name)))?;
                }
            }
            Err(failure) => {
                let failure = match removed.len() {
                    0 => failure,
                    count => {
                        let text = format!("{failure}; before that, {count} registrations were removed");
                        Failure::new(failure.code(), text)
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
        output::print_json(&json!({ "initiator": name.to_string(), "units": values }))?;
    }
    show::finish(failures)
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

fn intention(name: &InitiatorName, plans: &[(Unit, Vec<Step>)]) -> String {
    let mut lines =
        vec![format!("This removes the registrations of {name}. Its machine must be gone for good, or fenced:")];
    for (unit, steps) in plans {
        lines.extend(steps.iter().map(|step| format!("  {}: {}", unit.name, step.intention(name))));
    }
    lines.join("\n")
}

/// Carries out the steps of one unit, and checks the result. `removed` has the steps that are done, also after a failure.
fn carry_out(
    unit: &Unit,
    name: &InitiatorName,
    steps: &[Step],
    log: &AuditLog,
    removed: &mut Vec<Value>,
) -> Result<Option<ReservationReport>, Failure> {
    for step in steps {
        let request = step.request();
        let hint = "the registrations have changed meanwhile: look with \"scsi-pr show\", and try again";
        let result = change::send(unit, Sender::Nexus(step.sender()), &request, hint);
        let outcome = result.as_ref().map_or_else(ToString::to_string, |()| format!("{} is done", request.action()));
        let unit_name = unit.identifier.as_deref().unwrap_or(&unit.name);
        let (key, user) = (step.key().to_string(), administrator());
        let message = format!("evict {name} from {unit_name}, key {key}, by {user}: {outcome}");
        let fields = [("initiator", name.to_string()), ("unit", unit_name.to_owned()), ("key", key), ("user", user)];
        log.write(&message, fields.into());
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

impl Step {
    fn sender(&self) -> &Nexus {
        match self {
            Self::Unregister { nexus, .. } => nexus,
            Self::Preempt { successor, .. } => successor,
        }
    }
}
