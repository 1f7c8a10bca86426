//! What 64 initiators that all change one unit at the same time have to wait: `cargo bench -p scsi-pr-store`.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use scsi_pr::{Completion, Key, PrManager, ReserveOut};
use scsi_pr_store::{MemoryStore, SharedReservations, Store, Units, open};

const INITIATORS: u64 = 64;

fn main() {
    // Where cargo builds, as a directory for temporary files may be memory.
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let image = tempfile::NamedTempFile::new_in(&place).unwrap();
    let kept = |kind: &str| open(&format!("{kind}:{}", place.path().join(kind).display())).unwrap();
    // So many changes that it takes seconds: much longer than the time for which a processor is left to one thread.
    report("memory", 20_000, Arc::new(MemoryStore::new()), image.as_file());
    report("sqlite", 100, kept("sqlite"), image.as_file());
    report("dir", 20, kept("dir"), image.as_file());
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
    let command = register.encode().unwrap();
    let began = Instant::now();
    let completion = manager.execute(image.as_fd(), command.command()).unwrap();
    assert_eq!(completion, Completion::Good(Vec::new()));
    began.elapsed()
}
