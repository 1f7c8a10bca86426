//! The monitor, spoken to as the helper speaks to it. Its workers wait for a command here that does not come, so that they
//! live for as long as the test wants.
#![forbid(unsafe_code)]

mod common;

use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{HELPER, Process, ended, eventually, require_root, skip};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, socketpair};
use rustix::process::Signal;
use scsi_pr::{Completion, Key, PrManager, ReserveOut, SenseCode, Type};
use scsi_pr_helper::HelperClient;
use scsi_pr_helper::descriptor::{self, IoMode};

const BUSY: i32 = -1;
const TOO_MANY: i32 = -2;

/// A monitor and the link to it.
struct Monitor {
    process: Child,
    link: OwnedFd,
}

/// A worker, or the refusal to start one.
struct Worker {
    answer: i32,
    stream: UnixStream,
    log: io::PipeReader,
}

impl Monitor {
    /// One that has no socket to watch over, or the file `s` in a directory.
    fn start(directory: Option<&Path>) -> Self {
        let (link, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        if let Some(path) = directory {
            let open = |path: &Path| rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
            descriptor::send(&link, b"D", open(path).as_fd(), IoMode::Blocking).unwrap();
            descriptor::send(&link, b"Ss", open(&path.join("s")).as_fd(), IoMode::Blocking).unwrap();
        }
        assert_eq!(rustix::net::send(&link, b"N", SendFlags::empty()), Ok(1));
        let process = Command::new(HELPER)
            .arg0("qemu-pr-helper-monitor")
            .env_clear()
            .stdin(theirs)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { process, link }
    }

    fn send(&self, bytes: &[u8], descriptor: impl AsFd) {
        assert_eq!(descriptor::send(&self.link, bytes, descriptor.as_fd(), IoMode::Blocking).unwrap(), bytes.len());
    }

    /// Asks for a worker, with these words.
    fn ask(&self, words: &str) -> Worker {
        let (log, lines) = io::pipe().unwrap();
        self.send(b"L", lines);
        self.ask_without_log(words, log)
    }

    fn ask_without_log(&self, words: &str, log: io::PipeReader) -> Worker {
        let (mut stream, theirs) = UnixStream::pair().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        self.send(format!("W{words}").as_bytes(), theirs);
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).unwrap();
        Worker { answer: i32::from_ne_bytes(answer), stream, log }
    }

    /// The live process that has these words.
    fn process_of(&self, words: [&str; 3]) -> Process {
        let line = ["qemu-pr-helper-worker", words[0], words[1], words[2]].map(|word| word.as_bytes().to_vec());
        eventually("the worker", || {
            let children = Process::new(self.process.id()).children();
            children.into_iter().find(|child| child.command_line() == line)
        })
    }

    /// That it ends once the link does.
    fn end(mut self) {
        drop(self.link);
        assert!(ended(&mut self.process).success());
    }
}

impl Worker {
    /// That it has been started: it offers what it serves.
    fn is_started(&mut self) {
        assert_eq!(self.answer, 0);
        let mut features = [0; 4];
        self.stream.read_exact(&mut features).unwrap();
        assert_eq!(features, [0, 0, 0, 1]);
    }

    /// Lets it end, for want of a command; what it has logged.
    fn end(self) -> String {
        drop(self.stream);
        let mut text = String::new();
        let mut log = self.log;
        log.read_to_string(&mut text).unwrap();
        text
    }
}

#[test]
fn workers_are_bounded_for_a_device_and_in_all() {
    require_root!();
    let monitor = Monitor::start(None);
    let mut workers: Vec<_> = (0..64).map(|minor| monitor.ask(&format!("block 7:{minor} "))).collect();
    workers.iter_mut().for_each(Worker::is_started);
    assert_eq!(monitor.ask("block 7:64 ").answer, TOO_MANY);
    for duty in ["block", "multipath", "nvme"] {
        assert_eq!(monitor.ask(&format!("{duty} 7:63 ")).answer, BUSY);
    }
    // The end of its log says that there is room again.
    assert_eq!(workers.pop().unwrap().end(), "");
    let mut again = monitor.ask("nvme 7:63 ");
    again.is_started();
    assert_eq!(monitor.ask("block 7:64 ").answer, TOO_MANY);
    drop(workers);
    again.end();
    monitor.end();
}

#[test]
fn a_worker_has_what_its_commands_take_and_nothing_else() {
    require_root!();
    let monitor = Monitor::start(None);
    let mut worker = monitor.ask("block 7:1 ");
    worker.is_started();
    let process = monitor.process_of(["block", "7:1", ""]);
    let threads = process.threads();
    let [thread] = &threads[..] else { panic!("the worker has {} threads", threads.len()) };
    // CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_SYS_RAWIO and CAP_SYS_ADMIN.
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(thread[set], "000000000022000a", "{set}");
    }
    assert_eq!((thread["NoNewPrivs"].as_str(), thread["Groups"].as_str()), ("1", ""));
    assert_eq!(thread["Uid"], "0\t0\t0\t0");
    // Nothing ends it in the middle of a command.
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT, Signal::USR1, Signal::PIPE] {
        process.signal(signal);
    }
    let file = |number: u32| process.descriptors()[&number].display().to_string();
    let (input, log) = (file(0), file(2));
    assert!(input.starts_with("socket:[") && log.starts_with("pipe:["), "{input} {log}");
    assert_eq!(file(1), "/dev/null");
    let mut others: Vec<_> = process
        .descriptors()
        .into_values()
        .map(|path| path.display().to_string())
        .filter(|open| ![&input, &log, "/dev/null"].contains(&open.as_str()))
        .collect();
    // One that sends datagrams to the journal.
    assert!(others.pop().is_none_or(|socket| socket.starts_with("socket:[")) && others.is_empty(), "{others:?}");
    assert_eq!(process.working_directory().as_deref(), Some(Path::new("/")));
    assert_eq!(fs::read(process.path("environ")).unwrap(), b"");
    assert_eq!(worker.end(), "");
    monitor.end();
}

/// An attacker in the helper may hold a read-only or an O_PATH descriptor of a device. A worker must change nothing by it.
#[test]
fn a_worker_changes_nothing_by_a_descriptor_that_may_not_write() {
    require_root!();
    let release = ReserveOut::Release { key: Key(1), reservation_type: Type::WriteExclusive }.encode().unwrap();
    let monitor = Monitor::start(None);
    for (flags, looked_at) in [(OFlags::RDWR, true), (OFlags::RDONLY, false), (OFlags::PATH, false)] {
        let Ok(device) = rustix::fs::open("/dev/loop0", flags | OFlags::CLOEXEC, Mode::empty()) else {
            skip!("needs /dev/loop0");
        };
        let Worker { answer, stream, mut log } = monitor.ask("multipath 7:0 ");
        assert_eq!(answer, 0);
        let answer = HelperClient::over(stream).execute(device.as_fd(), release.command()).unwrap();
        assert_eq!(answer, Completion::check(SenseCode::INVALID_OPCODE), "{flags:?}");
        let mut said = String::new();
        log.read_to_string(&mut said).unwrap();
        assert_eq!(said.contains("it is no multipath map"), looked_at, "{flags:?}: {said}");
    }
    monitor.end();
}

#[test]
fn death_of_a_worker_is_logged_and_its_map_is_recovered() {
    require_root!();
    let monitor = Monitor::start(None);
    // No machine has this map.
    for (uuid, is_recovered) in [("", false), ("mpath-no such map", true)] {
        let mut worker = monitor.ask(&format!("multipath 252:1048560 {uuid}"));
        worker.is_started();
        monitor.process_of(["multipath", "252:1048560", uuid]).signal(Signal::KILL);
        let log = worker.end();
        let lines: Vec<_> = log.lines().collect();
        assert_eq!(lines[0], "the process ended before it was done (signal: 9 (SIGKILL))");
        let recovered = "mpath-no such map (252:1048560) is gone, and needs no recovery";
        assert_eq!(lines[1..], vec![recovered; usize::from(is_recovered)]);
    }
    monitor.end();
}

#[test]
fn workers_are_left_to_finish_when_the_helper_is_gone() {
    require_root!();
    let directory = common::directory();
    let _listener = std::os::unix::net::UnixListener::bind(directory.path().join("s")).unwrap();
    let monitor = Monitor::start(Some(directory.path()));
    let mut worker = monitor.ask("block 7:1 ");
    worker.is_started();
    let Monitor { mut process, link } = monitor;
    drop(link);
    eventually("the socket to be removed", || (!directory.path().join("s").exists()).then_some(()));
    assert!(process.try_wait().unwrap().is_none());
    worker.end();
    assert!(ended(&mut process).success());
}

#[test]
fn message_that_is_not_understood_starts_nothing() {
    require_root!();
    let monitor = Monitor::start(None);
    for words in ["", " ", "block", "block 7:1", "recover 7:1 mpath-x", "Block 7:1 ", "block\0 7:1 ", "\u{fffd} 7:1 x"]
    {
        assert_eq!(monitor.ask(words).answer, rustix::io::Errno::INVAL.raw_os_error(), "{words:?}");
    }
    // The log of a refused one is not used for another.
    let (log, _) = io::pipe().unwrap();
    assert_eq!(monitor.ask_without_log("block 7:1 ", log).answer, rustix::io::Errno::MFILE.raw_os_error());
    let mut worker = monitor.ask("block 7:1 ");
    worker.is_started();
    worker.end();
    monitor.end();
}

#[test]
fn monitor_ends_after_messages_of_no_helper() {
    require_root!();
    for message in [&b"X"[..], b"D", b"S", b"N", b"L", b"W"] {
        let mut monitor = Monitor::start(None);
        rustix::net::send(&monitor.link, message, SendFlags::empty()).unwrap();
        assert!(ended(&mut monitor.process).success(), "{message:?}");
    }
    // A worker's input must be a socket and its log a pipe. Another file might be one to write to.
    for message in [&b"L"[..], b"Wblock 7:1 "] {
        let mut monitor = Monitor::start(None);
        monitor.send(message, fs::File::options().write(true).open("/dev/null").unwrap());
        assert!(ended(&mut monitor.process).success(), "{message:?}");
    }
    // The monitor also ends when its first message is not the one that it expects.
    let (link, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    rustix::net::send(&link, b"R", SendFlags::empty()).unwrap();
    let mut command = Command::new(HELPER);
    command.arg0("qemu-pr-helper-monitor").stdin(theirs).stderr(Stdio::null());
    assert_eq!(ended(&mut command.spawn().unwrap()).code(), Some(1));
}

#[test]
fn name_of_a_socket_after_the_last_one_is_refused() {
    require_root!();
    let directory = common::directory();
    for name in ["s", "t"] {
        fs::write(directory.path().join(name), "").unwrap();
    }
    let mut monitor = Monitor::start(Some(directory.path()));
    let open = |path: &Path| rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
    monitor.send(b"D", open(directory.path()));
    // It is gone, and this may come too late.
    let _ = descriptor::send(&monitor.link, b"St", open(&directory.path().join("t")).as_fd(), IoMode::Blocking);
    assert!(ended(&mut monitor.process).success());
    assert!(directory.path().join("t").exists() && !directory.path().join("s").exists());
}
