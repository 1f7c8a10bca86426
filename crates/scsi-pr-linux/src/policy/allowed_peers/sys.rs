//! SO_PEERGROUPS, for which neither rustix nor nix has a function.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::libc;
use rustix::io::Errno;

/// The supplementary groups that the peer of a Unix socket had when it connected (SO_PEERGROUPS, unix(7), Linux 4.13).
///
/// # Errors
///
/// The kernel's: `ENODATA` for a socket without a peer, `ENOPROTOOPT` before Linux 4.13.
pub(super) fn peer_groups(socket: BorrowedFd<'_>) -> Result<Vec<u32>, Errno> {
    let mut groups: Vec<libc::gid_t> = vec![0; 32];
    loop {
        let mut length = libc::socklen_t::try_from(size_of_val(&groups[..])).map_err(|_| Errno::NOMEM)?;
        // SAFETY: the kernel writes at most `length` bytes to `groups`, which has as many, and a number to `length`. Any bytes
        // are group ids.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let count = usize::try_from(length).map_err(|_| Errno::NOMEM)? / size_of::<libc::gid_t>();
        match result {
            0 => {
                groups.truncate(count);
                return Ok(groups);
            }
            // `length` is what the kernel needs. Linux has at most 65,536 groups.
            _ => match Errno::from_io_error(&std::io::Error::last_os_error()) {
                Some(Errno::RANGE) if count > groups.len() => groups.resize(count, 0),
                errno => return Err(errno.unwrap_or(Errno::IO)),
            },
        }
    }
}
