//! The bound on log lines.

use std::time::Duration;

/// A client or a broken disk can cause a line with every command. One line per period says enough.
pub(crate) const PERIOD: Duration = Duration::from_secs(60);
