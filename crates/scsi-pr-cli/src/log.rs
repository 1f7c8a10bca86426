//! The log: lines on standard error, which systemd puts into the journal.

use std::io;
use std::sync::Arc;

use scsi_pr_daemon::log::{Destinations, Log, Record};
use tracing::level_filters::LevelFilter;
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// The least severe messages that are logged, by the number of -v and by -q.
pub(crate) fn level(verbose: u8, quiet: bool) -> LevelFilter {
    match verbose {
        _ if quiet => LevelFilter::WARN,
        0 => LevelFilter::INFO,
        1 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    }
}

/// Logs events of `level` and more severe ones from here on: one line each, with the initiator of its command.
pub(crate) fn start(level: LevelFilter) {
    tracing_subscriber::fmt()
        .with_max_level(level)
        // The journal has the time.
        .without_time()
        .with_target(false)
        .with_ansi(false)
        .with_writer(Lines(Arc::new(Log::to_stderr("scsi-pr", Destinations::default()))))
        .init();
}

/// Writes to the log of both daemons.
struct Lines(Arc<Log>);

struct Line {
    log: Arc<Log>,
    level: Level,
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { log: Arc::clone(&self.0), level: Level::INFO }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Line {
        Line { level: *metadata.level(), ..self.make_writer() }
    }
}

impl io::Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let line = String::from_utf8_lossy(bytes);
        let line = line.trim_end_matches('\n');
        self.log.write(Record { level: self.level, line, message: line.trim_start() }, Vec::new);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
