//! A listening socket passed by a service manager: `LISTEN_PID`, `LISTEN_FDS`, descriptor 3 (sd_listen_fds(3)).

use std::env;
use std::fs;
use std::os::fd::OwnedFd;

use listenfd::ListenFd;
use rustix::net::{AddressFamily, SocketType, sockopt};

use crate::message::{Message, Result, invoked_as};
use crate::number::decimal;

/// The variables of the protocol. No child of this process may see them.
pub(crate) const VARIABLES: [&str; 3] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// The first passed descriptor (`SD_LISTEN_FDS_START`).
const FIRST: u64 = 3;

/// The socket that was passed to this process, if one was; `socket_given` says whether `-k` names another.
pub(crate) fn take(socket_given: bool) -> Result<Option<OwnedFd>> {
    let variable = |name| env::var(name).ok();
    let count = passed(variable, std::process::id());
    if count == 0 {
        return Ok(None);
    }
    // Too many to be true are not looked for: the C helper aborts on them.
    if u32::try_from(count).is_ok()
        && let Some(closed) = (FIRST..FIRST + count).find(|number| !is_open(*number))
    {
        return Err(Message::new(format!(
            "Socket activation failed: invalid file descriptor fd = {closed}: Bad file descriptor"
        )));
    }
    if socket_given {
        return Err(Message::new("Unix socket can't be set when using socket activation"));
    }
    if count > 1 {
        let program = invoked_as();
        return Err(Message::new(format!("{program} does not support socket activation with LISTEN_FDS > 1")));
    }
    listener().map(Some)
}

/// How many descriptors were passed to the process `own_pid`.
fn passed(variable: impl Fn(&'static str) -> Option<String>, own_pid: u32) -> u64 {
    let number = |name| variable(name).as_deref().and_then(decimal);
    match (number("LISTEN_PID"), number("LISTEN_FDS")) {
        // As strtoul(3) has it, -1 is a very large number.
        (Some((false, pid)), Some((negative, count))) if pid == u64::from(own_pid) => {
            if negative {
                count.wrapping_neg()
            } else {
                count
            }
        }
        _ => 0,
    }
}

fn is_open(descriptor: u64) -> bool {
    fs::symlink_metadata(format!("/proc/self/fd/{descriptor}")).is_ok()
}

/// Descriptor 3 as a listener.
///
/// The C helper takes any socket, and serves nobody on what is not listening or cannot pass descriptors.
fn listener() -> Result<OwnedFd> {
    let failed = |why: &str| Message::new(format!("Failed to use socket activation: {why}"));
    let mut passed = ListenFd::from_env();
    if !fs::metadata(format!("/proc/self/fd/{FIRST}")).is_ok_and(|file| is_socket(&file)) {
        return Err(failed("Unable to query remote socket address: Socket operation on non-socket"));
    }
    let mut of_type = |kind: SocketType| -> Option<OwnedFd> {
        let family = i32::from(AddressFamily::UNIX.as_raw());
        let kind = i32::try_from(kind.as_raw()).expect("the kernel's types are small");
        passed.take_custom(0, family, kind, "Unix socket").ok().flatten()
    };
    let listener = of_type(SocketType::STREAM)
        .or_else(|| of_type(SocketType::SEQPACKET))
        .ok_or_else(|| failed("fd 3 is not a Unix stream socket, so no client could pass a device over it"))?;
    match sockopt::socket_acceptconn(&listener) {
        Ok(true) => Ok(listener),
        _ => Err(failed("fd 3 is not a listening socket")),
    }
}

fn is_socket(file: &fs::Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt;
    file.file_type().is_socket()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variables_are_read_as_the_c_helper_reads_them() {
        for (pid, fds, count) in [
            (Some("12"), Some("1"), 1),
            (Some(" +12"), Some(" 01"), 1),
            (Some("12"), Some("2"), 2),
            (Some("12"), Some("0"), 0),
            (Some("12"), Some("-1"), u64::MAX),
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
