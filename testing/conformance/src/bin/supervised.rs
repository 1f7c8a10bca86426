//! `supervised SOCKET CALLS PROGRAM ARGUMENTS…`: becomes PROGRAM under a seccomp filter. The filter stops every ioctl(SG_IO)
//! and the system calls named in CALLS, separated by commas, until the listener on SOCKET has decided about each
//! (`SECCOMP_RET_USER_NOTIF`, seccomp_unotify(2)). `supervised` sends the descriptor for that over SOCKET.
#![forbid(unsafe_code)]

use std::env::args_os;
use std::error::Error;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;

use libseccomp::{ScmpAction, ScmpFilterContext, ScmpSyscall, scmp_cmp};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use scsi_pr_helper::descriptor::{self, IoMode};

const SG_IO: u64 = 0x2285;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = args_os().skip(1);
    let mut next = || arguments.next().ok_or("usage: supervised SOCKET CALLS PROGRAM ARGUMENTS…");
    let (socket, calls, program) = (next()?, next()?, next()?);
    let socket = UnixStream::connect(socket)?;
    let this = pidfd_open(getpid(), PidfdFlags::empty())?;

    let mut filter = ScmpFilterContext::new(ScmpAction::Allow)?;
    // Being root, no_new_privs is not needed to load a filter, and the helper is to find it as it usually is.
    filter.set_ctl_nnp(false)?;
    let ioctl = ScmpSyscall::from_name("ioctl")?;
    filter.add_rule_conditional(ScmpAction::Notify, ioctl, &[scmp_cmp!($arg1 & 0xffff_ffff == SG_IO)])?;
    for call in calls.to_str().ok_or("CALLS are names")?.split(',').filter(|name| !name.is_empty()) {
        filter.add_rule(ScmpAction::Notify, ScmpSyscall::from_name(call)?)?;
    }
    filter.load()?;
    // A copy that this process owns, without a claim on a bare number.
    let notifications = pidfd_getfd(&this, filter.get_notify_fd()?, PidfdGetfdFlags::empty())?;
    descriptor::send(&socket, &[0], notifications.as_fd(), IoMode::Blocking)?;
    // exec returns only when it failed. All descriptors of this program are close-on-exec.
    Err(Command::new(program).args(arguments).exec().into())
}
