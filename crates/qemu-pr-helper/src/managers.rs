//! Which managers run the commands of a client.

use std::sync::Arc;

use scsi_pr::PrManager;
use scsi_pr_helper::Peer;
use scsi_pr_linux::device::Sysfs;
use scsi_pr_linux::policy::{ByDevice, Client, Counters, Escalate, Observed, RefuseReadOnly, Routes, ScsiFirst};
use scsi_pr_linux::{BlockIoctl, MultipathReader, Nvme, SgIo};

use crate::monitor_channel::{MonitorChannel, WorkerKind};
use crate::options::Manager;
use crate::workers::{Pool, Workers};

/// What is made for each client: the wanted manager, which all share, and an observer of its own, which counts in
/// `counters`. Workers are started by `monitor`.
pub(crate) fn manager_for(
    wanted: Manager,
    counters: Arc<Counters>,
    monitor: Option<Arc<MonitorChannel>>,
) -> impl Fn(&Peer) -> Arc<dyn PrManager> {
    let pool = Arc::new(Pool::new(monitor));
    let workers = |kind| Workers::new(&pool, kind);
    let multipath = || Arc::new(MultipathReader::new(workers(WorkerKind::Multipath), Sysfs::default()));
    let nvme = || Arc::new(Escalate::new(Nvme::new(), workers(WorkerKind::Nvme)));
    let block = || Arc::new(Escalate::new(BlockIoctl::default(), workers(WorkerKind::Block)));
    let chosen: Arc<dyn PrManager> = match wanted {
        Manager::Auto => {
            let routes = Routes {
                sg_io: Arc::new(SgIo::new()),
                multipath: multipath(),
                nvme: nvme(),
                block: Arc::new(ScsiFirst::new(block())),
            };
            Arc::new(ByDevice::new(routes, Sysfs::default()))
        }
        Manager::SgIo => Arc::new(SgIo::new()),
        Manager::Multipath => multipath(),
        Manager::Nvme => nvme(),
        Manager::Block => block(),
    };
    let shared = Arc::new(RefuseReadOnly::new(chosen));
    move |peer| {
        let client = Client { pid: peer.pid, uid: peer.uid };
        Arc::new(Observed::new(Arc::clone(&shared), client, Arc::clone(&counters)))
    }
}
