//! Which managers run the commands of a client.

use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;

use scsi_pr::{Command, Completion, Error, PrManager, SenseCode};
use scsi_pr_helper::{HelperClient, Peer};
use scsi_pr_linux::policy::{Client, Counters, Observed, RefuseReadOnly};
use scsi_pr_store::{InitiatorName, SharedReservations};
use tracing::Span;

use crate::devices::{Devices, Owner};

/// What the managers of all initiators share.
pub(crate) struct Common {
    /// The reservations in the store, as one initiator or another.
    pub(crate) kept: SharedReservations,
    pub(crate) devices: Arc<Devices>,
    /// The socket of the helper for devices that have reservations of their own.
    pub(crate) pass: Option<PathBuf>,
    pub(crate) counters: Arc<Counters>,
}

impl Common {
    /// What is made for each client of `initiator`: a manager that sorts its devices, a connection to the helper of its
    /// own (commands on one run one after the other, and one virtual machine's disk is not to hold up another's), and an
    /// observer.
    pub(crate) fn manager_for(&self, initiator: &InitiatorName) -> impl Fn(&Peer) -> Arc<dyn PrManager> + use<> {
        let kept = Arc::new(self.kept.for_initiator(initiator));
        let (devices, pass, counters) = (Arc::clone(&self.devices), self.pass.clone(), Arc::clone(&self.counters));
        let span = tracing::error_span!("initiator", name = %initiator);
        move |peer| {
            let sorted = Sorted {
                devices: Arc::clone(&devices),
                kept: Arc::clone(&kept),
                helper: pass.as_ref().map(HelperClient::new),
            };
            let client = Client { pid: peer.pid, uid: peer.uid };
            let observed = Observed::new(RefuseReadOnly::new(sorted), client, Arc::clone(&counters));
            Arc::new(Said { span: span.clone(), inner: observed })
        }
    }
}

/// Hands each command to whom the reservations of its device belong.
struct Sorted {
    devices: Arc<Devices>,
    kept: Arc<SharedReservations>,
    /// There is one if `devices` was told so.
    helper: Option<HelperClient>,
}

impl PrManager for Sorted {
    fn execute(&self, device: BorrowedFd<'_>, command: Command<'_>) -> Result<Completion, Error> {
        match (self.devices.owner(device, command), &self.helper) {
            (Owner::Store, _) => self.kept.execute(device, command),
            (Owner::Helper, Some(helper)) => helper.execute(device, command),
            (Owner::Helper, None) => Ok(Completion::check(SenseCode::INVALID_OPCODE)),
            (Owner::Nobody(answer), _) => Ok(answer),
        }
    }
}

/// Has everything that is logged about a command say whose it was.
struct Said<M> {
    span: Span,
    inner: M,
}

impl<M: PrManager> PrManager for Said<M> {
    fn execute(&self, device: BorrowedFd<'_>, command: Command<'_>) -> Result<Completion, Error> {
        self.span.in_scope(|| self.inner.execute(device, command))
    }

    fn is_connected(&self) -> bool {
        self.inner.is_connected()
    }
}
