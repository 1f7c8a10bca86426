//! What is told about commands: `-T`, `-v`, and the probes in the binary.
#![forbid(unsafe_code)]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;

use common::{HELPER, Running, directory, ended, handshake, helper};
use rustix::net::SendFlags;
use rustix::process::Signal;
use scsi_pr_helper::descriptor;

/// PERSISTENT RESERVE IN, READ KEYS, on what is no SCSI device; the status of the answer.
fn read_keys(client: &mut UnixStream) -> i32 {
    let null = fs::File::open("/dev/null").unwrap();
    let cdb = [0x5e, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(descriptor::send(&*client, &cdb, null.as_fd(), SendFlags::empty()), Ok(16));
    let mut answer = [0; 104];
    client.read_exact(&mut answer).unwrap();
    i32::from_be_bytes(answer[..4].try_into().unwrap())
}

/// Runs one command with `arguments`; what the helper wrote to stderr.
fn said(socket: &Path, arguments: &[&str]) -> String {
    let mut command = helper(arguments);
    let mut running = Running::start(command.arg("-k").arg(socket).stderr(Stdio::piped()), socket);
    let mut client = handshake(socket);
    client.write_all(&[0; 4]).unwrap();
    assert_eq!(read_keys(&mut client), 2);
    drop(client);
    running.signal(Signal::TERM);
    assert_eq!(ended(&mut running.process).code(), Some(0));
    let mut text = String::new();
    running.process.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    text
}

#[test]
fn verbose_counts_the_commands_at_the_end() {
    let directory = directory();
    let text = said(&directory.path().join("s"), &["-v"]);
    let text: String = text.lines().filter(|line| !line.contains("stays root")).collect();
    assert!(text.starts_with("qemu-pr-helper: 1 PERSISTENT RESERVE IN, 0 PERSISTENT RESERVE OUT"), "{text}");
    assert!(text.contains(" 0 ended in GOOD, 1 in CHECK CONDITION, "), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
}

#[test]
fn qemu_s_events_are_traced_as_qemu_traces_them() {
    let directory = directory();
    let (socket, log) = (directory.path().join("s"), directory.path().join("log"));
    let trace = format!("pr_manager_*,file={}", log.display());
    assert_eq!(said(&socket, &["-q", "-u", "nobody", "-T", &trace]), "");
    let text = fs::read_to_string(&log).unwrap();
    let lines: Vec<_> = text.lines().map(|line| line.split_once(" fd=").unwrap()).collect();
    let [("pr_manager_execute", first), ("pr_manager_run", second)] = lines[..] else { panic!("{text}") };
    assert_eq!(first, second);
    let (descriptor, rest) = first.split_once(' ').unwrap();
    assert!(descriptor.parse::<u32>().is_ok(), "{text}");
    assert_eq!(rest, "cmd=0x5e service action=0x00");
}

#[test]
fn events_go_to_stderr_without_a_file() {
    let directory = directory();
    let text = said(&directory.path().join("s"), &["-q", "-T", "pr_helper_close", "-T", "pr_manager_run"]);
    assert!(text.contains("pr_manager_run fd="), "{text}");
    assert!(text.contains("pr_helper_close closed connection="), "{text}");
    assert!(!text.contains("pr_manager_execute"), "{text}");
}

/// What a client may cause any time is not worth a line.
#[test]
fn a_command_is_quiet_unless_asked() {
    let directory = directory();
    let socket = directory.path().join("s");
    for arguments in [&[][..], &["-q"], &["-vq"]] {
        assert_eq!(said(&socket, arguments), "", "{arguments:?}");
    }
    let text = said(&socket, &["-vvv"]);
    assert!(text.lines().all(|line| line.starts_with("qemu-pr-helper: ")) && text.lines().count() > 2, "{text}");
}

/// Tools find them by provider and name in `.note.stapsdt`.
#[test]
fn probes_are_in_the_binary() {
    let binary = fs::read(HELPER).unwrap();
    for name in ["pr_manager_execute", "pr_manager_run", "pr_helper_completed"] {
        let note = format!("qemu\0{name}\0");
        assert!(binary.windows(note.len()).any(|bytes| bytes == note.as_bytes()), "{name}");
    }
}
