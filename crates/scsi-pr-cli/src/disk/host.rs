//! The identity of this host and of its boot.

use std::fs;

use anyhow::{Context, Result};
use scsi_pr_store::Host;

/// This host, as an ownership names it.
///
/// # Errors
///
/// The kernel does not tell the boot: /proc is not mounted.
pub(crate) fn this_host() -> Result<Host> {
    const BOOT: &str = "/proc/sys/kernel/random/boot_id";
    let boot = fs::read_to_string(BOOT).with_context(|| format!("cannot read {BOOT}"))?.trim().to_owned();
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    // A container without one is a host of its own, by its name.
    let id = fs::read_to_string("/etc/machine-id").ok().map(|id| id.trim().to_owned()).filter(|id| !id.is_empty());
    Ok(Host { id: id.unwrap_or_else(|| name.clone()), name, boot })
}
