//! The figures, each with the way it is measured.

use std::os::fd::{AsFd, BorrowedFd};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, ensure};

use crate::blocking_files::BlockingFiles;
use crate::client::{Connection, null};
use crate::crowd::Crowd;
use crate::full_status;
use crate::journal;
use crate::machine::Pinned;
use crate::memory_cgroup::MemoryCgroup;
use crate::multipath;
use crate::program::{Program, Running};
use crate::programs::Programs;
use crate::report::{Row, value};
use crate::shared;
use crate::stats::{percentile, ratios, summary};

/// A function that measures some figures.
type Measure = fn(&Programs) -> Result<Vec<Row>>;

/// All figures, by name.
pub(crate) const ALL: [(&str, Measure); 11] = [
    ("busy", busy),
    ("sandbox", sandbox),
    ("journal", journal::measure),
    ("idle", idle),
    ("many", many),
    ("memory", memory),
    ("start", start),
    ("hang", hang),
    ("shared", shared::measure),
    ("full-status", full_status::measure),
    ("multipath", multipath::measure),
];

/// The `percent`-th percentile of `count` round trips.
fn round(
    connection: &mut Connection,
    device: BorrowedFd<'_>,
    (percent, count): (f64, usize),
    silence: Duration,
) -> Result<f64> {
    let mut times = connection.round_trips(device, count, silence)?;
    percentile(&mut times, percent).context("a round without a command")
}

/// `of` held against `against`, both in `unit`.
fn compared(figure: &str, c: &[f64], scsi_pr: &[f64], unit: &str, bound: Option<f64>) -> Result<Row> {
    Ok(Row {
        figure: figure.into(),
        c: value(summary(c)?, unit),
        scsi_pr: value(summary(scsi_pr)?, unit),
        ratio: summary(&ratios(scsi_pr, c))?,
        against: "C",
        bound,
    })
}

/// Round trips of one busy connection, on one CPU, against C and against the floor.
fn busy(programs: &Programs) -> Result<Vec<Row>> {
    const ROUNDS: usize = 41;
    const COMMANDS: usize = 1_500;
    let _pinned = Pinned::new()?;
    let null = null()?;
    let running = [programs.c.start()?, programs.scsi_pr.start()?, programs.floor.start()?];
    let mut rounds = [const { Vec::new() }; 3];
    for _ in 0..ROUNDS {
        for (running, rounds) in running.iter().zip(&mut rounds) {
            // The floor serves one connection at a time, so each round has its own.
            let mut connection = Connection::open(&running.socket())?;
            connection.round_trips(null.as_fd(), COMMANDS / 5, Duration::ZERO)?;
            rounds.push(round(&mut connection, null.as_fd(), (50.0, COMMANDS), Duration::ZERO)?);
        }
    }
    let [c, scsi_pr, floor] = rounds;
    let over_floor = summary(&ratios(&scsi_pr, &floor))?;
    Ok(vec![
        compared("round trip p50, pinned, one busy connection", &c, &scsi_pr, "µs", Some(0.6))?,
        Row {
            figure: format!("the same against a floor of {}", value(summary(&floor)?, "µs")),
            c: value(summary(&ratios(&c, &floor))?, "× floor"),
            scsi_pr: value(over_floor, "× floor"),
            ratio: over_floor,
            against: "floor",
            bound: Some(1.6),
        },
    ])
}

/// Round trips of one busy connection, on one CPU: without the sandbox, with it, and with metrics as well.
fn sandbox(programs: &Programs) -> Result<Vec<Row>> {
    const ROUNDS: usize = 41;
    const COMMANDS: usize = 1_500;
    let _pinned = Pinned::new()?;
    let null = null()?;
    let running = [programs.without_sandbox.start()?, programs.scsi_pr.start()?, programs.with_metrics.start()?];
    let mut rounds = [const { Vec::new() }; 3];
    for _ in 0..ROUNDS {
        for (running, rounds) in running.iter().zip(&mut rounds) {
            let mut connection = Connection::open(&running.socket())?;
            connection.round_trips(null.as_fd(), COMMANDS / 5, Duration::ZERO)?;
            rounds.push(round(&mut connection, null.as_fd(), (50.0, COMMANDS), Duration::ZERO)?);
        }
    }
    let [without, sandboxed, metered] = rounds;
    let row = |with: &[f64], what: &str| -> Result<Row> {
        Ok(Row {
            figure: format!("round trip p50, pinned, {what}; without: {}", value(summary(&without)?, "µs")),
            c: "–".into(),
            scsi_pr: value(summary(with)?, "µs"),
            ratio: summary(&ratios(with, &without))?,
            against: "without",
            bound: Some(1.05),
        })
    };
    Ok(vec![row(&sandboxed, "in the sandbox")?, row(&metered, "in the sandbox and with metrics")?])
}

/// Round trips of connections that fell silent before every command: on a CPU that went on working for others, and on
/// one that slept as well, where most of the time goes into waking it.
fn idle(programs: &Programs) -> Result<Vec<Row>> {
    const ROUNDS: usize = 15;
    /// How long each connection is silent, at least: in most rounds it waits for the turn of the other program too.
    const SILENCE: Duration = Duration::from_millis(128);
    /// Connections that take turns while the CPU works.
    const IN_TURN: usize = 64;
    /// Commands of a round on a CPU that slept.
    const ASLEEP: usize = 6;
    let _pinned = Pinned::new()?;
    let null = null()?;
    let running = [programs.c.start()?, programs.scsi_pr.start()?];
    let mut connections = [Vec::new(), Vec::new()];
    for (running, connections) in running.iter().zip(&mut connections) {
        for _ in 0..IN_TURN {
            connections.push(Connection::open(&running.socket())?);
        }
    }
    let mut awake = [const { Vec::new() }; 2];
    let mut asleep = [const { Vec::new() }; 2];
    for _ in 0..ROUNDS {
        for ((connections, awake), asleep) in connections.iter_mut().zip(&mut awake).zip(&mut asleep) {
            let mut times = Vec::new();
            for connection in connections.iter_mut() {
                work(SILENCE / IN_TURN as u32);
                times.push(connection.round_trip(null.as_fd())?);
            }
            awake.push(percentile(&mut times, 50.0).context("a round without a command")?);
            asleep.push(round(&mut connections[0], null.as_fd(), (50.0, ASLEEP), SILENCE)?);
        }
    }
    let ([c, scsi_pr], [c_asleep, scsi_pr_asleep]) = (awake, asleep);
    Ok(vec![
        compared("round trip p50, pinned, a connection that had gone idle", &c, &scsi_pr, "µs", Some(0.5))?,
        compared("the same where the CPU slept, too", &c_asleep, &scsi_pr_asleep, "µs", None)?,
    ])
}

/// Keeps the CPU busy.
fn work(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        std::hint::spin_loop();
    }
}

/// A helper with many idle connections.
struct Crowded {
    _crowds: Vec<Crowd>,
    running: Running,
    /// After `running`: a cgroup with a process cannot be removed.
    cgroup: Result<MemoryCgroup>,
    /// The proportional set size (PSS) of each idle connection, in KiB.
    memory: f64,
    /// The memory that is charged to the cgroup for each idle connection, in KiB.
    charged: Option<f64>,
    /// Further idle connections, to send one command each.
    silent: Vec<Connection>,
}

impl Crowded {
    /// Processes that have idle connections, and how many each has.
    const CROWDS: [usize; 4] = [1_000; 4];

    /// The number of the further connections.
    const SILENT: usize = 72;

    fn new(program: &Program, device: BorrowedFd<'_>) -> Result<Self> {
        /// Longer than any helper keeps threads that it no longer needs.
        const CALM: Duration = Duration::from_secs(6);
        let running = program.start()?;
        let path = running.socket();
        // The server's first command allocates memory that all connections share.
        Connection::open(&path)?.round_trip(device)?;
        let cgroup = MemoryCgroup::with(running.pid());
        let before = running.settled_proportional()?;
        let crowds = Self::CROWDS.iter().map(|count| Crowd::gather(&path, *count)).collect::<Result<_>>()?;
        thread::sleep(CALM);
        let connections = Self::CROWDS.iter().sum::<usize>() as f64;
        let memory = (running.settled_proportional()? - before) / connections;
        let charged = cgroup.as_ref().ok().map(|cgroup| Ok::<_, Error>(cgroup.charged()? / connections)).transpose()?;
        let silent = (0..Self::SILENT).map(|_| Connection::open(&path)).collect::<Result<_>>()?;
        thread::sleep(CALM);
        Ok(Self { _crowds: crowds, running, cgroup, memory, charged, silent })
    }
}

/// Round trips and memory with many idle connections.
fn many(programs: &Programs) -> Result<Vec<Row>> {
    const ROUNDS: usize = 9;
    const COMMANDS: usize = 100;
    /// A client that sends its next command at once keeps the C helper from ever looking at its other connections, as
    /// long as both share a CPU.
    const SILENCES: [Duration; 2] = [Duration::from_millis(1), Duration::ZERO];
    let _pinned = Pinned::new()?;
    let null = null()?;
    let mut crowded = [Crowded::new(&programs.c, null.as_fd())?, Crowded::new(&programs.scsi_pr, null.as_fd())?];
    let mut woken = [const { Vec::new() }; 2];
    for _ in 0..ROUNDS {
        for (crowded, woken) in crowded.iter_mut().zip(&mut woken) {
            let connections = crowded.silent.iter_mut().skip(woken.len() * Crowded::SILENT / ROUNDS);
            let mut times = connections
                .take(Crowded::SILENT / ROUNDS)
                .map(|connection| connection.round_trip(null.as_fd()))
                .collect::<Result<Vec<_>>>()?;
            woken.push(percentile(&mut times, 50.0).context("a round without a command")?);
        }
    }
    let [paced, hurried] = SILENCES.map(|silence| -> Result<_> {
        let mut rounds = [const { Vec::new() }; 2];
        for _ in 0..ROUNDS {
            for (crowded, rounds) in crowded.iter().zip(&mut rounds) {
                let mut connection = Connection::open(&crowded.running.socket())?;
                rounds.push(round(&mut connection, null.as_fd(), (50.0, COMMANDS), silence)?);
            }
        }
        Ok(rounds)
    });
    let ([c, scsi_pr], [c_hurried, scsi_pr_hurried]) = (paced?, hurried?);
    let [c_woken, our_woken] = woken;
    let [c_memory, our_memory] = [&crowded[0], &crowded[1]].map(|crowded| [crowded.memory]);
    let mut rows = vec![
        compared(
            "round trip p50 with 4,000 idle connections, a command a millisecond",
            &c,
            &scsi_pr,
            "µs",
            Some(0.02),
        )?,
        compared("the same, one command after the other", &c_hurried, &scsi_pr_hurried, "µs", None)?,
        compared("the first command of one of the idle connections", &c_woken, &our_woken, "µs", Some(0.5))?,
        compared("memory (PSS) per idle connection", &c_memory, &our_memory, "KiB", Some(1.0))?,
    ];
    match crowded.each_ref().map(|crowded| crowded.charged) {
        [Some(c), Some(scsi_pr)] => {
            let figure = "the same with the kernel's memory for the process (memory.current of its cgroup)";
            rows.push(compared(figure, &[c], &[scsi_pr], "KiB", None)?);
        }
        _ => {
            for error in crowded.iter().filter_map(|crowded| crowded.cgroup.as_ref().err()) {
                eprintln!("the memory of a cgroup per idle connection is absent: {error:#}");
            }
        }
    }
    Ok(rows)
}

/// Resident memory of a helper that has just been started, and of all its processes.
fn memory(programs: &Programs) -> Result<Vec<Row>> {
    const ROUNDS: usize = 11;
    let mut front = [const { Vec::new() }; 2];
    let mut all = [const { Vec::new() }; 2];
    for _ in 0..ROUNDS {
        for ((program, front), all) in [&programs.c, &programs.scsi_pr].into_iter().zip(&mut front).zip(&mut all) {
            let running = program.start()?;
            let resident = running.settled_resident()?;
            front.push(resident / 1024.0);
            all.push((resident + running.resident_of_children()?) / 1024.0);
        }
    }
    let ([c_front, our_front], [c_all, our_all]) = (front, all);
    Ok(vec![
        compared("resident memory of the process at rest", &c_front, &our_front, "MiB", Some(0.4))?,
        compared("the same with the monitor, shared pages counted twice", &c_all, &our_all, "MiB", None)?,
    ])
}

/// From before the fork until a connection succeeds, and until the helper has greeted it.
fn start(programs: &Programs) -> Result<Vec<Row>> {
    const ROUNDS: usize = 61;
    let mut listening = [const { Vec::new() }; 2];
    let mut greeting = [const { Vec::new() }; 2];
    for _ in 0..ROUNDS {
        for ((program, listening), greeting) in
            [&programs.c, &programs.scsi_pr].into_iter().zip(&mut listening).zip(&mut greeting)
        {
            let started = program.start_timed()?;
            let connected = Instant::now();
            Connection::greet(started.socket)?;
            listening.push(started.listening.as_secs_f64() * 1e3);
            greeting.push((started.listening + connected.elapsed()).as_secs_f64() * 1e3);
            drop(started.running);
        }
    }
    let ([c, scsi_pr], [c_greeting, scsi_pr_greeting]) = (listening, greeting);
    Ok(vec![
        compared("start to listening", &c, &scsi_pr, "ms", Some(0.5))?,
        compared("start to the first connection greeted", &c_greeting, &scsi_pr_greeting, "ms", None)?,
    ])
}

/// How many commands hang at once, each on a file of its own.
const HANGING: usize = 1_000;

/// The 99th percentile of a connection before and while commands of others hang.
struct Tail {
    quiet: f64,
    /// How many commands hung.
    hanging: usize,
    /// `None`: no answer came.
    hung: Option<f64>,
}

/// One round: measures a connection, lets [`HANGING`] commands hang, measures it again, lets them end.
fn tail(running: &Running, files: &BlockingFiles, device: BorrowedFd<'_>) -> Result<Tail> {
    const COMMANDS: usize = 2_000;
    /// For the helper to begin all commands that hang, and then for one answer.
    const HANG_TIMEOUT: Duration = Duration::from_secs(3);
    let mut other = Connection::open(&running.socket())?;
    other.round_trips(device, COMMANDS / 5, Duration::ZERO)?;
    let quiet = round(&mut other, device, (99.0, COMMANDS), Duration::ZERO)?;

    let mut connections =
        files.files().iter().map(|_| Connection::open(&running.socket())).collect::<Result<Vec<_>>>()?;
    let held = files.hold();
    for (connection, file) in connections.iter().zip(files.files()) {
        connection.send(file.as_fd())?;
    }
    let hanging = held.wait_for(HANGING, HANG_TIMEOUT);
    other.set_receive_timeout(Some(HANG_TIMEOUT))?;
    let answered = other.round_trip(device).is_ok();
    other.set_receive_timeout(None)?;
    let hung = answered.then(|| round(&mut other, device, (99.0, COMMANDS), Duration::ZERO)).transpose()?;

    drop(held);
    for connection in &mut connections {
        connection.receive().context("the answer to a command that no longer hangs")?;
    }
    Ok(Tail { quiet, hanging, hung })
}

/// Tail latency of a connection while commands hang on others.
fn hang(programs: &Programs) -> Result<Vec<Row>> {
    const ROUNDS: usize = 7;
    let _pinned = Pinned::new()?;
    let null = null()?;
    let files = BlockingFiles::open(HANGING)?;

    let c = tail(&programs.c.start()?, &files, null.as_fd())?;
    let c_hung = c.hung.map_or("stops".into(), |p99| format!("{p99:.1} µs"));

    let mut quiet = Vec::new();
    let mut hung = Vec::new();
    let scsi_pr = programs.scsi_pr.start()?;
    for _ in 0..ROUNDS {
        let round = tail(&scsi_pr, &files, null.as_fd())?;
        ensure!(round.hanging == HANGING, "only {} of {HANGING} commands hang in scsi-pr's helper", round.hanging);
        quiet.push(round.quiet);
        hung.push(round.hung.context("scsi-pr's helper does not answer while commands hang")?);
    }
    Ok(vec![Row {
        figure: format!("p99 of another connection while {HANGING} commands hang on {HANGING} files that block"),
        c: format!("{c_hung} with {} hung, {:.1} µs with none", c.hanging, c.quiet),
        scsi_pr: format!("{}, {} with none", value(summary(&hung)?, "µs"), value(summary(&quiet)?, "µs")),
        ratio: summary(&ratios(&hung, &quiet))?,
        against: "none hung",
        bound: Some(3.0),
    }])
}
