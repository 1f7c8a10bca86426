//! Things that are passed as devices.

use std::fs::File;

/// `/dev/null`, for reading and writing: its SG_IO fails at once with ENOTTY, and under a
/// [`Supervisor`](crate::Supervisor) it is a unit that answers what the test wants.
pub fn null() -> File {
    File::options().read(true).write(true).open("/dev/null").expect("/dev/null")
}

/// An empty regular file, for reading and writing.
pub fn regular_file() -> File {
    tempfile::tempfile().expect("a temporary file")
}
