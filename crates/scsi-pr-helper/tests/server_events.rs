//! What [`scsi_pr_helper::serve`] says, and what can only be waited for by listening to it.

mod support;

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once};
use std::time::Duration;

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
        metadata.target().starts_with("pr_helper")
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

#[test]
fn violations_are_told_in_the_words_of_the_c_helper() {
    for (what, breach, warning) in BREACHES {
        let events = Events::record();
        let server = Server::start(Limits::default(), Echo);
        breach(&server);
        events.wait_for("pr_helper_close", 1);
        assert_eq!(events.warnings(), Vec::from_iter(warning), "{what}");
        let seen = SEEN.lock().unwrap();
        assert!(seen.iter().all(|seen| seen.level != Level::WARN || seen.pid == Some(std::process::id().into())));
    }
}

#[test]
fn a_client_that_is_gone_before_its_answer_is_told() {
    let (events, gate) = (Events::record(), Gate::default());
    let server = Server::start(Limits::default(), gate.clone());
    let mut client = server.client();
    client.send(&reserve_in(HANG, 1), &[null().as_fd()]);
    gate.wait_for(1);
    drop(client);
    gate.let_go(1);
    events.wait_for("pr_helper_close", 1);
    assert_eq!(events.warnings(), ["Unable to write to socket: Broken pipe"]);
}

#[test]
fn a_flood_of_violations_is_counted() {
    let events = Events::record();
    let server = Server::start(Limits::default(), Echo);
    for _ in 0..50 {
        is_closed_on(server.client(), &reserve_in(0, 8), 0);
    }
    events.wait_for("pr_helper_complaints", 1);
    let warnings = events.warnings();
    let said = warnings.iter().filter(|warning| *warning == "No file descriptor in request.").count();
    let counted: usize = warnings
        .iter()
        .filter_map(|warning| warning.strip_suffix(" more messages about connections that were closed"))
        .map(|count| count.parse::<usize>().unwrap())
        .sum();
    assert_eq!(said + counted, 50);
    assert!(said <= 20, "{warnings:?}");
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
fn why_there_is_no_answer_is_told() {
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
    );
}

#[test]
fn what_happens_to_a_connection_can_be_traced() {
    let events = Events::record();
    let server = Server::start(Limits { linger: Duration::from_millis(1), ..Limits::default() }, Echo);
    let mut client = server.client();
    events.wait_for("pr_helper_park", 1);
    client.ask(&reserve_in(0, 8), null());
    events.wait_for("pr_helper_park", 2);
    drop(client);
    events.wait_for("pr_helper_close", 1);
    let names: Vec<&str> = SEEN.lock().unwrap().iter().map(|seen| seen.name).collect();
    let expected = ["pr_helper_accept", "pr_helper_park", "pr_helper_request", "pr_helper_park", "pr_helper_close"];
    // A slow machine may park it in between.
    let mut names = names.into_iter();
    assert!(expected.iter().all(|expected| names.any(|name| name == *expected)));
}

#[test]
fn only_a_busy_connection_keeps_its_thread() {
    let events = Events::record();
    let server = Server::start(Limits { linger: LONG * 60, ..Limits::default() }, Echo);
    let mut client = server.client();
    events.wait_for("pr_helper_park", 1);
    client.ask(&reserve_in(0, 8), null());
    events.wait_for("pr_helper_park", 2);
    // Two in an hour: that is busy here.
    client.ask(&reserve_in(0, 8), null());
    client.ask(&reserve_in(0, 8), null());
    drop(client);
    events.wait_for("pr_helper_close", 1);
    let names: Vec<&str> = SEEN.lock().unwrap().iter().map(|seen| seen.name).collect();
    let expected = ["accept", "park", "request", "park", "request", "request", "close"];
    assert_eq!(names, expected.map(|name| format!("pr_helper_{name}")));
}

#[test]
fn what_is_over_the_bound_of_its_device_waits_its_turn() {
    let events = Events::record();
    let gate = Gate::default();
    let server = Server::start(Limits { per_device: 2, ..Limits::default() }, gate.clone());
    let mut clients = Vec::new();
    for number in 1..=6u16 {
        let mut client = server.client();
        client.send(&reserve_in(HANG, number), &[null().as_fd()]);
        if number <= 2 {
            gate.wait_for(number.into());
        } else {
            events.wait_for("pr_helper_wait", usize::from(number) - 2);
        }
        clients.push(client);
    }
    let mut zero = server.client();
    let other_device = std::fs::File::open("/dev/zero").unwrap();
    assert_eq!(zero.ask(&reserve_in(0, 1), &other_device), io_process_terminated());
    assert_eq!(gate.began(), [1, 2]);
    for done in 1..=6 {
        gate.let_go(1);
        wait_until("the next one begins", || gate.began().len() == 6.min(2 + done));
    }
    for client in &mut clients {
        assert_eq!(client.answer(), io_process_terminated());
    }
    assert_eq!(gate.began(), [1, 2, 3, 4, 5, 6]);
}

#[test]
fn stopping_delivers_what_runs_and_closes_the_rest() {
    let events = Events::record();
    let gate = Gate::default();
    let server = Server::start(Limits { per_device: 2, ..Limits::default() }, gate.clone());
    let (path, null) = (server.path.clone(), null());
    let mut idle = [server.connect(), server.client()];
    idle[1].ask(&reserve_in(0, 1), &null);
    let mut half = server.client();
    half.send(&reserve_out(0, &[0; 24])[..20], &[null.as_fd()]);
    let mut running: Vec<Client> = (0..2).map(|_| server.client()).collect();
    for client in &mut running {
        client.send(&reserve_in(HANG, 1), &[null.as_fd()]);
    }
    gate.wait_for(2);
    let mut waiting = server.client();
    waiting.send(&reserve_in(HANG, 2), &[null.as_fd()]);
    events.wait_for("pr_helper_wait", 1);

    let draining = server.stop();
    assert_eq!(draining.running(), 2);
    for client in idle.iter_mut().chain([&mut half]) {
        assert!(client.is_closed());
    }
    // It was not run, and the guest may try again.
    assert_eq!(waiting.answer().status, BUSY);
    assert!(waiting.is_closed());
    assert_eq!(gate.began(), [1, 1]);
    assert!(std::os::unix::net::UnixStream::connect(&path).is_err(), "nobody listens");

    let answered = Arc::new(AtomicUsize::new(0));
    let waiter = std::thread::spawn({
        let answered = Arc::clone(&answered);
        move || {
            draining.wait();
            answered.load(Ordering::SeqCst)
        }
    });
    assert!(running.iter().all(Client::is_silent));
    for left in [1, 0] {
        answered.fetch_add(1, Ordering::SeqCst);
        gate.let_go(1);
        gate.wait_for(left);
    }
    assert_eq!(waiter.join().unwrap(), 2, "it waits for the last one");
    for client in &mut running {
        // Both are answered by now, and closed.
        client.stream.set_nonblocking(true).unwrap();
        assert_eq!(client.answer(), io_process_terminated());
        assert!(client.is_closed());
    }
}
