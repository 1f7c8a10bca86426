//! Which managers run the commands of a client.

use std::sync::Arc;

use pr_helper::Peer;
use pr_managers::SgIo;
use pr_managers::device::Sysfs;
use pr_managers::policy::{Client, Counters, Observed, RefuseReadOnly, WholeUnit};
use scsi_pr::PrManager;

use crate::options::Manager;

/// What is made for each client: the wanted manager, which all share, and an observer of its own, which counts in
/// `counters`.
pub(crate) fn manager_for(wanted: Manager, counters: Arc<Counters>) -> impl Fn(&Peer) -> Arc<dyn PrManager> {
    let shared: Arc<dyn PrManager> = match wanted {
        Manager::Auto => Arc::new(RefuseReadOnly::new(WholeUnit::new(SgIo::new(), Sysfs::default()))),
        Manager::SgIo => Arc::new(RefuseReadOnly::new(SgIo::new())),
    };
    move |peer| {
        let client = Client { pid: peer.pid, uid: peer.uid };
        Arc::new(Observed::new(Arc::clone(&shared), client, Arc::clone(&counters)))
    }
}
