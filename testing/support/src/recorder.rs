//! A `tracing` subscriber that records events.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// One event.
#[derive(Clone, Debug)]
pub struct RecordedEvent {
    /// The name that the event was given.
    pub name: &'static str,
    /// The module or the target of the event.
    pub target: &'static str,
    /// The level.
    pub level: Level,
    /// The message.
    pub message: String,
    /// Every other field, formatted with `Debug`.
    pub fields: BTreeMap<&'static str, String>,
}

/// Records the events of one level and of graver ones. A clone shares the record.
#[derive(Clone, Debug)]
pub struct Recorder {
    level: Level,
    target: &'static str,
    events: Arc<Mutex<Vec<RecordedEvent>>>,
}

impl Recorder {
    /// Events of this level and of graver ones.
    pub fn at(level: Level) -> Self {
        Self { level, target: "", events: Arc::default() }
    }

    /// Only events whose target starts with `target`.
    pub fn target(self, target: &'static str) -> Self {
        Self { target, ..self }
    }

    /// Runs `act`, and records the events of this thread meanwhile.
    pub fn during<T>(&self, act: impl FnOnce() -> T) -> T {
        tracing::subscriber::with_default(self.clone(), act)
    }

    /// Records the events of all threads until the process ends.
    ///
    /// # Panics
    ///
    /// When the process already has a global subscriber.
    pub fn install(&self) {
        tracing::subscriber::set_global_default(self.clone()).expect("no other global subscriber");
    }

    fn lock(&self) -> MutexGuard<'_, Vec<RecordedEvent>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The events so far.
    pub fn events(&self) -> Vec<RecordedEvent> {
        self.lock().clone()
    }

    /// The messages so far.
    pub fn messages(&self) -> Vec<String> {
        self.lock().iter().map(|event| event.message.clone()).collect()
    }

    /// Forgets the events so far.
    pub fn clear(&self) {
        self.lock().clear();
    }
}

impl Subscriber for Recorder {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= &self.level && metadata.target().starts_with(self.target)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.level.into())
    }

    fn event(&self, event: &Event<'_>) {
        let metadata = event.metadata();
        let mut fields = Fields::default();
        event.record(&mut fields);
        let message = fields.0.remove("message").unwrap_or_default();
        let (name, target, level) = (metadata.name(), metadata.target(), *metadata.level());
        self.lock().push(RecordedEvent { name, target, level, message, fields: fields.0 });
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[derive(Default)]
struct Fields(BTreeMap<&'static str, String>);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_of_the_level_are_recorded_with_their_fields() {
        let recorder = Recorder::at(Level::WARN);
        recorder.during(|| {
            tracing::warn!(number = 3, "a warning");
            tracing::info!("not recorded");
        });
        let events = recorder.events();
        assert_eq!(recorder.messages(), ["a warning"]);
        assert_eq!((events[0].level, events[0].fields["number"].as_str()), (Level::WARN, "3"));
        recorder.clear();
        assert!(recorder.events().is_empty());
    }
}
