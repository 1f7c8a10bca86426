//! `scsi-pr list`: the units of a store or disk, and the disks of this host that have registrations or a reservation.

use serde_json::{Value, json};

use super::access::{Access, ListedUnit, Unit};
use super::failure::{Code, Failure};
use super::options::List;
use super::output::{self, Format};
use super::report::ReservationReport;
use super::{causes, read, show, text};

/// A unit in short.
struct Summary {
    registrations: usize,
    is_whole: bool,
    reservation: Option<ReservationReport>,
}

pub(crate) fn run(options: &List) -> Result<(), Failure> {
    let access = Access::open(&options.access)?;
    let is_of_host = matches!(access, Access::Direct(_) | Access::Helper(_));
    let units = access.units()?;
    // A disk that hangs must not delay the others.
    let summaries: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = units.into_iter().map(|listed| scope.spawn(|| summarize(listed))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a reading does not panic")).collect()
    });
    let mut rows = vec![["UNIT", "REGISTRATIONS", "RESERVATION"].map(str::to_owned)];
    let mut values = Vec::new();
    let mut failures = Vec::new();
    for (name, owner, summary) in summaries {
        let shown = scsi_pr_daemon::log::escape(&name);
        match (summary, owner) {
            (_, Some(owner)) => {
                rows.push([shown, "-".to_owned(), format!("{owner}: use --disk")]);
                values.push(json!({ "device": name, "owner": owner }));
            }
            (Ok(Summary { registrations: 0, reservation: None, .. }), None) if is_of_host => {}
            (Ok(summary), None) => {
                let more = if summary.is_whole { "" } else { " or more" };
                let reservation = text::reservation(summary.reservation.as_ref());
                rows.push([shown, format!("{}{more}", summary.registrations), reservation]);
                values.push(value(&name, &summary));
            }
            (Err(failure), None) if is_of_host && failure.code() == Code::Unsupported => {}
            (Err(failure), None) => {
                values.push(show::of_failure(&name, &failure));
                failures.push(causes::explain(failure).of(&name));
            }
        }
    }
    match Format::of(options.output.json) {
        Format::Json => output::print_json(&json!({ "units": values }))?,
        Format::Text if rows.len() == 1 => output::print("  no units have registrations\n")?,
        Format::Text => output::print(&text::columns(&rows))?,
    };
    show::finish(failures)
}

fn summarize(listed: ListedUnit) -> (String, Option<String>, Result<Summary, Failure>) {
    let summary = listed.unit.and_then(|unit| summary(&unit));
    (listed.name, listed.owner, summary)
}

fn summary(unit: &Unit) -> Result<Summary, Failure> {
    let keys = read::keys(unit)?;
    let reservation = read::reservation(unit)?.held.map(ReservationReport::from);
    Ok(Summary { registrations: keys.value.keys.len(), is_whole: keys.is_whole, reservation })
}

fn value(name: &str, summary: &Summary) -> Value {
    let Summary { registrations, is_whole, reservation } = summary;
    json!({ "device": name, "registrations": registrations, "complete": is_whole, "reservation": reservation })
}
