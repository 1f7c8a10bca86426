//! The pid file, and the background.
#![forbid(unsafe_code)]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use common::{
    Helper, Launcher, Process, connect, directory, eventually, helper, helper_at, require_root, wait_until_unused,
};
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::process::Signal;

fn written_pid(path: &Path) -> u32 {
    let text = fs::read_to_string(path).unwrap();
    text.strip_suffix('\n').and_then(|pid| pid.parse().ok()).unwrap_or_else(|| panic!("{text:?}"))
}

fn is_locked(path: &Path) -> bool {
    let file = fs::File::options().write(true).open(path).unwrap();
    fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive).is_err()
}

/// Sends SIGTERM to a daemon and waits for its end. It stays a zombie on a machine whose process 1 does not reap it.
fn stop(daemon: Process) {
    daemon.signal(Signal::TERM);
    eventually("the daemon ends", || (!daemon.is_running()).then_some(()));
}

#[test]
fn pid_file_is_written_locked_and_kept() {
    require_root!();
    let directory = directory();
    let (socket, pid_file) = (directory.path().join("s"), directory.path().join("pid"));
    let arguments = ["-k".as_ref(), socket.as_os_str(), "-f".as_ref(), pid_file.as_os_str()];
    let running = Helper::start(&mut helper(arguments), &socket);
    assert_eq!(written_pid(&pid_file), running.pid());
    assert_eq!(fs::metadata(&pid_file).unwrap().permissions().mode() & 0o7777, 0o600);
    assert!(is_locked(&pid_file));
    assert_eq!(running.end_by(Signal::TERM).code(), Some(0));
    assert!(!is_locked(&pid_file));
    assert!(pid_file.exists() && !socket.exists());
}

#[test]
fn helper_without_option_writes_no_pid_file() {
    require_root!();
    let directory = directory();
    let socket = directory.path().join("s");
    let running = Helper::start(helper_at(&socket).current_dir(directory.path()), &socket);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    assert_eq!(running.end_by(Signal::TERM).code(), Some(0));
}

/// Starting the service twice must not end it.
#[test]
fn start_without_the_lock_changes_nothing() {
    require_root!();
    let directory = directory();
    let (socket, pid_file) = (directory.path().join("s"), directory.path().join("pid"));
    let other = directory.path().join("other");
    let arguments = ["-k".as_ref(), socket.as_os_str(), "-f".as_ref(), pid_file.as_os_str()];
    let running = Helper::start(&mut helper(arguments), &socket);
    let before = fs::symlink_metadata(&socket).unwrap().ino();
    let refused =
        (Some(1), String::new(), "qemu-pr-helper: Cannot lock pid file: Resource temporarily unavailable\n".to_owned());
    assert_eq!(helper(arguments).outcome(), refused);
    assert_eq!(helper(arguments).arg("-d").outcome(), refused);
    assert_eq!(helper(arguments).arg("-k").arg(&other).outcome(), refused);
    assert!(!other.exists());
    assert_eq!(fs::symlink_metadata(&socket).unwrap().ino(), before);
    assert_eq!(written_pid(&pid_file), running.pid());
    connect(&socket);
    assert_eq!(running.end_by(Signal::TERM).code(), Some(0));
}

#[test]
fn pid_file_error_comes_before_the_socket() {
    require_root!();
    let directory = directory();
    let socket = directory.path().join("s");
    let path = directory.path().display();
    for (pid_file, text) in [
        ("/nonexistent/pid".to_owned(), "Could not create '/nonexistent/pid': No such file or directory\n".to_owned()),
        (path.to_string(), format!("Could not create '{path}': Is a directory\n")),
        ("/dev/null".to_owned(), "Failed to truncate pid file: Invalid argument\n".to_owned()),
    ] {
        let result = helper(["-f", &pid_file, "-k"]).arg(&socket).outcome();
        assert_eq!(result, (Some(1), String::new(), format!("qemu-pr-helper: {text}")));
        assert!(!socket.exists());
    }
}

#[test]
fn helper_in_the_background_serves_when_the_launcher_ends() {
    require_root!();
    let directory = directory();
    let (socket, pid_file) = (directory.path().join("s"), directory.path().join("pid"));
    let mut command = helper(["-d", "--pidfile"]);
    let (code, out, err) = command.arg(&pid_file).arg("-k").arg(&socket).current_dir(directory.path()).outcome();
    assert_eq!((code, out.as_str(), err.as_str()), (Some(0), "", ""));
    // No waiting: it serves already.
    let pid = written_pid(&pid_file);
    connect(&socket);
    assert!(is_locked(&pid_file));
    let of = |what: &str| fs::read_link(format!("/proc/{pid}/{what}")).unwrap().display().to_string();
    assert_eq!([of("cwd"), of("fd/0"), of("fd/1"), of("fd/2")], ["/", "/dev/null", "/dev/null", "/dev/null"]);
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let session = stat.rsplit_once(") ").unwrap().1.split(' ').nth(3).unwrap().to_owned();
    assert_eq!(session, pid.to_string(), "it is not in a session of its own");
    assert_eq!(fs::read_to_string(format!("/proc/{pid}/comm")).unwrap(), "qemu-pr-helper\n");

    stop(Process::new(pid));
    assert!(!socket.exists() && pid_file.exists());
    wait_until_unused(&socket);
}

/// With `-d` a relative pid file is in the root directory, as the C helper has it.
#[test]
fn a_relative_pid_file_is_in_the_root_directory() {
    require_root!();
    let directory = directory();
    let socket = directory.path().join("s");
    let name = directory.path().strip_prefix("/").unwrap().join("pid");
    let mut command = helper(["-d", "-f"]);
    let (code, ..) = command.arg(&name).arg("-k").arg(&socket).current_dir("/proc").outcome();
    assert_eq!(code, Some(0));
    let pid = written_pid(&directory.path().join("pid"));
    stop(Process::new(pid));
}

/// The launcher's exit code reports every failure before the helper serves. The C helper's reports only failures before
/// it forks.
#[test]
fn failure_in_the_background_is_reported_by_the_launcher() {
    require_root!();
    let directory = directory();
    let (socket, pid_file) = (directory.path().join("s"), directory.path().join("pid"));
    let mut command = helper(["-d", "-f"]);
    command.arg(&pid_file).arg("-k").arg(&socket).wrapped_by(["setpriv", "--bounding-set=-sys_rawio"]);
    let expected = "qemu-pr-helper: Failed to drop privileges: Operation not permitted\n";
    assert_eq!(command.outcome(), (Some(1), String::new(), expected.to_owned()));
    assert!(!socket.exists());
}

/// A signal that stops the launcher stops the start. A launcher that ended with 0 has left a helper.
#[test]
fn a_cancelled_start_leaves_nothing() {
    require_root!();
    let directory = directory();
    let (socket, pid_file) = (directory.path().join("s"), directory.path().join("pid"));
    for attempt in 0..50u64 {
        let mut command = helper(["-d", "-f"]);
        command.arg(&pid_file).arg("-k").arg(&socket);
        let mut launcher = command.spawn();
        std::thread::sleep(std::time::Duration::from_micros(attempt * 373 % 10_000));
        launcher.signal(Signal::TERM);
        if launcher.wait().code() == Some(0) {
            connect(&socket);
            Process::new(written_pid(&pid_file)).signal(Signal::TERM);
            wait_until_unused(&socket);
        }
        assert_eq!((Process::with_argument(&socket), socket.exists()), (vec![], false));
    }
}

#[test]
fn a_warning_is_printed_once() {
    require_root!();
    let directory = directory();
    let mut command = helper(["-d", "-T", "nosuch", "-f", "/nonexistent/pid", "-k"]);
    let (code, _, err) = command.arg(directory.path().join("s")).outcome();
    let expected = "qemu-pr-helper: warning: trace event 'nosuch' does not exist\n\
                    qemu-pr-helper: Could not create '/nonexistent/pid': No such file or directory\n";
    assert_eq!((code, err.as_str()), (Some(1), expected));
}

/// libvirt takes a lock on a pid file of its own in the process that then becomes the helper, and from that lock it tells
/// whether the helper lives: the helper must not close the descriptor, nor open and close the file.
#[test]
fn an_inherited_lock_stays() {
    require_root!();
    const ROLE: &str = "TEST_BECOMES_THE_HELPER";
    if let Some(directory) = std::env::var_os(ROLE) {
        use std::os::unix::process::CommandExt;
        let directory = Path::new(&directory);
        let file = fs::File::create(directory.join("libvirt.pid")).unwrap();
        fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
        rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).unwrap();
        panic!("{}", std::process::Command::new(common::HELPER).arg("-k").arg(directory.join("s")).exec());
    }
    let directory = directory();
    let socket = directory.path().join("s");
    let mut command = Launcher::new(std::env::current_exe().unwrap());
    command.args(["--exact", "an_inherited_lock_stays", "--nocapture"]).env(ROLE, directory.path());
    let running = Helper::start(&mut command, &socket);
    let file = fs::File::open(directory.path().join("libvirt.pid")).unwrap();
    let holder = || {
        let mut lock = libc::flock {
            l_type: libc::F_WRLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        fcntl(&file, FcntlArg::F_GETLK(&mut lock)).unwrap();
        (lock.l_type != libc::F_UNLCK as libc::c_short).then_some(lock.l_pid)
    };
    for _ in 0..10 {
        assert_eq!(holder(), Some(running.pid().cast_signed()));
        connect(&socket);
    }
    let mut running = running;
    running.signal(Signal::TERM);
    assert_eq!(running.wait().code(), Some(0));
    assert_eq!(holder(), None, "another process has inherited the lock");
}
