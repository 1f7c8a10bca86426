//! Sessions that are silent: they need no thread, and end when they answer no NOP-In.

mod common;

use std::fs;
use std::time::Duration;

use common::*;
use scsi_pr_iscsi::ServerOptions;
use testing_support::eventually;

/// RFC 7143 11.19.
const NOP_IN: u8 = 0x20;

/// The threads of connections in this process.
fn threads() -> usize {
    let name = |thread: &fs::DirEntry| fs::read_to_string(thread.path().join("comm")).unwrap_or_default();
    fs::read_dir("/proc/self/task").unwrap().flatten().filter(|thread| name(thread) == "iscsi\n").count()
}

fn ready(fixture: &Fixture, name: &str) -> Initiator {
    let mut session = fixture.connect().log_in(name);
    // The first unit attention.
    assert_eq!(session.read(&[0; 6], 0).sense.map(|sense| sense[0]), Some(6));
    session
}

fn is_alive(session: &mut Initiator) -> bool {
    session.read(&[0; 6], 0).status == 0
}

#[test]
fn silent_sessions_have_no_thread_and_are_served_again() {
    let mut fixture = Fixture::with_options(ServerOptions::default());
    let mut sessions: Vec<_> = (0..8).map(|number| ready(&fixture, &format!("iqn.2026-11.test:{number}"))).collect();
    for _ in 0..2 {
        eventually("the end of the threads", || (threads() == 0).then_some(()));
        assert!(sessions.iter_mut().all(is_alive));
    }

    eventually("the end of the threads", || (threads() == 0).then_some(()));
    // The same initiator port again.
    let again = ready(&fixture, "iqn.2026-11.test:0");
    assert!(sessions[0].try_receive().is_none());

    eventually("the end of the threads", || (threads() == 0).then_some(()));
    fixture.stop();
    drop(fixture);
    for mut session in sessions.into_iter().skip(1).chain([again]) {
        assert!(session.try_receive().is_none());
    }
}

#[test]
fn silent_session_is_pinged_and_ends_without_an_answer() {
    let fixture = Fixture::with_options(ServerOptions::default().with_ping_interval(Duration::from_secs(2)));
    let mut session = ready(&fixture, "iqn.2026-11.test:silent");
    assert_eq!(session.receive().opcode(), NOP_IN);
    // Any request is an answer.
    assert!(is_alive(&mut session));
    assert_eq!(session.receive().opcode(), NOP_IN);
    assert!(session.try_receive().is_none());
}

#[test]
fn connections_that_do_not_log_in_keep_no_initiator_out() {
    let mut options = ServerOptions::default();
    options.connections = 4;
    let fixture = Fixture::with_options(options);
    let mut first = ready(&fixture, "iqn.2026-11.test:first");
    let silent: Vec<_> = (0..100).map(|_| std::net::TcpStream::connect(fixture.address).unwrap()).collect();
    let mut last = eventually("a login", || fixture.connect().try_log_in("iqn.2026-11.test:last").ok());
    assert_eq!(last.read(&[0; 6], 0).sense.map(|sense| sense[0]), Some(6));
    assert!(is_alive(&mut last) && is_alive(&mut first));
    drop(silent);
}
