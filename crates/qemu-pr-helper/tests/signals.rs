//! Signals, and what the helper does not depend on.
#![forbid(unsafe_code)]

mod common;

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::thread::sleep;
use std::time::Duration;

use common::{
    Helper, Output, connect, directory, helper, helper_at, require_root, wait_until_removed, wait_until_unused,
};
use rustix::process::Signal;

/// SIGTERM at any moment of the start ends the helper and leaves nothing. Before its first instruction it is killed by
/// the signal, from then on it exits with 0.
#[test]
fn an_early_sigterm_is_never_lost() {
    require_root!();
    let directory = directory();
    let socket = directory.path().join("s");
    // Spread over the start, which takes a few milliseconds.
    for attempt in 0..200u64 {
        let mut process = helper_at(&socket).spawn();
        sleep(Duration::from_micros(attempt * 37 % 6000));
        process.signal(Signal::TERM);
        let status = process.wait();
        assert!(status.code() == Some(0) || status.signal() == Some(15), "{status}");
        wait_until_removed(&socket);
    }
    wait_until_unused(&socket);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn usr1_and_pipe_change_nothing_and_others_kill() {
    require_root!();
    let directory = directory();
    let socket = directory.path().join("s");
    for (signal, kills) in [(Signal::USR1, false), (Signal::PIPE, false), (Signal::USR2, true), (Signal::QUIT, true)] {
        let mut running = Helper::start(&mut helper_at(&socket), &socket);
        running.signal(signal);
        if kills {
            let status = running.wait();
            assert_eq!(status.signal(), Some(signal.as_raw()));
        } else {
            // The first client that is served after it.
            connect(&socket);
            assert_eq!(running.end_by(Signal::TERM).code(), Some(0));
        }
    }
}

/// libvirt closes its end of the pipe that is the helper's stderr.
#[test]
fn helper_without_a_reader_of_its_log_serves() {
    require_root!();
    let directory = directory();
    let socket = directory.path().join("s");
    let mut command = helper(["-vvv", "-T", "*", "-k"]);
    let mut running = Helper::start(command.arg(&socket).stdout(Output::Pipe).stderr(Output::Pipe), &socket);
    let child = running.child();
    drop((child.stdout.take(), child.stderr.take()));
    for _ in 0..3 {
        // Not a command: the helper complains and closes.
        let mut client = connect(&socket);
        client.send(&[0; 4], &[]).unwrap();
        client.send(&[0; 16], &[]).unwrap();
        assert!(client.is_closed());
    }
    connect(&socket);
    assert_eq!(running.end_by(Signal::TERM).code(), Some(0));
    assert!(!socket.exists());
}
