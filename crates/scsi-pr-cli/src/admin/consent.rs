//! The question before a change that other initiators feel.

use std::io::{self, BufRead, IsTerminal, Write};

use scsi_pr_daemon::log::escape;

use super::failure::{Code, Failure};
use super::options::Consent;
use super::report::RegistrationReport;
use super::text;

/// The most initiators that a question names.
const MAX_NAMES: usize = 16;

/// Says what will happen, and asks whether it shall.
///
/// # Errors
///
/// The administrator did not agree, or cannot be asked.
pub(crate) fn ask(consent: Consent, intention: &str) -> Result<(), Failure> {
    let mut stderr = io::stderr();
    let _ = writeln!(stderr, "{}", intention.lines().map(escape).collect::<Vec<_>>().join("\n"));
    if consent.yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        return Err(Failure::usage("nothing was changed: give --yes, as standard input is not a terminal"));
    }
    let _ = write!(stderr, "Continue? [y/N] ");
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    match (read, answer.trim()) {
        (Ok(_), "y" | "Y" | "yes") => Ok(()),
        _ => Err(Failure::new(Code::Failure, "nothing was changed")),
    }
}

/// Registrations by initiator and key, for a question.
pub(crate) fn names<'a>(registrations: impl IntoIterator<Item = &'a RegistrationReport>) -> String {
    let all: Vec<_> = registrations.into_iter().collect();
    let mut names: Vec<String> = all
        .iter()
        .take(MAX_NAMES)
        .map(|one| {
            let initiator = one.initiator.as_deref().unwrap_or("an unknown initiator");
            let own = if one.own { ", this initiator itself" } else { "" };
            format!("{} (key {}{own})", escape(initiator), text::key(&one.key))
        })
        .collect();
    match all.len() - names.len() {
        0 if names.is_empty() => "no initiator".to_owned(),
        0 => names.join(", "),
        rest => {
            names.push(format!("{rest} more"));
            names.join(", ")
        }
    }
}
