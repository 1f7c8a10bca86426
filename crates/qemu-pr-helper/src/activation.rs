//! A listening socket that the service manager passes: `LISTEN_PID`, `LISTEN_FDS`, descriptor 3 (sd_listen_fds(3)).
//!
//! The crate `listenfd` takes the descriptor. This module decides whether there is one, and refuses what the C helper
//! refuses.

use std::env;
use std::io;
use std::os::fd::{OwnedFd, RawFd};

use listenfd::ListenFd;
use nix::libc;
use nix::sys::socket::{SockaddrStorage, getsockname};
use rustix::io::Errno;
use rustix::net::sockopt;

use crate::message::{Message, Result, invoked_as, reason};

/// The variables of the protocol. A child of this process must not see them.
pub(crate) const VARIABLES: [&str; 3] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// The first passed descriptor (`SD_LISTEN_FDS_START`).
const FIRST: RawFd = 3;

/// The socket that was passed to this process, if one was; `socket_given` says whether `-k` names another.
///
/// This process must not have opened anything that is still open: it could be taken for a passed descriptor.
pub(crate) fn take(socket_given: bool) -> Result<Option<OwnedFd>> {
    let count = passed(|name| env::var(name).ok(), std::process::id());
    if count == 0 {
        return Ok(None);
    }
    let program = invoked_as();
    let several = || Message::new(format!("{program} does not support socket activation with LISTEN_FDS > 1"));
    // The C helper aborts. No process has as many descriptors.
    let count = RawFd::try_from(count).ok().filter(|count| *count > 0).ok_or_else(several)?;
    let mut numbers = FIRST..FIRST.saturating_add(count);
    if let Some(closed) = numbers.find(|number| query_address(*number) == Err(Errno::BADF)) {
        return Err(Message::new(format!(
            "Socket activation failed: invalid file descriptor fd = {closed}: {}",
            reason(io::Error::from(Errno::BADF))
        )));
    }
    if socket_given {
        return Err(Message::new("Unix socket can't be set when using socket activation"));
    }
    if count > 1 {
        return Err(several());
    }
    let failed = |why: &str| Message::new(format!("Failed to use socket activation: {why}"));
    query_address(FIRST).map_err(|errno| {
        failed(&format!("Unable to query remote socket address: {}", reason(io::Error::from(errno))))
    })?;
    let mut passed = ListenFd::from_env();
    // The C helper takes any socket, and cannot serve a client on most of them.
    [libc::SOCK_STREAM, libc::SOCK_SEQPACKET]
        .into_iter()
        .find_map(|kind| passed.take_custom::<OwnedFd>(0, libc::AF_UNIX, kind, "unix socket").ok().flatten())
        .filter(|socket| sockopt::socket_acceptconn(socket) == Ok(true))
        .map(Some)
        .ok_or_else(|| failed("fd 3 is not a listening Unix socket, so no client could pass a device over it"))
}

/// The number of descriptors that were passed to the process `own_pid`, as `LISTEN_FDS` has it.
fn passed(variable: impl Fn(&'static str) -> Option<String>, own_pid: u32) -> i64 {
    let is_own = variable("LISTEN_PID").is_some_and(|pid| pid.parse() == Ok(own_pid));
    let count = || variable("LISTEN_FDS")?.parse().ok();
    if is_own { count().unwrap_or(0) } else { 0 }
}

/// getsockname(2) on a descriptor that may not be open.
fn query_address(number: RawFd) -> rustix::io::Result<()> {
    getsockname::<SockaddrStorage>(number).map(drop).map_err(|error| Errno::from_raw_os_error(error as i32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_for_the_process_that_they_name() {
        for (pid, fds, count) in [
            (Some("12"), Some("1"), 1),
            (Some("12"), Some("2"), 2),
            (Some("12"), Some("0"), 0),
            (Some("12"), Some("-1"), -1),
            (Some("12"), Some("4294967296"), 1 << 32),
            (Some("12"), Some("99999999999999999999999"), 0),
            (Some("12"), Some("1x"), 0),
            (Some("12"), Some("0x1"), 0),
            (Some("12"), Some(""), 0),
            (Some("12"), None, 0),
            (Some("13"), Some("1"), 0),
            (Some("-12"), Some("1"), 0),
            (Some("junk"), Some("1"), 0),
            (Some(""), Some("1"), 0),
            (None, Some("1"), 0),
        ] {
            let variable = |name| if name == "LISTEN_PID" { pid } else { fds }.map(str::to_owned);
            assert_eq!(passed(variable, 12), count, "{pid:?} {fds:?}");
        }
    }
}
