//! The cost of an audit record: round trips of PERSISTENT RESERVE OUT with a journal that is read, against none.

use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use scsi_pr::{Key, ReserveOut};
use tempfile::TempDir;

use crate::client::{Connection, null};
use crate::machine::Pinned;
use crate::program::{Program, option_and_socket};
use crate::programs::Programs;
use crate::report::{Row, value};
use crate::stats::{percentile, ratios, summary};

/// Fewer than the audit records of a process in ten seconds, above which records are suppressed.
const COMMANDS: usize = 90;

/// For a record to arrive.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Before each command. The socket has room for some ten records only, and its reader needs time.
const PAUSE: Duration = Duration::from_millis(1);

/// The socket of a journal, whose reader discards the records.
struct Journal {
    directory: TempDir,
    records: Arc<AtomicUsize>,
}

impl Journal {
    fn start() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let socket = UnixDatagram::bind(directory.path().join("socket"))?;
        let records = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&records);
        // It runs until this program ends.
        thread::spawn(move || {
            let mut room = [0; 4096];
            while socket.recv(&mut room).is_ok() {
                counter.fetch_add(1, Ordering::Relaxed);
            }
        });
        Ok(Self { directory, records })
    }

    /// Waits until so many records have arrived.
    fn wait_for(&self, expected: usize) -> Result<()> {
        let end = Instant::now() + TIMEOUT;
        loop {
            match self.records.load(Ordering::Relaxed) {
                records if records == expected => return Ok(()),
                records if Instant::now() > end => bail!("the journal has {records} records of {expected} commands"),
                _ => thread::sleep(PAUSE),
            }
        }
    }
}

/// The program `helper` where /run has only this journal, or none.
fn program(helper: &Path, journal: Option<&Path>) -> Program {
    let (helper, journal) = (helper.to_owned(), journal.map(Path::to_owned));
    let arguments = move |directory: &Path| {
        let mount = match &journal {
            Some(_) => "mkdir -p /run/systemd/journal && mount --bind \"$0\" /run/systemd/journal",
            None => ":",
        };
        let script = format!("mount -t tmpfs none /run && {mount} && exec \"$@\"");
        let journal = journal.clone().unwrap_or_default();
        let words = ["--mount".into(), "sh".into(), "-c".into(), script.into(), journal.into(), helper.clone().into()];
        [words.to_vec(), option_and_socket("-k", directory)].concat()
    };
    Program { path: "unshare".into(), arguments: Box::new(arguments), on_disk: false }
}

/// Round trips on one CPU. The reader of the journal may have another one. Each round has new helpers, whose limit of audit
/// records is unused.
pub(crate) fn measure(programs: &Programs) -> Result<Vec<Row>> {
    const ROUNDS: usize = 41;
    let journal = Journal::start()?;
    let _pinned = Pinned::new()?;
    let null = null()?;
    let helper = &programs.scsi_pr.path;
    let both = [(program(helper, None), 0), (program(helper, Some(journal.directory.path())), 1)];
    let mut records = 0;
    let (service_action_key, all_tg_pt, aptpl) = (Key(1), false, false);
    let register = ReserveOut::RegisterAndIgnoreExistingKey { service_action_key, all_tg_pt, aptpl }.encode()?;
    let mut rounds = [const { Vec::new() }; 2];
    for _ in 0..ROUNDS {
        for ((program, records_of_one), rounds) in both.iter().zip(&mut rounds) {
            let running = program.start()?;
            let mut connection = Connection::open(&running.socket())?;
            connection.round_trips(null.as_fd(), COMMANDS, Duration::ZERO)?;
            let mut times = Vec::new();
            for _ in 0..COMMANDS {
                thread::sleep(PAUSE);
                times.push(connection.run(register.command(), null.as_fd())?.1);
                records += records_of_one;
                journal.wait_for(records)?;
            }
            rounds.push(percentile(&mut times, 50.0).context("a round without a command")?);
        }
    }
    let [without, with] = rounds;
    Ok(vec![Row {
        figure: format!(
            "round trip p50 of PERSISTENT RESERVE OUT, pinned, a command a millisecond, with an audit record; without a journal: {}",
            value(summary(&without)?, "µs")
        ),
        c: "–".into(),
        scsi_pr: value(summary(&with)?, "µs"),
        ratio: summary(&ratios(&with, &without))?,
        against: "without",
        bound: None,
    }])
}
