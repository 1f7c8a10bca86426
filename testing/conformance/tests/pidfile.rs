//! The pid file: what it holds, its lock, and the error of a second instance.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use conformance::process::{Process, lock_over};
use conformance::{Answer, Client, Helper, Subject, against_each_helper, eventually, in_cdb, null};

against_each_helper!(
    pid_file_has_the_pid_and_a_newline,
    foreground_without_option_writes_no_pid_file,
    pid_file_is_locked_until_the_end_and_stays,
    existing_pid_file_is_overwritten_and_keeps_its_mode,
    relative_pid_file_is_in_the_working_directory,
    daemon_has_its_own_session_and_no_terminal,
    daemon_with_a_bad_socket_fails_in_the_foreground,
    daemon_that_cannot_start_reports_it,
    daemon_without_proc_is_refused,
    daemon_serves_once_its_starter_has_ended,
    second_start_with_the_pid_file_leaves_the_first_alone,
);

/// The pid that is in the file once it is complete.
#[track_caller]
fn pid_in(file: &Path) -> u32 {
    eventually("the pid file is written", || fs::read_to_string(file).ok()?.strip_suffix('\n')?.parse().ok())
}

#[track_caller]
fn serves(helper: &Helper) {
    let client = Client::try_connect(&helper.socket()).unwrap();
    client.handshake();
    assert_eq!(client.run(&in_cdb(0, 8), &[], null()), Answer::io_process_terminated());
}

fn pid_file_has_the_pid_and_a_newline(subject: &Subject) {
    let start = subject.command();
    let file = start.path("pid");
    let helper = start.arg("-f").arg(&file).serve();
    assert_eq!(fs::read_to_string(&file).unwrap(), format!("{}\n", helper.process().pid()));
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600);
}

fn foreground_without_option_writes_no_pid_file(subject: &Subject) {
    // In a /run of its own, where it would be written.
    let own_run = r#"set -- unshare --mount sh -c 'mount -t tmpfs none /run && exec "$@"' sh "$@""#;
    let helper = subject.command().shell(own_run).serve();
    let run = format!("/proc/{}/root/run", helper.process().pid());
    assert_eq!(fs::read_dir(&run).unwrap().count(), 0);
    // With -d: `defaults_are_in_the_runtime_directory`.
}

fn pid_file_is_locked_until_the_end_and_stays(subject: &Subject) {
    let start = subject.command();
    let file = start.path("pid");
    let helper = start.arg("-f").arg(&file).serve();
    let held = lock_over(&file).expect("a lock");
    assert_eq!((held.start, held.length), (0, 0), "over the whole file");
    assert_eq!(held.owner, subject.differs("lock-owner", helper.process().pid().cast_signed(), -1));
    serves(&helper);
    assert!(lock_over(&file).is_some());
    let pid = helper.process().pid();
    let end = helper.terminate();
    assert_eq!(end.code(), 0);
    assert_eq!(fs::read_to_string(&file).unwrap(), format!("{pid}\n"));
    assert!(lock_over(&file).is_none());
}

fn existing_pid_file_is_overwritten_and_keeps_its_mode(subject: &Subject) {
    let start = subject.command();
    let file = start.path("pid");
    fs::write(&file, "what was there before, and longer\n").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let helper = start.arg("-f").arg(&file).serve();
    assert_eq!(fs::read_to_string(&file).unwrap(), format!("{}\n", helper.process().pid()));
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o644);
}

fn relative_pid_file_is_in_the_working_directory(subject: &Subject) {
    let start = subject.command();
    let directory = start.directory().display().to_string();
    let helper = start.shell(&format!("cd {directory}")).args(["-f", "pid"]).serve();
    assert_eq!(pid_in(&helper.path("pid")), helper.process().pid());

    // A daemon's is the root.
    let start = subject.command().socket();
    let path = start.path("pid");
    let mut helper = start.arg("-d").arg("-f").arg(path.strip_prefix("/").unwrap()).start();
    assert_eq!(helper.wait().code(), Some(0));
    pid_in(&path);
    serves(&helper);
}

fn daemon_has_its_own_session_and_no_terminal(subject: &Subject) {
    let start = subject.command().socket();
    let file = start.path("pid");
    let mut helper = start.arg("-d").arg("-f").arg(&file).start();
    let starter = helper.process().pid();
    assert_eq!(helper.wait().code(), Some(0));
    let daemon = Process::new(pid_in(&file));
    serves(&helper);
    assert_ne!(daemon.pid(), starter);
    assert_eq!(daemon.working_directory().as_deref(), Some(Path::new("/")));
    let descriptors = daemon.descriptors();
    for standard in 0..3 {
        assert_eq!(descriptors[&standard], Path::new("/dev/null"), "descriptor {standard}");
    }
    assert_eq!(daemon.session(), Some(daemon.pid()), "in a session of its own");
    daemon.signal(rustix::process::Signal::TERM);
    eventually("the daemon ends", || (!daemon.is_running()).then_some(()));
    assert!(!helper.socket().exists());
    assert_eq!(fs::read_to_string(&file).unwrap(), format!("{}\n", daemon.pid()));
    eventually("all that it started ends", || helper.processes().is_empty().then_some(()));
}

fn daemon_with_a_bad_socket_fails_in_the_foreground(subject: &Subject) {
    let start = subject.command();
    let path = start.path("missing/socket").display().to_string();
    let end = start.args(["-d", "-k", &path]).finish();
    let expected = format!("qemu-pr-helper: Failed to bind socket to {path}: No such file or directory\n");
    assert_eq!((end.code(), end.stderr), (1, expected));
}

fn daemon_that_cannot_start_reports_it(subject: &Subject) {
    let start = subject.command();
    let file = start.path("pid");
    let _first = start.arg("-f").arg(&file).serve();
    let end = subject.command().socket().arg("-d").arg("-f").arg(&file).finish();
    let message = "qemu-pr-helper: Cannot lock pid file: Resource temporarily unavailable\n";
    let expected = subject.differs("daemon-failure", (0, ""), (1, message));
    assert_eq!((end.code(), &*end.stderr), expected);
}

fn daemon_without_proc_is_refused(subject: &Subject) {
    let without = r#"set -- unshare --mount sh -c 'umount -l /proc && exec "$@"' sh "$@""#;
    let start = subject.command().shell(without).socket();
    let file = start.path("pid");
    let end = start.arg("-d").arg("-f").arg(file).finish();
    let message = "qemu-pr-helper: Failed to daemonize: cannot start /proc/self/exe again: No such file or directory\n";
    assert_eq!((end.code(), &*end.stderr), subject.differs("proc", (0, ""), (1, message)));
}

fn daemon_serves_once_its_starter_has_ended(subject: &Subject) {
    for _ in 0..10 {
        let start = subject.command().socket();
        let file = start.path("pid");
        let mut helper = start.arg("-d").arg("-f").arg(&file).start();
        assert_eq!(helper.wait().code(), Some(0));
        let written = fs::read_to_string(&file).is_ok_and(|text| text.ends_with('\n'));
        // QEMU's may have written it, or not yet.
        assert!(subject.differs("daemon-ready", true, written));
        serves(&helper);
    }
}

fn second_start_with_the_pid_file_leaves_the_first_alone(subject: &Subject) {
    let start = subject.command();
    let file = start.path("pid");
    let helper = start.arg("-f").arg(&file).serve();
    let end = subject.command().arg("-k").arg(helper.socket()).arg("-f").arg(&file).finish();
    let message = "qemu-pr-helper: Cannot lock pid file: Resource temporarily unavailable\n";
    assert_eq!((end.code(), &*end.stderr), (1, message));
    assert_eq!(fs::read_to_string(&file).unwrap(), format!("{}\n", helper.process().pid()));
    // The first instance runs on, but QEMU's helper has lost its socket path.
    let reached = Client::try_connect(&helper.socket()).is_ok();
    assert_eq!(reached, subject.differs("lock-first", false, true));
}

#[test]
fn pid_file_excludes_the_other_helper() {
    let (Some(scsi_pr), Some(qemu)) = (Subject::scsi_pr(), Subject::c()) else { return };
    for (first, second) in [(scsi_pr, qemu), (qemu, scsi_pr)] {
        let start = first.command();
        let file = start.path("pid");
        let _helper = start.arg("-f").arg(&file).serve();
        let end = second.command().socket().arg("-f").arg(&file).finish();
        assert_eq!(end.code(), 1);
        assert!(end.stderr.contains("Cannot lock pid file"), "{}", end.stderr);
    }
}
