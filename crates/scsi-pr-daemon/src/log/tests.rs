use super::*;
use crate::log::stream::Descriptor;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tempfile::TempDir;
use tracing::level_filters::LevelFilter;

/// A directory with the sockets of a journal and of syslog, either of which may be missing.
struct Sockets {
    directory: TempDir,
}

impl Sockets {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn destinations(&self) -> Destinations {
        let path = |name| self.directory.path().join(name);
        Destinations { journal: path("journal"), syslog: path("syslog") }
    }

    fn bind(&self, name: &str) -> UnixDatagram {
        let path = self.directory.path().join(name);
        let _ = std::fs::remove_file(&path);
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    }
}

fn received(socket: &UnixDatagram) -> Option<String> {
    let mut datagram = [0; 8192];
    let length = socket.recv(&mut datagram).ok()?;
    Some(String::from_utf8_lossy(&datagram[..length]).into_owned())
}

fn log_to(stream: impl Into<OwnedFd>, sockets: &Sockets) -> Log {
    let file = File::from(stream.into());
    Log::new(Stream::of_file(file), "helper", sockets.destinations())
}

fn write(log: &Log, line: &str) {
    let record = Record { level: Level::WARN, line: &format!("helper: {line}"), message: line };
    log.write(record, || vec![("peer.pid", "12".to_owned()), ("device", "sda".to_owned())]);
}

fn is_full(pipe: impl AsFd) -> bool {
    poll(&mut [PollFd::new(&pipe, PollFlags::OUT)], Some(&Timespec::default())) == Ok(0)
}

/// Fills a pipe up, as a reader that hangs leaves it.
fn fill(pipe: &mut (impl Write + AsFd)) {
    while !is_full(&pipe) {
        pipe.write_all(&[b'.'; 4096]).unwrap();
    }
}

#[test]
fn line_that_met_a_broken_pipe_goes_to_the_journal_with_its_fields() {
    let sockets = Sockets::new();
    let journal = sockets.bind("journal");
    let (mut reader, writer) = std::io::pipe().unwrap();
    let log = log_to(writer, &sockets);
    write(&log, "first");
    let mut line = [0; 14];
    reader.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"helper: first\n");
    assert_eq!(received(&journal), None);
    drop(reader);
    for line in ["second", "third"] {
        write(&log, line);
        let pid = std::process::id();
        let expected = format!(
            "MESSAGE={line}\nPRIORITY=4\nSYSLOG_IDENTIFIER=helper\nSYSLOG_FACILITY=3\nSYSLOG_PID={pid}\n\
             SCSI_PR_PEER_PID=12\nSCSI_PR_DEVICE=sda\n"
        );
        assert_eq!(received(&journal), Some(expected));
    }
}

#[test]
fn journal_that_was_restarted_gets_later_lines() {
    let sockets = Sockets::new();
    let log = Log::new(None, "helper", sockets.destinations());
    for line in ["before", "after"] {
        let journal = sockets.bind("journal");
        write(&log, line);
        assert!(received(&journal).unwrap().starts_with(&format!("MESSAGE={line}\n")));
    }
}

#[test]
fn syslog_gets_lines_where_there_is_no_journal() {
    let sockets = Sockets::new();
    let syslog = sockets.bind("syslog");
    let log = Log::new(None, "helper", sockets.destinations());
    write(&log, "line");
    assert_eq!(received(&syslog), Some(format!("<28>helper[{}]: line", std::process::id())));
    drop(syslog);
    write(&log, "neither of them is there");
    let journal = sockets.bind("journal");
    write(&log, "again");
    assert!(received(&journal).is_some_and(|datagram| datagram.starts_with("MESSAGE=again\n")));
}

#[test]
fn journal_that_does_not_read_loses_lines_and_keeps_no_one_waiting() {
    let sockets = Sockets::new();
    let journal = sockets.bind("journal");
    let log = Log::new(None, "helper", sockets.destinations());
    let start = Instant::now();
    (0..1000).for_each(|_| write(&log, &"x".repeat(5000)));
    assert!(start.elapsed() < Duration::from_secs(10), "a write waited");
    let datagram = received(&journal).unwrap();
    assert!(datagram.len() < 2 * MAX_LINE, "{}", datagram.len());
}

#[test]
fn message_of_several_lines_keeps_its_length_in_the_journal() {
    let sockets = Sockets::new();
    let journal = sockets.bind("journal");
    write(&Log::new(None, "helper", sockets.destinations()), "a\nb");
    assert!(received(&journal).unwrap().starts_with("MESSAGE\n\u{3}\0\0\0\0\0\0\0a\nb\nPRIORITY=4\n"));
}

#[test]
fn line_is_cut_between_characters() {
    assert_eq!((cut("äöü", 3), cut("äöü", 4), cut("abc", 9)), ("ä", "äö", "abc"));
    let sockets = Sockets::new();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let log = log_to(writer, &sockets);
    write(&log, &"ü".repeat(6000));
    drop(log);
    let mut written = String::new();
    reader.read_to_string(&mut written).unwrap();
    assert!((MAX_LINE - 1..=MAX_LINE).contains(&written.len()) && written.ends_with("ü\n"), "{}", written.len());
}

#[test]
fn full_stream_loses_lines_of_any_length_and_keeps_no_one_waiting() {
    let sockets = Sockets::new();
    let journal = sockets.bind("journal");
    let (reader, mut pipe) = std::io::pipe().unwrap();
    let log = log_to(pipe.as_fd().try_clone_to_owned().unwrap(), &sockets);
    fill(&mut pipe);
    let (socket_reader, socket) = UnixStream::pair().unwrap();
    let socket_log = log_to(socket, &sockets);
    let (terminal_reader, terminal) = terminal();
    let terminal_log = log_to(terminal, &sockets);
    let done = std::thread::spawn(move || {
        for _ in 0..2000 {
            for log in [&log, &socket_log, &terminal_log] {
                write(log, &"\u{1f4be}".repeat(3000));
            }
        }
    });
    let start = Instant::now();
    while !done.is_finished() {
        assert!(start.elapsed() < Duration::from_secs(60), "a write waits for a reader");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(received(&journal), None, "a reader that hangs is a reader");
    drop((reader, socket_reader, terminal_reader));
}

#[test]
fn writing_leaves_the_flags_of_the_shared_description_alone() {
    let (_reader, pipe) = std::io::pipe().unwrap();
    let shared = pipe.as_fd().try_clone_to_owned().unwrap();
    let log = log_to(pipe, &Sockets::new());
    write(&log, "line");
    assert!(!rustix::fs::fcntl_getfl(&shared).unwrap().contains(rustix::fs::OFlags::NONBLOCK));
}

#[test]
fn regular_file_keeps_its_offset() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"before\n").unwrap();
    write(&log_to(file.try_clone().unwrap(), &Sockets::new()), "line");
    file.write_all(b"after\n").unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    assert_eq!(std::io::read_to_string(file).unwrap(), "before\nhelper: line\nafter\n");
}

#[test]
fn null_device_that_is_open_for_both_counts_as_closed() {
    let open = |options: &mut std::fs::OpenOptions| options.open("/dev/null").unwrap();
    let closed = open(File::options().read(true).write(true));
    assert!(Stream::of_file(closed).is_none());
    let redirected = open(File::options().write(true));
    assert!(matches!(Stream::of_file(redirected), Some(Stream::Polled(Descriptor::File(_)))));
}

#[test]
fn pipe_that_never_had_a_reader_loses_no_line() {
    let sockets = Sockets::new();
    let journal = sockets.bind("journal");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    write(&log_to(writer, &sockets), "line");
    assert!(received(&journal).is_some());
}

#[test]
fn after_leaving_standard_error_the_journal_gets_lines() {
    let sockets = Sockets::new();
    let journal = sockets.bind("journal");
    let (mut reader, writer) = std::io::pipe().unwrap();
    let log = log_to(writer, &sockets);
    log.leave_stderr();
    write(&log, "line");
    assert!(received(&journal).is_some());
    // No end of the pipe is left.
    assert_eq!(reader.read(&mut [0; 1]).unwrap(), 0);
}

fn terminal() -> (OwnedFd, OwnedFd) {
    let controller = rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY).unwrap();
    rustix::pty::unlockpt(&controller).unwrap();
    let name = rustix::pty::ptsname(&controller, Vec::new()).unwrap();
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY;
    let terminal = rustix::fs::open(&*name, flags, rustix::fs::Mode::empty()).unwrap();
    (controller, terminal)
}

/// The lines of a subscriber, in a file, while `act` runs.
fn traced(level: LevelFilter, names: &[&'static str], act: impl FnOnce()) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    let log = Arc::new(log_to(file.reopen().unwrap(), &Sockets::new()));
    let subscriber = Subscriber::new(log, "helper: ", level).with_events(names.to_vec(), None);
    tracing::subscriber::with_default(subscriber, act);
    std::fs::read_to_string(file.path()).unwrap()
}

#[test]
fn qemus_events_have_qemus_text() {
    let lines = traced(LevelFilter::OFF, &["pr_manager_run"], || {
        tracing::trace!(name: "pr_manager_run", fd = 3, "fd={} cmd={:#04x} service action={:#04x}", 3, 0x5e, 0);
        tracing::trace!(name: "pr_manager_execute", "not wanted");
        tracing::trace!("has no name");
    });
    assert_eq!(lines, "pr_manager_run fd=3 cmd=0x5e service action=0x00\n");
}

#[test]
fn other_events_have_their_fields_and_messages_have_none() {
    let lines = traced(LevelFilter::WARN, &["pr_helper_close", "pr_helper_busy"], || {
        tracing::debug!(name: "pr_helper_close", connection = 3, pid = 1, "closed");
        tracing::debug!(name: "pr_helper_close", connection = 3, peer = "x");
        tracing::debug!(name: "pr_helper_close", "closed");
        tracing::warn!(name: "pr_helper_busy", connection = 3, "busy");
        tracing::warn!(device = "sda", "refused");
        tracing::info!("of no interest");
    });
    assert_eq!(
        lines,
        "pr_helper_close closed connection=3 pid=1\npr_helper_close connection=3 peer=x\npr_helper_close closed\n\
         helper: busy\npr_helper_busy busy\nhelper: refused\n"
    );
}

#[test]
fn event_is_one_line_whatever_it_holds() {
    let lines = traced(LevelFilter::OFF, &["pr_helper_close"], || {
        tracing::trace!(name: "pr_helper_close", path = "c\nd\x1b[2J", "a\nb \u{202e}");
    });
    assert_eq!(lines, "pr_helper_close a\\nb \\u{202e} path=c\\nd\\u{1b}[2J\n");
}

#[test]
fn fields_of_an_event_reach_the_journal() {
    let sockets = Sockets::new();
    let journal = sockets.bind("journal");
    let log = Arc::new(Log::new(None, "helper", sockets.destinations()));
    tracing::subscriber::with_default(Subscriber::new(log, "helper: ", LevelFilter::INFO), || {
        tracing::info!(name: "pr_helper_reserve_out", device = "sda", outcome = "GOOD\n", pid = 7, "PREEMPT: GOOD");
        tracing::warn!("no name");
    });
    let first = received(&journal).unwrap();
    assert!(first.starts_with("MESSAGE=PREEMPT: GOOD\nPRIORITY=6\n"), "{first}");
    let fields = "SCSI_PR_EVENT=pr_helper_reserve_out\nSCSI_PR_DEVICE=sda\nSCSI_PR_OUTCOME=GOOD\\n\nSCSI_PR_PID=7\n";
    assert!(first.ends_with(fields), "{first}");
    let second = received(&journal).unwrap();
    assert!(second.starts_with("MESSAGE=no name\nPRIORITY=4\n") && !second.contains("SCSI_PR_"), "{second}");
}

#[test]
fn audited_event_reaches_the_journal_whatever_the_level() {
    let sockets = Sockets::new();
    let journal = sockets.bind("journal");
    for (level, lines) in [(LevelFilter::WARN, ""), (LevelFilter::INFO, "helper: PREEMPT: GOOD\nhelper: other\n")] {
        let file = tempfile::NamedTempFile::new().unwrap();
        let log = Arc::new(log_to(file.reopen().unwrap(), &sockets));
        assert!(log.has_journal());
        let subscriber = Subscriber::new(log, "helper: ", level).with_audit(vec!["pr_helper_reserve_out"]);
        tracing::subscriber::with_default(subscriber, || {
            assert_eq!(LevelFilter::current(), LevelFilter::INFO);
            tracing::info!(name: "pr_helper_reserve_out", device = "sda", "PREEMPT: GOOD");
            tracing::info!("other");
        });
        assert_eq!(std::fs::read_to_string(file.path()).unwrap(), lines);
        let record = received(&journal).unwrap();
        assert!(record.starts_with("MESSAGE=PREEMPT: GOOD\nPRIORITY=6\n"), "{record}");
        assert!(record.ends_with("SCSI_PR_EVENT=pr_helper_reserve_out\nSCSI_PR_DEVICE=sda\n"), "{record}");
        assert_eq!(received(&journal), None);
    }
}

#[test]
fn audited_event_is_one_record_where_the_log_is_the_journal() {
    let sockets = Sockets::new();
    let journal = sockets.bind("journal");
    let log = Arc::new(Log::new(None, "helper", sockets.destinations()));
    let subscriber = Subscriber::new(log, "helper: ", LevelFilter::INFO).with_audit(vec!["pr_helper_reserve_out"]);
    tracing::subscriber::with_default(subscriber, || tracing::info!(name: "pr_helper_reserve_out", "PREEMPT: GOOD"));
    assert!(received(&journal).is_some());
    assert_eq!(received(&journal), None);
}

#[test]
fn stream_is_the_journal_if_the_variable_has_its_numbers() {
    use std::os::unix::fs::MetadataExt;
    let file = tempfile::tempfile().unwrap();
    let (device, inode) = (file.metadata().unwrap().dev(), file.metadata().unwrap().ino());
    assert!(stream::is_stream(&file, &format!("{device}:{inode}")));
    for other in
        [format!("{device}:{}", inode + 1), format!("{}:{inode}", device + 1), String::new(), "x:y".into(), ":".into()]
    {
        assert!(!stream::is_stream(&file, &other), "{other}");
    }
}
