//! Signals, and what the helper does not depend on.
#![forbid(unsafe_code)]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

use common::{Running, directory, ended, handshake, helper, processes_with, wait_for};
use rustix::process::{Pid, Signal, kill_process};

/// SIGTERM at any moment of the start ends the helper and leaves nothing. Before its first instruction it is killed by
/// the signal, from then on it exits with 0.
#[test]
fn an_early_sigterm_is_never_lost() {
    let directory = directory();
    let socket = directory.path().join("s");
    // Spread over the start, which takes a few milliseconds, and denser where it is.
    for attempt in 0..200u64 {
        let mut process = helper(["-k".as_ref(), socket.as_os_str()]).spawn().unwrap();
        sleep(Duration::from_micros(attempt * 37 % 4000));
        kill_process(Pid::from_child(&process), Signal::TERM).unwrap();
        let status = ended(&mut process);
        assert!(status.code() == Some(0) || status.signal() == Some(15), "{status}");
        wait_for("the socket to be removed", || (!socket.exists()).then_some(()));
    }
    wait_for("every monitor to end", || processes_with(&socket).is_empty().then_some(()));
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn usr1_and_pipe_change_nothing_and_others_kill() {
    let directory = directory();
    let socket = directory.path().join("s");
    for (signal, kills) in [(Signal::USR1, false), (Signal::PIPE, false), (Signal::USR2, true), (Signal::QUIT, true)] {
        let mut running = Running::start(&mut helper(["-k".as_ref(), socket.as_os_str()]), &socket);
        running.signal(signal);
        if kills {
            let status = ended(&mut running.process);
            assert_eq!(status.signal(), Some(signal.as_raw()));
        } else {
            // The first client that is served after it.
            handshake(&socket);
            assert_eq!(running.end_by(Signal::TERM).code(), Some(0));
        }
    }
}

/// libvirt closes its end of the pipe that is the helper's stderr.
#[test]
fn a_dead_stderr_is_survived() {
    let directory = directory();
    let socket = directory.path().join("s");
    let mut command = helper(["-vvv", "-T", "*", "-k"]);
    let mut running = Running::start(command.arg(&socket).stdout(Stdio::piped()).stderr(Stdio::piped()), &socket);
    drop((running.process.stdout.take(), running.process.stderr.take()));
    for _ in 0..3 {
        // Not a command: the helper complains and closes.
        let mut client = handshake(&socket);
        client.write_all(&[0; 4]).unwrap();
        client.write_all(&[0; 16]).unwrap();
        let mut rest = Vec::new();
        let _ = client.read_to_end(&mut rest);
        assert_eq!(rest, []);
    }
    handshake(&socket);
    assert_eq!(running.end_by(Signal::TERM).code(), Some(0));
    assert!(!socket.exists());
}
