//! The log of commands: `-T`, `-v`, and the probes in the binary.
#![forbid(unsafe_code)]

mod common;

use std::fs;
use std::path::Path;

use common::{HELPER, Helper, connect, directory, helper, require_root};
use testing_support::command::reserve_in;
use testing_support::null;

/// Runs one command with `arguments`; what the helper wrote to stderr.
fn said(socket: &Path, arguments: &[&str]) -> String {
    let mut command = helper(arguments);
    let running = Helper::start(command.arg("-k").arg(socket), socket);
    let mut client = connect(socket);
    client.send(&[0; 4], &[]).unwrap();
    assert_eq!(client.run(&reserve_in(0, 8), &[], null()).unwrap().status, 2);
    drop(client);
    running.end()
}

#[test]
fn verbose_counts_the_commands_at_the_end() {
    require_root!();
    let directory = directory();
    let text = said(&directory.path().join("s"), &["-v"]);
    let text: String = text.lines().filter(|line| !line.contains("stays root")).collect();
    assert!(text.starts_with("qemu-pr-helper: 1 PERSISTENT RESERVE IN, 0 PERSISTENT RESERVE OUT"), "{text}");
    assert!(text.contains(" 0 ended in GOOD, 1 in CHECK CONDITION, "), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
}

#[test]
fn events_of_qemu_have_the_text_of_qemu() {
    require_root!();
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
    require_root!();
    let directory = directory();
    let text = said(&directory.path().join("s"), &["-q", "-T", "pr_helper_close", "-T", "pr_manager_run"]);
    assert!(text.contains("pr_manager_run fd="), "{text}");
    assert!(text.contains("pr_helper_close closed connection="), "{text}");
    assert!(!text.contains("pr_manager_execute"), "{text}");
}

/// A client can cause commands at any time, so that none of them is worth a line.
#[test]
fn command_without_options_logs_nothing() {
    require_root!();
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
    require_root!();
    let binary = fs::read(HELPER).unwrap();
    for name in ["pr_manager_execute", "pr_manager_run", "pr_helper_completed"] {
        let note = format!("qemu\0{name}\0");
        assert!(binary.windows(note.len()).any(|bytes| bytes == note.as_bytes()), "{name}");
    }
}
