//! The sockets, and whose they are.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use scsi_pr_daemon::socket::{self, Access, SocketFile};
use scsi_pr_store::InitiatorName;

use crate::activation::Passed;
use crate::options::Serve;

/// A socket that is listened on.
pub(crate) struct Door {
    pub(crate) initiator: InitiatorName,
    pub(crate) listener: OwnedFd,
    /// `None` when a service manager made it, which then removes it too.
    pub(crate) file: Option<OwnSocket>,
}

/// The file of a socket that this process made, which goes when the value does.
pub(crate) struct OwnSocket {
    pub(crate) path: PathBuf,
    file: SocketFile,
}

impl Drop for OwnSocket {
    fn drop(&mut self) {
        if let Err(error) = self.file.remove() {
            tracing::warn!("cannot remove the socket {}: {}", self.path.display(), scsi_pr_daemon::reason(error));
        }
    }
}

/// Listens wherever `options` say, besides what was `passed`. When it fails, what was made is removed again.
pub(crate) fn open(options: &Serve, passed: Vec<Passed>) -> Result<Vec<Door>> {
    ensure!(
        !(options.listen.is_empty() && passed.is_empty()),
        "there is nothing to listen on: give --listen=NAME=SOCKET, or have systemd pass a socket"
    );
    let mut paths = BTreeSet::new();
    for listen in &options.listen {
        ensure!(paths.insert(&listen.socket), "{} is given to --listen twice", listen.socket.display());
    }
    let access = Access::Exactly { mode: options.socket_mode, group: options.socket_group };
    let mut doors: Vec<_> =
        passed.into_iter().map(|Passed { initiator, listener }| Door { initiator, listener, file: None }).collect();
    for listen in &options.listen {
        let (listener, file) = socket::listen(&listen.socket, access)?;
        let file = OwnSocket { path: listen.socket.clone(), file };
        doors.push(Door { initiator: listen.initiator.clone(), listener, file: Some(file) });
    }
    Ok(doors)
}
