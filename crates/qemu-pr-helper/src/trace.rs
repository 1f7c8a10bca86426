//! The events that `-T` can enable, and the start of the log.
//!
//! Messages and named events are events of the `tracing` crate. [`scsi_pr_daemon::log::Subscriber`] writes both.

mod pattern;
mod settings;

use std::fs::File;
use std::sync::Arc;

use scsi_pr_daemon::log::{Destinations, EventFile, Log, Subscriber};
use tracing::level_filters::LevelFilter;

use crate::message::{Message, Result, program_name, reason};
pub(crate) use settings::{Applied, Settings};

/// The events that `-T` can enable: the names in the crates of this project.
pub(crate) const EVENTS: [&str; 12] = [
    "pr_helper_accept",
    "pr_helper_accept_failed",
    "pr_helper_busy",
    "pr_helper_close",
    "pr_helper_completed",
    "pr_helper_failure",
    "pr_helper_refused",
    "pr_helper_request",
    "pr_helper_reserve_out",
    "pr_helper_violation",
    // QEMU's own, and with its text.
    "pr_manager_execute",
    "pr_manager_run",
];

/// The events of which the journal has a record, if there is a journal and the helper is not quiet.
const AUDITED: [&str; 1] = ["pr_helper_reserve_out"];

/// The text of `-T help`.
pub(crate) fn list() -> String {
    EVENTS.iter().map(|event| format!("{event}\n")).collect()
}

/// Starts the log: messages of `level` and more severe ones, and the events of `settings`, whose file it opens.
///
/// # Errors
///
/// The file cannot be created.
pub(crate) fn start(level: LevelFilter, settings: &Settings) -> Result<Arc<Log>> {
    let file =
        match &settings.file {
            None => None,
            Some(path) => Some(EventFile::new(File::create(path).map_err(|error| {
                Message::new(format!("Error opening logfile {}: {}", path.display(), reason(error)))
            })?)),
        };
    let log = Arc::new(Log::to_stderr(env!("CARGO_PKG_NAME"), Destinations::default()));
    let prefix = format!("{}: ", program_name());
    let subscriber = Subscriber::new(Arc::clone(&log), prefix, level).with_events(settings.enabled.clone(), file);
    let is_audited = level != LevelFilter::OFF && log.has_journal();
    install(if is_audited { subscriber.with_audit(AUDITED.to_vec()) } else { subscriber });
    Ok(log)
}

/// Starts the log of the worker `name`: messages without the program's name, which the helper adds. A worker that outlives
/// its helper logs to the journal.
pub(crate) fn start_in_worker(name: &'static str) {
    let log = Log::to_stderr(name, Destinations::default());
    install(Subscriber::new(Arc::new(log), "", LevelFilter::WARN));
}

fn install(subscriber: Subscriber) {
    tracing::subscriber::set_global_default(subscriber).expect("a process starts its log once");
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::path::Path;

    /// The names in the sources are those that `-T help` lists.
    #[test]
    fn every_event_of_the_project_is_listed() {
        fn names(directory: &Path, found: &mut BTreeSet<String>) {
            for entry in std::fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    names(&path, found);
                } else if path.extension().is_some_and(|extension| extension == "rs") {
                    let text = std::fs::read_to_string(&path).unwrap();
                    let named = text.split("name: \"pr_").skip(1).filter_map(|rest| rest.split_once('"'));
                    found.extend(named.map(|(name, _)| format!("pr_{name}")));
                }
            }
        }
        let mut found = BTreeSet::new();
        for sources in ["../scsi-pr-helper/src", "../scsi-pr-linux/src"] {
            names(&Path::new(env!("CARGO_MANIFEST_DIR")).join(sources), &mut found);
        }
        assert_eq!(found, BTreeSet::from(EVENTS.map(str::to_owned)));
    }

    #[test]
    fn event_file_that_cannot_be_created_is_an_error() {
        let settings = Settings { file: Some("/nonexistent/log".into()), ..Settings::default() };
        let error = Message::new("Error opening logfile /nonexistent/log: No such file or directory");
        assert_eq!(start(LevelFilter::OFF, &settings).err(), Some(error));
    }
}
