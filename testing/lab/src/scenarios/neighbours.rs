//! A map that hangs, whose table is swapped, or whose paths go away, and what becomes of the devices beside it: nothing.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Result, bail};
use nix::sys::signal::{Signal, kill};
use scsi_pr::{Command, Completion, PrManager, SenseCode, Status};
use scsi_pr_helper::HelperClient;
use scsi_pr_helper::descriptor::{self, IoMode};

use crate::commands::{Request, clear, read_keys, read_reservation, register_ignoring, release, reserve};
use crate::disk;
use crate::fixture::{Fixture, GOOD, OURS, RO};
use crate::lab::Lab;
use crate::map::Disk;
use crate::report::Report;
use crate::scenario::Scenario;
use crate::system::{run, wait_for, write};
use crate::tracer::{Action, Tracer, first_out};

/// Another map and a plain disk go on.
pub(super) const HANGING: Scenario = Scenario {
    name: "multipath-hanging",
    boot: "multipath-hanging",
    purpose: "a map without paths, one that is suspended and one whose worker hangs: another map and a disk are served",
    run: |lab, report| Neighbours::new(lab, report)?.hanging(),
};

/// Devices that change under a command.
pub(super) const SWAPPED: Scenario = Scenario {
    name: "multipath-swapped",
    boot: "multipath-hanging",
    purpose: "a table that is swapped all the time, and devices that are removed before they are used",
    run: |lab, report| Neighbours::new(lab, report)?.swapped(),
};

/// The service action of RELEASE.
const RELEASE: u8 = 2;

/// The map of the fixture, and its neighbours.
struct Neighbours<'a> {
    fixture: Fixture<'a>,
    map: File,
    /// A disk that is no path of any map.
    plain: Disk,
}

impl<'a> Neighbours<'a> {
    fn new(lab: &'a mut Lab, report: &'a mut Report) -> Result<Self> {
        let multipath = lab.multipath()?;
        let map = File::options().read(true).write(true).open(&multipath.map(2, 1)?.device)?;
        let plain = multipath.disk()?;
        Ok(Self { fixture: Fixture::new(lab, report, 2)?, map, plain })
    }

    /// Has each neighbour reserved and given up again.
    fn expect_served(&mut self, what: &str) -> Result<()> {
        let plain = open(&self.plain.path())?;
        for (name, device) in [("another map", &self.map), ("a disk", &plain)] {
            let client = self.fixture.helper.client();
            let mut outcome = Ok(());
            for request in
                [register_ignoring(OURS), reserve(OURS, RO), read_reservation(), release(OURS, RO), clear(OURS)]
            {
                let answer = client.execute(device.as_fd(), request.command());
                if !matches!(answer, Ok(Completion::Good(_))) {
                    outcome = Err(format!("{request}: {answer:?}"));
                    break;
                }
            }
            self.fixture.report.check(format!("{what}: {name} is served"), outcome);
        }
        Ok(())
    }

    fn hanging(mut self) -> Result<()> {
        self.without_paths()?;
        self.suspended()?;
        self.with_a_worker_that_hangs()
    }

    fn without_paths(&mut self) -> Result<()> {
        self.fixture.hold()?;
        let paths = self.fixture.map.pair();
        for path in paths {
            path.set_alive(false)?;
        }
        self.fixture.map.wait_for_paths(0)?;
        let mut device = Some(disk::Disk::open(&self.fixture.map.device)?);
        // The kernel keeps this one until a path is back.
        let kept = device.take().map(|device| thread::spawn(move || device.write(7)));
        let clients: Vec<HelperClient> = (0..8).map(|_| self.fixture.helper.client()).collect();
        let map = open(&self.fixture.map.device)?;
        let requests = [read_keys(), register_ignoring(OURS), reserve(OURS, RO), clear(OURS)];
        let answers: Vec<_> = thread::scope(|scope| {
            let (map, requests) = (&map, &requests);
            let threads: Vec<_> = clients
                .iter()
                .zip(requests.iter().cycle())
                .map(|(client, request)| scope.spawn(move || client.execute(map.as_fd(), request.command())))
                .collect();
            let served = self.expect_served("a map without paths");
            let answers = threads.into_iter().map(|thread| thread.join().expect("it does not panic")).collect();
            served.map(|()| answers)
        })?;
        let not_ready = Completion::check(SenseCode::NOT_READY);
        let outcome = match answers.iter().all(|answer| matches!(answer, Ok(answer) if *answer == not_ready)) {
            true => Ok(()),
            false => Err(format!("{answers:?}")),
        };
        self.fixture.report.check("eight commands at once on a map without paths are 02/04/00", outcome);
        for path in paths {
            path.set_alive(true)?;
        }
        let written = kept.expect("it was started").join().expect("it does not panic");
        let outcome = written.map_err(|error| error.to_string());
        self.fixture.report.check("the write that the kernel kept is done when the paths are back", outcome);
        self.fixture.map.wait_for_paths(2)
    }

    fn suspended(&mut self) -> Result<()> {
        self.fixture.hold()?;
        let name = self.fixture.map.name();
        run("dmsetup", &["suspend", "--noflush", &name])?;
        let busy = Completion::Status(Status::BUSY);
        self.fixture.expect(&read_keys(), &busy);
        // These do not go by the map.
        self.fixture.expect(&release(OURS, RO), &GOOD);
        self.fixture.expect(&reserve(OURS, RO), &GOOD);
        self.expect_served("a suspended map")?;
        run("dmsetup", &["resume", &name])?;
        let keys = self.fixture.theirs(&read_keys())?;
        self.fixture.report.equal("a map that is resumed answers", &keys, &self.fixture.answer(&read_keys()));
        Ok(())
    }

    fn with_a_worker_that_hangs(&mut self) -> Result<()> {
        self.fixture.hold()?;
        let tracer = Tracer::start(self.fixture.helper.process(), first_out(RELEASE), Action::Stop)?;
        let map = open(&self.fixture.map.device)?;
        let (clients, requests) =
            ([self.fixture.helper.client(), self.fixture.helper.client()], [release(OURS, RO), clear(OURS)]);
        let (first, second, stopped) = thread::scope(|scope| {
            let hung = scope.spawn(|| clients[0].execute(map.as_fd(), requests[0].command()));
            let seen = tracer.wait_for_action()?;
            let waiting = scope.spawn(|| clients[1].execute(map.as_fd(), requests[1].command()));
            let served = self.expect_served("a map whose worker hangs");
            let answers = (hung.join().expect("it does not panic"), waiting.join().expect("it does not panic"));
            served.map(|()| (answers.0, answers.1, seen.stopped))
        })?;
        let logged = |name: &str, expected: &Completion, answer: Result<Completion, scsi_pr::Error>| {
            (
                format!("{name}: {expected}"),
                match answer {
                    Ok(answer) if answer == *expected => Ok(()),
                    other => Err(format!("{other:?}")),
                },
            )
        };
        let timeout = Completion::check(SenseCode::LUN_COMMUNICATION_TIMEOUT);
        let busy = Completion::Status(Status::BUSY);
        for (what, outcome) in [
            logged("the command whose worker hangs, after a minute", &timeout, first),
            logged("one that waits for it", &busy, second),
            logged("one that comes later", &busy, Ok(self.fixture.answer(&clear(OURS)))),
        ] {
            self.fixture.report.check(what, outcome);
        }
        let Some(process) = stopped else { bail!("no worker was stopped") };
        kill(process, Signal::SIGCONT)?;
        wait_for("end of the worker", || match Path::new(&format!("/proc/{process}")).exists() {
            false => Ok(()),
            true => bail!("it runs"),
        })?;
        self.fixture.expect_reserved(false)?;
        let answer = self.fixture.answer(&clear(OURS));
        self.fixture.report.equal("the map is served again", &GOOD, &answer);
        self.fixture.expect_logged(&["but the client has gone"]);
        Ok(())
    }

    fn swapped(mut self) -> Result<()> {
        self.fixture.hold()?;
        let name = self.fixture.map.name();
        let stop = AtomicBool::new(false);
        let (answers, swaps) = thread::scope(|scope| {
            let swapper = scope.spawn(|| {
                let mut swaps = 0;
                let table = run("dmsetup", &["table", &name])?;
                while !stop.load(Ordering::Relaxed) {
                    run("dmsetup", &["reload", &name, "--table", table.trim()])?;
                    run("dmsetup", &["suspend", "--noflush", &name])?;
                    run("dmsetup", &["resume", &name])?;
                    swaps += 1;
                }
                anyhow::Ok(swaps)
            });
            let mut answers = Vec::new();
            for _ in 0..4 {
                for request in [read_keys(), release(OURS, RO), reserve(OURS, RO), register_ignoring(OURS)] {
                    answers.push((request.to_string(), self.fixture.answer(&request)));
                }
            }
            stop.store(true, Ordering::Relaxed);
            (answers, swapper.join().expect("it does not panic"))
        });
        let swaps = swaps?;
        let wrong: Vec<_> = answers
            .iter()
            .filter(|(_, answer)| !matches!(answer, Completion::Good(_)) && *answer != Completion::Status(Status::BUSY))
            .collect();
        let outcome = if wrong.is_empty() && swaps > 0 { Ok(()) } else { Err(format!("{swaps} swaps, {wrong:?}")) };
        self.fixture.report.check("while the table is swapped all the time, commands are GOOD or BUSY", outcome);
        self.expect_served("a table swapped")?;
        self.fixture.map.wait_for_paths(2)?;
        self.fixture.expect_reserved(true)?;
        self.removed()
    }

    /// The answers when the device goes after the descriptor was sent, and before the rest of the request.
    fn removed(&mut self) -> Result<()> {
        let plain = open(&self.plain.path())?;
        let gone = Completion::check(SenseCode::TARGET_FAILURE);
        let delete = format!("/sys/block/{}/device/delete", self.plain.name);
        let answer =
            interrupted(self.fixture.helper.socket(), &plain, &register_ignoring(OURS), || write(&delete, "1"))?;
        self.fixture.report.equal("a disk removed before its command is whole", &gone, &answer);
        let client = self.fixture.helper.client();
        for request in [read_keys(), clear(OURS)] {
            let answer = client.execute(plain.as_fd(), request.command())?;
            self.fixture.report.equal(format!("{request} to a disk that was removed"), &gone, &answer);
        }
        // The map keeps its paths' names, and has no paths.
        let map = open(&self.fixture.map.device)?;
        let paths = self.fixture.map.pair();
        let answer = interrupted(self.fixture.helper.socket(), &map, &clear(OURS), || {
            paths.iter().try_for_each(|path| self.fixture.map.remove_path(path))
        })?;
        let not_ready = Completion::check(SenseCode::NOT_READY);
        self.fixture.report.equal("a map whose paths are all removed before its command is whole", &not_ready, &answer);
        let answer = client.execute(map.as_fd(), read_keys().command())?;
        self.fixture.report.equal("READ KEYS to a map without paths", &not_ready, &answer);
        Ok(())
    }
}

fn open(path: &Path) -> Result<File> {
    Ok(File::options().read(true).write(true).open(path)?)
}

/// Sends the CDB and the descriptor, does `act`, and sends the parameter list.
fn interrupted(
    helper: &Path,
    device: &File,
    request: &Request,
    act: impl FnOnce() -> Result<()>,
) -> Result<Completion> {
    let mut socket = UnixStream::connect(helper)?;
    let mut features = [0; 4];
    socket.read_exact(&mut features)?;
    socket.write_all(&[0; 4])?;
    let command: Command<'_> = request.command();
    descriptor::send(&socket, command.cdb().bytes(), device.as_fd(), IoMode::Blocking)?;
    act()?;
    socket.write_all(command.parameter_list())?;
    crate::fixture::answer(&mut socket)
}
