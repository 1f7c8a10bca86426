//! Socket activation: the listening socket that systemd passes as descriptor 3.

use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::PathBuf;

use conformance::{Answer, Client, Helper, Start, Subject, against_each_helper, eventually, in_cdb, null};
use rustix::process::Signal;

against_each_helper!(
    the_passed_socket_is_served_and_its_path_left,
    it_goes_with_a_daemon_and_a_pid_file,
    what_is_meant_for_another_process_is_ignored,
    more_than_one_is_refused,
    a_socket_path_contradicts_it,
    a_closed_descriptor_is_refused,
    what_is_no_socket_is_refused,
    a_count_out_of_range_is_refused,
    a_tcp_socket_is_served,
    a_socket_that_does_not_listen_is_useless,
    the_variables_are_not_passed_on,
);

/// A start with a listening socket as descriptor 3, and its path.
fn activated(subject: &Subject) -> (Start, PathBuf) {
    let start = subject.command();
    let path = start.path("activated");
    let listener = UnixListener::bind(&path).unwrap();
    (start.activated_with(listener), path)
}

#[track_caller]
fn serves(client: &Client) {
    client.handshake();
    assert_eq!(client.run(&in_cdb(0, 8), &[], null()), Answer::io_process_terminated());
}

fn the_passed_socket_is_served_and_its_path_left(subject: &Subject) {
    let (start, path) = activated(subject);
    let helper = start.start();
    serves(&Client::try_connect(&path).unwrap());
    let end = helper.terminate();
    assert_eq!((end.code(), &*end.stderr), (0, ""));
    assert!(path.exists(), "the path is systemd's");
}

fn it_goes_with_a_daemon_and_a_pid_file(subject: &Subject) {
    let (start, path) = activated(subject);
    let file = start.path("pid");
    let mut helper = start.arg("-d").arg("-f").arg(&file).start();
    assert_eq!(helper.wait().code(), Some(0));
    eventually("the pid file is written", || std::fs::read_to_string(&file).ok().filter(|text| text.ends_with('\n')));
    serves(&Client::try_connect(&path).unwrap());
}

fn what_is_meant_for_another_process_is_ignored(subject: &Subject) {
    for variables in [
        "LISTEN_PID=1 LISTEN_FDS=1",
        "LISTEN_PID= LISTEN_FDS=1",
        "LISTEN_PID=junk LISTEN_FDS=1",
        "LISTEN_FDS=1",
        "LISTEN_PID=$$",
        "LISTEN_PID=$$ LISTEN_FDS=0",
        "LISTEN_PID=$$ LISTEN_FDS=",
        "LISTEN_PID=$$ LISTEN_FDS=junk",
        "LISTEN_PID=$$ LISTEN_FDS=1x",
        "LISTEN_PID=$$ LISTEN_FDS=99999999999999999999999",
        "LISTEN_PID=99999999999999999999999 LISTEN_FDS=1",
    ] {
        let helper = subject.command().shell(&format!("export {variables}")).serve();
        assert_eq!(helper.connect().run(&in_cdb(0, 8), &[], null()), Answer::io_process_terminated(), "{variables}");
    }
}

fn more_than_one_is_refused(subject: &Subject) {
    let start = subject.command().stdin(null()).shell("export LISTEN_PID=$$ LISTEN_FDS=2");
    let end = start.redirect("3<&0 4<&0").finish();
    let program = subject.program().display();
    let message = format!("qemu-pr-helper: {program} does not support socket activation with LISTEN_FDS > 1\n");
    assert_eq!((end.code(), end.stderr), (1, message));
}

fn a_socket_path_contradicts_it(subject: &Subject) {
    let (start, _path) = activated(subject);
    let end = start.socket().finish();
    let message = "qemu-pr-helper: Unix socket can't be set when using socket activation\n";
    assert_eq!((end.code(), &*end.stderr), (1, message));
}

fn a_closed_descriptor_is_refused(subject: &Subject) {
    let end = subject.command().shell("export LISTEN_PID=$$ LISTEN_FDS=1").redirect("3<&-").finish();
    let message = "qemu-pr-helper: Socket activation failed: invalid file descriptor fd = 3: Bad file descriptor\n";
    assert_eq!((end.code(), &*end.stderr), (1, message));
}

fn what_is_no_socket_is_refused(subject: &Subject) {
    let end = subject.command().activated_with(null()).finish();
    let message = "qemu-pr-helper: Failed to use socket activation: Unable to query remote socket address: Socket operation on non-socket\n";
    assert_eq!((end.code(), &*end.stderr), (1, message));
}

fn a_count_out_of_range_is_refused(subject: &Subject) {
    for count in ["-1", "4294967296"] {
        let (start, path) = activated(subject);
        let end = start.shell(&format!("export LISTEN_FDS={count}")).finish();
        let asserts = end.status.code().is_none() && end.stderr.contains("Assertion");
        let refuses = end.status.code() == Some(1) && end.stderr.lines().count() == 1;
        let expected = subject.differs("activation-count", (true, false), (false, true));
        assert_eq!((asserts, refuses), expected, "LISTEN_FDS={count}: {:?}, {}", end.status, end.stderr);
        assert!(path.exists());
    }
}

fn a_tcp_socket_is_served(subject: &Subject) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let helper = subject.command().activated_with(listener).start();
    let client = TcpStream::connect(address).unwrap();
    client.set_read_timeout(Some(conformance::DEADLINE)).unwrap();
    let mut word = [0xff; 4];
    std::io::Read::read_exact(&mut &client, &mut word).unwrap();
    assert_eq!(word, [0; 4]);
    assert_eq!(helper.terminate().code(), 0);
}

fn a_socket_that_does_not_listen_is_useless(subject: &Subject) {
    let (connected, _peer) = UnixStream::pair().unwrap();
    let datagram = UnixDatagram::unbound().unwrap();
    for socket in [OwnedFd::from(connected), OwnedFd::from(datagram)] {
        let helper = subject.command().activated_with(socket.as_fd().try_clone_to_owned().unwrap()).start();
        helper.signal(Signal::TERM);
        let _: Helper = helper;
    }
}

fn the_variables_are_not_passed_on(subject: &Subject) {
    // Seen where they would do harm: a keeper, or whatever else is started, must not take them for its own.
    let (start, path) = activated(subject);
    let helper = start.start();
    serves(&Client::try_connect(&path).unwrap());
    for child in helper.process().children() {
        let environment = std::fs::read(format!("/proc/{}/environ", child.pid())).unwrap();
        assert!(!String::from_utf8_lossy(&environment).contains("LISTEN_"), "{child:?}");
    }
}
