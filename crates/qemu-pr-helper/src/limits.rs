//! The number of descriptors that the helper may have.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit on open files to what is allowed: each client takes one, and each running command another.
pub(crate) fn raise() {
    let limit = getrlimit(Resource::Nofile);
    // Raising the soft limit up to the hard one is allowed to everybody. Where a sandbox forbids it, the old limit is
    // enough to serve.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}
