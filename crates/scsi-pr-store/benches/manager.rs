//! How long a manager takes: `cargo bench -p scsi-pr-store`.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use divan::{Bencher, black_box};
use scsi_pr::{CommandBuf, Completion, Key, PrManager, ReserveIn, ReserveInAction, ReserveOut, Type};
use scsi_pr_store::{MemoryStore, SharedReservations, Store, Units};
use tempfile::NamedTempFile;

fn main() {
    divan::main();
}

const REGISTRANTS: [u64; 3] = [1, 1_000, 10_000];

/// A disk image with registrants; the last of them.
struct Registered {
    image: NamedTempFile,
    manager: SharedReservations,
    key: Key,
}

impl Registered {
    /// In the memory store.
    fn new(count: u64) -> Self {
        let image = NamedTempFile::new().unwrap();
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let first = SharedReservations::new(store, Units::default(), "virtual-machine-1".parse().unwrap());
        let all = Self { image, manager: first, key: Key(1) };
        let mut last = all;
        for number in 1..=count {
            let manager = last.manager.for_initiator(&format!("virtual-machine-{number}").parse().unwrap());
            last = Self { image: last.image, manager, key: Key(number) };
            last.out(&register(Key::ZERO, Key(number)));
        }
        last
    }

    fn out(&self, value: &ReserveOut) {
        self.good(&value.encode().unwrap());
    }

    fn good(&self, command: &CommandBuf) {
        let completion = self.manager.execute(self.image.as_file().as_fd(), command.command()).unwrap();
        assert!(matches!(completion, Completion::Good(_)), "{completion}");
    }
}

fn register(key: Key, service_action_key: Key) -> ReserveOut {
    ReserveOut::Register { key, service_action_key, initiator_ports: None, all_tg_pt: false, aptpl: false }
}

/// PERSISTENT RESERVE OUT: RESERVE and RELEASE, or REGISTER with another key and back, so that every iteration finds the
/// same. The figure is that of two commands.
fn there_and_back(bencher: Bencher<'_, '_>, count: u64, values: impl Fn(Key) -> [ReserveOut; 2]) {
    let registered = Registered::new(count);
    let commands = values(registered.key).map(|value| value.encode().unwrap());
    bencher.bench_local(|| commands.iter().for_each(|command| registered.good(black_box(command))));
}

#[divan::bench(args = REGISTRANTS)]
fn reserve_and_release(bencher: Bencher<'_, '_>, count: u64) {
    let reservation_type = Type::WriteExclusive;
    there_and_back(bencher, count, |key| {
        [ReserveOut::Reserve { key, reservation_type }, ReserveOut::Release { key, reservation_type }]
    });
}

#[divan::bench(args = REGISTRANTS)]
fn register_and_back(bencher: Bencher<'_, '_>, count: u64) {
    let other = Key(u64::MAX);
    there_and_back(bencher, count, |key| [register(key, other), register(other, key)]);
}

#[divan::bench(args = REGISTRANTS)]
fn read_reservation(bencher: Bencher<'_, '_>, count: u64) {
    let registered = Registered::new(count);
    let command = ReserveIn::new(ReserveInAction::ReadReservation, 24).encode();
    bencher.bench_local(|| registered.good(black_box(&command)));
}

/// Which unit a descriptor is of: a file's, which costs two system calls.
#[divan::bench]
fn identify_file(bencher: Bencher<'_, '_>) {
    let (image, units) = (NamedTempFile::new().unwrap(), Units::default());
    bencher.bench_local(|| units.identify(black_box(image.as_file().as_fd())).unwrap());
}

/// The same of a block device of this machine, whatever it tells: many files of sysfs.
#[divan::bench(args = ["/dev/loop0", "/dev/vda", "/dev/sda", "/dev/nvme0n1", "/dev/dm-0"])]
fn identify_block_device(bencher: Bencher<'_, '_>, path: &str) {
    let (device, units) = (File::open(path), Units::default());
    if let Ok(device) = device {
        bencher.bench_local(|| units.identify(black_box(device.as_fd())).is_ok());
    }
}
