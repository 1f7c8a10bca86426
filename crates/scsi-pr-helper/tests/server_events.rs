//! The log events of [`scsi_pr_helper::serve`], and the behaviour that a test can observe only by them.

mod support;

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, Once};

use scsi_pr::{Command, Completion, Error, PrManager};
use scsi_pr_helper::Limits;
use support::*;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber, span};

/// The events of one test; the tests of this program run one after the other.
struct Events {
    _turn: MutexGuard<'static, ()>,
}

static SEEN: Mutex<Vec<Seen>> = Mutex::new(Vec::new());

#[derive(Clone, Debug, PartialEq)]
struct Seen {
    name: &'static str,
    level: Level,
    message: String,
    pid: Option<u64>,
}

impl Events {
    fn record() -> Self {
        static TURN: Mutex<()> = Mutex::new(());
        static START: Once = Once::new();
        let turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        START.call_once(|| tracing::subscriber::set_global_default(Recorder).unwrap());
        wait_until("the server of the test before says no more", || threads() == 0);
        SEEN.lock().unwrap().clear();
        Self { _turn: turn }
    }

    fn count(&self, name: &str) -> usize {
        SEEN.lock().unwrap().iter().filter(|seen| seen.name == name).count()
    }

    fn wait_for(&self, name: &str, count: usize) {
        wait_until(name, || self.count(name) >= count);
    }

    fn warnings(&self) -> Vec<String> {
        let seen = SEEN.lock().unwrap();
        seen.iter().filter(|seen| seen.level == Level::WARN).map(|seen| seen.message.clone()).collect()
    }
}

struct Recorder;

impl Subscriber for Recorder {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("scsi_pr_helper")
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let metadata = event.metadata();
        let seen = Seen { name: metadata.name(), level: *metadata.level(), message: fields.message, pid: fields.pid };
        SEEN.lock().unwrap().push(seen);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

#[derive(Default)]
struct Fields {
    message: String,
    pid: Option<u64>,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "pid" {
            self.pid = Some(value);
        }
    }
}

/// The name of this process in a line about a client.
fn this_process() -> String {
    format!("process {} of user {}", std::process::id(), rustix::process::geteuid().as_raw())
}

#[test]
fn violations_are_logged_with_the_text_of_the_c_helper() {
    for (what, violate, warning) in VIOLATIONS {
        let events = Events::record();
        let server = Server::start(Limits::default(), Echo);
        violate(&server);
        events.wait_for("pr_helper_close", 1);
        let warning = warning.map(|warning| format!("{warning} ({})", this_process()));
        assert_eq!(events.warnings(), Vec::from_iter(warning), "{what}");
        let seen = SEEN.lock().unwrap();
        assert!(seen.iter().all(|seen| seen.level != Level::WARN || seen.pid == Some(std::process::id().into())));
    }
}

#[test]
fn client_that_is_gone_before_its_answer_is_logged() {
    let (events, gate) = (Events::record(), Gate::default());
    let server = Server::start(Limits::default(), gate.clone());
    let mut client = server.client();
    client.send(&reserve_in(HANG, 1), &[null().as_fd()]);
    gate.wait_for(1);
    drop(client);
    gate.let_go(1);
    events.wait_for("pr_helper_close", 1);
    assert_eq!(events.warnings(), [format!("Unable to write to socket: Broken pipe ({})", this_process())]);
}

#[test]
fn a_flood_of_violations_is_limited() {
    let events = Events::record();
    let server = Server::start(Limits::default(), Echo);
    for _ in 0..50 {
        is_closed_on(server.client(), &reserve_in(0, 8), 0);
    }
    events.wait_for("pr_helper_close", 50);
    let warnings = events.warnings();
    assert!(warnings.iter().all(|warning| warning.starts_with("No file descriptor in request.")), "{warnings:?}");
    // Ten lines in five seconds; a slow machine takes longer.
    assert!((10..50).contains(&warnings.len()), "{warnings:?}");
}

#[test]
fn a_connection_over_the_bound_is_logged() {
    let events = Events::record();
    let server = Server::start(Limits::default().with_connections(8).with_peer_share(4), Echo);
    let _clients = [server.client(), server.client()];
    assert!(server.connect_unheard().is_closed());
    events.wait_for("pr_helper_violation", 1);
    let [warning] = &events.warnings()[..] else { panic!("{:?}", events.warnings()) };
    assert!(warning.starts_with("Too many connections of one process, closing socket: 2 are allowed"), "{warning}");
    assert!(warning.ends_with(&format!("({})", this_process())), "{warning}");
}

#[test]
fn a_command_over_the_bound_is_busy_and_logged() {
    let (events, gate) = (Events::record(), Gate::default());
    let server = Server::start(Limits::default().with_running(1), gate.clone());
    let mut hanging = server.client();
    hanging.send(&reserve_in(HANG, 1), &[null().as_fd()]);
    gate.wait_for(1);
    assert_eq!(server.client().ask(&reserve_in(0, 1), null()).status, BUSY);
    let [warning] = &events.warnings()[..] else { panic!("{:?}", events.warnings()) };
    assert!(warning.contains("answered BUSY") && warning.contains("--max-commands"), "{warning}");
    gate.let_go(1);
}

/// Never has an answer.
struct Failing;

impl PrManager for Failing {
    fn execute(&self, _device: BorrowedFd<'_>, command: Command<'_>) -> Result<Completion, Error> {
        assert!(command.cdb().service_action() == 0, "a panic that a test wants");
        Err(Error::outcome_unknown("ask the unit").because("it is on fire").remedy("put it out"))
    }
}

#[test]
fn error_of_the_manager_is_logged() {
    let events = Events::record();
    let server = Server::start(Limits::default(), Failing);
    let mut client = server.client();
    client.ask(&reserve_in(0, 8), null());
    client.ask(&reserve_in(1, 8), null());
    assert_eq!(
        events.warnings(),
        [
            "cannot ask the unit: it is on fire (the command may have been run); put it out",
            "a persistent reservation manager panicked"
        ]
        .map(|failure| format!("{failure} ({})", this_process()))
    );
}

#[test]
fn the_life_of_a_connection_can_be_traced() {
    let events = Events::record();
    let server = Server::start(Limits::default(), Echo);
    let mut client = server.client();
    client.ask(&reserve_in(0, 8), null());
    drop(client);
    events.wait_for("pr_helper_close", 1);
    let names: Vec<&str> = SEEN.lock().unwrap().iter().map(|seen| seen.name).collect();
    assert_eq!(names, ["pr_helper_accept", "pr_helper_request", "pr_helper_close"]);
}
