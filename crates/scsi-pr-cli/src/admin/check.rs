//! `scsi-pr check`: whether clusters would work on an unreserved unit, tested with a random key.
//!
//! | module | contents |
//! | --- | --- |
//! | `examination` | the commands, and the readings that must follow each |
//! | `identifiers` | the Device Identification VPD page of each path |
//! | `recorder` | counts the unit attentions |
//! | `verdict` | the requirements of each kind of cluster |
//!
//! The unit must have no registrations. The only registration that the command makes is its own, by REGISTER with key 0, which
//! a unit refuses to an initiator that is registered already. The command removes it by REGISTER with its own key, so it never
//! removes another one.

mod examination;
pub(super) mod identifiers;
mod recorder;
mod verdict;

use std::ffi::OsString;
use std::io::Write;
use std::time::Duration;

use rustix::rand::{GetRandomFlags, getrandom};
use scsi_pr::Key;
use scsi_pr_daemon::log::escape;
use scsi_pr_daemon::signals;
use serde_json::json;

use super::access::{Access, Unit};
use super::failure::{Code, Effect, Failure};
use super::options::Target;
use super::output::{self, Format};
use super::{causes, show, text};
use examination::{Examination, Signals};
use recorder::Recorder;
use verdict::{Test, Verdict};

/// The results of a check.
struct Report {
    tests: Vec<Test>,
    unit_attentions: Vec<String>,
    longest_reservation: Duration,
}

/// Checks a unit.
pub(crate) fn run(target: &Target) -> Result<(), Failure> {
    let name = target.device.to_string_lossy();
    let format = Format::of(target.output.json);
    let (unit, undo, report) = examine(target).map_err(|failure| {
        let failure = causes::explain(failure).of(&name);
        if format == Format::Json {
            let _ = output::print_json(&show::of_failure(&name, &failure));
        }
        failure
    })?;
    print(&unit, &undo, &report, format).map_err(|failure| failure.of(&name))
}

fn examine(target: &Target) -> Result<(Unit, String, Report), Failure> {
    let failed = |error: scsi_pr_daemon::StartError| Failure::new(Code::Failure, error);
    // Before the threads of the access paths start.
    signals::block().map_err(failed)?;
    let signals = Signals(signals::stop().map_err(failed)?);
    let access = Access::open(&target.access)?;
    let unit = access.unit(&target.device, Effect::Changes)?;
    // A helper runs one command at a time on a connection, so that a RELEASE would wait there for a reading that hangs.
    let second = match &access {
        Access::Helper(_) => Some(Access::open(&target.access)?.unit(&target.device, Effect::Changes)?),
        _ => None,
    };
    let (unit, unit_attentions) = Recorder::wrap(unit);
    let key = random_key()?;
    let undo = undo_command(std::env::args_os(), key);
    let mut examination = Examination::new(&unit, second.as_ref(), key, &signals);
    if examination.begin()? {
        announce(&unit, key, &undo)?;
        let result = examination.run();
        finish(result, examination.clean_up(), &undo)?;
    }
    let report = Report {
        longest_reservation: examination.longest_reservation(),
        tests: examination.into_tests(),
        unit_attentions: unit_attentions.take(),
    };
    Ok((unit, undo, report))
}

/// A key that no cluster has.
fn random_key() -> Result<Key, Failure> {
    let mut bytes = [0; 8];
    loop {
        // Up to 256 bytes come whole or not at all (getrandom(2)).
        getrandom(&mut bytes, GetRandomFlags::empty())
            .map_err(|error| Failure::new(Code::Failure, format!("no random key: {error}")))?;
        let key = Key(u64::from_be_bytes(bytes));
        if !key.is_zero() {
            return Ok(key);
        }
    }
}

/// The command that removes the registration: this one as `unregister`, with the key.
fn undo_command(arguments: impl Iterator<Item = OsString>, key: Key) -> String {
    let mut words: Vec<String> = arguments.map(|word| quote(&word.to_string_lossy())).collect();
    if let Some(command) = words.get_mut(1) {
        *command = format!("unregister --yes --key={key}");
    }
    words.join(" ")
}

/// A word for a POSIX shell.
fn quote(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/.,:=_+@%-".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

/// Prints the undo command. Without it, the check changes nothing.
fn announce(unit: &Unit, key: Key, undo: &str) -> Result<(), Failure> {
    let line = format!(
        "scsi-pr: {}: the check registers the key {key}. If it is killed, remove the key by: {}\n",
        escape(&unit.name),
        escape(undo)
    );
    std::io::stderr().write_all(line.as_bytes()).map_err(|error| {
        Failure::new(Code::Failure, format!("nothing was changed, as standard error cannot be written: {error}"))
    })
}

/// The outcome of the examination and of the removal of the registration.
fn finish(examined: Result<(), Failure>, cleaned: Result<(), Failure>, undo: &str) -> Result<(), Failure> {
    let removed = |failure: Failure| {
        Failure::new(failure.code(), format!("{failure}; the check removed its own registration, and no other"))
    };
    let remains = |why: Failure| {
        Failure::new(
            Code::OutcomeUnknown,
            format!("the registration of the check may remain ({why}). Remove it by: {undo}"),
        )
    };
    match (examined, cleaned) {
        (examined, Ok(())) => examined.map_err(removed),
        (Ok(()), Err(why)) => Err(remains(why)),
        (Err(failure), Err(why)) => {
            let rest = remains(why);
            Err(Failure::new(rest.code(), format!("{failure}; {rest}")))
        }
    }
}

fn print(unit: &Unit, undo: &str, report: &Report, format: Format) -> Result<(), Failure> {
    let verdicts = verdict::of_clusters(&report.tests);
    let obstacles: Vec<&str> =
        verdicts.iter().filter(|one| one.verdict == Verdict::WouldNotWork).map(|one| one.cluster).collect();
    match format {
        Format::Json => {
            let milliseconds = u64::try_from(report.longest_reservation.as_millis()).unwrap_or(u64::MAX);
            let value = json!({
                "tests": report.tests,
                "clusters": verdicts,
                "unit-attentions": report.unit_attentions,
                "longest-reservation-ms": milliseconds,
                "undo": undo,
                "exit-code": if obstacles.is_empty() { 0 } else { Code::Unsupported as u8 },
            });
            output::print_json(&show::with_names(value, &unit.name, unit.identifier.as_deref()))?;
        }
        Format::Text => {
            let mut all = text::heading(&unit.name, unit.identifier.as_deref());
            all += &verdict::table_of_tests(&report.tests);
            all += &format!("  longest reservation: {:.0?}\n", report.longest_reservation);
            match &report.unit_attentions[..] {
                [] => all += "  unit attentions during the check: none\n",
                some => all += &format!("  unit attentions during the check: {}\n", escape(&some.join("; "))),
            }
            verdicts.iter().for_each(|one| all += &one.text());
            output::print(&all)?;
        }
    }
    match &obstacles[..] {
        [] => Ok(()),
        some => Err(Failure::new(Code::Unsupported, format!("these would not work: {}", some.join("; ")))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn undo(words: &[&str]) -> String {
        undo_command(words.iter().map(OsString::from), Key(0xab))
    }

    #[test]
    fn undo_command_has_the_same_options_as_the_check() {
        assert_eq!(
            undo(&["scsi-pr", "check", "/dev/sda"]),
            "scsi-pr unregister --yes --key=0x00000000000000ab /dev/sda"
        );
        assert_eq!(
            undo(&["/usr/bin/scsi-pr", "check", "a disk", "--disk=/run/it's", "--as=vm1"]),
            "/usr/bin/scsi-pr unregister --yes --key=0x00000000000000ab 'a disk' '--disk=/run/it'\\''s' --as=vm1"
        );
    }

    #[test]
    fn failed_cleanup_names_the_undo_command_and_its_code() {
        let busy = || Err(Failure::new(Code::Unavailable, "BUSY"));
        let failure = finish(Ok(()), busy(), "undo it").unwrap_err();
        assert!(failure.code() == Code::OutcomeUnknown && failure.to_string().ends_with("Remove it by: undo it"));
        let failure = finish(Err(Failure::new(Code::Interrupted, "SIGINT")), busy(), "undo it").unwrap_err();
        assert!(failure.code() == Code::OutcomeUnknown && failure.to_string().starts_with("SIGINT"), "{failure}");
        let failure = finish(Err(Failure::new(Code::Interrupted, "SIGINT")), Ok(()), "").unwrap_err();
        assert_eq!(failure.code(), Code::Interrupted);
    }

    proptest! {
        #[test]
        fn quoted_word_is_one_word_for_the_shell(word in "[^\0]{0,20}") {
            let output = std::process::Command::new("/bin/sh")
                .args(["-c", &format!("printf %s {}", quote(&word))])
                .output()
                .unwrap();
            prop_assert_eq!(String::from_utf8(output.stdout).unwrap(), word);
        }
    }
}
