//! Random histories of four initiators on the target. Every answer, with sense and data, is compared with a second model of
//! the standard (`testing/model`) and with `scsi_pr::Reservations`. [`crate::lio`] lists the known deviations of LIO from
//! the standard. Every other difference fails.
//!
//! Several units run different histories at once, because a single command leaves the slow guest idle most of the time.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::RwLock;
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use model::history::{Act, Event, Mix, Step, World, histories};
use model::{Answer, Model, Nexus};
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use scsi_pr::{Cdb, Command, Completion, FullStatus, PrManager, Sense, Status};
use scsi_pr_linux::SgIo;

use crate::disk::Disk;
use crate::lab::Lab;
use crate::library::Library;
use crate::lio::{DEVIATIONS, Expected, Lio};
use crate::report::{Report, line};
use crate::scenario::Scenario;
use crate::sg::{Reply, Sg, Transfer};
use crate::system::write;
use crate::target::Target;

/// The seed without `--seed`.
pub(crate) const DEFAULT_SEED: u64 = 1;

const INITIATORS: [&str; 4] = ["a", "b", "c", "d"];
const UNITS: usize = 6;
/// Histories for each unit.
const HISTORIES_PER_UNIT: u32 = 13;
const STEPS: usize = 200;
/// The least number of commands. Fewer would prove little.
const ENOUGH: usize = 20_000;

/// READ FULL STATUS is never cut, because LIO of Linux 6.1 writes past a short buffer.
const MIX: Mix = Mix { spc2: 20, losses: 0, room_for_full_status: 8192 };

/// Held for writing while a command other than REGISTER may remove its sender's registration. LIO of Linux 6.1 decrements
/// the reference count of that registration after freeing it. If another unit has allocated a registration at the same
/// address by then, the removal of that one waits for ever.
static REGISTERING: RwLock<()> = RwLock::new(());

/// Random histories.
pub(super) const HISTORIES: Scenario = Scenario {
    name: "histories",
    boot: "histories",
    purpose: "the target answers random histories of four initiators as a model of the standard does, known deviations aside",
    run,
};

/// Counts of the commands so far.
#[derive(Default)]
struct Counts {
    commands: usize,
    histories: usize,
    /// Commands that `scsi_pr::Reservations` answered as the target did.
    library: usize,
    ways: BTreeMap<&'static str, usize>,
    deviations: BTreeMap<&'static str, usize>,
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.commands += other.commands;
        self.histories += other.histories;
        self.library += other.library;
        for (sum, added) in [(&mut self.ways, other.ways), (&mut self.deviations, other.deviations)] {
            added.into_iter().for_each(|(name, count)| *sum.entry(name).or_default() += count);
        }
    }
}

fn run(lab: &mut Lab, report: &mut Report) -> Result<()> {
    // LIO logs every refusal on the console.
    write("/proc/sys/kernel/printk", "1 1 1 1")?;
    // End the guest when the target hangs.
    write("/proc/sys/kernel/softlockup_panic", "1")?;
    let seed = lab.seed;
    // Each unit is the only one of its target, because LIO confuses units of one target (see testing/lab/README.md).
    let first = lab.target()?;
    let others: Vec<_> = (1..UNITS).map(|number| first.another(&format!("lab{number}"))).collect::<Result<_>>()?;
    let mut units = vec![Unit::new(&first)?];
    for target in &others {
        units.push(Unit::new(target)?);
    }
    let outcomes: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> =
            units.iter().enumerate().map(|(number, unit)| scope.spawn(move || run_unit(unit, seed, number))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a thread that reports its errors")).collect()
    });
    let mut counts = Counts::default();
    for (number, (of_unit, outcome)) in outcomes.into_iter().enumerate() {
        let what = format!("unit {number}: {} histories, {} commands", of_unit.histories, of_unit.commands);
        report.check(what, outcome.map_err(|reason| format!("seed {seed}, unit {number}: {reason}")));
        counts.add(of_unit);
    }
    let Counts { commands, histories, library, ways, deviations } = counts;
    for deviation in DEVIATIONS {
        let count = deviations.get(deviation.name).copied().unwrap_or(0);
        let what = format!("{count} × {}: {}", deviation.name, deviation.reason);
        // A deviation that never occurs must leave the list. Seeds other than the default may miss a rare one.
        let outcome = if count > 0 || seed != DEFAULT_SEED { Ok(()) } else { Err("it never occurred".to_owned()) };
        report.check(what, outcome);
    }
    for way in model::WAYS.iter().filter(|way| !ways.contains_key(*way)) {
        line(&format!("  not taken: {way}"));
    }
    let enough = if commands >= ENOUGH { Ok(()) } else { Err(format!("fewer than {ENOUGH}")) };
    report.check(format!("{commands} commands in {histories} histories"), enough);
    let most = if library > commands / 4 { Ok(()) } else { Err("too few to prove much".to_owned()) };
    report.check(format!("scsi_pr answered {library} of them as the target did"), most);
    Ok(())
}

/// Runs histories on one unit. The error has the shortest history found that fails.
fn run_unit(unit: &Unit, seed: u64, number: usize) -> (Counts, Result<(), String>) {
    let counts = RefCell::new(Counts::default());
    let config =
        Config { cases: HISTORIES_PER_UNIT, failure_persistence: None, max_shrink_time: 40_000, ..Config::default() };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_be_bytes());
    bytes[8] = u8::try_from(number).expect("there are few units");
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let outcome = runner.run(&histories(MIX, STEPS), |history| {
        let mut run = Run::new(unit).map_err(|error| TestCaseError::fail(format!("{error:#}")))?;
        let outcome = history.iter().try_for_each(|step| run.take(step));
        let Run { transcript, counts: of_run, .. } = run;
        counts.borrow_mut().add(of_run);
        outcome.map_err(|error| TestCaseError::fail(format!("{error:#}\n{}", transcript.join("\n"))))
    });
    let outcome = outcome.map_err(|error| match error {
        TestError::Fail(reason, _) => reason.message().to_owned(),
        TestError::Abort(reason) => reason.message().to_owned(),
    });
    (counts.into_inner(), outcome)
}

/// A unit, as each initiator sees it.
struct Unit {
    disks: Vec<Disk>,
    others: Vec<Sg>,
    manager: SgIo,
    /// The initiators and their target port, by the target's names.
    world: World,
}

impl Unit {
    fn new(target: &Target) -> Result<Self> {
        let paths: Vec<PathBuf> =
            INITIATORS.iter().map(|initiator| target.disk(initiator, 0)).collect::<Result<_>>()?;
        let mut unit = Self {
            disks: paths.iter().map(|path| Disk::open(path)).collect::<Result<_>>()?,
            others: paths.iter().map(|path| Sg::open(path)).collect::<Result<_>>()?,
            manager: SgIo::new(),
            world: World { target_ports: Vec::new(), nexuses: Vec::new() },
        };
        unit.world = world(&unit)?;
        Ok(unit)
    }

    /// Sends a persistent reservation command.
    fn send(&self, from: usize, cdb: &[u8; 16], list: &[u8]) -> Result<Answer> {
        let command = Command::new(Cdb::new(*cdb)?, list)?;
        let (_exclusive, _shared);
        match (cdb[0], cdb[1] & 0x1f) {
            (0x5f, 3 | 4 | 5 | 7) => _exclusive = REGISTERING.write(),
            (0x5f, _) => _shared = REGISTERING.read(),
            _ => {}
        }
        match self.manager.execute(self.disks[from].file().as_fd(), command)? {
            Completion::Good(data) => Ok(Answer::Good(data)),
            Completion::Status(Status::RESERVATION_CONFLICT) => Ok(Answer::Conflict),
            Completion::CheckCondition(sense) => {
                let code = sense.code().context("the sense data have an unknown format")?;
                // LIO's sense data are the same as the library's, byte by byte.
                ensure!(sense == Sense::fixed(code), "unusual sense data: {sense:?}");
                Ok(Answer::Check(code.key.byte(), code.asc, code.ascq))
            }
            other => bail!("the target answered {other}"),
        }
    }

    /// Sends any other command.
    fn send_other(&self, from: usize, cdb: &[u8], transfer: Transfer<'_>) -> Result<Answer> {
        match self.others[from].send(cdb, transfer)? {
            Reply { status: 0x00, .. } => Ok(Answer::Good(Vec::new())),
            Reply { status: 0x02, sense } => Ok(Answer::Check(sense[2] & 0xf, sense[12], sense[13])),
            Reply { status: 0x18, .. } => Ok(Answer::Conflict),
            Reply { status, .. } => bail!("the target answered status {status:#04x}"),
        }
    }

    /// Takes every pending unit attention of `from`.
    fn drain(&self, from: usize) -> Result<()> {
        while let Answer::Check(6, ..) = self.send_other(from, &[0; 6], Transfer::In(0))? {}
        Ok(())
    }

    /// Removes the state of an earlier history. Returns PRGENERATION.
    fn clean(&self) -> Result<u32> {
        for from in 0..INITIATORS.len() {
            self.drain(from)?;
            self.send_other(from, &RELEASE, Transfer::In(0))?;
        }
        // ALL_TG_PT is set, because LIO refuses to change a registration with it by a command without it.
        let mut list = [0; 24];
        (list[15], list[20]) = (1, 4);
        let registered = self.send(0, &out(6), &list)?;
        list[..16].copy_from_slice(&[[0, 0, 0, 0, 0, 0, 0, 1]; 2].concat());
        let cleared = self.send(0, &out(3), &list)?;
        ensure!([registered, cleared] == [const { Answer::Good(Vec::new()) }; 2], "the unit cannot be cleared");
        for from in 0..INITIATORS.len() {
            self.drain(from)?;
        }
        match self.send(0, &read(0), &[])? {
            Answer::Good(data) if data.len() == 8 => Ok(u32::from_be_bytes(data[..4].try_into()?)),
            other => bail!("the unit was cleared, and READ KEYS answered {other:?}"),
        }
    }
}

/// RELEASE(6) and RESERVE(6) of SPC-2.
const RELEASE: [u8; 6] = [0x17, 0, 0, 0, 0, 0];
const RESERVE: [u8; 6] = [0x16, 0, 0, 0, 0, 0];

/// Commands of each class that LIO supports: name, CDB, data.
const COMMANDS: [(&str, &[u8], Transfer<'static>); 8] = [
    ("WRITE(10)", &[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0], Transfer::Out(&[0; 512])),
    ("READ(10)", &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], Transfer::In(512)),
    ("TEST UNIT READY", &[0; 6], Transfer::In(0)),
    ("SYNCHRONIZE CACHE(10)", &[0x35, 0, 0, 0, 0, 0, 0, 0, 1, 0], Transfer::In(0)),
    ("INQUIRY", &[0x12, 0, 0, 0, 36, 0], Transfer::In(36)),
    ("MODE SENSE(6)", &[0x1a, 0, 0x3f, 0, 192, 0], Transfer::In(192)),
    ("READ CAPACITY(10)", &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], Transfer::In(8)),
    ("READ CAPACITY(16)", &[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0], Transfer::In(32)),
];

fn read(action: u8) -> [u8; 16] {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1], cdb[7]) = (0x5e, action, 0x20);
    cdb
}

fn out(action: u8) -> [u8; 16] {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1], cdb[8]) = (0x5f, action, 24);
    cdb
}

/// The initiators and their target port, by the target's names.
fn world(unit: &Unit) -> Result<World> {
    unit.clean()?;
    let mut nexuses = Vec::new();
    for from in 0..INITIATORS.len() {
        let mut list = [0; 24];
        list[15] = 1;
        unit.send(from, &out(6), &list)?;
        let Answer::Good(data) = unit.send(from, &read(3), &[])? else { bail!("no READ FULL STATUS") };
        let status = FullStatus::parse(&data)?.value;
        let last = status.descriptors.last().context("no nexus is registered")?;
        let initiator =
            model::transport_id(last.transport_id_bytes()).context("the bytes are not a valid TransportID")?;
        nexuses.push(Nexus { initiator, target_port: last.relative_target_port });
    }
    unit.clean()?;
    Ok(World { target_ports: vec![nexuses[0].target_port], nexuses })
}

/// A running history.
struct Run<'a> {
    unit: &'a Unit,
    lio: Lio,
    library: Library,
    counts: Counts,
    /// The commands and answers so far.
    transcript: Vec<String>,
}

impl<'a> Run<'a> {
    fn new(unit: &'a Unit) -> Result<Self> {
        let generation = unit.clean()?;
        let lio = Lio::new(Model { generation, ..Model::new(&unit.world.target_ports) });
        let counts = Counts { histories: 1, ..Counts::default() };
        Ok(Self { unit, lio, library: Library::default(), counts, transcript: Vec::new() })
    }

    fn take(&mut self, step: &Step) -> Result<()> {
        let act = self.unit.world.act(step, &self.lio.model);
        match &act {
            Act::Command { from, cdb, list } if !Lio::is_excluded(self.nexus(*from), cdb, list) => {
                let answer = self.command(*from, cdb, list)?;
                if cdb[0] == 0x5f && answer == Answer::Good(Vec::new()) {
                    for action in [3, 1, 2] {
                        self.command(*from, &read(action), &[])?;
                        self.transcript.pop();
                    }
                }
            }
            Act::Event(Event::Spc2 { from, reserve }) => {
                // The library gets persistent reservation commands alone.
                self.library.pause();
                let expected = self.lio.spc2(&self.unit.world.nexuses[*from], *reserve);
                let cdb = if *reserve { RESERVE } else { RELEASE };
                let answer = self.unit.send_other(*from, &cdb, Transfer::In(0))?;
                self.compare(&format!("{act:?}"), expected, answer)?;
            }
            _ => {}
        }
        // The choice depends on the act alone, so that it stays the same when proptest removes other steps.
        self.ask_for_access(format!("{act:?}").bytes().map(usize::from).sum())
    }

    /// Sends one of the other commands, from one of the initiators.
    fn ask_for_access(&mut self, count: usize) -> Result<()> {
        let from = count % INITIATORS.len();
        let (name, cdb, transfer) = COMMANDS[count / INITIATORS.len() % COMMANDS.len()];
        let data = !matches!(transfer, Transfer::In(0));
        if self.lio.model.has_attention(&self.unit.world.nexuses[from]) {
            self.library.pause();
        }
        let expected = self.lio.access(&self.unit.world.nexuses[from], cdb, data);
        let answer = self.unit.send_other(from, cdb, transfer)?;
        self.compare(&format!("{from}: {name}"), expected, answer)
    }

    fn nexus(&self, from: usize) -> &Nexus {
        &self.unit.world.nexuses[from]
    }

    /// Sends a command to the target, to the model and to `scsi_pr`. Returns the target's answer.
    fn command(&mut self, from: usize, cdb: &[u8; 16], list: &[u8]) -> Result<Answer> {
        let nexus = &self.unit.world.nexuses[from];
        let generation = self.lio.model.generation;
        self.library.resume(&self.lio.model);
        let library = self.library.answer(nexus, cdb, list, generation);
        let mut standard = self.lio.model.clone();
        standard.execute(nexus, cdb, list);
        let expected = self.lio.execute(nexus, cdb, list);
        if standard != (Model { generation: standard.generation, ..self.lio.model.clone() }) {
            self.library.pause();
        }
        let deviates = expected.deviation.is_some();
        let answer = self.unit.send(from, cdb, list)?;
        let act = Act::Command { from, cdb: *cdb, list: list.to_vec() };
        self.compare(&format!("{act:?}"), expected, answer.clone())?;
        if let (Some(library), false) = (library, deviates) {
            self.counts.library += 1;
            ensure!(library == answer, "scsi_pr answers {}, the target {}, after", short(&library), short(&answer));
        }
        Ok(answer)
    }

    fn compare(&mut self, act: &str, expected: Expected, answer: Answer) -> Result<()> {
        let Expected { answer: expected, way, deviation } = expected;
        self.counts.commands += 1;
        *self.counts.ways.entry(way).or_default() += 1;
        if let Some(deviation) = deviation {
            *self.counts.deviations.entry(deviation.name).or_default() += 1;
        }
        let deviation = deviation.map(|deviation| format!(" ({})", deviation.name)).unwrap_or_default();
        self.transcript.push(format!("{act}\n    {way}{deviation}: {}", short(&answer)));
        if expected == answer { Ok(()) } else { bail!("expected {}, got {}, after", short(&expected), short(&answer)) }
    }
}

fn short(answer: &Answer) -> String {
    match answer {
        Answer::Good(data) => format!("GOOD {}", data.iter().map(|byte| format!("{byte:02x}")).collect::<String>()),
        Answer::Conflict => "RESERVATION CONFLICT".to_owned(),
        Answer::Check(key, asc, ascq) => format!("{key:02x}/{asc:02x}/{ascq:02x}"),
    }
}
