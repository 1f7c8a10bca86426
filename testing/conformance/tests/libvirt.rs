//! The behaviour that libvirt relies on when it runs a helper for a virtual machine (qemuProcessStartManagedPRDaemon).

use std::fs::{self, File};
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use conformance::process::lock_over;
use conformance::{Answer, Start, Subject, against_each_helper, in_cdb, null, out_cdb};
use rustix::process::Signal;

against_each_helper!(
    started_process_is_the_helper,
    inherited_descriptors_and_their_locks_are_kept,
    closed_standard_error_does_not_stop_the_helper,
    lines_after_standard_error_is_closed_reach_the_journal,
    change_has_a_record_in_the_journal,
    failed_start_prints_one_line,
    stale_socket_is_replaced,
    sigterm_ends_the_helper_with_half_sent_requests,
);

fn started_process_is_the_helper(subject: &Subject) {
    let mut helper = subject.serve();
    let client = helper.connect();
    let server = rustix::net::sockopt::socket_peercred(client.socket()).unwrap().pid;
    assert_eq!(server.as_raw_nonzero().get().cast_unsigned(), helper.process().pid());
    assert_eq!(helper.ended(), None, "it stays in the foreground");
    // Every other process is a child of the helper, and notices its end.
    for process in helper.processes() {
        assert!(process == helper.process() || helper.process().children().contains(&process), "{process:?}");
    }
    assert_eq!(helper.process().children().len(), subject.differs("monitor", 0, 1));
}

fn inherited_descriptors_and_their_locks_are_kept(subject: &Subject) {
    let start = subject.command();
    let path = start.path("libvirt.pid");
    fs::write(&path, "1").unwrap();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let locked = env!("CARGO_BIN_EXE_locked");
    let helper = start.stdin(file).shell(&format!("set -- {locked} \"$@\"")).redirect("5<&0 7<&0").serve();
    assert_eq!(helper.connect().run(&in_cdb(0, 8), &[], null()), Answer::io_process_terminated());
    let owner = lock_over(&path).map(|lock| lock.owner.cast_unsigned());
    assert_eq!(owner, Some(helper.process().pid()));
    let descriptors = helper.process().descriptors();
    for number in [5, 7] {
        assert_eq!(descriptors.get(&number).map(|at| &**at), Some(&*path));
    }
    assert_eq!(helper.terminate().code(), 0);
}

fn closed_standard_error_does_not_stop_the_helper(subject: &Subject) {
    let (reader, writer) = std::io::pipe().unwrap();
    let helper = subject.command().stderr(writer).serve();
    drop(reader);
    for _ in 0..3 {
        let client = helper.connect();
        client.send(&in_cdb(0, 8));
        client.assert_closed();
    }
    assert_eq!(helper.connect().run(&in_cdb(0, 8), &[], null()), Answer::io_process_terminated());
    assert_eq!(helper.terminate().code(), 0);
}

/// A start whose helper finds a journal, and the socket of that journal.
fn with_journal(subject: &Subject) -> (Start, UnixDatagram) {
    let start = subject.command();
    let journal = start.path("journal");
    fs::create_dir(&journal).unwrap();
    let receiver = UnixDatagram::bind(journal.join("socket")).unwrap();
    receiver.set_nonblocking(true).unwrap();
    let own_journal = format!(
        r#"set -- unshare --mount sh -c 'mount -t tmpfs none /run && mkdir -p /run/systemd/journal && mount --bind {} /run/systemd/journal && exec "$@"' sh "$@""#,
        journal.display()
    );
    (start.shell(&own_journal), receiver)
}

/// The next record of the journal; empty when there is none.
fn record(journal: &UnixDatagram) -> String {
    let mut datagram = [0; 4096];
    let length = journal.recv(&mut datagram).unwrap_or(0);
    String::from_utf8_lossy(&datagram[..length]).into_owned()
}

fn lines_after_standard_error_is_closed_reach_the_journal(subject: &Subject) {
    let (reader, writer) = std::io::pipe().unwrap();
    let (start, journal) = with_journal(subject);
    let helper = start.stderr(writer).serve();
    drop(reader);
    let client = helper.connect();
    client.send(&in_cdb(0, 8));
    client.assert_closed();
    let has_line = record(&journal).contains("MESSAGE=No file descriptor in request");
    assert_eq!(has_line, subject.differs("log-without-reader", false, true));
}

fn change_has_a_record_in_the_journal(subject: &Subject) {
    let (start, journal) = with_journal(subject);
    let helper = start.serve();
    let client = helper.connect();
    client.run(&in_cdb(0, 8), &[], null());
    assert_eq!(client.run(&out_cdb(4, 24), &[0; 24], null()), Answer::io_process_terminated());
    let record = record(&journal);
    let pid = format!("\nSCSI_PR_PID={}\n", std::process::id());
    for part in ["\nSCSI_PR_EVENT=pr_helper_reserve_out\n", "\nSCSI_PR_SERVICE_ACTION=PREEMPT\n", &pid] {
        assert_eq!(record.contains(part), subject.differs("audit", false, true), "{part}: {record}");
    }
    // It is not a line of standard error.
    assert!(!helper.terminate().stderr.contains("by process"));
}

fn failed_start_prints_one_line(subject: &Subject) {
    // It is shown as "pr helper died and reported: …".
    let start = subject.command();
    let socket = start.path("missing/pr-helper0.sock");
    let end = start.arg("-k").arg(&socket).finish();
    let line = format!("qemu-pr-helper: Failed to bind socket to {}: No such file or directory\n", socket.display());
    assert_eq!((end.code(), end.stderr), (1, line));
}

fn stale_socket_is_replaced(subject: &Subject) {
    let mut first = subject.serve();
    let socket = first.socket();
    first.signal(Signal::KILL);
    first.wait();
    let again = subject.command().arg("-k").arg(&socket).start();
    let client = conformance::eventually("it serves", || conformance::Client::try_connect(&socket).ok());
    client.handshake();
    assert_eq!(client.run(&in_cdb(0, 8), &[], null()), Answer::io_process_terminated());
    let end = again.terminate();
    assert_eq!((end.code(), &*end.stderr), (0, ""));
    assert!(!Path::exists(&socket));
}

fn sigterm_ends_the_helper_with_half_sent_requests(subject: &Subject) {
    let helper = subject.serve();
    let deaf: Vec<_> = (0..20).map(|_| helper.connect()).collect();
    for (count, client) in deaf.iter().enumerate() {
        client.request(&in_cdb(0, 8), &[], null());
        client.try_send_with(&in_cdb(0, 8)[..count % 16], &[]).unwrap();
    }
    assert_eq!(helper.terminate().code(), 0);
}
