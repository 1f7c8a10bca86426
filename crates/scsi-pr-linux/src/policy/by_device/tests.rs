use super::*;
use crate::device::tests::Tree;
use crate::log::Log;
use crate::policy::tests::{Recorder, keys, reserve_in, reserve_out};
use proptest::prelude::*;
use rustix::fs::{MemfdFlags, Mode, OFlags, memfd_create, open};
use scsi_pr::{Cdb, CommandBuf, Opcode, SenseCode};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

const fn shareable<T: Send + Sync>() {}
const _: () = shareable::<ByDevice>();

const REFUSED: Completion = Completion::CheckCondition(scsi_pr::Sense::fixed(SenseCode::INVALID_OPCODE));

/// A manager of which every inner one writes down what it gets.
struct Recorded {
    by_device: ByDevice,
    recorders: [(Manager, Recorder); 4],
}

impl Recorded {
    fn new(sysfs: Sysfs) -> Self {
        let recorders = [Manager::SgIo, Manager::Multipath, Manager::Nvme, Manager::Block]
            .map(|manager| (manager, Recorder::good()));
        let [sg_io, multipath, nvme, block] =
            recorders.each_ref().map(|(_, recorder)| Arc::new(recorder.clone()) as Arc<dyn PrManager>);
        Self { by_device: ByDevice::new(Routes { sg_io, multipath, nvme, block }, sysfs), recorders }
    }

    /// Which managers got the command, and the answer.
    fn run(&self, descriptor: impl AsFd, command: Command<'_>) -> (Vec<Manager>, Completion) {
        let completion = self.by_device.execute(descriptor.as_fd(), command).unwrap();
        let taken = self.recorders.iter().flat_map(|(manager, recorder)| vec![*manager; recorder.taken()]);
        (taken.collect(), completion)
    }

    fn choose(
        &self,
        number: Number,
        sequence_number: Option<u64>,
        command: Command<'_>,
    ) -> Result<Manager, Completion> {
        self.by_device.choose(number, sequence_number, command).unwrap()
    }
}

/// What a device is, in the terms of the tests.
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

/// What must become of a command for it, after the table in the documentation.
fn expected(what: What, opcode: Opcode) -> Result<Manager, Completion> {
    use Opcode::{Cleanup, ReserveIn, ReserveOut};
    match (what, opcode) {
        (What::Scsi, _) => Ok(Manager::SgIo),
        (What::Nvme, _) => Ok(Manager::Nvme),
        (What::Map, _) => Ok(Manager::Multipath),
        (What::Virtio | What::Virtual, _) => Ok(Manager::Block),
        (What::Partition { nvme: true } | What::Volume { nvme: true, .. } | What::Array { nvme: true }, ReserveIn) => {
            Ok(Manager::Nvme)
        }
        (_, ReserveIn) => Ok(Manager::SgIo),
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
fn each_device_has_its_manager_and_what_is_not_whole_has_none_for_changes() {
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
fn a_known_device_is_not_looked_up_again() {
    for what in EVERYTHING {
        let mut world = World::with(what, NUMBER);
        let recorded = Recorded::new(world.tree.sysfs());
        let list = keys(1, 2);
        let choose = |sequence_number| recorded.choose(NUMBER, sequence_number, reserve_out(1, &list));
        assert_eq!(choose(Some(7)), expected(what, Opcode::ReserveOut));
        // What sysfs says from now on is not heard.
        world.disappear(NUMBER);
        let lasts = match what {
            What::Scsi | What::Nvme | What::Virtio | What::Map | What::Partition { .. } => true,
            What::Volume { uuid, .. } => uuid,
            What::Virtual | What::Array { .. } | What::Unexplained => false,
        };
        let then = if lasts { expected(what, Opcode::ReserveOut) } else { Err(REFUSED) };
        assert_eq!(choose(Some(7)), then, "{what:?}");
        // Another disk, and one without a number, are nobody that is known.
        assert_eq!(choose(Some(8)), Err(REFUSED), "{what:?}");
        assert_eq!(choose(None), Err(REFUSED), "{what:?}");
        assert_eq!(choose(Some(7)), then, "{what:?}: what was not told is not remembered");
    }
}

#[test]
fn without_sequence_numbers_nothing_is_remembered() {
    for what in EVERYTHING {
        let world = World::with(what, NUMBER);
        let recorded = Recorded::new(world.tree.sysfs());
        let _ = recorded.choose(NUMBER, None, reserve_in(0));
        assert_eq!(recorded.by_device.cache.len(), 0, "{what:?}");
    }
}

#[test]
fn what_a_volume_is_over_is_looked_up_each_time() {
    let mut world = World::with(What::Volume { uuid: true, nvme: false }, NUMBER);
    let recorded = Recorded::new(world.tree.sysfs());
    assert_eq!(recorded.choose(NUMBER, Some(1), reserve_in(0)), Ok(Manager::SgIo));
    world.appear(NUMBER, What::Volume { uuid: true, nvme: true });
    assert_eq!(recorded.choose(NUMBER, Some(1), reserve_in(0)), Ok(Manager::Nvme));
    world.disappear(NUMBER);
    assert_eq!(recorded.choose(NUMBER, Some(1), reserve_in(0)), Ok(Manager::SgIo), "nobody knows");
}

#[test]
fn the_cache_is_bounded() {
    let cache = Cache::default();
    let route = |minor| if minor % 2 == 0 { Route::Whole(Manager::SgIo) } else { Route::Part(None) };
    for minor in 0..3 * u32::try_from(cache::MOST).unwrap() {
        let number = Number { major: 8, minor };
        cache.keep(number, u64::from(minor), route(minor));
        assert_eq!(cache.get(number, u64::from(minor)), Some(route(minor)));
        assert!(cache.len() <= cache::MOST);
    }
    // A number has one entry, and a full cache room for another disk with a known number.
    let (number, full) = (Number { major: 8, minor: 3 * u32::try_from(cache::MOST).unwrap() - 1 }, cache.len());
    for sequence_number in 0..10 {
        cache.keep(number, sequence_number, Route::Unexplained);
    }
    assert_eq!((cache.len(), cache.get(number, 9), cache.get(number, 8)), (full, Some(Route::Unexplained), None));
}

#[test]
fn the_log_says_which_part_is_refused_once_also_when_it_is_known() {
    let world = World::with(What::Partition { nvme: false }, NUMBER);
    let recorded = Recorded::new(world.tree.sysfs());
    let log = Log::at(tracing::Level::WARN);
    let list = keys(1, 2);
    log.during(|| {
        // Known by the time that there is something to refuse.
        assert_eq!(recorded.choose(NUMBER, Some(1), reserve_in(0)), Ok(Manager::SgIo));
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
fn commands_reach_the_manager_and_its_answer_comes_back() {
    let Some(device) = loop_device() else { return };
    for what in EVERYTHING {
        let world = World::with(what, NUMBER);
        let recorded = Recorded::new(world.tree.sysfs());
        for command in all_commands() {
            let answer = match expected(what, command.command().opcode()) {
                Ok(manager) => (vec![manager], Completion::Good(Vec::new())),
                Err(completion) => (vec![], completion),
            };
            assert_eq!(recorded.run(&device, command.command()), answer, "{what:?}, {}", command.command());
        }
    }
}

/// Whatever the kernel says by then, as of a device that is removed while it is open.
#[test]
fn a_device_that_is_gone_still_has_its_manager() {
    let Some(device) = loop_device() else { return };
    if BlockDevice::of(device.as_fd()).unwrap().unwrap().sequence_number().is_none() {
        return;
    }
    for (what, then) in [(What::Scsi, vec![Manager::SgIo]), (What::Nvme, vec![Manager::Nvme]), (What::Virtual, vec![])]
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
fn what_is_no_block_device_is_told_so_by_the_kernel_and_sysfs_is_not_asked() {
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
            assert_eq!(answer, (vec![Manager::SgIo], Completion::Good(Vec::new())), "{name}");
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
    assert_eq!(recorded.run(&device, reserve_in(0)).0, [Manager::Nvme]);
    assert_eq!(recorded.by_device.cache.len(), 0);
}

#[test]
fn the_connection_is_that_of_all() {
    assert!(!Recorded::new(Sysfs::default()).by_device.is_connected());
    let sg_io: Arc<dyn PrManager> = Arc::new(crate::SgIo::new());
    let routes = Routes { multipath: Arc::clone(&sg_io), nvme: Arc::clone(&sg_io), block: Arc::clone(&sg_io), sg_io };
    assert!(ByDevice::new(routes, Sysfs::default()).is_connected());
}

/// What happens on a machine.
#[derive(Clone, Debug)]
enum Event {
    /// A device is there, under this number, instead of what was. It is another disk.
    Appears(Number, What),
    /// A device goes.
    Disappears(Number),
    /// A device-mapper device gets another table; one without UUID may get one; an array is put together or taken apart.
    /// It is the same disk.
    Changes(Number, What),
    /// A command comes.
    Command(Number, Opcode),
    /// A command comes, and the kernel does not say which disk it is.
    CommandWithoutSequenceNumber(Number, Opcode),
}

/// What the same disk may turn into.
fn may_become(before: What, after: What) -> bool {
    match (before, after) {
        (What::Volume { uuid, .. }, What::Volume { uuid: then, .. }) => then >= uuid,
        (What::Volume { uuid, .. }, What::Map) => !uuid,
        (What::Virtual | What::Array { .. }, What::Virtual | What::Array { .. }) => true,
        _ => false,
    }
}

fn events() -> impl Strategy<Value = Event> {
    let number = (0..3_u32).prop_map(|minor| Number { major: 7, minor });
    let what = prop::sample::select(&EVERYTHING[..]);
    let opcode = prop::sample::select(&[Opcode::ReserveIn, Opcode::ReserveOut, Opcode::Cleanup][..]);
    prop_oneof![
        2 => (number.clone(), what.clone()).prop_map(|(number, what)| Event::Appears(number, what)),
        1 => number.clone().prop_map(Event::Disappears),
        2 => (number.clone(), what).prop_map(|(number, what)| Event::Changes(number, what)),
        4 => (number.clone(), opcode.clone()).prop_map(|(number, opcode)| Event::Command(number, opcode)),
        1 => (number, opcode).prop_map(|(number, opcode)| Event::CommandWithoutSequenceNumber(number, opcode)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn whatever_comes_and_goes_a_device_is_never_taken_for_another(history in prop::collection::vec(events(), 1..60)) {
        let mut world = World::new();
        let recorded = Recorded::new(world.tree.sysfs());
        // The kernel counts disks, and no number comes twice.
        let mut disks: BTreeMap<Number, u64> = BTreeMap::new();
        let mut count = 0;
        let command = |opcode| all_commands().into_iter().find(|command| command.command().opcode() == opcode).unwrap();
        for event in history {
            match event {
                Event::Appears(number, what) => {
                    world.appear(number, what);
                    count += 1;
                    disks.insert(number, count);
                }
                Event::Disappears(number) => {
                    world.disappear(number);
                    disks.remove(&number);
                }
                Event::Changes(number, what) if may_become(world.what(number), what) => world.appear(number, what),
                Event::Changes(..) => {}
                Event::Command(number, opcode) => {
                    // Nobody has a descriptor of a device that is not there.
                    let Some(sequence_number) = disks.get(&number) else { continue };
                    let chosen = recorded.choose(number, Some(*sequence_number), command(opcode).command());
                    prop_assert_eq!(chosen, expected(world.what(number), opcode));
                }
                Event::CommandWithoutSequenceNumber(number, opcode) => {
                    let chosen = recorded.choose(number, None, command(opcode).command());
                    prop_assert_eq!(chosen, expected(world.what(number), opcode));
                }
            }
        }
    }
}

/// A mechanism of this process, for the table: the kernel permits all or nothing.
struct Kernel {
    permits: bool,
    recorder: Recorder,
}

impl PrManager for Kernel {
    fn execute(&self, _: BorrowedFd<'_>, _: Command<'_>) -> Result<Completion, Error> {
        unreachable!()
    }
}

impl crate::Attempt for Kernel {
    fn try_execute(&self, device: BorrowedFd<'_>, command: Command<'_>) -> Result<Completion, crate::NotPermitted> {
        let completion = self.recorder.execute(device, command).unwrap();
        if self.permits { Ok(completion) } else { Err(crate::NotPermitted(rustix::io::Errno::PERM)) }
    }

    fn give_up(&self, _: Command<'_>, not_permitted: crate::NotPermitted, _: Option<&Error>) -> Completion {
        not_permitted.completion()
    }
}

/// Who gets each command for each class of device, and the answer of one that nobody gets.
#[test]
fn every_class_opcode_access_and_privilege_has_its_route() {
    let Ok(writable) = File::options().read(true).write(true).open("/dev/loop0") else { return };
    let Ok(read_only) = File::open("/dev/loop0") else { return };
    let mut table = Vec::new();
    for what in EVERYTHING {
        let world = World::with(what, NUMBER);
        for (access, device) in [("read-write", &writable), ("read-only", &read_only)] {
            for (privilege, permits) in [("permitted", true), ("not permitted", false)] {
                let names = ["SG_IO", "multipath", "NVMe", "NVMe worker", "IOC_PR", "IOC_PR worker"];
                let recorders = names.map(|_| Recorder::good());
                let [sg_io, multipath, nvme, nvme_worker, block, block_worker] = recorders.each_ref().map(Clone::clone);
                let kernel = |recorder| Kernel { permits, recorder };
                let manager = crate::policy::RefuseReadOnly::new(ByDevice::new(
                    Routes {
                        sg_io: Arc::new(sg_io),
                        multipath: Arc::new(multipath),
                        nvme: Arc::new(crate::policy::Escalate::new(kernel(nvme), nvme_worker)),
                        block: Arc::new(crate::policy::ScsiFirst::new(crate::policy::Escalate::new(
                            kernel(block),
                            block_worker,
                        ))),
                    },
                    world.tree.sysfs(),
                ));
                let mut row = BTreeMap::new();
                for command in all_commands() {
                    let completion = manager.execute(device.as_fd(), command.command()).unwrap();
                    let taken: Vec<_> =
                        names.iter().zip(&recorders).filter(|(_, it)| it.taken() == 1).map(|(name, _)| *name).collect();
                    let opcode = match command.command().opcode() {
                        Opcode::ReserveIn => "1 IN",
                        Opcode::ReserveOut => "2 OUT",
                        Opcode::Cleanup => "3 CLEANUP",
                    };
                    let refused = "CHECK CONDITION, sense 05/20/00 (INVALID COMMAND OPERATION CODE)";
                    let answer = completion.to_string().replace(refused, "05/20/00");
                    let route = if taken.is_empty() { answer } else { taken.join(", ") };
                    // All service actions of an opcode go one way.
                    assert_eq!(*row.entry(opcode).or_insert_with(|| route.clone()), route);
                }
                let row: Vec<_> = row.into_values().collect();
                table.push(format!("{what:?} | {access} | {privilege} | {}", row.join(" | ")));
            }
        }
    }
    assert_eq!(table.join("\n"), include_str!("table.txt").trim_end());
}
