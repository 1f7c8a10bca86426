//! The sockets of the initiators.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use scsi_pr_daemon::socket::{self, Access, SocketFile};
use scsi_pr_store::InitiatorName;

use crate::activation::PassedSocket;
use crate::serve::settings::Settings;

/// A listening socket and its initiator.
pub(crate) struct Listener {
    pub(crate) initiator: InitiatorName,
    pub(crate) socket: OwnedFd,
    /// `None` if a service manager made the file, and removes it too.
    pub(crate) file: Option<SocketGuard>,
}

/// Removes the file of a socket that this process made when it is dropped.
pub(crate) struct SocketGuard {
    pub(crate) path: PathBuf,
    file: SocketFile,
}

impl SocketGuard {
    /// For the file at `path`.
    pub(crate) fn new(path: &Path, file: SocketFile) -> Self {
        Self { path: path.to_owned(), file }
    }
}

impl Drop for SocketGuard {
    fn drop(&mut self) {
        if let Err(error) = self.file.remove() {
            tracing::warn!("cannot remove the socket {}: {}", self.path.display(), scsi_pr_daemon::reason(error));
        }
    }
}

/// Listens on the sockets of `settings`, in addition to the `passed` ones. If it fails, it removes the files that it made.
pub(crate) fn open(settings: &Settings, passed: Vec<PassedSocket>) -> Result<Vec<Listener>> {
    ensure!(
        !(settings.listen.is_empty() && passed.is_empty()),
        "there is nothing to listen on: give --listen=NAME=SOCKET or an [[initiator]] of --config, or have systemd pass a socket"
    );
    let mut paths = BTreeSet::new();
    for listen in &settings.listen {
        ensure!(paths.insert(&listen.socket), "two initiators have the socket {}", listen.socket.display());
    }
    let access = Access::Exactly { mode: settings.socket_mode, group: settings.socket_group };
    let mut listeners: Vec<_> = passed
        .into_iter()
        .map(|PassedSocket { initiator, socket }| Listener { initiator, socket, file: None })
        .collect();
    for listen in &settings.listen {
        let (socket, file) = socket::listen(&listen.socket, access)?;
        let file = SocketGuard::new(&listen.socket, file);
        listeners.push(Listener { initiator: listen.initiator.clone(), socket, file: Some(file) });
    }
    Ok(listeners)
}
