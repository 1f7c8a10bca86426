use super::*;
use crate::monitor_channel::{BUSY, LOG, ROOM, TOO_MANY, WORKER};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, socketpair};
use scsi_pr::{Cdb, CommandBuf};
use scsi_pr_helper::descriptor::{self, IoMode, Passed};
use scsi_pr_helper::serve_one;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc;

const NUMBER: Number = Number { major: 7, minor: 0 };

const LONG: Duration = Duration::from_secs(600);
const SHORT: Duration = Duration::from_millis(50);

const LONG_TIMEOUTS: Timeouts = Timeouts { turn: LONG, beginning: LONG, answer: LONG, ending: LONG, recovery: LONG };

const LOST: Completion = Completion::CheckCondition(scsi_pr::Sense::fixed(SenseCode::LUN_COMMUNICATION_TIMEOUT));
const BUSY_STATUS: Completion = Completion::Status(Status::BUSY);

/// Any block device: nothing is done to it.
fn block_device() -> Option<File> {
    block_devices::<1>().map(|[device]| device)
}

fn block_devices<const COUNT: usize>() -> Option<[File; COUNT]> {
    let names = ["loop0", "loop1", "vda", "sda", "nvme0n1", "zram0"].into_iter();
    let found: Vec<_> = names.filter_map(|name| File::open(format!("/dev/{name}")).ok()).take(COUNT).collect();
    let found = found.try_into().ok();
    if found.is_none() {
        eprintln!("skipped: needs {COUNT} block devices");
    }
    found
}

fn command() -> CommandBuf {
    let mut bytes = [0; 16];
    (bytes[0], bytes[8]) = (0x5f, 0);
    CommandBuf::new(Cdb::new(bytes).unwrap(), Vec::new()).unwrap()
}

/// The monitor's end of the channel.
struct Monitor(OwnedFd);

/// A request for a worker.
struct Asked {
    task: WorkerTask,
    socket: OwnedFd,
    log: OwnedFd,
}

impl Monitor {
    fn message(&self, kind: u8) -> (Vec<u8>, OwnedFd) {
        let mut room = [0; ROOM];
        match descriptor::receive(&self.0, &mut room, IoMode::Blocking).unwrap() {
            (length, Passed::One(descriptor)) if room[0] == kind => (room[1..length].to_vec(), descriptor),
            other => panic!("{other:?}"),
        }
    }

    fn asked(&self) -> Asked {
        let (_, log) = self.message(LOG);
        let (task, socket) = self.message(WORKER);
        Asked { task: WorkerTask::decode(&task).unwrap(), socket, log }
    }
}

impl Asked {
    fn answer(&self, number: i32) {
        rustix::net::send(&self.socket, &number.to_ne_bytes(), SendFlags::NOSIGNAL).unwrap();
    }

    /// Serves one command with this answer.
    fn serve(self, answer: impl Fn() -> Completion + Send + Sync + 'static) {
        self.answer(0);
        let Self { socket, log, .. } = self;
        serve_one(socket, Arc::new(Answering(answer)));
        drop(log);
    }
}

struct Answering<F>(F);

impl<F: Fn() -> Completion + Send + Sync> PrManager for Answering<F> {
    fn execute(&self, _: BorrowedFd<'_>, _: Command<'_>) -> Result<Completion, Error> {
        Ok((self.0)())
    }
}

fn pool(timeouts: Timeouts) -> (Arc<Pool>, Monitor) {
    let (channel, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let channel = Arc::new(MonitorChannel::new(channel).unwrap());
    (Arc::new(Pool { timeouts, ..Pool::new(Some(channel)) }), Monitor(theirs))
}

fn run(pool: &Arc<Pool>, device: &File) -> Completion {
    Workers::new(pool, WorkerKind::Block).execute(device.as_fd(), command().command()).unwrap()
}

#[test]
fn answer_of_the_worker_is_the_answer() {
    let Some(device) = block_device() else { return };
    let (pool, monitor) = pool(LONG_TIMEOUTS);
    for answer in [Completion::Good(Vec::new()), Completion::check(SenseCode::NOT_READY), BUSY_STATUS] {
        thread::scope(|scope| {
            let answered = scope.spawn(|| run(&pool, &device));
            let asked = monitor.asked();
            assert_eq!((asked.task.kind, asked.task.uuid.as_str()), (WorkerKind::Block, ""));
            let worker = answer.clone();
            asked.serve(move || worker.clone());
            assert_eq!(answered.join().unwrap(), answer);
        });
    }
    assert!(pool.unfinished().is_empty() && pool.locks().is_empty());
}

#[test]
fn command_without_a_worker_is_busy() {
    let Some(device) = block_device() else { return };
    let (pool, monitor) = pool(LONG_TIMEOUTS);
    for refusal in [BUSY, TOO_MANY, rustix::io::Errno::NOMEM.raw_os_error()] {
        thread::scope(|scope| {
            let answered = scope.spawn(|| run(&pool, &device));
            monitor.asked().answer(refusal);
            assert_eq!(answered.join().unwrap(), BUSY_STATUS);
        });
    }
    // One that is started, and ends before it takes anything.
    thread::scope(|scope| {
        let answered = scope.spawn(|| run(&pool, &device));
        monitor.asked().answer(0);
        assert_eq!(answered.join().unwrap(), BUSY_STATUS);
    });
    // And one that ends with the monitor.
    thread::scope(|scope| {
        let answered = scope.spawn(|| run(&pool, &device));
        let asked = monitor.asked();
        drop(monitor);
        drop(asked);
        assert_eq!(answered.join().unwrap(), Completion::check(SenseCode::IO_PROCESS_TERMINATED));
    });
    assert!(!Workers::new(&pool, WorkerKind::Block).is_connected());
}

#[test]
fn worker_that_takes_nothing_in_time_gets_nothing_later() {
    let Some(device) = block_device() else { return };
    let (pool, monitor) = pool(Timeouts { beginning: SHORT, ending: SHORT, ..LONG_TIMEOUTS });
    thread::scope(|scope| {
        let answered = scope.spawn(|| run(&pool, &device));
        let asked = monitor.asked();
        asked.answer(0);
        assert_eq!(answered.join().unwrap(), BUSY_STATUS);
        // It awakes now, and has no client any more.
        let served = serve_one(asked.socket, Arc::new(Answering(|| panic!("it was given a command"))));
        assert!(matches!(served, scsi_pr_helper::Served::Nothing));
        assert_eq!(run(&pool, &device), BUSY_STATUS);
    });
}

#[test]
fn device_of_a_worker_that_hangs_is_busy_until_it_ends() {
    let Some(device) = block_device() else { return };
    let (pool, monitor) = pool(Timeouts { answer: SHORT, ..LONG_TIMEOUTS });
    let (go_on, going_on) = mpsc::channel::<()>();
    let going_on = Mutex::new(going_on);
    thread::scope(|scope| {
        let answered = scope.spawn(|| run(&pool, &device));
        let asked = monitor.asked();
        let hanging = thread::spawn(move || {
            asked.serve(move || {
                let _ = going_on.lock().unwrap().recv();
                Completion::Good(Vec::new())
            });
        });
        assert_eq!(answered.join().unwrap(), LOST);
        for _ in 0..3 {
            // At once, and without asking the monitor.
            assert_eq!(run(&pool, &device), BUSY_STATUS);
        }
        go_on.send(()).unwrap();
        hanging.join().unwrap();
        // Its end is seen without another command.
        while !pool.unfinished().is_empty() {
            thread::yield_now();
        }
        let answered = scope.spawn(|| run(&pool, &device));
        monitor.asked().serve(|| Completion::Good(Vec::new()));
        assert_eq!(answered.join().unwrap(), Completion::Good(Vec::new()));
    });
}

#[test]
fn answer_for_a_worker_that_died_comes_after_the_recovery_of_its_map() {
    let Some(device) = block_device() else { return };
    let (pool, monitor) = pool(LONG_TIMEOUTS);
    thread::scope(|scope| {
        let answered = scope.spawn(|| run(&pool, &device));
        let Asked { socket, log, task: _ } = {
            let asked = monitor.asked();
            asked.answer(0);
            asked
        };
        rustix::net::send(&socket, &[0, 0, 0, 1], SendFlags::empty()).unwrap();
        // The handshake, the command, and no more.
        let mut have = 0;
        while have < 20 {
            have += descriptor::receive(&socket, &mut [0; 20], IoMode::Blocking).unwrap().0;
        }
        drop(socket);
        rustix::io::write(&log, b"recovered\n").unwrap();
        thread::sleep(SHORT);
        assert!(!answered.is_finished());
        drop(log);
        assert_eq!(answered.join().unwrap(), LOST);
    });
}

#[test]
fn command_that_waits_too_long_for_earlier_ones_is_busy() {
    let Some(device) = block_device() else { return };
    let (pool, monitor) = pool(Timeouts { turn: SHORT, ..LONG_TIMEOUTS });
    thread::scope(|scope| {
        let first = scope.spawn(|| run(&pool, &device));
        let asked = monitor.asked();
        assert_eq!(run(&pool, &device), BUSY_STATUS);
        asked.serve(|| Completion::Good(Vec::new()));
        assert_eq!(first.join().unwrap(), Completion::Good(Vec::new()));
    });
    assert!(pool.locks().is_empty());
}

#[test]
fn descriptor_that_is_no_block_device_gets_no_worker() {
    let (pool, _monitor) = pool(LONG_TIMEOUTS);
    let null = File::open("/dev/null").unwrap();
    assert_eq!(run(&pool, &null), Completion::check(SenseCode::INVALID_OPCODE));
    let cleaned = Workers::new(&pool, WorkerKind::Multipath).execute(null.as_fd(), Command::cleanup()).unwrap();
    assert_eq!(cleaned, Completion::Good(Vec::new()));
}

#[test]
fn without_a_monitor_reading_is_an_error_and_changing_is_refused() {
    let Some(device) = block_device() else { return };
    let pool = Arc::new(Pool::new(None));
    assert_eq!(run(&pool, &device), Completion::check(SenseCode::IO_PROCESS_TERMINATED));
    let mut bytes = [0; 16];
    (bytes[0], bytes[8]) = (0x5e, 8);
    let read = CommandBuf::new(Cdb::new(bytes).unwrap(), Vec::new()).unwrap();
    let workers = Workers::new(&pool, WorkerKind::Multipath);
    let error = workers.execute(device.as_fd(), read.command()).unwrap_err();
    assert!(!error.may_have_run() && error.to_string().contains("start the helper as root"), "{error}");
    assert!(!workers.is_connected());
}

#[test]
fn device_without_commands_takes_no_memory() {
    let pool = Pool::new(None);
    for _ in 0..2 {
        assert_eq!(pool.in_turn(NUMBER, || pool.locks().len()), Some(1));
        assert!(pool.locks().is_empty());
    }
}

#[test]
fn command_does_not_wait_for_that_of_another_device() {
    let pool = Pool::new(None);
    let (go, gone) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let (begun, has_begun) = mpsc::channel();
        let pool = &pool;
        scope.spawn(move || {
            pool.in_turn(NUMBER, || {
                begun.send(()).unwrap();
                gone.recv()
            })
        });
        has_begun.recv().unwrap();
        let other = Number { minor: 1, ..NUMBER };
        assert_eq!(pool.in_turn(other, || 1), Some(1));
        let same = scope.spawn(|| pool.in_turn(NUMBER, || 2));
        while Arc::strong_count(&pool.lock_of(NUMBER)) < 4 {
            thread::yield_now();
        }
        assert!(!same.is_finished());
        go.send(()).unwrap();
        assert_eq!(same.join().unwrap(), Some(2));
    });
    assert!(pool.locks().is_empty());
}

#[test]
fn commands_that_hang_on_one_device_hold_one_worker() {
    let Some([hanging, other]) = block_devices() else { return };
    let (pool, monitor) = pool(LONG_TIMEOUTS);
    let (go_on, going_on) = mpsc::channel::<()>();
    let going_on = Mutex::new(going_on);
    thread::scope(|scope| {
        let number = {
            let stat = fstat(&hanging).unwrap();
            Number { major: major(stat.st_rdev), minor: minor(stat.st_rdev) }
        };
        let commands: Vec<_> = (0..64).map(|_| scope.spawn(|| run(&pool, &hanging))).collect();
        let first = monitor.asked();
        let running = thread::spawn(move || {
            first.serve(move || {
                let _ = going_on.lock().unwrap().recv();
                Completion::Good(Vec::new())
            });
        });
        // All of them wait: the list, this handle, and one for each command.
        while Arc::strong_count(&pool.lock_of(number)) < 64 + 2 {
            thread::yield_now();
        }
        // The next request to the monitor is that of the other device.
        let answered = scope.spawn(|| run(&pool, &other));
        let asked = monitor.asked();
        assert_ne!(asked.task.device, number.to_string());
        asked.serve(|| Completion::Good(Vec::new()));
        assert_eq!(answered.join().unwrap(), Completion::Good(Vec::new()));
        go_on.send(()).unwrap();
        running.join().unwrap();
        for _ in 1..64 {
            monitor.asked().serve(|| Completion::Good(Vec::new()));
        }
        assert!(commands.into_iter().all(|command| command.join().unwrap() == Completion::Good(Vec::new())));
    });
}
