//! The managers that run the commands of a client.

use std::sync::Arc;

use scsi_pr::PrManager;
use scsi_pr_helper::Peer;
use scsi_pr_linux::DeviceRouter;
use scsi_pr_linux::policy::{Client, Counters, DenyServiceActions, Observed, ServiceActions};
use scsi_pr_linux::routing::{self, Choice};

use crate::monitor_channel::WorkerKind;
use crate::options::Manager;
use crate::workers::{Pool, Workers};

/// Makes the manager of a client. All clients share the wanted manager, which gets no `denied` command; each client has an observer of its own, which
/// counts in `counters`. Workers come from `pool`.
pub(crate) fn manager_for(
    wanted: Manager,
    denied: ServiceActions,
    counters: Arc<Counters>,
    pool: &Arc<Pool>,
) -> impl Fn(&Peer) -> Arc<dyn PrManager> + use<> {
    let worker = |kind| Arc::new(Workers::new(pool, kind));
    let workers = routing::Workers {
        multipath: worker(WorkerKind::Multipath),
        nvme: worker(WorkerKind::Nvme),
        block_ioctl: worker(WorkerKind::Block),
    };
    let router = DeviceRouter::new(workers);
    let router = match wanted {
        Manager::Auto => router,
        Manager::SgIo => router.with_choice(Choice::SgIo),
        Manager::Multipath => router.with_choice(Choice::Multipath),
        Manager::Nvme => router.with_choice(Choice::Nvme),
        Manager::Block => router.with_choice(Choice::BlockIoctl),
    };
    let remedy = "if it must be sent all the same, start the helper without this name in --deny";
    let router = Arc::new(DenyServiceActions::new(router, denied, remedy));
    move |peer| {
        let client = Client { pid: peer.pid, uid: peer.uid };
        Arc::new(Observed::new(Arc::clone(&router), client, Arc::clone(&counters)))
    }
}
