//! The time of a command while others use the same unit: `cargo bench -p scsi-pr-store --bench contention`.
//!
//! First, 64 initiators change one unit at the same time. Then one initiator floods the unit with the changes of 2,491 threads, as
//! many as it may have connections to a server, while another one reads and changes it.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use scsi_pr::{CommandBuf, Completion, Key, PrManager, ReserveIn, ReserveInAction, ReserveOut};
use scsi_pr_store::{MemoryStore, SharedReservations, Store, Units, open};

const INITIATORS: u64 = 64;

fn main() {
    // Where cargo builds, as a directory for temporary files may be memory.
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let image = tempfile::NamedTempFile::new_in(&place).unwrap();
    let kept = |kind: &str| open(&format!("{kind}:{}", place.path().join(kind).display())).unwrap();
    if std::env::args().any(|argument| argument == "flood") {
        return flood("sqlite", kept("sqlite"), image.as_file());
    }
    // So many changes that it takes seconds: much longer than the time for which a processor is left to one thread.
    report("memory", 20_000, Arc::new(MemoryStore::new()), image.as_file());
    report("sqlite", 100, kept("sqlite"), image.as_file());
    report("dir", 20, kept("dir"), image.as_file());
    flood("sqlite", kept("sqlite"), image.as_file());
}

/// The flood runs at the same priority as the measured initiator.
fn flood(name: &str, store: Arc<dyn Store>, image: &File) {
    const THREADS: u64 = 2_491;
    let victim = SharedReservations::new(store, Units::default(), "victim".parse().unwrap());
    let flood = victim.for_initiator(&"flood".parse().unwrap());
    let read = ReserveIn::new(ReserveInAction::ReadKeys, 8192).encode();
    let measure = || {
        let reads = (0..2_000).map(|_| run(&victim, image, &read));
        let mut reads: Vec<_> = reads.collect();
        let mut changes: Vec<_> = (1..=500).map(|key| change(&victim, image, Key(key))).collect();
        reads.sort();
        changes.sort();
        [reads, changes]
    };
    measure();
    let quiet = measure();
    let over = AtomicBool::new(false);
    let flooded = thread::scope(|scope| {
        for number in 0..THREADS {
            let (flood, over) = (&flood, &over);
            let run = move || {
                let mut round = 0;
                while !over.load(Ordering::Relaxed) {
                    round += 1;
                    change(flood, image, Key((number + 1) << 32 | round));
                }
            };
            thread::Builder::new().stack_size(256 << 10).spawn_scoped(scope, run).unwrap();
        }
        let flooded = measure();
        over.store(true, Ordering::Relaxed);
        flooded
    });
    for (kind, quiet, flooded) in [("PR IN", &quiet[0], &flooded[0]), ("PR OUT", &quiet[1], &flooded[1])] {
        let [before, after] = [quiet, flooded].map(|times| [times[times.len() / 2], times[times.len() * 99 / 100]]);
        println!(
            "{name:>6}: {THREADS} threads flood; {kind}: median {:.1?}, quiet {:.1?} ({:.1} times); 99% {:.1?}, quiet {:.1?}",
            after[0],
            before[0],
            after[0].div_duration_f64(before[0]),
            after[1],
            before[1],
        );
    }
}

fn report(name: &str, each: u64, store: Arc<dyn Store>, image: &File) {
    let waited = contend(store, image, each);
    let mut means: Vec<Duration> = waited.iter().map(|waited| waited.iter().sum::<Duration>() / each as u32).collect();
    means.sort();
    let (median, slowest) = (means[means.len() / 2], means[means.len() - 1]);
    let longest = waited.iter().flatten().max().unwrap();
    println!(
        "{name:>6}: {INITIATORS} initiators, {each} changes each, none failed: a change takes {median:.1?} on average; of \
         the slowest initiator {slowest:.1?}, {:.1} times that; the longest {longest:.1?}, {:.1} times",
        slowest.div_duration_f64(median),
        longest.div_duration_f64(median),
    );
}

/// How long the changes of each initiator took.
fn contend(store: Arc<dyn Store>, image: &File, each: u64) -> Vec<Vec<Duration>> {
    let first = SharedReservations::new(store, Units::default(), "vm".parse().unwrap());
    let start = Barrier::new(usize::try_from(INITIATORS).unwrap());
    thread::scope(|scope| {
        let threads: Vec<_> = (1..=INITIATORS)
            .map(|number| {
                let manager = first.for_initiator(&format!("vm{number}").parse().unwrap());
                let start = &start;
                scope.spawn(move || {
                    start.wait();
                    (1..=each).map(|round| change(&manager, image, Key(number << 32 | round))).collect()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn change(manager: &SharedReservations, image: &File, service_action_key: Key) -> Duration {
    let register = ReserveOut::RegisterAndIgnoreExistingKey { service_action_key, all_tg_pt: false, aptpl: false };
    run(manager, image, &register.encode().unwrap())
}

fn run(manager: &SharedReservations, image: &File, command: &CommandBuf) -> Duration {
    let start = Instant::now();
    let completion = manager.execute(image.as_fd(), command.command()).unwrap();
    assert!(matches!(completion, Completion::Good(_)), "{completion}");
    start.elapsed()
}
