//! The socket's path: whose it is, when it appears, when it goes.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use conformance::{Answer, Client, Helper, Start, Subject, against_each_helper, eventually, in_cdb, null};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType, connect, shutdown, socket_with, sockopt,
};
use rustix::process::Signal;

against_each_helper!(
    stale_socket_is_replaced,
    file_at_the_path_is_not_replaced,
    symbolic_link_at_the_path_is_not_followed,
    path_of_a_live_helper_is_not_taken,
    path_of_another_live_socket_is_not_taken,
    mode_is_0777_without_the_umask,
    clean_end_removes_the_socket,
    killed_helper_has_its_socket_removed,
    socket_of_another_at_the_path_stays,
    missing_path_at_the_end_is_no_error,
    ordinary_user_removes_the_socket,
    socket_before_listen_refuses_connections,
    other_owner_and_mode_do_not_matter,
    failed_start_leaves_no_socket,
    connections_of_a_stopped_helper_queue_up,
);

fn serves(helper: &Helper) {
    assert_eq!(helper.connect().run(&in_cdb(0, 8), &[], null()), Answer::io_process_terminated());
}

/// The process that listens at the helper's path.
fn served_by(helper: &Helper) -> Option<u32> {
    let client = Client::try_connect(&helper.socket()).ok()?;
    Some(sockopt::socket_peercred(client.socket()).unwrap().pid.as_raw_nonzero().get().cast_unsigned())
}

/// A socket whose listener is gone.
fn stale_socket(path: &Path) {
    let listener = UnixListener::bind(path).unwrap();
    // Now, and not only when a program that another test is just starting has closed its copy.
    shutdown(&listener, Shutdown::Both).unwrap();
}

fn stale_socket_is_replaced(subject: &Subject) {
    let start = subject.command();
    stale_socket(&start.path("socket"));
    serves(&start.serve());
}

/// Starts where something that is no socket is in the way; whether it was replaced.
fn takes_the_place(start: Start) -> bool {
    let mut helper = start.socket().start();
    let path = helper.socket();
    let is_socket = || fs::symlink_metadata(&path).is_ok_and(|file| file.file_type().is_socket());
    let replaced = eventually("it serves, or has ended", || match helper.ended() {
        Some(status) => Some(status.code() != Some(1)),
        None => (is_socket() && UnixStream::connect(&path).is_ok()).then_some(true),
    });
    assert_eq!(is_socket(), replaced, "{}", helper.stderr());
    replaced
}

fn file_at_the_path_is_not_replaced(subject: &Subject) {
    let start = subject.command();
    fs::write(start.path("socket"), "precious").unwrap();
    assert_eq!(takes_the_place(start), subject.differs("file-at-path", true, false));
}

fn symbolic_link_at_the_path_is_not_followed(subject: &Subject) {
    let start = subject.command();
    let target = tempfile::NamedTempFile::new().unwrap();
    fs::write(&target, "precious").unwrap();
    symlink(target.path(), start.path("socket")).unwrap();
    assert_eq!(takes_the_place(start), subject.differs("file-at-path", true, false));
    assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
}

fn path_of_a_live_helper_is_not_taken(subject: &Subject) {
    let mut first = subject.serve();
    let mut second = subject.command().arg("-k").arg(first.socket()).start();
    let robbed = eventually("the second serves or has ended", || {
        let (server, ended) = (served_by(&first), second.ended());
        (server == Some(second.process().pid())).then_some(true).or(ended.map(|_| false))
    });
    assert_eq!(robbed, subject.differs("live-instance", true, false), "{}", second.stderr());
    if robbed {
        // Worse, the first removes the second's socket at its end.
        first.signal(Signal::TERM);
        first.wait();
        assert!(!first.socket().exists());
        return;
    }
    let end = second.finish();
    assert_eq!(end.code(), 1);
    assert!(end.stderr.starts_with("qemu-pr-helper: ") && end.stderr.lines().count() == 1, "{}", end.stderr);
    assert_eq!(served_by(&first), Some(first.process().pid()));
}

fn path_of_another_live_socket_is_not_taken(subject: &Subject) {
    let start = subject.command().socket();
    let listener = UnixListener::bind(start.path("socket")).unwrap();
    let owner = fs::metadata(start.path("socket")).unwrap().ino();
    let mut helper = start.start();
    let robbed = eventually("the path is taken, or the helper has ended", || {
        let now = fs::metadata(helper.socket()).ok().map(|metadata| metadata.ino());
        let taken = now.is_some_and(|now| now != owner);
        taken.then_some(true).or(helper.ended().map(|_| false))
    });
    assert_eq!(robbed, subject.differs("live-instance", true, false), "{}", helper.stderr());
    drop(listener);
}

fn mode_is_0777_without_the_umask(subject: &Subject) {
    for (umask, mode) in [("022", 0o755), ("077", 0o700), ("0", 0o777), ("007", 0o770)] {
        let helper = subject.command().shell(&format!("umask {umask}")).serve();
        let metadata = fs::metadata(helper.socket()).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o7777, mode, "umask {umask}");
        assert_eq!((metadata.uid(), metadata.gid()), (0, 0));
    }
    // It stays with who started it.
    let helper = subject.command().shell("umask 022").args(["-u", "nobody", "-g", "nogroup"]).serve();
    let metadata = fs::metadata(helper.socket()).unwrap();
    assert_eq!((metadata.uid(), metadata.gid(), metadata.permissions().mode() & 0o7777), (0, 0, 0o755));
}

fn clean_end_removes_the_socket(subject: &Subject) {
    let helper = subject.serve();
    let socket = helper.socket();
    let end = helper.terminate();
    assert_eq!((end.code(), &*end.stderr), (0, ""));
    assert!(!socket.exists());
}

fn killed_helper_has_its_socket_removed(subject: &Subject) {
    for signal in [Signal::KILL, Signal::QUIT, Signal::USR2, Signal::ABORT] {
        let mut helper = subject.serve();
        helper.signal(signal);
        helper.wait();
        if subject.differs("removed-when-killed", false, true) {
            eventually("the path is gone", || (!helper.socket().exists()).then_some(()));
        } else {
            assert_eq!(UnixStream::connect(helper.socket()).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        }
    }
}

fn socket_of_another_at_the_path_stays(subject: &Subject) {
    let mut helper = subject.serve();
    fs::remove_file(helper.socket()).unwrap();
    let _another = UnixListener::bind(helper.socket()).unwrap();
    helper.signal(Signal::TERM);
    assert_eq!(helper.wait().code(), Some(0));
    let left = helper.socket().exists();
    assert_eq!(left, subject.differs("socket-of-another", false, true), "{}", helper.stderr());
}

fn missing_path_at_the_end_is_no_error(subject: &Subject) {
    let helper = subject.serve();
    fs::remove_file(helper.socket()).unwrap();
    let end = helper.terminate();
    assert_eq!((end.code(), &*end.stderr), (0, ""));
}

fn ordinary_user_removes_the_socket(subject: &Subject) {
    // The directory is root's.
    let helper = subject.command().args(["-u", "nobody", "-g", "nogroup"]).serve();
    let socket = helper.socket();
    let end = helper.terminate();
    assert_eq!(end.code(), 0);
    let message = format!("qemu-pr-helper: Failed to unlink socket {}: Permission denied\n", socket.display());
    let expected = subject.differs("removed-as-user", (true, &*message), (false, ""));
    assert_eq!((socket.exists(), &*end.stderr), expected);
}

fn socket_before_listen_refuses_connections(subject: &Subject) {
    let helper = subject.command().socket().stopping_at(&["listen"]).start();
    helper.supervisor().wait_for_stop();
    // libvirt waits for the file alone; QEMU connects much later.
    assert!(helper.socket().exists());
    assert_eq!(UnixStream::connect(helper.socket()).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    helper.supervisor().let_go();
    let client = eventually("it listens", || Client::try_connect(&helper.socket()).ok());
    client.handshake();
}

fn other_owner_and_mode_do_not_matter(subject: &Subject) {
    // libvirt gives the socket to QEMU's user, and labels it.
    let mut helper = subject.serve();
    chown(helper.socket(), Some(65534), Some(65534)).unwrap();
    fs::set_permissions(helper.socket(), fs::Permissions::from_mode(0o600)).unwrap();
    serves(&helper);
    helper.signal(Signal::TERM);
    assert_eq!(helper.wait().code(), Some(0));
    assert!(!helper.socket().exists());
}

fn failed_start_leaves_no_socket(subject: &Subject) {
    // The pid file cannot be made; privileges cannot be dropped.
    let start = subject.command();
    let pid_file = start.path("missing/pid");
    let no_pid_file = start.arg("-f").arg(pid_file);
    let start = subject.command();
    chown(start.directory(), Some(65534), Some(65534)).unwrap();
    let no_privileges = start.shell(r#"set -- setpriv --reuid=65534 --regid=65534 --clear-groups "$@""#);
    for start in [no_pid_file, no_privileges] {
        let end = start.socket().finish();
        assert_eq!(end.code(), 1);
        let left = end.directory.path().join("socket").exists();
        assert_eq!(left, subject.differs("failed-start", true, false), "{}", end.stderr);
    }
}

fn connections_of_a_stopped_helper_queue_up(subject: &Subject) {
    let helper = subject.serve();
    helper.signal(Signal::STOP);
    eventually("it is stopped", || {
        helper.process().status().get("State").filter(|state| state.starts_with('T')).cloned()
    });
    let address = SocketAddrUnix::new(helper.socket()).unwrap();
    let try_connect = || -> Result<OwnedFd, Errno> {
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::NONBLOCK, None)?;
        connect(&socket, &address).map(|()| socket)
    };
    let queued: Vec<OwnedFd> = (0..100).map_while(|_| try_connect().ok()).collect();
    assert_eq!(queued.len(), subject.differs("backlog", 2, 100));
    helper.signal(Signal::CONT);
    serves(&helper);
}
