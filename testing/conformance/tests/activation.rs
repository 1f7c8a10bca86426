//! Socket activation: the listening socket that systemd passes as descriptor 3.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use conformance::{Answer, Client, Start, Subject, against_each_helper, eventually, holds_for, in_cdb, null};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with};

against_each_helper!(
    passed_socket_is_served_and_its_path_stays,
    daemon_with_pid_file_serves_the_passed_socket,
    variables_for_another_process_are_ignored,
    more_than_one_passed_socket_is_refused,
    socket_path_with_a_passed_socket_is_refused,
    closed_passed_descriptor_is_refused,
    passed_file_that_is_no_socket_is_refused,
    count_out_of_range_is_refused,
    passed_seqpacket_socket_is_served,
    passed_socket_that_cannot_serve_clients_is_refused,
    variables_do_not_reach_children,
    systemd_is_notified_at_start_and_end,
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

fn passed_socket_is_served_and_its_path_stays(subject: &Subject) {
    let (start, path) = activated(subject);
    let helper = start.start();
    serves(&Client::try_connect(&path).unwrap());
    let end = helper.terminate();
    assert_eq!((end.code(), &*end.stderr), (0, ""));
    assert!(path.exists(), "the path is systemd's");
}

fn daemon_with_pid_file_serves_the_passed_socket(subject: &Subject) {
    let (start, path) = activated(subject);
    let file = start.path("pid");
    let mut helper = start.arg("-d").arg("-f").arg(&file).start();
    assert_eq!(helper.wait().code(), Some(0));
    eventually("the pid file is written", || std::fs::read_to_string(&file).ok().filter(|text| text.ends_with('\n')));
    serves(&Client::try_connect(&path).unwrap());
}

fn variables_for_another_process_are_ignored(subject: &Subject) {
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

fn more_than_one_passed_socket_is_refused(subject: &Subject) {
    let start = subject.command().stdin(null()).shell("export LISTEN_PID=$$ LISTEN_FDS=2");
    let end = start.redirect("3<&0 4<&0").finish();
    let program = subject.program().display();
    let message = format!("qemu-pr-helper: {program} does not support socket activation with LISTEN_FDS > 1\n");
    assert_eq!((end.code(), end.stderr), (1, message));
}

fn socket_path_with_a_passed_socket_is_refused(subject: &Subject) {
    let (start, _path) = activated(subject);
    let end = start.socket().finish();
    let message = "qemu-pr-helper: Unix socket can't be set when using socket activation\n";
    assert_eq!((end.code(), &*end.stderr), (1, message));
}

fn closed_passed_descriptor_is_refused(subject: &Subject) {
    let end = subject.command().shell("export LISTEN_PID=$$ LISTEN_FDS=1").redirect("3<&-").finish();
    let message = "qemu-pr-helper: Socket activation failed: invalid file descriptor fd = 3: Bad file descriptor\n";
    assert_eq!((end.code(), &*end.stderr), (1, message));
}

fn passed_file_that_is_no_socket_is_refused(subject: &Subject) {
    let end = subject.command().activated_with(null()).finish();
    let message = "qemu-pr-helper: Failed to use socket activation: Unable to query remote socket address: Socket operation on non-socket\n";
    assert_eq!((end.code(), &*end.stderr), (1, message));
}

fn count_out_of_range_is_refused(subject: &Subject) {
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

fn passed_seqpacket_socket_is_served(subject: &Subject) {
    let start = subject.command();
    let address = SocketAddrUnix::new(start.path("activated")).unwrap();
    let socket = || socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let listener = socket();
    bind(&listener, &address).unwrap();
    listen(&listener, 4).unwrap();
    let _helper = start.activated_with(listener).start();
    let client = socket();
    connect(&client, &address).unwrap();
    serves(&Client::new(UnixStream::from(client)));
}

fn passed_socket_that_cannot_serve_clients_is_refused(subject: &Subject) {
    let (connected, _peer) = UnixStream::pair().unwrap();
    let sockets: [(&str, OwnedFd); 3] = [
        // Descriptors cannot be passed over it.
        ("TCP", TcpListener::bind("127.0.0.1:0").unwrap().into()),
        ("not listening", connected.into()),
        ("datagram", UnixDatagram::unbound().unwrap().into()),
    ];
    for (name, socket) in sockets {
        let mut helper = subject.command().activated_with(socket).start();
        if subject.differs("useless-socket", true, false) {
            assert!(holds_for(Duration::from_millis(100), || helper.ended().is_none()), "{name}");
        } else {
            let end = helper.finish();
            assert_eq!((end.code(), end.stderr.lines().count()), (1, 1), "{name}: {}", end.stderr);
        }
    }
}

/// The notifications for `Type=notify` (sd_notify(3)).
fn systemd_is_notified_at_start_and_end(subject: &Subject) {
    let start = subject.command();
    let path = start.path("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_nonblocking(true).unwrap();
    let received = || {
        let mut message = [0; 256];
        let length = manager.recv(&mut message).ok()?;
        Some(String::from_utf8_lossy(&message[..length]).into_owned())
    };
    let helper = start.env("NOTIFY_SOCKET", &path).serve();
    let ready = subject.differs("sd-notify", None, Some("READY=1".to_owned()));
    // It speaks to clients only after that.
    assert_eq!(received(), ready);
    let end = helper.terminate();
    assert_eq!(end.code(), 0);
    assert_eq!(received(), ready.map(|_| "STOPPING=1".to_owned()));
}

fn variables_do_not_reach_children(subject: &Subject) {
    // Seen where they would do harm: a monitor, or whatever else is started, must not take them for its own.
    let (start, path) = activated(subject);
    let helper = start.start();
    serves(&Client::try_connect(&path).unwrap());
    for child in helper.process().children() {
        let environment = std::fs::read(format!("/proc/{}/environ", child.pid())).unwrap();
        assert!(!String::from_utf8_lossy(&environment).contains("LISTEN_"), "{child:?}");
    }
}
