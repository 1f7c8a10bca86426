//! Listening sockets passed by a service manager: `LISTEN_PID`, `LISTEN_FDS`, `LISTEN_FDNAMES` (sd_listen_fds(3)).

use std::env;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result, bail, ensure};
use listenfd::ListenFd;
use rustix::net::sockopt;
use scsi_pr_store::InitiatorName;

/// A socket that the service manager passed to this process.
#[derive(Debug)]
pub(crate) struct PassedSocket {
    pub(crate) initiator: InitiatorName,
    pub(crate) socket: OwnedFd,
}

/// The sockets that the service manager passed to this process.
///
/// The caller must not have opened anything that is still open: its number could be that of a passed socket.
pub(crate) fn take() -> Result<Vec<PassedSocket>> {
    let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut sockets = ListenFd::from_env();
    let mut names = names.split(':');
    (0..sockets.len())
        .map(|index| {
            let number = index + 3;
            let listener = sockets
                .take_unix_listener(index)
                .with_context(|| format!("cannot listen on descriptor {number}, which the service manager passed"))?
                .context("every index is taken once")?;
            ensure!(
                sockopt::socket_acceptconn(&listener) == Ok(true),
                "descriptor {number}, which the service manager passed, is not a listening socket"
            );
            let initiator = initiator(names.next().unwrap_or_default()).with_context(|| {
                format!("cannot find the initiator of descriptor {number}, which the service manager passed")
            })?;
            Ok(PassedSocket { initiator, socket: listener.into() })
        })
        .collect()
}

/// The initiator with the name of a descriptor.
fn initiator(name: &str) -> Result<InitiatorName> {
    // systemd's own names for descriptors without FileDescriptorName=. An initiator with such a name would lose its
    // registrations as soon as an administrator sets the right name.
    if ["", "unknown", "connection", "stored"].contains(&name) || name.ends_with(".socket") {
        bail!("its name is '{name}', which is not an initiator's; set FileDescriptorName= in the socket unit");
    }
    Ok(name.parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_names_of_systemd_are_refused() {
        assert_eq!(initiator("vm1").unwrap(), "vm1".parse().unwrap());
        for name in ["", "unknown", "connection", "stored", "scsi-pr@vm1.socket"] {
            let error = initiator(name).unwrap_err().to_string();
            assert!(error.contains("FileDescriptorName="), "{error}");
        }
        assert!(initiator("two words").is_err());
    }
}
