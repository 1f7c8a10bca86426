//! A socket from the service manager.
#![forbid(unsafe_code)]

mod common;

use std::ffi::OsStr;
use std::fs;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;

use common::{
    HELPER, Helper, Launcher, Process, connect, directory, helper, helper_at, require_root, wait_until_unused,
};
use rustix::process::Signal;

/// The helper with `descriptor` as its descriptor 3, and these variables; `$$` is its process id.
fn activated<S: AsRef<OsStr>>(
    descriptor: impl Into<OwnedFd>,
    variables: &str,
    arguments: impl IntoIterator<Item = S>,
) -> Launcher {
    let mut launcher = helper(arguments);
    launcher.activated_with(descriptor, variables);
    launcher
}

const NO_ARGUMENTS: [&str; 0] = [];

const TO_THE_HELPER: &str = "LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=x";

#[track_caller]
fn refused(launcher: &mut Launcher, text: &str) {
    assert_eq!(launcher.outcome(), (Some(1), String::new(), format!("qemu-pr-helper: {text}\n")));
}

#[test]
fn passed_socket_is_served_and_not_removed() {
    require_root!();
    let directory = directory();
    let socket = directory.path().join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    let running = Helper::start(&mut activated(listener, TO_THE_HELPER, NO_ARGUMENTS), &socket);
    connect(&socket);
    assert_eq!(running.monitor(), None);
    assert_eq!(running.end_by(Signal::TERM).code(), Some(0));
    assert!(socket.exists());
}

#[test]
fn passed_socket_is_served_in_the_background() {
    require_root!();
    let directory = directory();
    let (socket, pid_file) = (directory.path().join("s"), directory.path().join("pid"));
    let listener = UnixListener::bind(&socket).unwrap();
    let mut command = activated(listener, TO_THE_HELPER, ["-d".as_ref(), "-f".as_ref(), pid_file.as_os_str()]);
    assert_eq!(command.outcome(), (Some(0), String::new(), String::new()));
    connect(&socket);
    let pid = fs::read_to_string(&pid_file).unwrap().trim().parse().unwrap();
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap();
    assert!(!String::from_utf8_lossy(&environment).contains("LISTEN_"));
    Process::new(pid).signal(Signal::TERM);
    wait_until_unused(&pid_file);
    assert!(socket.exists());
}

#[test]
fn variables_for_another_process_are_ignored() {
    require_root!();
    let directory = directory();
    let (passed, own) = (directory.path().join("passed"), directory.path().join("own"));
    for variables in
        ["LISTEN_PID=1 LISTEN_FDS=1", "LISTEN_FDS=1", "LISTEN_PID=$$ LISTEN_FDS=0", "LISTEN_PID=$$ LISTEN_FDS=x"]
    {
        let _ = fs::remove_file(&passed);
        let listener = UnixListener::bind(&passed).unwrap();
        let running = Helper::start(&mut activated(listener, variables, ["-k".as_ref(), own.as_os_str()]), &own);
        assert_eq!(running.end_by(Signal::TERM).code(), Some(0), "{variables}");
        assert!(!own.exists() && passed.exists());
    }
}

#[test]
fn passed_socket_that_cannot_serve_is_refused() {
    require_root!();
    let directory = directory();
    let listener = || {
        let path = directory.path().join("s");
        let _ = fs::remove_file(&path);
        UnixListener::bind(&path).unwrap()
    };
    let file = || fs::File::open("/dev/null").unwrap();
    let failed = |why: &str| format!("Failed to use socket activation: {why}");

    let text = "Unix socket can't be set when using socket activation";
    refused(&mut activated(listener(), TO_THE_HELPER, ["-k", "/run/x"]), text);
    refused(&mut activated(listener(), TO_THE_HELPER, ["-d", "-k", "/run/x"]), text);

    let two = "LISTEN_PID=$$ LISTEN_FDS=2";
    let text = "Socket activation failed: invalid file descriptor fd = 4: Bad file descriptor";
    refused(&mut activated(listener(), two, NO_ARGUMENTS), text);
    let many = format!("{HELPER} does not support socket activation with LISTEN_FDS > 1");
    refused(activated(listener(), two, NO_ARGUMENTS).redirect("4<&3"), &many);
    // The C helper aborts.
    for count in ["-1", "4294967296"] {
        refused(&mut activated(listener(), &format!("LISTEN_PID=$$ LISTEN_FDS={count}"), NO_ARGUMENTS), &many);
    }

    let text = failed("Unable to query remote socket address: Socket operation on non-socket");
    refused(&mut activated(file(), TO_THE_HELPER, NO_ARGUMENTS), &text);

    // These the C helper takes, and never serves a command on them.
    let text = failed("fd 3 is not a listening Unix socket, so no client could pass a device over it");
    refused(&mut activated(TcpListener::bind("127.0.0.1:0").unwrap(), TO_THE_HELPER, NO_ARGUMENTS), &text);
    refused(&mut activated(UnixDatagram::unbound().unwrap(), TO_THE_HELPER, NO_ARGUMENTS), &text);
    let (connected, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
    refused(&mut activated(connected, TO_THE_HELPER, NO_ARGUMENTS), &text);
}

#[test]
fn closed_descriptor_is_an_error() {
    require_root!();
    let mut launcher = helper(NO_ARGUMENTS);
    launcher.shell("export LISTEN_PID=$$ LISTEN_FDS=1").redirect("3<&-");
    refused(&mut launcher, "Socket activation failed: invalid file descriptor fd = 3: Bad file descriptor");
}

#[test]
fn service_manager_receives_ready_and_stopping() {
    require_root!();
    let directory = directory();
    let (socket, notify) = (directory.path().join("s"), directory.path().join("notify"));
    let manager = UnixDatagram::bind(&notify).unwrap();
    manager.set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
    let notification = || {
        let mut buffer = [0; 64];
        let length = manager.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let mut command = helper_at(&socket);
    let mut running = command.env("NOTIFY_SOCKET", &notify).spawn();
    assert_eq!(notification(), "READY=1");
    // No waiting: it serves already.
    connect(Path::new(&socket));
    running.signal(Signal::TERM);
    assert_eq!(notification(), "STOPPING=1");
    assert_eq!(running.wait().code(), Some(0));
}
