//! The figures of `scsi-pr disk`, side by side with those of tgt: `cargo xtask bench disk`.

mod abort;
pub(crate) mod null;
mod target;

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use testing_support::iscsi::{Initiator, ScsiCommand};

use crate::report::{Row, value};
use crate::stats::{Summary, percentile, ratios};
use target::{Storage, Target};

const BLOCK: u64 = 512;
const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// The size of a medium.
const SIZE: u64 = 128 << 20;
/// The targets take turns in rounds.
const ROUNDS: usize = 9;
const ROUND: Duration = Duration::from_millis(500);

/// A figure, or several that are measured together.
type Figure = fn() -> Result<Vec<Row>>;

const ALL: &[(&str, Figure)] = &[
    ("random", random),
    ("direct", direct),
    ("sequential", sequential),
    ("gate", gate),
    ("abort", abort::measure),
    ("sessions", sessions),
    ("fairness", fairness),
];

/// Measures the figures named, or all. A figure that cannot be measured is an error after the others.
pub(crate) fn measure(names: &[String]) -> Result<Vec<Row>> {
    if let Some(unknown) = names.iter().find(|name| ALL.iter().all(|(known, _)| known != name)) {
        let known: Vec<&str> = ALL.iter().map(|(name, _)| *name).collect();
        bail!("there is no figure {unknown:?} of the disk; there are: {}", known.join(", "));
    }
    let mut rows = Vec::new();
    for (name, figure) in ALL.iter().filter(|(name, _)| names.is_empty() || names.iter().any(|wanted| wanted == name)) {
        eprintln!("measuring: disk {name}");
        rows.extend(figure().with_context(|| (*name).to_owned())?);
    }
    Ok(rows)
}

/// The direction of a load.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Direction {
    Read,
    Write,
}

/// Commands of one kind, on random or successive blocks.
struct Load {
    direction: Direction,
    length: usize,
    depth: u32,
    is_random: bool,
}

impl Load {
    /// The time of one command in µs: that of the round, divided by the commands.
    fn run(&self, session: &mut Initiator) -> Result<f64> {
        let data = vec![0xa5; self.length];
        let blocks = self.length as u64 / BLOCK;
        let places = SIZE / self.length as u64;
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let next = || {
            state = match self.is_random {
                // Xorshift.
                true => {
                    let mut next = state ^ state << 13;
                    next ^= next >> 7;
                    next ^ next << 17
                }
                false => state.wrapping_add(1),
            };
            let mut cdb = [0; 16];
            cdb[0] = if self.direction == Direction::Read { 0x88 } else { 0x8a };
            cdb[2..10].copy_from_slice(&(state % places * blocks).to_be_bytes());
            cdb[10..14].copy_from_slice(&(blocks as u32).to_be_bytes());
            match self.direction {
                Direction::Read => ScsiCommand { cdb, data: &[], expected: self.length },
                Direction::Write => ScsiCommand { cdb, data: &data, expected: 0 },
            }
        };
        let start = Instant::now();
        let done = session.load(self.depth, ROUND, next)?;
        Ok(start.elapsed().as_secs_f64() * 1e6 / done as f64)
    }
}

fn summary(rounds: Vec<f64>) -> Result<Summary> {
    Summary::of(rounds).ok_or_else(|| anyhow!("no rounds"))
}

/// Runs the load on each session in turn, after a round that does not count. Returns the rounds of each session.
fn take_turns<const N: usize>(load: &Load, sessions: [&mut Initiator; N]) -> Result<[Vec<f64>; N]> {
    let mut rounds = [const { Vec::new() }; N];
    let mut sessions = sessions;
    for round in 0..=ROUNDS {
        for (session, rounds) in sessions.iter_mut().zip(&mut rounds) {
            let time = load.run(session)?;
            if round > 0 {
                rounds.push(time);
            }
        }
    }
    Ok(rounds)
}

fn row(figure: String, tgt: Vec<f64>, scsi_pr: Vec<f64>, bound: Option<f64>) -> Result<Row> {
    let ratio = summary(ratios(&scsi_pr, &tgt))?;
    let (peer, scsi_pr) = (value(summary(tgt)?, "µs"), value(summary(scsi_pr)?, "µs"));
    Ok(Row { figure, c: peer, scsi_pr, ratio, against: "tgt", bound })
}

/// 4 KiB on tmpfs, against tgt, and against our target without a medium: the ceiling of the initiator.
fn random() -> Result<Vec<Row>> {
    let (tgt, scsi_pr) = (Target::tgt(Storage::Memory, SIZE)?, Target::scsi_pr(Storage::Memory, 1, SIZE)?);
    let null = Target::null()?;
    let mut sessions = [tgt.session(0, 0)?, scsi_pr.session(0, 0)?, null.session(0, 0)?];
    let mut rows = Vec::new();
    for depth in [1, 32] {
        for direction in [Direction::Read, Direction::Write] {
            let load = Load { direction, length: 4 * KIB, depth, is_random: true };
            let [tgt, scsi_pr, null] = take_turns(&load, sessions.each_mut())?;
            let figure = format!("4 KiB random {direction:?}, tmpfs, depth {depth}");
            // 1.5 × and 2 × the commands.
            let wanted = if depth == 1 { 0.667 } else { 0.5 };
            let ceiling = summary(ratios(&tgt, &null))?.median;
            // Where the initiator itself is no faster than 2.2 × tgt, the ceiling counts.
            let bound = (ceiling >= 2.2).then_some(wanted);
            rows.push(row(figure.clone(), tgt, scsi_pr.clone(), bound)?);
            let mut against_null = row(format!("{figure}, ceiling"), null, scsi_pr, bound.is_none().then_some(1.11))?;
            against_null.against = "no medium";
            rows.push(against_null);
        }
    }
    Ok(rows)
}

/// 4 KiB on a file with O_DIRECT.
fn direct() -> Result<Vec<Row>> {
    against_tgt(Storage::Direct, 4 * KIB, &[1, 32], Some(1.0))
}

/// 1 MiB in succession, on tmpfs.
fn sequential() -> Result<Vec<Row>> {
    against_tgt(Storage::Memory, MIB, &[1, 4], Some(0.833))
}

fn against_tgt(storage: Storage, length: usize, depths: &[u32], bound: Option<f64>) -> Result<Vec<Row>> {
    let (tgt, scsi_pr) = (Target::tgt(storage, SIZE)?, Target::scsi_pr(storage, 1, SIZE)?);
    let mut sessions = [tgt.session(0, 0)?, scsi_pr.session(0, 0)?];
    let mut rows = Vec::new();
    for &depth in depths {
        for direction in [Direction::Read, Direction::Write] {
            let load = Load { direction, length, depth, is_random: length < MIB };
            let [tgt, scsi_pr] = take_turns(&load, sessions.each_mut())?;
            let medium = if storage == Storage::Direct { "O_DIRECT" } else { "tmpfs" };
            let kind = if length < MIB { "4 KiB random" } else { "1 MiB sequential" };
            rows.push(row(format!("{kind} {direction:?}, {medium}, depth {depth}"), tgt, scsi_pr, bound)?);
        }
    }
    Ok(rows)
}

/// Reads with a reservation and many registrants, against reads with none.
fn gate() -> Result<Vec<Row>> {
    const REGISTRANTS: usize = 1000;
    let (free, reserved) = (Target::scsi_pr(Storage::Memory, 1, SIZE)?, Target::scsi_pr(Storage::Memory, 1, SIZE)?);
    for number in 1..=REGISTRANTS {
        reserve_out(&mut reserved.session(0, number)?, 0, 0, number as u64)?;
    }
    let mut sessions = [free.session(0, 0)?, reserved.session(0, 0)?];
    reserve_out(&mut sessions[1], 0, 0, 1 << 32)?;
    reserve_out(&mut sessions[1], 1, 1 << 32, 0)?;
    let mut rows = Vec::new();
    for depth in [1, 32] {
        let load = Load { direction: Direction::Read, length: 4 * KIB, depth, is_random: true };
        let [free, reserved] = take_turns(&load, sessions.each_mut())?;
        let mut row = row(format!("read with {REGISTRANTS} registrants, depth {depth}"), free, reserved, Some(1.05))?;
        row.against = "no reservation";
        rows.push(row);
    }
    Ok(rows)
}

/// PERSISTENT RESERVE OUT with Write Exclusive – Registrants Only.
fn reserve_out(session: &mut Initiator, action: u8, key: u64, service_action_key: u64) -> Result<()> {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1], cdb[2], cdb[8]) = (0x5f, action, 5, 24);
    let list = [&key.to_be_bytes()[..], &service_action_key.to_be_bytes(), &[0; 8]].concat();
    match session.run(ScsiCommand { cdb, data: &list, expected: 0 })?.0 {
        0 => Ok(()),
        status => bail!("PERSISTENT RESERVE OUT {action:#04x} ended with status {status:#04x}"),
    }
}

/// The memory of each of 1,000 sessions that do nothing.
fn sessions() -> Result<Vec<Row>> {
    const SESSIONS: usize = 1000;
    /// Longer than the target keeps buffers of a session that does nothing.
    const SETTLE: Duration = Duration::from_secs(35);
    let (tgt, scsi_pr) = (Target::tgt(Storage::Memory, SIZE)?, Target::scsi_pr(Storage::Memory, 1, SIZE)?);
    let mut of_each = Vec::new();
    for target in [&tgt, &scsi_pr] {
        let first = target.session(0, 0)?;
        let before = target.memory()?;
        let crowd: Vec<_> = (1..=SESSIONS).map(|number| target.session(0, number)).collect::<Result<_>>()?;
        thread::sleep(SETTLE);
        of_each.push((target.memory()? - before) / SESSIONS as f64);
        drop((crowd, first));
    }
    let (tgt, scsi_pr) = (summary(vec![of_each[0]])?, summary(vec![of_each[1]])?);
    let ratio = summary(vec![of_each[1] / of_each[0]])?;
    let figure = "memory (PSS) of an idle session".to_owned();
    let (peer, scsi_pr) = (value(tgt, "KiB"), value(scsi_pr, "KiB"));
    Ok(vec![Row { figure, c: peer, scsi_pr, ratio, against: "tgt", bound: Some(0.5) }])
}

/// 64 sessions on 64 units at depth 32: the time of a command of the slowest session, against the median.
fn fairness() -> Result<Vec<Row>> {
    const UNITS: usize = 64;
    let target = Target::scsi_pr(Storage::Memory, UNITS, 8 << 20)?;
    let (mut slowest, mut medians) = (Vec::new(), Vec::new());
    let mut sessions: Vec<_> = (0..UNITS).map(|unit| target.session(unit, unit)).collect::<Result<_>>()?;
    for _ in 0..3 {
        let mut times = thread::scope(|scope| {
            let threads: Vec<_> = sessions
                .iter_mut()
                .map(|session| {
                    scope.spawn(move || {
                        let mut cdb = [0; 16];
                        (cdb[0], cdb[13]) = (0x88, 8);
                        let command = ScsiCommand { cdb, data: &[], expected: 4 * KIB };
                        let duration = Duration::from_secs(3);
                        session.load(32, duration, || command).map(|done| duration.as_secs_f64() * 1e6 / done as f64)
                    })
                })
                .collect();
            let join = |thread: thread::ScopedJoinHandle<'_, Result<f64>>| thread.join().expect("a session's thread");
            threads.into_iter().map(join).collect::<Result<Vec<f64>>>()
        })?;
        slowest.push(percentile(&mut times, 100.0).context("no sessions")?);
        medians.push(percentile(&mut times, 50.0).context("no sessions")?);
    }
    let ratio = summary(ratios(&slowest, &medians))?;
    let (median, slowest) = (value(summary(medians)?, "µs"), value(summary(slowest)?, "µs"));
    let figure = "64 sessions at depth 32: the slowest".to_owned();
    Ok(vec![Row { figure, c: median, scsi_pr: slowest, ratio, against: "the median", bound: Some(1.5) }])
}
