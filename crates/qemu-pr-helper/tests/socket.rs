//! The socket's life: made with the right mode, never taken from anybody, gone at the end.
#![forbid(unsafe_code)]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::Path;

use common::{
    HELPER, Helper, Launcher, Process, connect, directory, eventually, helper, helper_at, require_root, skip,
    wait_until_removed, wait_until_unused,
};
use rustix::process::Signal;

fn inode(path: &Path) -> u64 {
    fs::symlink_metadata(path).unwrap().ino()
}

#[test]
fn helper_that_ends_leaves_nothing_behind() {
    require_root!();
    let directory = directory();
    let socket = directory.path().join("s");
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let running = Helper::start(&mut helper_at(&socket), &socket);
        let _idle = connect(&socket);
        assert_eq!(running.end_by(signal).code(), Some(0), "{signal:?}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "{signal:?}");
        wait_until_unused(&socket);
    }
}

#[test]
fn socket_has_mode_0777_less_the_umask() {
    require_root!();
    let directory = directory();
    let socket = directory.path().join("s");
    for (umask, mode) in [("000", 0o777), ("022", 0o755), ("077", 0o700), ("117", 0o660)] {
        let running = Helper::start(helper_at(&socket).shell(&format!("umask {umask}")), &socket);
        assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o7777, mode);
        assert_eq!(running.end_by(Signal::TERM).code(), Some(0));
    }
}

#[test]
fn start_at_the_socket_of_a_live_helper_fails() {
    require_root!();
    let directory = directory();
    let socket = directory.path().join("s");
    let running = Helper::start(&mut helper_at(&socket), &socket);
    let before = inode(&socket);
    let (code, out, err) = helper_at(&socket).outcome();
    let text = "another program listens there; stop it or use another path";
    let expected = format!("qemu-pr-helper: Failed to bind socket to {}: {text}\n", socket.display());
    assert_eq!((code, out.as_str(), err), (Some(1), "", expected));
    assert_eq!(inode(&socket), before);
    connect(&socket);
    assert_eq!(running.end_by(Signal::TERM).code(), Some(0));
}

#[test]
fn one_of_many_simultaneous_starts_serves() {
    require_root!();
    let directory = directory();
    let socket = directory.path().join("s");
    drop(UnixListener::bind(&socket).unwrap());
    let mut starting: Vec<_> = (0..8).map(|_| helper_at(&socket).spawn()).collect();
    eventually("all but one to give up", || {
        let running = starting.iter_mut().filter_map(|process| process.try_wait().is_none().then_some(()));
        (running.count() == 1).then_some(())
    });
    connect(&socket);
    let mut last = starting.into_iter().find_map(|mut process| match process.try_wait() {
        None => Some(process),
        Some(status) => {
            assert_eq!(status.code(), Some(1));
            None
        }
    });
    let last = last.as_mut().expect("one serves");
    assert_eq!(last.stop().code(), Some(0));
    assert!(!socket.exists());
}

#[test]
fn socket_of_a_dead_helper_is_replaced() {
    require_root!();
    let directory = directory();
    let socket = directory.path().join("s");
    drop(UnixListener::bind(&socket).unwrap());
    let running = Helper::start(&mut helper_at(&socket), &socket);
    assert_eq!(running.end_by(Signal::TERM).code(), Some(0));
    assert!(!socket.exists());
}

#[test]
fn socket_of_another_program_is_not_removed() {
    require_root!();
    let directory = directory();
    let socket = directory.path().join("s");
    let running = Helper::start(&mut helper_at(&socket), &socket);
    // As the C helper does when it starts on the same path.
    fs::remove_file(&socket).unwrap();
    let _other = UnixListener::bind(&socket).unwrap();
    let before = inode(&socket);
    assert_eq!(running.end_by(Signal::TERM).code(), Some(0));
    assert_eq!(inode(&socket), before);
}

#[test]
fn socket_is_removed_from_a_directory_of_any_owner() {
    require_root!();
    const NOBODY: u32 = 65534;
    // The directory's owner and mode; the user who owns the socket in the end, as libvirt's does; the helper's.
    for (owner, mode, socket_owner, user) in [
        (0, 0o755, 0, "nobody"),
        (0, 0o755, 0, "root"),
        (NOBODY, 0o700, NOBODY, "root"),
        (NOBODY, 0o1777, 1, "root"),
        (1, 0o1777, 2, "nobody"),
    ] {
        let directory = directory();
        let socket = directory.path().join("s");
        chown(directory.path(), Some(owner), None).unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(mode)).unwrap();
        let arguments = ["-u".as_ref(), user.as_ref(), "-k".as_ref(), socket.as_os_str()];
        let running = Helper::start(&mut helper(arguments), &socket);
        chown(&socket, Some(socket_owner), None).unwrap();
        assert_eq!(running.end_by(Signal::TERM).code(), Some(0));
        assert!(!socket.exists(), "{owner} {mode:o} {user}");
    }
}

#[test]
fn socket_is_removed_when_the_helper_is_killed() {
    require_root!();
    for user in ["root", "nobody"] {
        let directory = directory();
        let socket = directory.path().join("s");
        let arguments = ["-u".as_ref(), user.as_ref(), "-k".as_ref(), socket.as_os_str()];
        let running = Helper::start(&mut helper(arguments), &socket);
        let monitor = running.monitor().expect("there is a monitor");
        assert_eq!(running.end_by(Signal::KILL).code(), None);
        wait_until_removed(&socket);
        wait_until_unused(&socket);
        let _ = monitor;
    }
}

#[test]
fn killed_monitor_ends_nothing() {
    require_root!();
    for sandbox in ["on", "off"] {
        killed_monitor(sandbox);
    }
}

fn killed_monitor(sandbox: &str) {
    let directory = directory();
    let socket = directory.path().join("s");
    let running = Helper::start(helper([format!("--sandbox={sandbox}")]).arg("-k").arg(&socket), &socket);
    let monitor = running.monitor().expect("there is a monitor");
    monitor.signal(Signal::KILL);
    eventually("the monitor ends", || (Process::with_argument(&socket).len() == 1).then_some(()));
    connect(&socket);
    assert_eq!(running.end_by(Signal::TERM).code(), Some(0));
    // The sandbox permits removing the file to the monitor alone.
    assert_eq!(socket.exists(), sandbox == "on");
}

#[test]
fn helper_without_a_monitor_serves() {
    require_root!();
    let unshared = |script: &str| {
        let mut command = Launcher::new("unshare");
        command.args(["--mount", "/bin/sh", "-c", &format!("mount -t tmpfs none /proc && {script}")]);
        command
    };
    if unshared("true").outcome().0 != Some(0) {
        skip!("needs a mount namespace");
    }
    let directory = directory();
    let socket = directory.path().join("s");
    let mut command = unshared(&format!("exec {HELPER} -k {}", socket.display()));
    let stderr = Helper::start(&mut command, &socket).end();
    assert!(!socket.exists());
    let expected = format!(
        "qemu-pr-helper: the monitor cannot be started (is /proc mounted?), so multipath maps cannot be reserved, and {} \
         may stay behind: No such file or directory\n",
        socket.display()
    );
    assert_eq!(stderr, expected);
}

#[test]
fn failed_start_leaves_nothing_behind() {
    require_root!();
    let directory = directory();
    let socket = directory.path().join("s");
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let mut command = helper_at(&socket);
    command.wrapped_by(["setpriv", "--reuid=65534", "--clear-groups"]);
    let (code, out, err) = command.outcome();
    let expected = "qemu-pr-helper: Failed to drop privileges: Operation not permitted\n";
    assert_eq!((code, out.as_str(), err.as_str()), (Some(1), "", expected));
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn errors_of_the_path_end_the_start() {
    require_root!();
    let directory = directory();
    let missing = directory.path().join("missing/s");
    let file = directory.path().join("file");
    fs::write(&file, "precious").unwrap();
    let long = format!("{}/{}", directory.path().display(), "a".repeat(108));
    let path = directory.path().display();
    for (socket, text) in [
        (
            missing.display().to_string(),
            format!("Failed to bind socket to {}: No such file or directory\n", missing.display()),
        ),
        (path.to_string(), format!("Failed to unlink socket {path}: Is a directory\n")),
        (
            file.display().to_string(),
            format!(
                "Failed to bind socket to {}: there is a file that is not a socket; remove it or use another path\n",
                file.display()
            ),
        ),
        (long.clone(), format!("UNIX socket path '{long}' is too long\nPath must be less than 108 bytes\n")),
        ("relative".to_owned(), "socket path must be absolute\n".to_owned()),
    ] {
        let expected = format!("qemu-pr-helper: {text}");
        assert_eq!(helper(["-k", &socket]).outcome(), (Some(1), String::new(), expected));
    }
    assert_eq!(fs::read(&file).unwrap(), b"precious");
}
