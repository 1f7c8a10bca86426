//! [`ServerCounters`]: the connections of a server, and the commands that it does not run, as numbers.

use std::sync::atomic::{AtomicU64, Ordering};

use super::disconnect::Cause;

/// Counts what a [`Server`](super::Server) does besides running commands. It is read without a lock, at any time.
#[derive(Debug, Default)]
pub struct ServerCounters {
    pub(super) accepted: AtomicU64,
    pub(super) open: AtomicU64,
    pub(super) busy: AtomicU64,
    pub(super) lost_descriptors: AtomicU64,
    disconnects: [AtomicU64; Cause::ALL.len()],
}

impl ServerCounters {
    /// The connections that were accepted, those included that were refused at once.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// The connections that there are now, those included that are being closed.
    pub fn open(&self) -> u64 {
        self.open.load(Ordering::Relaxed)
    }

    /// The commands that were answered with BUSY because as many ran as may.
    pub fn busy(&self) -> u64 {
        self.busy.load(Ordering::Relaxed)
    }

    /// The commands that were answered with BUSY because the kernel dropped their descriptor.
    pub fn lost_descriptors(&self) -> u64 {
        self.lost_descriptors.load(Ordering::Relaxed)
    }

    /// The connections that the server closed, by cause. The causes are always the same, in the same order.
    pub fn disconnects(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let count = |cause: Cause| self.disconnects[cause as usize].load(Ordering::Relaxed);
        Cause::ALL.into_iter().map(move |cause| (cause.name(), count(cause)))
    }

    pub(super) fn disconnect(&self, cause: Cause) {
        self.disconnects[cause as usize].fetch_add(1, Ordering::Relaxed);
    }
}
