//! The figures of shared reservations: `scsi-pr serve` over its sockets, with SQLite on a disk.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use scsi_pr::{CommandBuf, Completion, InitiatorPort, Key, Keys, ReserveIn, ReserveInAction, ReserveOut, TransportId};
use scsi_pr_helper::MAX_TRANSFER;

use crate::client::{Connection, null};
use crate::machine::Pinned;
use crate::program::{Program, Running};
use crate::programs::{NODES, Programs, REGISTRANTS, socket_of};
use crate::report::{Row, value};
use crate::stats::{percentile, ratios, summary};

/// All of them.
pub(crate) fn measure(programs: &Programs) -> Result<Vec<Row>> {
    Ok([vec![out(programs)?, reading(programs)?, contention(programs)?], registrants(programs)?].concat())
}

/// A server and a disk image.
pub(crate) struct Shared {
    pub(crate) running: Running,
    pub(crate) disk: File,
}

impl Shared {
    pub(crate) fn start(program: &Program) -> Result<Self> {
        let running = program.start()?;
        let disk = File::create_new(running.path("disk.img")).context("make a disk image")?;
        disk.set_len(1 << 20)?;
        Ok(Self { running, disk })
    }

    fn node(&self, node: usize) -> Result<Node<'_>> {
        Ok(Node { connection: Connection::open(&self.running.path(&socket_of(node)))?, disk: &self.disk, key: 0 })
    }

    /// The first nodes, registered.
    fn nodes(&self, count: usize) -> Result<Vec<Node<'_>>> {
        (0..count)
            .map(|number| {
                let mut node = self.node(number)?;
                node.change_key().context("register")?;
                Ok(node)
            })
            .collect()
    }
}

/// An initiator.
pub(crate) struct Node<'a> {
    connection: Connection,
    disk: &'a File,
    key: u64,
}

impl Node<'_> {
    /// Runs `command`. Returns its time in µs, and the data.
    fn run(&mut self, command: &CommandBuf) -> Result<(f64, Vec<u8>)> {
        match self.connection.run(command.command(), self.disk.as_fd())? {
            (Completion::Good(data), time) => Ok((time, data)),
            (other, _) => bail!("{} was answered with {other}", command.command()),
        }
    }

    /// A PERSISTENT RESERVE OUT that changes something: the time in µs.
    fn change_key(&mut self) -> Result<f64> {
        let time = self.register(self.key, self.key + 1, None)?;
        self.key += 1;
        Ok(time)
    }

    fn register(&mut self, from: u64, to: u64, ports: Option<Vec<TransportId>>) -> Result<f64> {
        let request = ReserveOut::Register {
            key: Key(from),
            service_action_key: Key(to),
            initiator_ports: ports,
            all_tg_pt: false,
            aptpl: false,
        };
        Ok(self.run(&request.encode().expect("the list is short enough"))?.0)
    }

    /// READ KEYS: the time in µs, and the data.
    fn read_keys(&mut self) -> Result<(f64, Vec<u8>)> {
        self.run(&ReserveIn::new(ReserveInAction::ReadKeys, MAX_TRANSFER).encode())
    }
}

fn median(mut times: Vec<f64>) -> Result<f64> {
    percentile(&mut times, 50.0).context("a round without a command")
}

/// One initiator changes its key, among eight; against a block that is appended to a file of the same file system and
/// brought to the disk.
fn out(programs: &Programs) -> Result<Row> {
    const ROUNDS: usize = 31;
    const COMMANDS: usize = 20;
    let shared = Shared::start(&programs.shared)?;
    let mut nodes = shared.nodes(8)?;
    let mut file = File::options().append(true).create_new(true).open(shared.running.path("appended"))?;
    let mut append = || -> Result<f64> {
        let start = Instant::now();
        file.write_all(&[0xa5; 4096])?;
        rustix::fs::fdatasync(&file)?;
        Ok(start.elapsed().as_secs_f64() * 1e6)
    };
    let (mut scsi_pr, mut floor) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        floor.push(median((0..COMMANDS).map(|_| append()).collect::<Result<_>>()?)?);
        scsi_pr.push(median((0..COMMANDS).map(|_| nodes[0].change_key()).collect::<Result<_>>()?)?);
    }
    Ok(Row {
        figure: format!(
            "PR OUT p50, SQLite, 8 registrants; 4 KiB appended with fdatasync: {}",
            value(summary(&floor)?, "µs")
        ),
        c: "–".into(),
        scsi_pr: value(summary(&scsi_pr)?, "µs"),
        ratio: summary(&ratios(&scsi_pr, &floor))?,
        against: "fdatasync",
        bound: Some(1.5),
    })
}

/// READ KEYS of eight registrants, against the round trip of scsi-pr's helper on a device that refuses at once.
fn reading(programs: &Programs) -> Result<Row> {
    const ROUNDS: usize = 31;
    const COMMANDS: usize = 500;
    let _pinned = Pinned::new()?;
    let shared = Shared::start(&programs.shared)?;
    let mut nodes = shared.nodes(8)?;
    let helper = programs.scsi_pr.start()?;
    let null = null()?;
    let mut connection = Connection::open(&helper.socket())?;
    let (mut scsi_pr, mut refused) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        refused.push(median(connection.round_trips(null.as_fd(), COMMANDS, Duration::ZERO)?)?);
        scsi_pr.push(median((0..COMMANDS).map(|_| Ok(nodes[0].read_keys()?.0)).collect::<Result<_>>()?)?);
    }
    Ok(Row {
        figure: format!("PR IN p50, SQLite, pinned; the helper refuses in {}", value(summary(&refused)?, "µs")),
        c: "–".into(),
        scsi_pr: value(summary(&scsi_pr)?, "µs"),
        ratio: summary(&ratios(&scsi_pr, &refused))?,
        against: "helper",
        bound: Some(5.0),
    })
}

/// All initiators change their keys at once: the longest that one command took, against the median.
fn contention(programs: &Programs) -> Result<Row> {
    const ROUNDS: usize = 5;
    const COMMANDS: usize = 10;
    let shared = Shared::start(&programs.shared)?;
    let mut nodes = shared.nodes(NODES)?;
    let (mut longest, mut medians) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let start = Barrier::new(NODES);
        let times: Vec<f64> = thread::scope(|scope| {
            let contenders: Vec<_> = nodes
                .iter_mut()
                .map(|node| {
                    let start = &start;
                    scope.spawn(move || -> Result<Vec<f64>> {
                        start.wait();
                        (0..COMMANDS).map(|_| node.change_key()).collect()
                    })
                })
                .collect();
            let times = contenders.into_iter().map(|contender| contender.join().expect("it does not panic"));
            times.collect::<Result<Vec<_>>>().map(|times| times.concat())
        })?;
        longest.push(times.iter().copied().fold(0.0, f64::max) / 1e3);
        medians.push(median(times)? / 1e3);
    }
    Ok(Row {
        figure: format!(
            "PR OUT, {NODES} initiators at once, none refused: the longest of all; median {}",
            value(summary(&medians)?, "ms")
        ),
        c: "–".into(),
        scsi_pr: value(summary(&longest)?, "ms"),
        ratio: summary(&ratios(&longest, &medians))?,
        against: "median",
        bound: Some(20.0),
    })
}

/// A unit with `count` registrants, most of whom were registered by others; and the node with which to measure.
pub(crate) fn crowded(shared: &Shared, count: usize) -> Result<Node<'_>> {
    /// The number of TransportIDs that fit into the longest parameter list.
    const IN_ONE: usize = 340;
    let mut registered = 0;
    for sender in 1..NODES {
        // Besides them there are their sender, and the last of all.
        let others = (count - registered - 2).min(IN_ONE);
        let ports = (registered..registered + others)
            .map(|port| TransportId::new(InitiatorPort::Sas { address: 0x5000_c500_0000_0000 + port as u64 }))
            .collect::<Result<Vec<_>, _>>()?;
        shared.node(sender)?.register(0, 1, Some(ports)).context("register others")?;
        registered += others + 1;
        if registered + 2 > count {
            break;
        }
    }
    let mut node = shared.node(0)?;
    node.change_key().context("register the last")?;
    let (_, data) = node.read_keys()?;
    let keys = Keys::parse(&data)?;
    ensure!(keys.length == 8 + 8 * count, "{} bytes of keys are not those of {count} registrants", keys.length);
    ensure!(keys.value.keys.len() == count.min(1023), "{} keys came", keys.value.keys.len());
    ensure!(data.len() == MAX_TRANSFER.min(keys.length), "{} bytes of keys came", data.len());
    Ok(node)
}

/// A unit that is full, against one with a tenth of that.
fn registrants(programs: &Programs) -> Result<Vec<Row>> {
    const COUNTS: [usize; 2] = [1_000, REGISTRANTS];
    const ROUNDS: usize = 11;
    const COMMANDS: usize = 10;
    let units = [Shared::start(&programs.shared)?, Shared::start(&programs.shared)?];
    let mut nodes = [crowded(&units[0], COUNTS[0])?, crowded(&units[1], COUNTS[1])?];
    let (mut outs, mut ins) = ([const { Vec::new() }; 2], [const { Vec::new() }; 2]);
    for _ in 0..ROUNDS {
        for ((node, outs), ins) in nodes.iter_mut().zip(&mut outs).zip(&mut ins) {
            outs.push(median((0..COMMANDS).map(|_| node.change_key()).collect::<Result<_>>()?)? / 1e3);
            ins.push(median((0..COMMANDS).map(|_| Ok(node.read_keys()?.0)).collect::<Result<_>>()?)? / 1e3);
        }
    }
    let row = |what: &str, [fewer, more]: [Vec<f64>; 2]| -> Result<Row> {
        Ok(Row {
            figure: format!(
                "{what} p50, SQLite, {} registrants; {}: {}",
                COUNTS[1],
                COUNTS[0],
                value(summary(&fewer)?, "ms")
            ),
            c: "–".into(),
            scsi_pr: value(summary(&more)?, "ms"),
            ratio: summary(&ratios(&more, &fewer))?,
            against: "a tenth",
            bound: Some(10.0),
        })
    };
    Ok(vec![row("PR OUT", outs)?, row("READ KEYS, cut to 8 KiB,", ins)?])
}
