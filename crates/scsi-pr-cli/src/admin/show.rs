//! The commands that read units: `show`, `keys`, `reservation`, `capabilities` and `status`.

use serde::Serialize;
use serde_json::{Value, json};

use super::access::{Access, Unit};
use super::causes;
use super::failure::{Code, Effect, Failure};
use super::options::Read;
use super::output::{self, Format, Reader};
use super::report::{CapabilitiesReport, HolderReport, KeysReport, StateReport};
use super::{read, text};

/// A reading of a unit, as a command prints it.
pub(crate) struct Reading {
    pub(crate) json: Value,
    pub(crate) text: String,
    /// Whether a list has every entry.
    pub(crate) complete: bool,
}

/// Reads a unit.
pub(crate) type Reads = fn(&Unit) -> Result<Reading, Failure>;

pub(crate) const STATE: Reads = |unit| Ok(of_state(&read::state(unit)?));
pub(crate) const STATUS: Reads = |unit| Ok(of_state(&read::status(unit)?));
pub(crate) const KEYS: Reads = |unit| {
    let report = KeysReport::from(&read::keys(unit)?);
    Ok(Reading { json: value(&report)?, text: text::keys(&report), complete: report.complete })
};
pub(crate) const RESERVATION: Reads = |unit| {
    let report = HolderReport::from(&read::reservation(unit)?);
    Ok(Reading { json: value(&report)?, text: text::holder(&report), complete: true })
};
pub(crate) const CAPABILITIES: Reads = |unit| {
    let report = CapabilitiesReport::from(&read::capabilities(unit)?);
    Ok(Reading { json: value(&report)?, text: text::capabilities(&report), complete: true })
};

fn of_state(report: &StateReport) -> Reading {
    Reading { json: json!(report), text: text::state(report), complete: report.complete }
}

fn value(report: &impl Serialize) -> Result<Value, Failure> {
    serde_json::to_value(report).map_err(|error| Failure::new(Code::Failure, error))
}

/// Reads each unit, also after one failed. The exit code is that of the first failure.
pub(crate) fn run(options: &Read, reads: &Reads) -> Result<(), Failure> {
    let access = Access::open(&options.access);
    let format = Format::of(options.output.json);
    let mut failures = Vec::new();
    let mut units = Vec::new();
    for device in &options.devices {
        let name = device.to_string_lossy();
        let reading = match &access {
            Ok(access) => access.unit(device, Effect::Reads).and_then(|unit| Ok((reads(&unit)?, unit))),
            Err(failure) => Err(failure.clone()),
        };
        match reading {
            Ok((reading, unit)) => {
                if !reading.complete {
                    failures.push(Failure::new(Code::Failure, "the list is not complete").of(&name));
                }
                match format {
                    Format::Json => units.push(with_names(reading.json, &name, unit.identifier.as_deref())),
                    Format::Text => {
                        let text = text::heading(&name, unit.identifier.as_deref()) + &reading.text;
                        if output::print(&text)? == Reader::Gone {
                            return Ok(());
                        }
                    }
                }
            }
            Err(failure) => {
                let failure = causes::explain(failure).of(&name);
                units.push(of_failure(&name, &failure));
                failures.push(failure);
            }
        }
    }
    if format == Format::Json {
        output::print_json(&json!({ "units": units }))?;
    }
    finish(failures)
}

/// The first failure. The others are printed.
pub(crate) fn finish(failures: Vec<Failure>) -> Result<(), Failure> {
    let mut failures = failures.into_iter();
    let Some(first) = failures.next() else { return Ok(()) };
    failures.for_each(|failure| output::report_failure(&failure));
    Err(first)
}

/// A report with the names of its unit.
pub(crate) fn with_names(report: Value, device: &str, identifier: Option<&str>) -> Value {
    let mut all = json!({ "device": device, "unit": identifier });
    if let (Value::Object(all), Value::Object(report)) = (&mut all, report) {
        all.extend(report);
    }
    all
}

/// The report of a unit that cannot be read or changed.
pub(crate) fn of_failure(device: &str, failure: &Failure) -> Value {
    json!({ "device": device, "error": failure.to_string(), "exit-code": failure.code() as u8 })
}
