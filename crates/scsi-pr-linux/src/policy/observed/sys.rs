//! The SDT probes: a `nop` each, and a note in the binary that says where it is. The macro of the `probe` crate, which does
//! not need `sys/sdt.h`, is made of assembly and so of unsafe code; that is why it is here.

use probe::probe;

use super::Call;

/// `qemu:pr_manager_execute(fd, cmd, sa)`.
#[inline]
pub(super) fn pr_manager_execute(call: &Call) {
    probe!(qemu, pr_manager_execute, call.fd, call.cmd, call.sa);
}

/// `qemu:pr_manager_run(fd, cmd, sa)`.
#[inline]
pub(super) fn pr_manager_run(call: &Call) {
    probe!(qemu, pr_manager_run, call.fd, call.cmd, call.sa);
}

/// `qemu:pr_helper_completed(fd, cmd, sa, status)`.
#[inline]
pub(super) fn pr_helper_completed(call: &Call, status: i16) {
    probe!(qemu, pr_helper_completed, call.fd, call.cmd, call.sa, status);
}
