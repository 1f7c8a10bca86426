//! The managers that run the commands of a client.

use std::collections::HashMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;

use scsi_pr::{Command, Completion, Error, PrManager, SenseCode};
use scsi_pr_helper::Peer;
use scsi_pr_linux::policy::{Client, Counters, Observed, RefuseReadOnly};
use scsi_pr_store::{InitiatorName, SharedReservations};
use tracing::Span;

use crate::devices::{Devices, Owner};
use crate::helper_pool::{self, HelperPool};

/// The objects that the managers of all initiators share.
pub(crate) struct ServerContext {
    store: SharedReservations,
    devices: Arc<Devices>,
    /// A pool for each initiator. Empty without `--pass`.
    helpers: HashMap<InitiatorName, Arc<HelperPool>>,
    counters: Arc<Counters>,
}

impl ServerContext {
    /// `store` may be of any initiator. `helper` is the socket of `--pass`.
    ///
    /// # Errors
    ///
    /// The thread that closes unused connections to the helper cannot be started.
    pub(crate) fn new<'a>(
        store: SharedReservations,
        devices: Devices,
        helper: Option<&Path>,
        initiators: impl IntoIterator<Item = &'a InitiatorName>,
        counters: Arc<Counters>,
    ) -> io::Result<Self> {
        let mut helpers = HashMap::new();
        if let Some(socket) = helper {
            for initiator in initiators {
                helpers.entry(initiator.clone()).or_insert_with(|| Arc::new(HelperPool::new(socket.to_owned())));
            }
            helper_pool::close_idle(&helpers.values().cloned().collect::<Vec<_>>())?;
        }
        Ok(Self { store, devices: Arc::new(devices), helpers, counters })
    }

    /// Makes the manager of each client of `initiator`.
    pub(crate) fn manager_for(&self, initiator: &InitiatorName) -> impl Fn(&Peer) -> Arc<dyn PrManager> + use<> {
        let store = Arc::new(self.store.for_initiator(initiator));
        let (devices, counters) = (Arc::clone(&self.devices), Arc::clone(&self.counters));
        let helper = self.helpers.get(initiator).cloned();
        let span = tracing::error_span!("initiator", name = %initiator);
        move |peer| {
            let router =
                OwnerRouter { devices: Arc::clone(&devices), store: Arc::clone(&store), helper: helper.clone() };
            let client = Client { pid: peer.pid, uid: peer.uid };
            let observed = Observed::new(RefuseReadOnly::new(router), client, Arc::clone(&counters));
            Arc::new(WithSpan { span: span.clone(), inner: observed })
        }
    }
}

/// Sends each command to the owner of its device's reservations.
struct OwnerRouter {
    devices: Arc<Devices>,
    store: Arc<SharedReservations>,
    /// `None` without `--pass`.
    helper: Option<Arc<HelperPool>>,
}

impl PrManager for OwnerRouter {
    fn execute(&self, device: BorrowedFd<'_>, command: Command<'_>) -> Result<Completion, Error> {
        match (self.devices.owner(device, command), &self.helper) {
            (Owner::Store, _) => self.store.execute(device, command),
            (Owner::Helper, Some(helper)) => helper.execute(device, command),
            (Owner::Helper, None) => Ok(Completion::check(SenseCode::INVALID_OPCODE)),
            (Owner::Neither(answer), _) => Ok(answer),
        }
    }
}

/// Adds the initiator's name to each log line about a command.
struct WithSpan<M> {
    span: Span,
    inner: M,
}

impl<M: PrManager> PrManager for WithSpan<M> {
    fn execute(&self, device: BorrowedFd<'_>, command: Command<'_>) -> Result<Completion, Error> {
        self.span.in_scope(|| self.inner.execute(device, command))
    }

    fn is_connected(&self) -> bool {
        self.inner.is_connected()
    }
}
