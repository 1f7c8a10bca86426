//! Where the log goes when standard error has no reader. These tests need root, for a mount namespace.
#![forbid(unsafe_code)]

mod common;

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use testing_support::command::{action_in, action_out, basic_list, reserve_in, reserve_out};
use testing_support::{Client, null};

use common::{HELPER, Helper, Launcher, Output, Process, connect, directory, require_root, wait_until_removed};
use rustix::process::Signal;

/// A journal in a directory that the helper of [`command`] sees as the system's.
fn journal(directory: &Path) -> UnixDatagram {
    std::fs::create_dir(directory.join("journal")).unwrap();
    let socket = UnixDatagram::bind(directory.join("journal/socket")).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    socket
}

fn command(directory: &Path, arguments: &str) -> Launcher {
    let mut command = Launcher::new("unshare");
    let script = format!(
        "mount -t tmpfs none /run && mkdir -p /run/systemd/journal && mount --bind {journal} /run/systemd/journal \
         && exec {HELPER} -k {socket} {arguments}",
        journal = directory.join("journal").display(),
        socket = directory.join("s").display(),
    );
    command.args(["--mount", "--propagation=private", "sh", "-c", &script]);
    command
}

/// Breaks the protocol, which is a line of the log.
fn break_protocol(socket: &Path) {
    let mut client = connect(socket);
    client.send(&[0; 20], &[]).unwrap();
    // The helper closes the connection after it has logged.
    assert!(client.is_closed());
}

/// Sends a PREEMPT of key 2 by key 1 for `/dev/null`, which the helper answers with CHECK CONDITION.
fn preempt(socket: &Path) {
    let mut client = Client::open(socket).unwrap();
    client.run(&reserve_out(action_out::PREEMPT, 0, 24), &basic_list(1, 2), null()).unwrap();
}

fn received(journal: &UnixDatagram) -> String {
    let mut datagram = [0; 8192];
    let length = journal.recv(&mut datagram).expect("the journal gets a line");
    String::from_utf8_lossy(&datagram[..length]).into_owned()
}

#[test]
fn lines_go_to_the_journal_once_standard_error_is_closed() {
    require_root!();
    let directory = directory();
    let journal = journal(directory.path());
    let socket = directory.path().join("s");
    let (reader, writer) = std::io::pipe().unwrap();
    let running = Helper::start(command(directory.path(), "").stderr(Output::To(writer.into())), &socket);
    // As libvirt does it once the socket is there.
    drop(reader);
    break_protocol(&socket);
    let line = received(&journal);
    for part in ["MESSAGE=No file descriptor in request", "\nPRIORITY=4\n", "\nSYSLOG_IDENTIFIER=qemu-pr-helper\n"] {
        assert!(line.contains(part), "{line}");
    }
    assert_eq!(running.end_by(Signal::TERM).code(), Some(0));
}

#[test]
fn helper_in_the_background_logs_to_the_journal() {
    require_root!();
    let directory = directory();
    let journal = journal(directory.path());
    let socket = directory.path().join("s");
    let pid_file = directory.path().join("pid");
    let arguments = format!("-d -f {}", pid_file.display());
    let mut command = command(directory.path(), &arguments);
    assert_eq!(command.outcome().0, Some(0));
    let pid = std::fs::read_to_string(&pid_file).unwrap().trim().parse().unwrap();
    break_protocol(&socket);
    assert!(received(&journal).contains("MESSAGE=No file descriptor in request"));
    Process::new(pid).signal(Signal::TERM);
    wait_until_removed(&socket);
}

#[test]
fn each_change_has_one_record_with_its_parts_in_the_journal() {
    require_root!();
    for arguments in ["", "-v", "-vvv"] {
        let directory = directory();
        let journal = journal(directory.path());
        let socket = directory.path().join("s");
        let running = Helper::start(&mut command(directory.path(), arguments), &socket);
        let mut client = Client::open(&socket).unwrap();
        client.run(&reserve_in(action_in::READ_KEYS, 8), &[], null()).unwrap();
        (0..3).for_each(|_| preempt(&socket));
        for _ in 0..3 {
            let record = received(&journal);
            for part in [
                "MESSAGE=PERSISTENT RESERVE OUT, PREEMPT, key 0x0000000000000001",
                "\nPRIORITY=6\n",
                "\nSCSI_PR_EVENT=pr_helper_reserve_out\n",
                &format!("\nSCSI_PR_PID={}\n", std::process::id()),
                "\nSCSI_PR_UID=0\n",
                "\nSCSI_PR_DEVICE=1:3 (null), a character device\n",
                "\nSCSI_PR_SERVICE_ACTION=PREEMPT\n",
                "\nSCSI_PR_KEY=0x0000000000000001\n",
                "\nSCSI_PR_SERVICE_ACTION_KEY=0x0000000000000002\n",
                "\nSCSI_PR_OUTCOME=CHECK CONDITION, sense 0b/00/06",
                "\nSCSI_PR_MICROSECONDS=",
                "\nSCSI_PR_SUPPRESSED=0\n",
            ] {
                assert!(record.contains(part), "{arguments:?}: {part} is not in {record}");
            }
        }
        journal.set_nonblocking(true).unwrap();
        assert!(journal.recv(&mut [0; 8192]).is_err(), "{arguments:?}: a fourth record");
        running.end();
    }
}

#[test]
fn quiet_helper_has_no_records_in_the_journal() {
    require_root!();
    let directory = directory();
    let journal = journal(directory.path());
    let socket = directory.path().join("s");
    let running = Helper::start(&mut command(directory.path(), "-q"), &socket);
    preempt(&socket);
    running.end();
    journal.set_nonblocking(true).unwrap();
    assert!(journal.recv(&mut [0; 8192]).is_err());
}

#[test]
fn where_standard_error_is_the_journal_lines_have_fields() {
    require_root!();
    let directory = directory();
    let journal = journal(directory.path());
    let socket = directory.path().join("s");
    let (_reader, writer) = std::io::pipe().unwrap();
    let stat = rustix::fs::fstat(&writer).unwrap();
    let mut command = command(directory.path(), "");
    // As systemd says that standard error is the journal.
    command.env("JOURNAL_STREAM", format!("{}:{}", stat.st_dev, stat.st_ino)).stderr(Output::To(writer.into()));
    let running = Helper::start(&mut command, &socket);
    break_protocol(&socket);
    let line = received(&journal);
    for part in ["MESSAGE=No file descriptor in request", "\nPRIORITY=4\n", "\nSCSI_PR_EVENT=pr_helper_violation\n"] {
        assert!(line.contains(part), "{line}");
    }
    assert_eq!(running.end_by(Signal::TERM).code(), Some(0));
}
