//! Commands that a worker runs: its life, the result of its command when it dies or hangs, and its lines in the log.
//!
//! A loop device stands for a multipath map: in a mount namespace of its own, the helper sees a sysfs that says so. The
//! library that a worker opens for such a map is a FIFO here, so that a command hangs until the test says otherwise.
#![forbid(unsafe_code)]

mod common;

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::{Path, PathBuf};
use std::process::ChildStderr;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use common::{
    HELPER, Helper, Launcher, Output, Process, directory, eventually, helper, require_root, wait_until_removed,
};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::Signal;
use scsi_pr::{
    Command, CommandBuf, Completion, Key, PrManager, ReserveIn, ReserveInAction, ReserveOut, SenseCode, Status, Type,
};
use scsi_pr_helper::HelperClient;
use tempfile::TempDir;

const LOG_TIMEOUT: Duration = Duration::from_secs(60);

fn check(code: SenseCode) -> Completion {
    Completion::check(code)
}

fn reserve() -> CommandBuf {
    let reservation_type = Type::WriteExclusiveRegistrantsOnly;
    ReserveOut::Reserve { key: Key(1), reservation_type }.encode().unwrap()
}

fn read_keys() -> CommandBuf {
    ReserveIn::new(ReserveInAction::ReadKeys, 8).encode()
}

/// A loop device, open for writing. Nothing is written.
fn loop_device(minor: u32) -> Option<File> {
    let path = format!("/dev/loop{minor}");
    let device = File::options().read(true).write(true).open(&path);
    match device {
        Ok(device) if device.metadata().is_ok_and(|metadata| metadata.file_type().is_block_device()) => Some(device),
        _ => {
            println!("skipped: needs {path}");
            None
        }
    }
}

/// A helper and its surroundings.
struct Scene {
    directory: TempDir,
    running: Helper,
    lines: Receiver<String>,
}

impl Scene {
    /// With /dev/loop0 as the multipath map `mpathx`. `None` where that cannot be.
    fn start(arguments: &str) -> Option<Self> {
        if Launcher::new("unshare").args(["--mount", "/bin/true"]).outcome().0 != Some(0) {
            println!("skipped: needs a mount namespace");
            return None;
        }
        loop_device(0)?;
        let directory = directory();
        let (tree, libraries) = (directory.path().join("tree"), Self::libraries_in(directory.path()));
        let map = tree.join("dm-9");
        for path in [&map.join("dm"), &map.join("slaves/loop1"), &libraries] {
            fs::create_dir_all(path).unwrap();
        }
        for (file, text) in [
            ("dev", "7:0"),
            ("dm/name", "mpathx"),
            ("dm/uuid", "mpath-x"),
            ("dm/suspended", "0"),
            ("slaves/loop1/dev", "7:1"),
        ] {
            fs::write(map.join(file), format!("{text}\n")).unwrap();
        }
        symlink("dm-9", tree.join("7:0")).unwrap();
        let script = format!(
            "mount --bind {} /sys/dev/block && export LD_LIBRARY_PATH=\"$1\" && exec {HELPER} -k {} {arguments}",
            tree.display(),
            directory.path().join("s").display(),
        );
        let mut command = Launcher::new("unshare");
        command.args(["--mount", "/bin/sh", "-c", &script, "sh"]).arg(&libraries);
        let scene = Self::of(directory, &mut command);
        // It may still be loading its own libraries.
        let monitor = scene.running.monitor().expect("there is a monitor");
        eventually("the monitor to run", || {
            let name = fs::read_to_string(monitor.path("comm")).ok()?;
            (name == "qemu-pr-monitor\n").then_some(())
        });
        Some(scene)
    }

    fn of(directory: TempDir, command: &mut Launcher) -> Self {
        let socket = directory.path().join("s");
        let mut running = Helper::start(command.stderr(Output::Pipe), &socket);
        let lines = read(running.child().stderr.take().unwrap());
        Self { directory, running, lines }
    }

    /// The name has what a terminal would obey.
    fn libraries_in(directory: &Path) -> PathBuf {
        directory.join("libraries\x1b[2J")
    }

    /// From now on, workers that open this library wait.
    fn hold(&self, library: &str) -> PathBuf {
        let path = Self::libraries_in(self.directory.path()).join(library);
        mknodat(CWD, &path, FileType::Fifo, Mode::RWXU, 0).unwrap();
        path
    }

    fn client(&self) -> HelperClient {
        HelperClient::new(&self.running.socket)
    }

    #[track_caller]
    fn run(&self, device: &File, command: Command<'_>) -> Completion {
        self.client().execute(device.as_fd(), command).unwrap()
    }

    /// The answer to a RESERVE, once it comes.
    fn reserving<'scope>(
        &self,
        scope: &'scope thread::Scope<'scope, '_>,
        device: &File,
    ) -> thread::ScopedJoinHandle<'scope, Result<Completion, scsi_pr::Error>> {
        let (client, device) = (self.client(), device.try_clone().unwrap());
        scope.spawn(move || client.execute(device.as_fd(), reserve().command()))
    }

    /// Has sysfs say that the map is suspended.
    fn suspend(&self) {
        fs::write(self.directory.path().join("tree/dm-9/dm/suspended"), "1\n").unwrap();
    }

    fn workers(&self) -> Vec<Process> {
        let monitor = self.running.monitor().expect("there is a monitor");
        monitor.children()
    }

    /// The worker, once there is one that waits in its library.
    #[track_caller]
    fn held(&self) -> Process {
        eventually("a worker that waits for its library", || {
            let [worker] = self.workers()[..] else { return None };
            // It is in its command, asleep, and in openat(2).
            let file = |name| fs::read_to_string(worker.path(name)).unwrap_or_default();
            let [state, ..] = file("stat").rsplit_once(") ")?.1.bytes().collect::<Vec<_>>()[..] else { return None };
            let opens = ["257 ", "56 "].iter().any(|number| file("syscall").starts_with(number));
            (file("comm") == "qemu-pr-worker\n" && state == b'S' && opens).then_some(worker)
        })
    }

    /// The next line of the log that contains this.
    #[track_caller]
    fn says(&self, part: &str) -> String {
        let mut others = Vec::new();
        loop {
            match self.lines.recv_timeout(LOG_TIMEOUT) {
                Ok(line) if line.contains(part) => return line,
                Ok(line) => others.push(line),
                Err(_) => panic!("{part:?} is not in the log: {others:#?}"),
            }
        }
    }

    fn end(mut self) {
        self.running.signal(Signal::TERM);
        assert_eq!(self.running.wait().code(), Some(0));
        assert!(!self.running.socket.exists());
    }
}

impl Drop for Scene {
    /// A worker that waits for its library would wait for ever, and its monitor for it.
    fn drop(&mut self) {
        let children = Process::with_argument(&self.running.socket).into_iter().flat_map(Process::children);
        children.filter(|child| child.is_named("qemu-pr-helper-worker")).for_each(|child| child.signal(Signal::KILL));
    }
}

fn read(log: ChildStderr) -> Receiver<String> {
    let (send, lines) = channel();
    thread::spawn(move || BufReader::new(log).lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
    lines
}

#[test]
fn a_worker_answers_logs_and_ends() {
    require_root!();
    let Some(device) = loop_device(0) else { return };
    for user in ["root", "nobody"] {
        let directory = directory();
        let mut command = helper(["--manager=multipath", "-u", user, "-k"]);
        command.arg(directory.path().join("s"));
        let scene = Scene::of(directory, &mut command);
        for _ in 0..2 {
            assert_eq!(scene.run(&device, reserve().command()), check(SenseCode::INVALID_OPCODE));
            // The next command on the device must not find it, and does not.
            assert_eq!(scene.workers(), []);
        }
        let line = scene.says("it is no multipath map");
        assert!(line.starts_with("qemu-pr-helper: worker for 7:0: ") && line.contains("(loop0)"), "{line}");
        // The log has the line once.
        assert_eq!(scene.lines.try_recv().ok(), None);
        scene.end();
    }
}

/// A parent that ignores SIGCHLD passes this on, and then the kernel keeps no exit status of children. The monitor must
/// learn the exit status of a worker all the same.
#[test]
fn worker_is_not_taken_for_dead_when_sigchld_is_ignored() {
    require_root!();
    let Some(device) = loop_device(0) else { return };
    let directory = directory();
    let mut command = helper(["--manager=multipath", "-k"]);
    command.arg(directory.path().join("s")).wrapped_by(["env", "--ignore-signal=CHLD"]);
    let scene = Scene::of(directory, &mut command);
    assert_eq!(scene.run(&device, reserve().command()), check(SenseCode::INVALID_OPCODE));
    scene.says("it is no multipath map");
    // All that there was to say was said before the answer.
    assert_eq!(scene.lines.try_recv().ok(), None);
    scene.end();
}

#[test]
fn a_worker_that_is_killed_fails_its_command_alone() {
    require_root!();
    let Some(scene) = Scene::start("--manager=multipath -u nobody") else { return };
    let device = loop_device(0).unwrap();
    let library = scene.hold("libmpathpersist.so.0");
    thread::scope(|scope| {
        let first = scene.reserving(scope, &device);
        let worker = scene.held();
        scene.suspend();
        let behind = scene.reserving(scope, &device);
        // Other devices have workers of their own meanwhile.
        if let Some(other) = loop_device(2) {
            assert_eq!(scene.run(&other, reserve().command()), check(SenseCode::INVALID_OPCODE));
        }
        assert!(!first.is_finished() && !behind.is_finished());
        worker.signal(Signal::KILL);
        assert_eq!(first.join().unwrap().unwrap(), check(SenseCode::LUN_COMMUNICATION_TIMEOUT));
        // The map was seen after before the next one came.
        let line = scene.says("its worker ended without an answer");
        for part in ["RESERVE", "mpathx", "0b/08/01", "may have been run", "mpathpersist"] {
            assert!(line.contains(part), "{part}: {line}");
        }
        scene.says("signal: 9");
        let line = scene.says("left suspended");
        assert!(line.contains("mpathx") && line.contains("dmsetup"), "{line}");
        scene.says("as it is now");
        let worker = scene.held();
        fs::remove_file(&library).unwrap();
        worker.signal(Signal::KILL);
        assert_eq!(behind.join().unwrap().unwrap(), check(SenseCode::LUN_COMMUNICATION_TIMEOUT));
    });
    // Nothing is wrong with what comes later, but that there is no library.
    fs::write(&library, "").unwrap();
    assert_eq!(scene.run(&device, reserve().command()), check(SenseCode::INVALID_OPCODE));
    scene.says("libmpathpersist.so.0 cannot be opened");
    scene.end();
}

/// An administrator may have his reasons.
#[test]
fn a_map_that_was_suspended_before_the_command_is_not_resumed_after_it() {
    require_root!();
    let Some(scene) = Scene::start("--manager=multipath") else { return };
    let device = loop_device(0).unwrap();
    let library = scene.hold("libmpathpersist.so.0");
    scene.suspend();
    thread::scope(|scope| {
        let lost = scene.reserving(scope, &device);
        scene.held().signal(Signal::KILL);
        assert_eq!(lost.join().unwrap().unwrap(), check(SenseCode::LUN_COMMUNICATION_TIMEOUT));
    });
    fs::remove_file(&library).unwrap();
    fs::write(&library, "").unwrap();
    assert_eq!(scene.run(&device, reserve().command()), check(SenseCode::INVALID_OPCODE));
    let lines: Vec<_> = std::iter::from_fn(|| scene.lines.recv_timeout(LOG_TIMEOUT).ok())
        .take_while(|line| !line.contains("cannot be opened"))
        .collect();
    assert!(lines.iter().any(|line| line.contains("its worker ended without an answer")), "{lines:#?}");
    assert!(!lines.iter().any(|line| line.contains("suspended")), "{lines:#?}");
    scene.end();
}

#[test]
fn a_worker_that_does_not_start_has_done_nothing() {
    require_root!();
    let Some(scene) = Scene::start("--manager=multipath") else { return };
    let device = loop_device(0).unwrap();
    // Every program needs this one.
    fs::write(Scene::libraries_in(scene.directory.path()).join("libc.so.6"), "").unwrap();
    assert_eq!(scene.run(&device, reserve().command()), Completion::Status(Status::BUSY));
    let line = scene.says("error while loading shared libraries");
    assert!(line.contains("worker for 7:0: ") && line.contains("libraries\\u{1b}[2J/"), "{line}");
    fs::remove_file(Scene::libraries_in(scene.directory.path()).join("libc.so.6")).unwrap();
    assert_ne!(scene.run(&device, reserve().command()), Completion::Status(Status::BUSY));
    scene.end();
}

#[test]
fn helper_without_its_monitor_serves_on() {
    require_root!();
    let Some(device) = loop_device(0) else { return };
    let directory = directory();
    let mut command = helper(["--manager=multipath", "--sandbox=off", "-k"]);
    command.arg(directory.path().join("s"));
    let scene = Scene::of(directory, &mut command);
    scene.running.monitor().unwrap().signal(Signal::KILL);
    eventually("the monitor to end", || scene.running.monitor().is_none().then_some(()));
    for _ in 0..2 {
        assert_eq!(scene.run(&device, reserve().command()), check(SenseCode::IO_PROCESS_TERMINATED));
        // SG_IO, which a loop device does not know.
        assert_eq!(scene.run(&device, read_keys().command()), check(SenseCode::INVALID_FIELD_IN_CDB));
    }
    scene.says("the monitor, which starts workers, has ended");
    assert_eq!(scene.lines.try_recv().ok(), None);
    scene.end();
}

#[test]
fn helper_of_an_ordinary_user_has_no_workers() {
    require_root!();
    let Some(device) = loop_device(0) else { return };
    let directory = directory();
    fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let mut command = helper(["--manager=multipath", "-k"]);
    command.arg(directory.path().join("s")).wrapped_by(common::WITH_ONE_CAPABILITY);
    let scene = Scene::of(directory, &mut command);
    assert_eq!(scene.run(&device, reserve().command()), check(SenseCode::IO_PROCESS_TERMINATED));
    scene.says("start the helper as root");
    scene.end();
}

#[test]
fn shutdown_waits_for_a_hanging_command_and_not_for_its_worker() {
    require_root!();
    let Some(mut scene) = Scene::start("--manager=multipath") else { return };
    let device = loop_device(0).unwrap();
    scene.hold("libmpathpersist.so.0");
    thread::scope(|scope| {
        let hanging = scene.reserving(scope, &device);
        let worker = scene.held();
        // To the monitor and the worker too, as to the group of a service.
        for process in Process::with_argument(&scene.running.socket).into_iter().chain(scene.workers()) {
            process.signal(Signal::TERM);
        }
        wait_until_removed(&scene.running.socket);
        assert!(scene.running.try_wait().is_none() && scene.workers().len() == 1);
        worker.signal(Signal::KILL);
        assert_eq!(hanging.join().unwrap().unwrap(), check(SenseCode::LUN_COMMUNICATION_TIMEOUT));
    });
    assert_eq!(scene.running.wait().code(), Some(0));
}

#[test]
fn a_worker_outlives_a_helper_that_is_killed_and_is_seen_after() {
    require_root!();
    let Some(mut scene) = Scene::start("--manager=multipath") else { return };
    let device = loop_device(0).unwrap();
    let library = scene.hold("libmpathpersist.so.0");
    thread::scope(|scope| {
        let lost = scene.reserving(scope, &device);
        let worker = scene.held();
        scene.running.signal(Signal::KILL);
        scene.running.wait();
        assert!(lost.join().unwrap().unwrap_err().may_have_run());
        wait_until_removed(&scene.running.socket);
        assert_eq!(scene.workers().len(), 1);
        // The library is there now, and is none: the worker goes on, and ends.
        drop(File::options().write(true).open(library).unwrap());
        eventually("the worker to end", || (!worker.path("").exists()).then_some(()));
        eventually("the monitor to end", || scene.running.monitor().is_none().then_some(()));
    });
}

/// Every manager answers for a descriptor of any kind.
#[test]
fn every_descriptor_has_an_answer() {
    require_root!();
    use SenseCode as Code;
    let directory = directory();
    let regular = File::options().read(true).write(true).create(true).truncate(false).open(directory.path().join("f"));
    let not_open = |path: &str| {
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
        File::from(rustix::fs::open(path, flags, Mode::empty()).unwrap())
    };
    let memory = rustix::fs::memfd_create("m", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let both = File::options().read(true).write(true).open("/dev/null").unwrap();
    let (_reader, pipe) = std::io::pipe().unwrap();
    let socket = std::os::unix::net::UnixStream::pair().unwrap().0;
    // In front, those that are open for writing: the others are refused before anybody looks what they are.
    let writable = [
        regular.unwrap(),
        File::from(memory),
        both,
        File::from(std::os::fd::OwnedFd::from(pipe)),
        File::from(std::os::fd::OwnedFd::from(socket)),
    ];
    let others = [File::open(directory.path()).unwrap(), not_open("/dev/null"), not_open("/")];
    let terminated = check(Code::IO_PROCESS_TERMINATED);
    let unknown = check(Code::INVALID_OPCODE);
    let good = Completion::Good(Vec::new());
    for (manager, read, changed) in [
        ("auto", &terminated, &terminated),
        ("sg-io", &terminated, &terminated),
        ("multipath", &terminated, &unknown),
        ("block", &unknown, &unknown),
        ("nvme", &unknown, &unknown),
    ] {
        let directory = common::directory();
        let mut command = helper([&format!("--manager={manager}"), "-k"]);
        command.arg(directory.path().join("s"));
        let scene = Scene::of(directory, &mut command);
        for (index, file) in writable.iter().chain(&others).enumerate() {
            let context = format!("{manager}, {index}");
            assert_eq!(scene.run(file, read_keys().command()), *read, "{context}");
            let (changed, cleaned) = if index < writable.len() { (changed, &good) } else { (&unknown, &unknown) };
            assert_eq!(scene.run(file, reserve().command()), *changed, "{context}");
            // A client asks for CLEANUP only where it is offered.
            let _ = cleaned;
        }
        assert_eq!(scene.workers(), []);
        scene.end();
    }
}

#[test]
fn block_devices_have_an_answer_from_every_manager() {
    require_root!();
    let Some(device) = loop_device(0) else { return };
    let unknown = check(SenseCode::INVALID_OPCODE);
    for (manager, read) in [
        ("sg-io", check(SenseCode::INVALID_FIELD_IN_CDB)),
        ("multipath", check(SenseCode::INVALID_FIELD_IN_CDB)),
        ("nvme", unknown.clone()),
    ] {
        let directory = directory();
        let mut command = helper([&format!("--manager={manager}"), "-k"]);
        command.arg(directory.path().join("s"));
        let scene = Scene::of(directory, &mut command);
        assert_eq!(scene.run(&device, read_keys().command()), read, "{manager}");
        let changed = if manager == "sg-io" { &read } else { &unknown };
        assert_eq!(scene.run(&device, reserve().command()), *changed, "{manager}");
        scene.end();
    }
}
