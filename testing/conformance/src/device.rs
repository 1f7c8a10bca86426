//! Files that are passed as devices.

use std::fs::File;

/// `/dev/null`. SG_IO on it fails at once with ENOTTY; under a [`Supervisor`](crate::Supervisor) it is a logical unit
/// that answers what the test wants.
pub use testing_support::null;

/// An empty regular file, for reading and writing.
pub fn regular_file() -> File {
    tempfile::tempfile().expect("a temporary file")
}
