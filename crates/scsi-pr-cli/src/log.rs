//! The log: lines on standard error, which systemd puts into the journal.

use std::io;

use tracing::level_filters::LevelFilter;

/// Logs from here on what is of `level` or more severe: one line an event, and whose command it was.
pub(crate) fn start(level: LevelFilter) {
    tracing_subscriber::fmt()
        .with_max_level(level)
        // The journal has the time.
        .without_time()
        .with_target(false)
        .with_ansi(false)
        .with_writer(|| Stderr)
        .init();
}

/// Standard error, which is never waited for.
struct Stderr;

impl io::Write for Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        scsi_pr_daemon::log::write(&mut io::stderr().lock(), line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
