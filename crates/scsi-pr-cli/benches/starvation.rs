//! The time of one initiator's commands while another one floods the same unit: `cargo bench -p scsi-pr-cli`.
//!
//! A process of lower priority opens as many connections as the server admits, at most 2,491, and sends REGISTER AND IGNORE
//! EXISTING KEY on each of them in a loop. The store is SQLite where cargo builds, as a directory for temporary files may be in
//! memory.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use scsi_pr::{CommandBuf, Completion, Key, PrManager, ReserveIn, ReserveInAction, ReserveOut};
use scsi_pr_helper::HelperClient;

const PROGRAM: &str = env!("CARGO_BIN_EXE_scsi-pr");
const CONNECTIONS: usize = 2_491;

/// The most commands of each kind, and the longest time for them.
const READS: usize = 1_000;
const CHANGES: usize = 200;
const TIME_LIMIT: Duration = Duration::from_secs(20);

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(at) = arguments.iter().position(|argument| argument == "flood") {
        flood(Path::new(&arguments[at + 1]), Path::new(&arguments[at + 2]));
    }
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = |name: &str| place.path().join(name);
    File::create(path("disk.img")).unwrap();
    let [victim, flood] = ["victim", "flood"].map(|name| format!("--listen={name}={}", path(name).display()));
    let mut server = Command::new(PROGRAM);
    server.args(["serve", "-q"]).arg(format!("--store=sqlite:{}", path("store").display())).args([victim, flood]);
    let _server = Running(server.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let client = HelperClient::new(path("victim"));
    while client.connect().is_err() {
        thread::sleep(Duration::from_millis(10));
    }
    let disk = open(&path("disk.img"));
    measure(&client, &disk, 50, 20);
    let quiet = measure(&client, &disk, READS, CHANGES);

    let mut flood = Command::new("nice");
    flood.args(["-n", "10"]).arg(std::env::current_exe().unwrap()).arg("flood");
    flood.args([path("flood"), path("disk.img")]).stdout(Stdio::piped());
    let mut flood = Running(flood.spawn().unwrap());
    let mut line = String::new();
    BufReader::new(flood.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let flooded = measure(&client, &disk, READS, CHANGES);
    println!("{} connections flood", line.trim());
    for (name, quiet, flooded) in [("PR IN", &quiet.0, &flooded.0), ("PR OUT", &quiet.1, &flooded.1)] {
        let [before, after] = [quiet, flooded].map(|times| (percentile(times, 50), percentile(times, 99)));
        println!(
            "{name:>6}: quiet median {:.1?}, p99 {:.1?}; flooded median {:.1?} ({:.1} times), p99 {:.1?} ({:.1} times)",
            before.0,
            before.1,
            after.0,
            after.0.div_duration_f64(before.0),
            after.1,
            after.1.div_duration_f64(before.1),
        );
    }
}

/// A process that is killed when this is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn open(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

fn register(key: u64) -> CommandBuf {
    let service_action_key = Key(key);
    ReserveOut::RegisterAndIgnoreExistingKey { service_action_key, all_tg_pt: false, aptpl: false }.encode().unwrap()
}

/// Never returns. Prints the number of connections once all have an answer, or after ten seconds.
fn flood(socket: &Path, disk: &Path) -> ! {
    let (disk, answered) = (Arc::new(open(disk)), Arc::new(AtomicU32::new(0)));
    let mut count = 0;
    for _ in 0..CONNECTIONS {
        let client = HelperClient::new(socket);
        if client.connect().is_err() {
            break;
        }
        count += 1;
        let (disk, answered) = (Arc::clone(&disk), Arc::clone(&answered));
        let run = move || {
            let mut key = 0;
            loop {
                key += 1;
                let _ = client.execute(disk.as_fd(), register(key).command());
                if key == 1 {
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            }
        };
        if thread::Builder::new().stack_size(128 << 10).spawn(run).is_err() {
            break;
        }
    }
    let start = Instant::now();
    while answered.load(Ordering::Relaxed) < count && start.elapsed() < Duration::from_secs(10) {
        thread::sleep(Duration::from_millis(10));
    }
    println!("{count}");
    std::io::stdout().flush().unwrap();
    loop {
        thread::park();
    }
}

/// The sorted times of PERSISTENT RESERVE IN and OUT.
fn measure(client: &HelperClient, disk: &File, reads: usize, changes: usize) -> (Vec<Duration>, Vec<Duration>) {
    let time = |command: &CommandBuf| {
        let start = Instant::now();
        let completion = client.execute(disk.as_fd(), command.command()).unwrap();
        assert!(matches!(completion, Completion::Good(_)), "{completion}");
        start.elapsed()
    };
    let read = ReserveIn::new(ReserveInAction::ReadKeys, 8192).encode();
    let start = Instant::now();
    let in_time = |time: &Instant| time.elapsed() < TIME_LIMIT;
    let mut reads: Vec<_> = (0..reads).take_while(|_| in_time(&start)).map(|_| time(&read)).collect();
    let start = Instant::now();
    let changes = (1..=changes as u64).take_while(|_| in_time(&start));
    let mut changes: Vec<_> = changes.map(|key| time(&register(key))).collect();
    reads.sort();
    changes.sort();
    (reads, changes)
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}
