//! The client with QEMU's own helper, where one is installed.

mod fake;

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::mpsc;

use fake::{device, patient, read_keys, read_keys_command, register};
use scsi_pr::{Command, Completion, PrManager, SenseCode};
use scsi_pr_helper::HelperClient;
use testing_support::{Launcher, Program, require_root, skip};

/// Starts QEMU's helper with this socket. `None`, with the reason, where that is impossible.
fn start_c_helper(socket: &Path) -> Option<Program> {
    require_root!("QEMU's qemu-pr-helper drops privileges, which an ordinary user lacks");
    let programs = ["/usr/bin/qemu-pr-helper", "/usr/libexec/qemu-pr-helper"];
    let Some(program) = programs.into_iter().find(|program| Path::new(program).exists()) else {
        skip!("QEMU's qemu-pr-helper is not installed (Debian: qemu-system-common)");
    };
    Some(Launcher::new(program).arg("-k").arg(socket).serve(socket))
}

/// The answer to SG_IO on a file that is no SCSI device.
const REFUSED: Completion = Completion::CheckCondition(scsi_pr::Sense::fixed(SenseCode::IO_PROCESS_TERMINATED));

#[test]
fn commands_of_every_size_are_answered() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("helper.sock");
    let Some(_helper) = start_c_helper(&path) else { return };
    let (sender, events) = mpsc::channel();
    let client =
        HelperClient::new(&path).with_config(patient()).on_change(move |connected| sender.send(connected).unwrap());
    let device = device();
    let list = [0; 8192];
    for length in [0, 1, 8, 24, 8191, 8192] {
        let read = Command::new(read_keys(length, 0), &[]).unwrap();
        assert_eq!(client.execute(device.as_fd(), read).unwrap(), REFUSED, "IN, {length}");
        let write = register(&list[..length.into()]);
        assert_eq!(client.execute(device.as_fd(), write).unwrap(), REFUSED, "OUT, {length}");
    }
    let read_only = File::open("/dev/null").unwrap();
    assert_eq!(
        client.execute(read_only.as_fd(), register(&list)).unwrap(),
        Completion::check(SenseCode::INVALID_OPCODE)
    );
    // This helper closes the connection when it is sent a CLEANUP that it has not announced.
    client.execute(device.as_fd(), Command::cleanup()).unwrap();
    assert_eq!(client.execute(device.as_fd(), read_keys_command()).unwrap(), REFUSED);
    assert_eq!(events.try_iter().collect::<Vec<_>>(), [true], "one connection served them all");
}

#[test]
fn a_restarted_helper_costs_nothing_and_a_dead_one_is_not_run() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("helper.sock");
    let Some(helper) = start_c_helper(&path) else { return };
    // One attempt, and a pause that the test would not outlive.
    let client = HelperClient::new(&path).with_config(patient().with_attempts(1));
    let device = device();
    assert_eq!(client.execute(device.as_fd(), read_keys_command()).unwrap(), REFUSED);
    drop(helper);
    assert!(!client.is_connected());
    let error = client.execute(device.as_fd(), read_keys_command()).unwrap_err();
    assert!(!error.may_have_run(), "{error}");
    std::fs::remove_file(&path).unwrap();
    let _helper = start_c_helper(&path).unwrap();
    client.connect().unwrap();
    assert!(client.is_connected());
    for _ in 0..3 {
        assert_eq!(client.execute(device.as_fd(), read_keys_command()).unwrap(), REFUSED);
    }
}

#[test]
fn many_threads_share_one_client() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("helper.sock");
    let Some(_helper) = start_c_helper(&path) else { return };
    let client = HelperClient::new(&path).with_config(patient());
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                let device = device();
                for _ in 0..50 {
                    assert_eq!(client.execute(device.as_fd(), read_keys_command()).unwrap(), REFUSED);
                    assert_eq!(client.execute(device.as_fd(), register(&[0; 24])).unwrap(), REFUSED);
                }
            });
        }
    });
}
