//! The log events of [`scsi_pr_helper::serve`], and the behaviour that a test can observe only by them.

mod support;

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{LazyLock, Mutex, MutexGuard};

use scsi_pr::{Command, Completion, Error, PrManager};
use scsi_pr_helper::Limits;
use support::*;
use testing_support::Recorder;
use tracing::Level;

/// The events of one test; the tests of this program run one after the other.
struct Events {
    _turn: MutexGuard<'static, ()>,
}

static RECORDER: LazyLock<Recorder> = LazyLock::new(|| {
    let recorder = Recorder::at(Level::TRACE).target("scsi_pr_helper");
    recorder.install();
    recorder
});

impl Events {
    fn record() -> Self {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        LazyLock::force(&RECORDER);
        wait_until("the server of the test before says no more", || threads() == 0);
        RECORDER.clear();
        Self { _turn: turn }
    }

    fn wait_for(&self, name: &str, count: usize) {
        wait_until(name, || RECORDER.events().iter().filter(|event| event.name == name).count() >= count);
    }

    fn warnings(&self) -> Vec<String> {
        let events = RECORDER.events().into_iter().filter(|event| event.level == Level::WARN);
        events.map(|event| event.message).collect()
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
        let pid = std::process::id().to_string();
        let mut warnings = RECORDER.events().into_iter().filter(|event| event.level == Level::WARN);
        assert!(warnings.all(|event| event.fields["pid"] == pid), "{what}");
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
    let names: Vec<&str> = RECORDER.events().iter().map(|event| event.name).collect();
    assert_eq!(names, ["pr_helper_accept", "pr_helper_request", "pr_helper_close"]);
}
