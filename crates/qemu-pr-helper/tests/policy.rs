//! The options that restrict clients: `--deny`, `--allow-user`, `--allow-group`.
#![forbid(unsafe_code)]

mod common;

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;

use common::{Helper, Program, connect, directory, eventually, helper, require_root};
use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use testing_support::command::{action_in, action_out, basic_list, reserve_in, reserve_out};
use testing_support::{Client, Response, null};

/// The answer of the helper to a command for `/dev/null` that it runs: SG_IO fails with ENOTTY.
fn run_on_null() -> Response {
    Response::check_condition(0x0b, 0x00, 0x06)
}

/// Whether a process with these ids is served. The ids are those of a thread of this process, as they are in Linux.
fn is_served(socket: &Path, uid: u32, gid: u32, groups: &[u32]) -> bool {
    let groups: Vec<Gid> = groups.iter().copied().map(Gid::from_raw).collect();
    let client = thread::scope(|scope| {
        let connecting = scope.spawn(|| {
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            set_thread_groups(&groups).unwrap();
            set_thread_res_gid(gid, gid, gid).unwrap();
            set_thread_res_uid(uid, uid, uid).unwrap();
            Client::connect(socket).unwrap()
        });
        connecting.join().unwrap()
    });
    let mut client = client;
    match client.read_features() {
        Ok(_) => {
            client.send(&[0; 4], &[]).unwrap();
            let answer = client.run(&reserve_in(action_in::READ_KEYS, 8), &[], null()).unwrap();
            assert_eq!(answer, run_on_null());
            true
        }
        Err(_) => false,
    }
}

/// A helper to whose socket every user may connect.
fn open_to_all(directory: &Path, arguments: &[&str]) -> (Program, PathBuf) {
    let socket = directory.join("s");
    let mut launcher = helper(arguments);
    let program = launcher.arg("-k").arg(&socket).shell("umask 0").spawn();
    // It may not serve this process.
    eventually("the helper listens", || UnixStream::connect(&socket).ok().map(drop));
    (program, socket)
}

#[test]
fn process_of_an_allowed_user_or_group_is_served_and_another_is_not() {
    require_root!();
    // More groups than fit into the first buffer.
    let many: Vec<u32> = (5000..5100).collect();
    for (arguments, uid, gid, groups, expected) in [
        (&[][..], 1234, 1234, &[][..], true),
        (&["--allow-user=1234"], 1234, 1, &[], true),
        (&["--allow-user=1234"], 1235, 1234, &[1234], false),
        (&["--allow-user=1", "--allow-user=1234"], 1234, 1, &[], true),
        (&["--allow-group=77"], 1234, 77, &[], true),
        (&["--allow-group=77"], 77, 78, &[79], false),
        (&["--allow-group=77"], 1234, 78, &[76, 77], true),
        (&["--allow-group=5099"], 1234, 78, &many, true),
        (&["--allow-group=5100"], 1234, 78, &many, false),
        (&["--allow-user=1", "--allow-group=77"], 1, 2, &[], true),
        (&["--allow-user=1", "--allow-group=77"], 2, 77, &[], true),
        (&["--allow-user=1", "--allow-group=77"], 2, 2, &[], false),
        // No user is an exception.
        (&["--allow-user=1234"], 0, 0, &[], false),
        (&["--allow-user=root"], 0, 0, &[], true),
    ] {
        let directory = directory();
        let (mut running, socket) = open_to_all(directory.path(), arguments);
        assert_eq!(is_served(&socket, uid, gid, groups), expected, "{arguments:?} {uid} {gid} {groups:?}");
        assert_eq!(running.stop().code(), Some(0));
    }
}

#[test]
fn refused_connections_have_a_bounded_number_of_log_lines() {
    require_root!();
    let directory = directory();
    let (mut running, socket) = open_to_all(directory.path(), &["--allow-user=1234"]);
    for _ in 0..50 {
        assert!(!is_served(&socket, 1235, 1235, &[]));
    }
    assert_eq!(running.stop().code(), Some(0));
    let log = running.stderr();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("Client not allowed, closing socket")).collect();
    assert!((1..=40).contains(&lines.len()), "{log}");
    let client = format!("(process {} of user 1235)", std::process::id());
    assert!(lines.iter().any(|line| line.contains(&client) && line.contains("--allow-user")), "{log}");
}

#[test]
fn refused_connections_take_no_part_of_the_limits() {
    require_root!();
    let directory = directory();
    let (_running, socket) = open_to_all(directory.path(), &["--allow-user=1234", "--max-connections=4"]);
    for _ in 0..20 {
        assert!(!is_served(&socket, 1235, 1235, &[]));
    }
    // A process has a quarter of four.
    assert!(eventually("the allowed user is served", || is_served(&socket, 1234, 1, &[]).then_some(true)));
}

#[test]
fn denied_service_action_is_refused_and_others_run() {
    require_root!();
    let directory = directory();
    let socket = directory.path().join("s");
    let mut launcher = helper(["--deny=preempt,preempt-and-abort", "--deny=read-full-status", "-k"]);
    let running = Helper::start(launcher.arg(&socket), &socket);
    let mut client = connect(&socket);
    client.send(&[0; 4], &[]).unwrap();
    let denied = Response::check_condition(0x05, 0x24, 0x00);
    for code in [action_out::REGISTER, action_out::CLEAR, action_out::PREEMPT, action_out::PREEMPT_AND_ABORT, 0x1f] {
        let answer = client.run(&reserve_out(code, 0, 24), &basic_list(1, 2), null()).unwrap();
        let is_denied = [action_out::PREEMPT, action_out::PREEMPT_AND_ABORT].contains(&code);
        assert_eq!(answer, if is_denied { denied.clone() } else { run_on_null() }, "{code}");
    }
    assert_eq!(client.run(&reserve_in(action_in::READ_KEYS, 8), &[], null()).unwrap(), run_on_null());
    assert_eq!(client.run(&reserve_in(action_in::READ_FULL_STATUS, 8), &[], null()).unwrap(), denied);
    let log = running.end();
    let line = log.lines().find(|line| line.contains("this service action is denied")).expect("it is logged");
    for part in ["PREEMPT", "on 1:3", &format!("for process {}", std::process::id()), "--deny"] {
        assert!(line.contains(part), "{part}: {line}");
    }
}

#[test]
fn wrong_values_end_the_start() {
    for (argument, reason) in [
        ("--deny=steal", "invalid service action 'steal'; the valid ones are: read-keys, "),
        ("--deny=", "invalid service action ''; the valid ones are: read-keys, "),
        ("--allow-user=no-such-user", "invalid user 'no-such-user'"),
        ("--allow-group=no-such-group", "invalid group 'no-such-group'"),
    ] {
        let (code, out, err) = helper([argument]).outcome();
        assert_eq!((code, out.as_str()), (Some(1), ""), "{argument}");
        assert!(err.starts_with(&format!("qemu-pr-helper: {reason}")), "{err}");
        assert_eq!(err.lines().count(), 1, "{err}");
    }
}
