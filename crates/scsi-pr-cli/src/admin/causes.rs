//! Log lines of the libraries: with `-v` on standard error, and always as the cause of a failure.
//!
//! The mechanisms for devices log why they refuse a command. Without that line, an administrator sees only the sense data.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tracing::level_filters::LevelFilter;
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

use super::failure::Failure;

/// The warnings since the last failure.
static WARNINGS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// The most warnings that are kept.
const MAX_WARNINGS: usize = 4;

fn warnings() -> MutexGuard<'static, Vec<String>> {
    WARNINGS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts the log. `verbose` is the number of -v.
pub(crate) fn start(verbose: u8) {
    let shown = match verbose {
        0 => LevelFilter::OFF,
        1 => LevelFilter::INFO,
        2 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    tracing_subscriber::fmt()
        .with_max_level(shown.max(LevelFilter::WARN))
        .without_time()
        .with_level(false)
        .with_target(false)
        .with_ansi(false)
        .with_writer(Lines { shown })
        .init();
}

/// The failure with the warnings that came before it.
pub(crate) fn explain(failure: Failure) -> Failure {
    match &std::mem::take(&mut *warnings())[..] {
        [] => failure,
        warnings => Failure::new(failure.code(), format!("{failure} [{}]", warnings.join("; "))),
    }
}

struct Lines {
    shown: LevelFilter,
}

struct Line {
    is_shown: bool,
    is_cause: bool,
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { is_shown: self.shown != LevelFilter::OFF, is_cause: false }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Line {
        let is_of_device = metadata.target().starts_with("scsi_pr_linux");
        let is_shown = *metadata.level() <= self.shown;
        Line { is_shown, is_cause: !is_shown && is_of_device && *metadata.level() <= Level::WARN }
    }
}

impl io::Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let line = String::from_utf8_lossy(bytes);
        let line = line.trim();
        if self.is_shown {
            let _ = writeln!(io::stderr(), "scsi-pr: {}", scsi_pr_daemon::log::escape(line));
        }
        if self.is_cause && warnings().len() < MAX_WARNINGS {
            warnings().push(line.to_owned());
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
