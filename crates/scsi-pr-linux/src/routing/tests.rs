mod histories;
mod mechanisms;

use super::*;
use crate::device::tests::Tree;
use crate::log::Log;
use crate::models::commands;
use crate::policy::tests::{Recorder, keys, reserve_in, reserve_out};
use proptest::prelude::*;
use rustix::fs::{MemfdFlags, Mode, OFlags, memfd_create, open};
use scsi_pr::{Cdb, CommandBuf, Opcode, SenseCode};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;

const fn shareable<T: Send + Sync>() {}
const _: () = shareable::<DeviceRouter>();

const REFUSED: Completion = Completion::CheckCondition(scsi_pr::Sense::fixed(SenseCode::INVALID_OPCODE));

const SG_IO: Steps = &[Mechanism::SgIo];
const NVME: Steps = &[Mechanism::Nvme, Mechanism::NvmeWorker];
const OTHER: Steps = &[Mechanism::SgIoWhereSupported, Mechanism::BlockIoctl, Mechanism::BlockIoctlWorker];

type Answers = HashMap<Mechanism, VecDeque<Result<Completion, Declined>>>;

/// Mechanisms that record the commands that they get.
#[derive(Clone, Default)]
struct Recording {
    attempts: Arc<Mutex<Vec<Mechanism>>>,
    /// The answers of each mechanism; GOOD, if there is none here.
    answers: Arc<Mutex<Answers>>,
}

impl Mechanisms for Recording {
    fn attempt(&self, mechanism: Mechanism, _: BorrowedFd<'_>, _: Command<'_>) -> Result<Completion, Declined> {
        self.attempts.lock().unwrap().push(mechanism);
        let answer = self.answers.lock().unwrap().get_mut(&mechanism).and_then(VecDeque::pop_front);
        answer.unwrap_or(Ok(Completion::Good(Vec::new())))
    }

    fn is_connected(&self, _: Mechanism) -> bool {
        false
    }
}

struct Recorded {
    router: DeviceRouter,
    recording: Recording,
}

impl Recorded {
    fn new(sysfs: Sysfs) -> Self {
        let recording = Recording::default();
        Self { router: DeviceRouter::over(Box::new(recording.clone()), sysfs), recording }
    }

    /// The next answer of a mechanism.
    fn answer(&self, mechanism: Mechanism, answer: Result<Completion, Declined>) {
        self.recording.answers.lock().unwrap().entry(mechanism).or_default().push_back(answer);
    }

    /// Which mechanisms got the command, and the answer.
    fn attempts(&self) -> Vec<Mechanism> {
        std::mem::take(&mut self.recording.attempts.lock().unwrap())
    }

    fn execute(&self, descriptor: impl AsFd, command: Command<'_>) -> (Vec<Mechanism>, Completion) {
        let completion = self.router.execute(descriptor.as_fd(), command).unwrap();
        (self.attempts(), completion)
    }

    /// The same, as if the descriptor were open for writing.
    fn run(&self, descriptor: impl AsFd, command: Command<'_>) -> (Vec<Mechanism>, Completion) {
        let completion = self.router.execute_by_device(descriptor.as_fd(), command).unwrap();
        (self.attempts(), completion)
    }

    fn choose(&self, number: Number, sequence_number: Option<u64>, command: Command<'_>) -> Result<Steps, Completion> {
        self.router.route_block_device(number, sequence_number, command).unwrap()
    }
}

/// A device of the tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Scsi,
    Nvme,
    Virtio,
    Virtual,
    Partition { nvme: bool },
    Map,
    Volume { uuid: bool, nvme: bool },
    Array { nvme: bool },
    Unexplained,
}

const EVERYTHING: [What; 13] = [
    What::Scsi,
    What::Nvme,
    What::Virtio,
    What::Virtual,
    What::Partition { nvme: false },
    What::Partition { nvme: true },
    What::Map,
    What::Volume { uuid: false, nvme: false },
    What::Volume { uuid: false, nvme: true },
    What::Volume { uuid: true, nvme: false },
    What::Volume { uuid: true, nvme: true },
    What::Array { nvme: false },
    What::Unexplained,
];

/// The expected route, by the table in the documentation.
fn expected(what: What, opcode: Opcode) -> Result<Steps, Completion> {
    use Opcode::{Cleanup, ReserveIn, ReserveOut};
    match (what, opcode) {
        (What::Scsi, _) => Ok(SG_IO),
        (What::Nvme, _) => Ok(NVME),
        (What::Map, ReserveIn) => Ok(&[Mechanism::MultipathReader]),
        (What::Map, _) => Ok(&[Mechanism::MultipathWorker]),
        (What::Virtio | What::Virtual, _) => Ok(OTHER),
        (What::Partition { nvme: true } | What::Volume { nvme: true, .. } | What::Array { nvme: true }, ReserveIn) => {
            Ok(NVME)
        }
        (_, ReserveIn) => Ok(SG_IO),
        (_, ReserveOut) | (What::Unexplained, Cleanup) => Err(REFUSED),
        (_, Cleanup) => Err(Completion::Good(Vec::new())),
    }
}

/// A machine with a SCSI disk and a namespace, and devices that come and go.
struct World {
    tree: Tree,
    present: BTreeMap<Number, (What, String)>,
}

const DISK: &str = "devices/host0/block/sda";
const NAMESPACE: &str = "devices/nvme0/nvme0n1";

impl World {
    fn new() -> Self {
        let tree = Tree::new();
        tree.block(DISK, "8:0", &[]);
        tree.subsystem(DISK, "scsi");
        tree.block(NAMESPACE, "259:0", &[]);
        tree.subsystem(NAMESPACE, "nvme");
        Self { tree, present: BTreeMap::new() }
    }

    fn with(what: What, number: Number) -> Self {
        let mut world = Self::new();
        world.appear(number, what);
        world
    }

    /// The device takes the place of what has had its number.
    fn appear(&mut self, number: Number, what: What) {
        self.disappear(number);
        let text = number.to_string();
        let below = |nvme| if nvme { NAMESPACE } else { DISK };
        let name = format!("x{}-{}", number.major, number.minor);
        let path = match what {
            What::Partition { nvme } => format!("{}/{name}", below(nvme)),
            _ => format!("devices/here/{name}"),
        };
        let tree = &self.tree;
        match what {
            What::Scsi | What::Nvme | What::Virtio => {
                tree.block(&path, &text, &[]);
                tree.subsystem(
                    &path,
                    match what {
                        What::Scsi => "scsi",
                        What::Nvme => "nvme",
                        _ => "virtio",
                    },
                );
            }
            What::Virtual => tree.block(&path, &text, &[]),
            What::Partition { .. } => tree.partition(&path, &text),
            What::Map => tree.device_mapper(&path, &text, ["mpatha", "mpath-3600"], &[DISK]),
            What::Volume { uuid, nvme } => {
                tree.device_mapper(&path, &text, ["volume", if uuid { "LVM-x" } else { "" }], &[below(nvme)]);
            }
            What::Array { nvme } => tree.block(&path, &text, &[below(nvme)]),
            What::Unexplained => return,
        }
        self.present.insert(number, (what, path));
    }

    fn disappear(&mut self, number: Number) {
        if let Some((_, path)) = self.present.remove(&number) {
            self.tree.unplug(&path, &number.to_string());
        }
    }

    fn what(&self, number: Number) -> What {
        self.present.get(&number).map_or(What::Unexplained, |(what, _)| *what)
    }
}

const NUMBER: Number = Number { major: 7, minor: 0 };

/// IN, OUT and CLEANUP with every service action.
fn all_commands() -> Vec<CommandBuf> {
    let command = |opcode: Opcode, service_action: u8| {
        let mut bytes = [0; 16];
        (bytes[0], bytes[1], bytes[8]) =
            (opcode.byte(), service_action, if opcode == Opcode::Cleanup { 0 } else { 24 });
        let cdb = Cdb::new(bytes).unwrap();
        CommandBuf::new(cdb, vec![0; cdb.parameter_list_length()]).unwrap()
    };
    let actions =
        (0..0x20).flat_map(|action| [Opcode::ReserveIn, Opcode::ReserveOut].map(|opcode| command(opcode, action)));
    actions.chain([command(Opcode::Cleanup, 0)]).collect()
}

#[test]
fn each_device_has_its_route_and_a_part_has_none_for_changes() {
    for what in EVERYTHING {
        let world = World::with(what, NUMBER);
        let recorded = Recorded::new(world.tree.sysfs());
        // Looked up each time; and the second time known, where it can be.
        for sequence_number in [None, Some(1), Some(1)] {
            for command in all_commands() {
                let opcode = command.command().opcode();
                let chosen = recorded.choose(NUMBER, sequence_number, command.command());
                assert_eq!(chosen, expected(what, opcode), "{what:?}, {}", command.command());
                let whole = matches!(what, What::Scsi | What::Nvme | What::Virtio | What::Virtual | What::Map);
                assert!(whole || opcode == Opcode::ReserveIn || chosen.is_err(), "{what:?}");
            }
        }
    }
}

#[test]
fn known_device_is_not_looked_up_again() {
    for what in EVERYTHING {
        let mut world = World::with(what, NUMBER);
        let recorded = Recorded::new(world.tree.sysfs());
        let list = keys(1, 2);
        let choose = |sequence_number| recorded.choose(NUMBER, sequence_number, reserve_out(1, &list));
        assert_eq!(choose(Some(7)), expected(what, Opcode::ReserveOut));
        // sysfs is not read from now on.
        world.disappear(NUMBER);
        let lasts = match what {
            What::Scsi | What::Nvme | What::Virtio | What::Map | What::Partition { .. } => true,
            What::Volume { uuid, .. } => uuid,
            What::Virtual | What::Array { .. } | What::Unexplained => false,
        };
        let then = if lasts { expected(what, Opcode::ReserveOut) } else { Err(REFUSED) };
        assert_eq!(choose(Some(7)), then, "{what:?}");
        // Another disk, and one without a number, are unknown.
        assert_eq!(choose(Some(8)), Err(REFUSED), "{what:?}");
        assert_eq!(choose(None), Err(REFUSED), "{what:?}");
        assert_eq!(choose(Some(7)), then, "{what:?}: an unknown device is not remembered");
    }
}

#[test]
fn without_sequence_numbers_nothing_is_remembered() {
    for what in EVERYTHING {
        let world = World::with(what, NUMBER);
        let recorded = Recorded::new(world.tree.sysfs());
        let _ = recorded.choose(NUMBER, None, reserve_in(0));
        assert_eq!(recorded.router.cache.len(), 0, "{what:?}");
    }
}

#[test]
fn device_beneath_a_volume_is_looked_up_each_time() {
    let mut world = World::with(What::Volume { uuid: true, nvme: false }, NUMBER);
    let recorded = Recorded::new(world.tree.sysfs());
    assert_eq!(recorded.choose(NUMBER, Some(1), reserve_in(0)), Ok(SG_IO));
    world.appear(NUMBER, What::Volume { uuid: true, nvme: true });
    assert_eq!(recorded.choose(NUMBER, Some(1), reserve_in(0)), Ok(NVME));
    world.disappear(NUMBER);
    assert_eq!(recorded.choose(NUMBER, Some(1), reserve_in(0)), Ok(SG_IO), "unknown");
}

impl Cache {
    fn len(&self) -> usize {
        self.0.read().unwrap().len()
    }
}

#[test]
fn the_cache_is_bounded() {
    let cache = Cache::default();
    let target = |minor| if minor % 2 == 0 { Target::ScsiUnit } else { Target::Stack };
    for minor in 0..3 * u32::try_from(MAX_ENTRIES).unwrap() {
        let number = Number { major: 8, minor };
        cache.insert(number, u64::from(minor), target(minor));
        assert_eq!(cache.get(number, u64::from(minor)), Some(target(minor)));
        assert!(cache.len() <= MAX_ENTRIES);
    }
    // A number has one entry, and a full cache room for another disk with a known number.
    let (number, full) = (Number { major: 8, minor: 3 * u32::try_from(MAX_ENTRIES).unwrap() - 1 }, cache.len());
    for sequence_number in 0..10 {
        cache.insert(number, sequence_number, Target::Unexplained);
    }
    assert_eq!((cache.len(), cache.get(number, 9), cache.get(number, 8)), (full, Some(Target::Unexplained), None));
}

#[test]
fn the_log_says_which_part_is_refused_once_also_when_it_is_known() {
    let world = World::with(What::Partition { nvme: false }, NUMBER);
    let recorded = Recorded::new(world.tree.sysfs());
    let log = Log::at(tracing::Level::WARN);
    let list = keys(1, 2);
    log.during(|| {
        // Known by the time that there is something to refuse.
        assert_eq!(recorded.choose(NUMBER, Some(1), reserve_in(0)), Ok(SG_IO));
        for _ in 0..2 {
            assert_eq!(recorded.choose(NUMBER, Some(1), reserve_out(0, &list)), Err(REFUSED));
        }
    });
    let [line] = &log.events()[..] else { panic!("{:?}", log.events()) };
    for part in ["REGISTER", " refused on 7:0 (x7-0), a partition of sda: ", "the whole of what", "--manager=sg-io"] {
        assert!(line.message.contains(part), "{part}: {}", line.message);
    }
}

/// A block device that may be used, and that this machine calls `NUMBER`; the trees of the tests call it what they like.
fn loop_device() -> Option<File> {
    File::open("/dev/loop0")
        .ok()
        .filter(|file| BlockDevice::of(file.as_fd()).unwrap().is_some_and(|device| device.number() == NUMBER))
}

#[test]
fn command_reaches_the_mechanism_and_its_answer_returns() {
    let Some(device) = loop_device() else { return };
    for what in EVERYTHING {
        let world = World::with(what, NUMBER);
        let recorded = Recorded::new(world.tree.sysfs());
        for command in all_commands() {
            let answer = match expected(what, command.command().opcode()) {
                Ok(steps) => (vec![steps[0]], Completion::Good(Vec::new())),
                Err(completion) => (vec![], completion),
            };
            assert_eq!(recorded.run(&device, command.command()), answer, "{what:?}, {}", command.command());
        }
    }
}

/// As of a device that is removed while it is open.
#[test]
fn removed_device_keeps_its_route() {
    let Some(device) = loop_device() else { return };
    if BlockDevice::of(device.as_fd()).unwrap().unwrap().sequence_number().is_none() {
        return;
    }
    for (what, then) in
        [(What::Scsi, vec![Mechanism::SgIo]), (What::Nvme, vec![Mechanism::Nvme]), (What::Virtual, vec![])]
    {
        let mut world = World::with(what, NUMBER);
        let recorded = Recorded::new(world.tree.sysfs());
        let list = keys(1, 2);
        recorded.run(&device, reserve_out(1, &list));
        world.disappear(NUMBER);
        assert_eq!(recorded.run(&device, reserve_out(1, &list)).0, then, "{what:?}");
        assert_eq!(recorded.run(&device, reserve_in(0)).0.len(), 1, "{what:?}");
    }
}

#[test]
fn descriptor_of_another_type_goes_to_sg_io_without_a_lookup() {
    let recorded = Recorded::new(Sysfs::at("/nonexistent"));
    let path_only = open("/dev/null", OFlags::PATH, Mode::empty()).unwrap();
    let files: [(&str, OwnedFd); 7] = [
        ("character device", File::open("/dev/null").unwrap().into()),
        ("file", tempfile::tempfile().unwrap().into()),
        ("directory", File::open("/").unwrap().into()),
        ("pipe", std::io::pipe().unwrap().1.into()),
        ("socket", UnixStream::pair().unwrap().0.into()),
        ("memfd", memfd_create("scsi-pr-linux", MemfdFlags::CLOEXEC).unwrap()),
        ("O_PATH", path_only),
    ];
    for (name, file) in files {
        for command in all_commands() {
            let answer = recorded.run(&file, command.command());
            assert_eq!(answer, (vec![Mechanism::SgIo], Completion::Good(Vec::new())), "{name}");
        }
    }
}

/// A descriptor that is not for use gives no sequence number, and so is looked up each time.
#[test]
fn a_block_device_opened_without_access_has_its_manager_too() {
    let Some((device, number)) = crate::device::tests::block_device() else { return };
    let (major, minor) = number.split_once(':').unwrap();
    let number = Number { major: major.parse().unwrap(), minor: minor.parse().unwrap() };
    let world = World::with(What::Nvme, number);
    let recorded = Recorded::new(world.tree.sysfs());
    assert_eq!(recorded.run(&device, reserve_in(0)).0, [Mechanism::Nvme]);
    assert_eq!(recorded.router.cache.len(), 0);
}

#[test]
fn the_connection_is_that_of_all() {
    assert!(!Recorded::new(Sysfs::default()).router.is_connected());
    let worker: Arc<dyn PrManager> = Arc::new(crate::SgIo::new());
    assert!(DeviceRouter::new(workers(&worker)).is_connected());
    let worker: Arc<dyn PrManager> = Arc::new(Recorder::good());
    for (choice, connected) in
        [(Choice::SgIo, true), (Choice::Nvme, true), (Choice::BlockIoctl, true), (Choice::Multipath, false)]
    {
        assert_eq!(DeviceRouter::new(workers(&worker)).with_choice(choice).is_connected(), connected, "{choice:?}");
    }
    assert!(!DeviceRouter::new(workers(&worker)).is_connected());
}

fn workers(worker: &Arc<dyn PrManager>) -> Workers {
    Workers { multipath: Arc::clone(worker), nvme: Arc::clone(worker), block_ioctl: Arc::clone(worker) }
}

fn not_permitted() -> Declined {
    Declined::NotPermitted(NotPermitted(rustix::io::Errno::PERM))
}
