//! The socket's life: made with the right mode, never taken from anybody, gone at the end.
#![forbid(unsafe_code)]

mod common;

use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{HELPER, Running, directory, ended, handshake, helper, outcome, processes_with, wait_for};
use rustix::process::Signal;

fn inode(path: &Path) -> u64 {
    fs::symlink_metadata(path).unwrap().ino()
}

#[test]
fn it_listens_and_leaves_nothing_behind() {
    let directory = directory();
    let socket = directory.path().join("s");
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let running = Running::start(&mut helper(["-k".as_ref(), socket.as_os_str()]), &socket);
        let _idle = handshake(&socket);
        assert_eq!(running.end_by(signal).code(), Some(0), "{signal:?}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "{signal:?}");
        wait_for("the monitor to end", || processes_with(&socket).is_empty().then_some(()));
    }
}

#[test]
fn the_mode_is_0777_less_the_umask() {
    let directory = directory();
    let socket = directory.path().join("s");
    for (umask, mode) in [("000", 0o777), ("022", 0o755), ("077", 0o700), ("117", 0o660)] {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &format!("umask {umask} && exec {HELPER} -k {}", socket.display())]);
        let running = Running::start(&mut command, &socket);
        assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o7777, mode);
        assert_eq!(running.end_by(Signal::TERM).code(), Some(0));
    }
}

#[test]
fn a_live_instance_is_not_robbed() {
    let directory = directory();
    let socket = directory.path().join("s");
    let running = Running::start(&mut helper(["-k".as_ref(), socket.as_os_str()]), &socket);
    let before = inode(&socket);
    let (code, out, err) = outcome(&mut helper(["-k".as_ref(), socket.as_os_str()]));
    let text = "another program listens there; stop it or use another path";
    let expected = format!("qemu-pr-helper: Failed to bind socket to {}: {text}\n", socket.display());
    assert_eq!((code, out.as_str(), err), (Some(1), "", expected));
    assert_eq!(inode(&socket), before);
    handshake(&socket);
    assert_eq!(running.end_by(Signal::TERM).code(), Some(0));
}

#[test]
fn of_many_that_start_at_once_one_serves() {
    let directory = directory();
    let socket = directory.path().join("s");
    drop(UnixListener::bind(&socket).unwrap());
    let mut starting: Vec<_> =
        (0..8).map(|_| helper(["-k".as_ref(), socket.as_os_str()]).stderr(Stdio::null()).spawn().unwrap()).collect();
    wait_for("all but one to give up", || {
        let running = starting.iter_mut().filter_map(|process| process.try_wait().unwrap().is_none().then_some(()));
        (running.count() == 1).then_some(())
    });
    handshake(&socket);
    let mut last = starting.into_iter().find_map(|mut process| match process.try_wait().unwrap() {
        None => Some(process),
        Some(status) => {
            assert_eq!(status.code(), Some(1));
            None
        }
    });
    let last = last.as_mut().expect("one serves");
    rustix::process::kill_process(rustix::process::Pid::from_child(last), Signal::TERM).unwrap();
    assert_eq!(ended(last).code(), Some(0));
    assert!(!socket.exists());
}

#[test]
fn what_a_dead_instance_left_is_replaced() {
    let directory = directory();
    let socket = directory.path().join("s");
    drop(UnixListener::bind(&socket).unwrap());
    let running = Running::start(&mut helper(["-k".as_ref(), socket.as_os_str()]), &socket);
    assert_eq!(running.end_by(Signal::TERM).code(), Some(0));
    assert!(!socket.exists());
}

#[test]
fn another_s_socket_is_not_removed() {
    let directory = directory();
    let socket = directory.path().join("s");
    let running = Running::start(&mut helper(["-k".as_ref(), socket.as_os_str()]), &socket);
    // As the C helper does when it starts on the same path.
    fs::remove_file(&socket).unwrap();
    let _other = UnixListener::bind(&socket).unwrap();
    let before = inode(&socket);
    assert_eq!(running.end_by(Signal::TERM).code(), Some(0));
    assert_eq!(inode(&socket), before);
}

#[test]
fn it_is_removed_whoever_owns_the_directory() {
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
        let running = Running::start(&mut helper(arguments), &socket);
        chown(&socket, Some(socket_owner), None).unwrap();
        assert_eq!(running.end_by(Signal::TERM).code(), Some(0));
        assert!(!socket.exists(), "{owner} {mode:o} {user}");
    }
}

#[test]
fn it_is_removed_when_the_helper_is_killed() {
    for user in ["root", "nobody"] {
        let directory = directory();
        let socket = directory.path().join("s");
        let arguments = ["-u".as_ref(), user.as_ref(), "-k".as_ref(), socket.as_os_str()];
        let running = Running::start(&mut helper(arguments), &socket);
        let monitor = running.monitor().expect("there is a monitor");
        assert_eq!(running.end_by(Signal::KILL).code(), None);
        wait_for("the socket to be removed", || (!socket.exists()).then_some(()));
        wait_for("the monitor to end", || processes_with(&socket).is_empty().then_some(()));
        let _ = monitor;
    }
}

#[test]
fn killed_monitor_ends_nothing() {
    for sandbox in ["on", "off"] {
        killed_monitor(sandbox);
    }
}

fn killed_monitor(sandbox: &str) {
    let directory = directory();
    let socket = directory.path().join("s");
    let running = Running::start(helper([format!("--sandbox={sandbox}")]).arg("-k").arg(&socket), &socket);
    let monitor = running.monitor().expect("there is a monitor");
    let monitor = rustix::process::Pid::from_raw(monitor.try_into().unwrap()).unwrap();
    rustix::process::kill_process(monitor, Signal::KILL).unwrap();
    wait_for("the monitor to end", || (processes_with(&socket).len() == 1).then_some(()));
    handshake(&socket);
    assert_eq!(running.end_by(Signal::TERM).code(), Some(0));
    // The sandbox permits removing the file to the monitor alone.
    assert_eq!(socket.exists(), sandbox == "on");
}

#[test]
fn without_a_monitor_it_serves_all_the_same() {
    let unshared = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "/bin/sh", "-c", &format!("mount -t tmpfs none /proc && {script}")]);
        command
    };
    if outcome(&mut unshared("true")).0 != Some(0) {
        eprintln!("left out: needs a mount namespace");
        return;
    }
    let directory = directory();
    let socket = directory.path().join("s");
    let mut command = unshared(&format!("exec {HELPER} -k {}", socket.display()));
    let mut running = Running::start(command.stderr(Stdio::piped()), &socket);
    running.signal(Signal::TERM);
    assert_eq!(ended(&mut running.process).code(), Some(0));
    assert!(!socket.exists());
    let mut said = String::new();
    running.process.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    let expected = format!(
        "qemu-pr-helper: the monitor cannot be started (is /proc mounted?), so multipath maps cannot be reserved, and {} \
         may stay behind: No such file or directory\n",
        socket.display()
    );
    assert_eq!(said, expected);
}

#[test]
fn nothing_is_left_when_the_start_fails() {
    let directory = directory();
    let socket = directory.path().join("s");
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--clear-groups", HELPER, "-k"]).arg(&socket);
    let (code, out, err) = outcome(&mut command);
    let expected = "qemu-pr-helper: Failed to drop privileges: Operation not permitted\n";
    assert_eq!((code, out.as_str(), err.as_str()), (Some(1), "", expected));
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn errors_of_the_path_end_the_start() {
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
        assert_eq!(outcome(&mut helper(["-k", &socket])), (Some(1), String::new(), expected));
    }
    assert_eq!(fs::read(&file).unwrap(), b"precious");
}
