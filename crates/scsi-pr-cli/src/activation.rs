//! Listening sockets passed by a service manager: `LISTEN_PID`, `LISTEN_FDS`, `LISTEN_FDNAMES` (sd_listen_fds(3)).

use std::env;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result, bail, ensure};
use listenfd::ListenFd;
use rustix::net::sockopt;
use scsi_pr_store::InitiatorName;

/// A socket that was passed to this process.
#[derive(Debug)]
pub(crate) struct Passed {
    pub(crate) initiator: InitiatorName,
    pub(crate) listener: OwnedFd,
}

/// The sockets that were passed to this process, if any were.
///
/// This process must not have opened anything that is still open: it could be taken for what was passed.
pub(crate) fn take() -> Result<Vec<Passed>> {
    let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut sockets = ListenFd::from_env();
    let mut names = names.split(':');
    (0..sockets.len())
        .map(|index| {
            let number = index + 3;
            let listener = sockets
                .take_unix_listener(index)
                .with_context(|| format!("cannot use descriptor {number}, which was passed to be listened on"))?
                .context("every index is taken once")?;
            ensure!(
                sockopt::socket_acceptconn(&listener) == Ok(true),
                "descriptor {number}, which was passed to be listened on, is not a listening socket"
            );
            let initiator = initiator(names.next().unwrap_or_default())
                .with_context(|| format!("cannot tell whose socket descriptor {number} is, which was passed"))?;
            Ok(Passed { initiator, listener: listener.into() })
        })
        .collect()
}

/// The initiator that a descriptor's name says.
fn initiator(name: &str) -> Result<InitiatorName> {
    // What systemd calls descriptors that have been given no name; an initiator by accident would be another one as soon
    // as somebody gives it its name.
    if ["", "unknown", "connection", "stored"].contains(&name) || name.ends_with(".socket") {
        bail!("its name is '{name}', which is not an initiator's; set FileDescriptorName= in the socket unit");
    }
    Ok(name.parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_been_given_on_purpose() {
        assert_eq!(initiator("vm1").unwrap(), "vm1".parse().unwrap());
        for name in ["", "unknown", "connection", "stored", "scsi-pr@vm1.socket"] {
            let error = initiator(name).unwrap_err().to_string();
            assert!(error.contains("FileDescriptorName="), "{error}");
        }
        assert!(initiator("two words").is_err());
    }
}
