//! A listening socket passed by a service manager: `LISTEN_PID`, `LISTEN_FDS`, descriptor 3 (sd_listen_fds(3)).

use std::env;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, getsockname, sendmsg};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, socketpair, sockopt};
use scsi_pr_helper::descriptor::{self, Passed};

use crate::message::{Message, Result, invoked_as, reason};
use crate::number::decimal;

/// The variables of the protocol. No child of this process may see them.
pub(crate) const VARIABLES: [&str; 3] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// The first passed descriptor (`SD_LISTEN_FDS_START`).
const FIRST: RawFd = 3;

/// The socket that was passed to this process, if one was; `socket_given` says whether `-k` names another.
///
/// This process must not have opened anything that is still open: it could be taken for what was passed.
pub(crate) fn take(socket_given: bool) -> Result<Option<OwnedFd>> {
    let count = passed(|name| env::var(name).ok(), std::process::id());
    if count == 0 {
        return Ok(None);
    }
    let program = invoked_as();
    let several = Message::new(format!("{program} does not support socket activation with LISTEN_FDS > 1"));
    // The C helper aborts. No process has as many descriptors.
    let Ok(count) = RawFd::try_from(count) else { return Err(several) };
    let mut numbers = FIRST..FIRST.saturating_add(count);
    if let Some(closed) = numbers.find(|number| address(*number) == Err(Errno::BADF)) {
        return Err(Message::new(format!(
            "Socket activation failed: invalid file descriptor fd = {closed}: {}",
            reason(Errno::BADF)
        )));
    }
    if socket_given {
        return Err(Message::new("Unix socket can't be set when using socket activation"));
    }
    if count > 1 {
        return Err(several);
    }
    let failed = |why: &str| Message::new(format!("Failed to use socket activation: {why}"));
    address(FIRST).map_err(|errno| failed(&format!("Unable to query remote socket address: {}", reason(errno))))?;
    let socket = own(FIRST).map_err(|errno| failed(&reason(errno)))?;
    // The C helper takes any socket, and then serves nobody.
    if sockopt::socket_domain(&socket) != Ok(AddressFamily::UNIX) {
        return Err(failed("fd 3 is not a Unix socket, so no client could pass a device over it"));
    }
    if sockopt::socket_acceptconn(&socket) != Ok(true) {
        return Err(failed("fd 3 is not a listening socket"));
    }
    Ok(Some(socket))
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

/// getsockname(2) on a descriptor that may not even be open.
fn address(number: RawFd) -> rustix::io::Result<()> {
    getsockname::<SockaddrStorage>(number).map(drop).map_err(errno)
}

/// Takes descriptor `number` as our own, close-on-exec, under another number. Safe code takes none by its number, but a
/// message from us to ourselves does.
fn own(number: RawFd) -> rustix::io::Result<OwnedFd> {
    let (to, from) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let message = [ControlMessage::ScmRights(&[number])];
    sendmsg::<()>(to.as_raw_fd(), &[IoSlice::new(&[0])], &message, MsgFlags::MSG_NOSIGNAL, None).map_err(errno)?;
    nix::unistd::close(number).map_err(errno)?;
    match descriptor::receive(&from, &mut [0], RecvFlags::empty())? {
        (_, Passed::One(descriptor)) => Ok(descriptor),
        _ => Err(Errno::MFILE),
    }
}

fn errno(error: nix::Error) -> Errno {
    Errno::from_raw_os_error(error as i32)
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
