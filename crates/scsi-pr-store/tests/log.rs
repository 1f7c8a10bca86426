//! The log lines of a manager: cause and remedy, and not with every command.

mod common;

use std::fmt::Debug;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};

use common::*;
use scsi_pr::PrManager;
use scsi_pr_store::{MemoryStore, Store, open};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// Keeps the messages.
#[derive(Clone, Default)]
struct Messages(Arc<Mutex<Vec<String>>>);

impl Messages {
    fn of(act: impl FnOnce()) -> Vec<String> {
        let messages = Self::default();
        tracing::subscriber::with_default(messages.clone(), act);
        std::mem::take(&mut *messages.0.lock().unwrap())
    }
}

impl Visit for Messages {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            self.0.lock().unwrap().push(format!("{value:?}"));
        }
    }
}

impl Subscriber for Messages {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN
    }

    fn event(&self, event: &Event<'_>) {
        event.record(&mut self.clone());
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[test]
fn failure_of_the_store_is_logged_once_for_all_initiators() {
    let (disk, place) = (Disk::new(), tempfile::tempdir().unwrap());
    let path = place.path().join("store");
    let manager = disk.manager(&open(&format!("dir:{}", path.display())).unwrap(), "one");
    let other = manager.for_initiator(&"two".parse().unwrap());
    assert_eq!(disk.run(&manager, &register(1)), GOOD);
    std::fs::rename(&path, place.path().join("elsewhere")).unwrap();
    let said = Messages::of(|| {
        for manager in [&manager, &other, &manager] {
            assert_ne!(disk.run(manager, &register(2)), GOOD);
        }
    });
    let [said] = &said[..] else { panic!("{said:#?}") };
    assert!(said.contains("REGISTER") && said.contains(path.to_str().unwrap()), "{said}");
}

#[test]
fn refused_descriptor_is_logged_once_for_each_initiator() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let manager = Disk::new().manager(&store, "one");
    let other = manager.for_initiator(&"two".parse().unwrap());
    let deleted = tempfile::tempfile().unwrap();
    let said = Messages::of(|| {
        for manager in [&manager, &other, &manager] {
            manager.execute(deleted.as_fd(), register(1).command()).unwrap();
        }
    });
    assert_eq!(said.len(), 2, "{said:#?}");
    assert!(said[0].contains("05/20/00") && said[0].contains("--unit=NAME=PATH"), "{said:#?}");
}
