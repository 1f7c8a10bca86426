//! What is logged and where: messages for the administrator, and events by name (`-T`).
//!
//! Both are events of the `tracing` crate. One of WARN or worse (with `-v`: of lower levels too) is a message and goes
//! to stderr as QEMU's programs print theirs. One that has a name of its own goes, when `-T` asked for it, to stderr or
//! a file as QEMU's log backend prints it: name and text.

mod pattern;
mod settings;

use std::fmt::{self, Write as _};
use std::fs::File;
use std::sync::Mutex;

use scsi_pr_daemon::log;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span;
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};

use crate::message::{Message, Result, reason};
pub(crate) use settings::{Added, Settings};

/// The events that `-T` can enable: those that the crates of this project name.
pub(crate) const EVENTS: [&str; 14] = [
    "pr_helper_accept",
    "pr_helper_accept_failed",
    "pr_helper_busy",
    "pr_helper_close",
    "pr_helper_complaints",
    "pr_helper_completed",
    "pr_helper_failure",
    "pr_helper_park",
    "pr_helper_request",
    "pr_helper_reserve_out",
    "pr_helper_violation",
    "pr_helper_wait",
    // QEMU's own, and with its text.
    "pr_manager_execute",
    "pr_manager_run",
];

/// What `-T help` prints.
pub(crate) fn list() -> String {
    EVENTS.iter().map(|event| format!("{event}\n")).collect()
}

/// Logs from here on: messages of `level` and worse, and the events of `settings`. Opens their file.
pub(crate) fn start(level: LevelFilter, settings: &Settings) -> Result<()> {
    let file =
        match &settings.file {
            None => None,
            Some(path) => Some(Mutex::new(File::create(path).map_err(|error| {
                Message::new(format!("Error opening logfile {}: {}", path.display(), reason(error)))
            })?)),
        };
    tracing::subscriber::set_global_default(Log { level, enabled: settings.enabled.clone(), file, bare: false })
        .expect("logging is started once");
    Ok(())
}

/// Logs, in a worker: messages alone, and without the name of the program. The helper logs them in its turn.
pub(crate) fn start_in_worker() {
    let log = Log { level: LevelFilter::WARN, enabled: Vec::new(), file: None, bare: true };
    tracing::subscriber::set_global_default(log).expect("logging is started once");
}

struct Log {
    level: LevelFilter,
    enabled: Vec<&'static str>,
    file: Option<Mutex<File>>,
    /// Whether messages have no name of the program before them.
    bare: bool,
}

impl Log {
    fn is_message(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= self.level
    }

    fn is_wanted(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && self.enabled.contains(&metadata.name())
    }
}

impl Subscriber for Log {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        // Nothing changes later, so what is not wanted costs a load and a branch.
        if self.enabled(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.is_message(metadata) || self.is_wanted(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(if self.enabled.is_empty() { self.level } else { LevelFilter::TRACE })
    }

    fn event(&self, event: &Event<'_>) {
        let text = Text::of(event);
        if self.is_message(event.metadata()) {
            let line = if self.bare { format!("{text}\n") } else { Message::new(text.as_str()).to_string() };
            log::write(&mut std::io::stderr().lock(), line.as_bytes());
        }
        if self.is_wanted(event.metadata()) {
            let line = format!("{} {}\n", event.metadata().name(), text);
            match &self.file {
                Some(file) => {
                    log::write(&mut *file.lock().unwrap_or_else(|poisoned| poisoned.into_inner()), line.as_bytes())
                }
                None => log::write(&mut std::io::stderr().lock(), line.as_bytes()),
            }
        }
    }

    // Spans are not used.
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

/// An event in words: its message, then its fields, `name=value`.
#[derive(Default)]
struct Text {
    message: Option<String>,
    fields: String,
}

impl Text {
    /// On one line, whatever the event holds: what a client sends must not be able to look like another line.
    fn of(event: &Event<'_>) -> String {
        let mut text = Self::default();
        event.record(&mut text);
        // What is meant for administrators has the C helper's words and no others, and QEMU's events have QEMU's.
        let metadata = event.metadata();
        let alone = *metadata.level() <= Level::INFO || metadata.name().starts_with("pr_manager_");
        let line = match text.message {
            None => text.fields,
            Some(message) if alone || text.fields.is_empty() => message,
            Some(message) => format!("{message} {}", text.fields),
        };
        line.replace(|c: char| c.is_control(), " ")
    }
}

impl Visit for Text {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    /// No event has one. To be able to write one would take more memory than the rest of this module.
    fn record_f64(&mut self, _: &Field, _: f64) {}

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.message = Some(format!("{value:?}"));
        } else {
            let space = if self.fields.is_empty() { "" } else { " " };
            write!(self.fields, "{space}{}={value:?}", field.name()).expect("a String takes all");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::path::Path;

    /// What `log` prints, in the file, while `act` runs.
    fn traced(enabled: &[&'static str], act: impl FnOnce()) -> String {
        let file = tempfile::NamedTempFile::new().unwrap();
        let log = Log {
            level: LevelFilter::OFF,
            enabled: enabled.to_vec(),
            file: Some(Mutex::new(file.reopen().unwrap())),
            bare: false,
        };
        tracing::subscriber::with_default(log, act);
        std::fs::read_to_string(file.path()).unwrap()
    }

    #[test]
    fn qemu_s_events_have_qemu_s_text() {
        let lines = traced(&["pr_manager_run"], || {
            tracing::trace!(name: "pr_manager_run", fd = 3, "fd={} cmd={:#04x} service action={:#04x}", 3, 0x5e, 0);
            tracing::trace!(name: "pr_manager_execute", "not enabled");
            tracing::trace!("has no name");
        });
        assert_eq!(lines, "pr_manager_run fd=3 cmd=0x5e service action=0x00\n");
    }

    #[test]
    fn other_events_have_their_fields_unless_they_are_messages() {
        let lines = traced(&["pr_helper_close", "pr_helper_busy"], || {
            tracing::debug!(name: "pr_helper_close", connection = 3, pid = 1, "closed");
            tracing::debug!(name: "pr_helper_close", connection = 3, peer = "x");
            tracing::debug!(name: "pr_helper_close", "closed");
            tracing::warn!(name: "pr_helper_busy", connection = 3, "busy");
        });
        assert_eq!(
            lines,
            "pr_helper_close closed connection=3 pid=1\npr_helper_close connection=3 peer=x\npr_helper_close closed\n\
             pr_helper_busy busy\n"
        );
    }

    #[test]
    fn an_event_is_one_line() {
        let lines = traced(&["pr_helper_close"], || {
            tracing::trace!(name: "pr_helper_close", path = "c\nd", "a\nb");
        });
        assert_eq!(lines, "pr_helper_close a b path=c d\n");
    }

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
    fn a_log_file_that_cannot_be_made_is_told() {
        let settings = Settings { file: Some("/nonexistent/log".into()), ..Settings::default() };
        let error = Message::new("Error opening logfile /nonexistent/log: No such file or directory");
        assert_eq!(start(LevelFilter::OFF, &settings), Err(error));
    }
}
