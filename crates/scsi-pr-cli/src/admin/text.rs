//! Reports as text for a terminal. No I/O, and no control characters but newlines: names come from devices and peers.

use std::fmt::Write;

use scsi_pr_daemon::log::escape;

use super::report::{
    CapabilitiesReport, HolderReport, KeyReport, KeysReport, RegistrationReport, ReservationReport, StateReport,
};

/// A key in hexadecimal, and as text where it is text.
pub(crate) fn key(KeyReport { key, key_text }: &KeyReport) -> String {
    match key_text {
        Some(text) => format!("{key} {text:?}"),
        None => key.clone(),
    }
}

/// A reservation in words.
pub(crate) fn reservation(reservation: Option<&ReservationReport>) -> String {
    match reservation {
        None => "not reserved".to_owned(),
        Some(ReservationReport { reservation_type, holder: Some(holder), .. }) => {
            format!("{reservation_type}, held with key {}", key(holder))
        }
        Some(ReservationReport { reservation_type, holder: None, .. }) => {
            format!("{reservation_type}, held by every registrant")
        }
    }
}

/// The heading of a unit.
pub(crate) fn heading(name: &str, identifier: Option<&str>) -> String {
    match identifier {
        Some(identifier) if identifier != name => format!("{} ({})\n", escape(name), escape(identifier)),
        _ => format!("{}\n", escape(name)),
    }
}

/// The state of a unit, with a line for each registration.
pub(crate) fn state(report: &StateReport) -> String {
    let StateReport { generation, reservation: held, registrations, complete, notes, own_remark } = report;
    let mut text = format!("  reservation: {}\n", reservation(held.as_ref()));
    if let Some(holder) = registrations.iter().find(|one| one.holder == Some(true))
        && held.as_ref().is_some_and(|held| !held.all_registrants)
        && let Some(name) = &holder.initiator
    {
        let own = if holder.own { format!(" ({own_remark})") } else { String::new() };
        let _ = writeln!(text, "  holder: {}{own}", escape(name));
    }
    let more = if *complete { "" } else { " or more" };
    let _ = match registrations.len() {
        0 if *complete => writeln!(text, "  no registrations, generation {generation}"),
        1 if *complete => writeln!(text, "  1 registration, generation {generation}"),
        count => writeln!(text, "  {count}{more} registrations, generation {generation}"),
    };
    text += &table(registrations, own_remark);
    for note in notes {
        let _ = writeln!(text, "  note: {}", escape(note));
    }
    text
}

fn table(registrations: &[RegistrationReport], own_remark: &str) -> String {
    if registrations.is_empty() {
        return String::new();
    }
    let mut rows = vec![["KEY", "INITIATOR", "TARGET PORT", "REMARKS"].map(str::to_owned)];
    rows.extend(registrations.iter().map(|one| {
        let port = match (one.target_port, one.all_target_ports) {
            (_, true) => "all".to_owned(),
            (Some(port), _) => port.to_string(),
            (None, _) => "-".to_owned(),
        };
        let initiator = one.initiator.as_deref().map_or_else(|| "unknown".to_owned(), escape);
        [key(&one.key), initiator, port, remarks(one, own_remark)]
    }));
    columns(&rows)
}

fn remarks(registration: &RegistrationReport, own_remark: &str) -> String {
    let holder = match registration.holder {
        Some(true) => Some("holder"),
        Some(false) => None,
        None => Some("perhaps holder"),
    };
    let remarks: Vec<_> = holder.into_iter().chain(registration.own.then_some(own_remark)).collect();
    remarks.join(", ")
}

/// Rows of cells in columns, indented.
pub(crate) fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |index: usize| rows.iter().map(|row| row[index].chars().count()).max().unwrap_or_default();
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for row in rows {
        let mut line = String::from(" ");
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(line, " {cell:width$} ");
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

/// The keys, a line for each.
pub(crate) fn keys(report: &KeysReport) -> String {
    let KeysReport { generation, keys, complete } = report;
    let more = if *complete { "" } else { " or more" };
    let mut text = match keys.len() {
        1 if *complete => format!("  1 key, generation {generation}\n"),
        count => format!("  {count}{more} keys, generation {generation}\n"),
    };
    for one in keys {
        let _ = writeln!(text, "  {}", key(one));
    }
    text
}

/// The reservation alone.
pub(crate) fn holder(report: &HolderReport) -> String {
    format!("  reservation: {}\n  generation: {}\n", reservation(report.reservation.as_ref()), report.generation)
}

/// The capabilities in words.
pub(crate) fn capabilities(report: &CapabilitiesReport) -> String {
    let CapabilitiesReport { rlr_c, crh, sip_c, atp_c, ptpl_c, ptpl_a, allow_commands, types } = report;
    let mut text = String::new();
    for (name, is_set, meaning) in [
        ("RLR_C", rlr_c, "REPLACE LOST RESERVATION is supported"),
        ("CRH", crh, "RESERVE and RELEASE of SPC-2 do not conflict with registrations"),
        ("SIP_C", sip_c, "REGISTER may name other initiators (SPEC_I_PT)"),
        ("ATP_C", atp_c, "REGISTER may be for all target ports (ALL_TG_PT)"),
        ("PTPL_C", ptpl_c, "reservations can survive a loss of power (APTPL)"),
        ("PTPL_A", ptpl_a, "reservations survive a loss of power as they are now"),
    ] {
        let _ = writeln!(text, "  {name:<7} {:<4} {meaning}", if *is_set { "yes" } else { "no" });
    }
    let _ = writeln!(text, "  ALLOW COMMANDS {allow_commands:03b}b");
    let types = match types {
        None => "not stated".to_owned(),
        Some(types) if types.is_empty() => "none".to_owned(),
        Some(types) => types.join(", "),
    };
    let _ = writeln!(text, "  types: {types}");
    text
}

#[cfg(test)]
mod tests;
