//! A [`tracing::Subscriber`] that writes lines as QEMU's programs do.

use std::fmt::{self, Write as _};
use std::fs::File;
use std::sync::Arc;

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span;
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata};

use super::stream::Stream;
use super::{Fields, Log, Receiver, Record, escape};

/// Writes the events of `tracing` to a [`Log`].
///
/// * An event of the wanted level or a more severe one is a message: `PREFIX MESSAGE`. Its fields go to the journal.
/// * An event that is wanted by its name is written as QEMU's log backend does it: `NAME MESSAGE`, and the fields of an
///   event below INFO.
/// * An audit record goes to the journal, whatever the wanted level.
///
/// Spans are ignored.
#[derive(Debug)]
pub struct Subscriber {
    log: Arc<Log>,
    prefix: String,
    level: LevelFilter,
    names: Vec<&'static str>,
    file: Option<EventFile>,
    audited: Vec<&'static str>,
}

/// A file for the events that are wanted by name.
#[derive(Debug)]
pub struct EventFile(Option<Stream>);

impl EventFile {
    /// Writes to `file` without waiting for its reader.
    pub fn new(file: File) -> Self {
        Self(Stream::of_file(file))
    }
}

impl Subscriber {
    /// Writes messages of `level` and more severe ones to `log`; on standard error each begins with `prefix`.
    pub fn new(log: Arc<Log>, prefix: impl Into<String>, level: LevelFilter) -> Self {
        Self { log, prefix: prefix.into(), level, names: Vec::new(), file: None, audited: Vec::new() }
    }

    /// Writes the events with these names too: to `file`, or else to the log.
    #[must_use]
    pub fn with_events(self, names: Vec<&'static str>, file: Option<EventFile>) -> Self {
        Self { names, file, ..self }
    }

    /// Sends the events with these names to the journal too, with their fields. Their level must be INFO or a more severe
    /// one.
    #[must_use]
    pub fn with_audit(self, names: Vec<&'static str>) -> Self {
        Self { audited: names, ..self }
    }

    fn is_audited(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && self.audited.contains(&metadata.name())
    }

    fn is_message(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= self.level
    }

    fn is_wanted_by_name(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && self.names.contains(&metadata.name())
    }
}

impl tracing::Subscriber for Subscriber {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        // The filter is constant, so tracing caches this: an event that is not wanted costs a load and a branch.
        if self.enabled(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.is_message(metadata) || self.is_wanted_by_name(metadata) || self.is_audited(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(match (self.names.is_empty(), self.audited.is_empty()) {
            (false, _) => LevelFilter::TRACE,
            (true, false) => self.level.max(LevelFilter::INFO),
            (true, true) => self.level,
        })
    }

    fn event(&self, event: &Event<'_>) {
        let metadata = event.metadata();
        let level = *metadata.level();
        let message = text(event);
        let mut receiver = None;
        if self.is_message(metadata) {
            let line = format!("{}{message}", self.prefix);
            receiver = Some(self.log.write(Record { level, line: &line, message: &message }, || fields(event)));
        }
        if self.is_audited(metadata) && receiver != Some(Receiver::Journal) {
            self.log.write_to_journal(Record { level, line: &message, message: &message }, fields(event));
        }
        if self.is_wanted_by_name(metadata) {
            let line = format!("{} {message}", metadata.name());
            match &self.file {
                Some(EventFile(Some(stream))) => drop(stream.write_line(&line)),
                Some(EventFile(None)) => {}
                None => drop(self.log.write(Record { level, line: &line, message: &line }, || fields(event))),
            }
        }
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

/// The text of an event, on one line: a client's bytes must not look like another line.
fn text(event: &Event<'_>) -> String {
    let mut text = Text::default();
    event.record(&mut text);
    // Messages for administrators, and QEMU's events, have their words and no fields.
    let metadata = event.metadata();
    let alone = *metadata.level() <= Level::INFO || metadata.name().starts_with("pr_manager_");
    escape(&match text.message {
        None => text.fields,
        Some(message) if alone || text.fields.is_empty() => message,
        Some(message) => format!("{message} {}", text.fields),
    })
}

#[derive(Default)]
struct Text {
    message: Option<String>,
    fields: String,
}

impl Visit for Text {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.message = Some(format!("{value:?}"));
        } else {
            let space = if self.fields.is_empty() { "" } else { " " };
            let _ = write!(self.fields, "{space}{}={value:?}", field.name());
        }
    }
}

fn fields(event: &Event<'_>) -> Fields {
    let mut fields = EventFields(Vec::new());
    // tracing makes a name of file and line for an event that has none.
    if event.metadata().name().starts_with("pr_") {
        fields.0.push(("event", event.metadata().name().to_owned()));
    }
    event.record(&mut fields);
    fields.0
}

struct EventFields(Fields);

impl Visit for EventFields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() != "message" {
            self.0.push((field.name(), escape(&format!("{value:?}"))));
        }
    }
}
