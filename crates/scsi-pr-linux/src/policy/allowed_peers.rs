//! [`AllowedPeers`].

mod sys;

use std::io;
use std::os::fd::BorrowedFd;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use rustix::io::Errno;

/// The processes that may connect to a Unix socket, by user and by group. Without a user and a group in it, every process may.
///
/// A process is judged by what it was when it connected (SO_PEERCRED, SO_PEERGROUPS, unix(7)): its effective user, its
/// effective group, and its supplementary groups. No user is an exception, not even root. Users and groups of another user
/// namespace that have no number here are the overflow ids, 65534.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowedPeers {
    users: Vec<u32>,
    groups: Vec<u32>,
}

impl AllowedPeers {
    /// Those of these users, and those in one of these groups.
    pub const fn new(users: Vec<u32>, groups: Vec<u32>) -> Self {
        Self { users, groups }
    }

    /// Whether every process may connect.
    pub const fn is_everyone(&self) -> bool {
        self.users.is_empty() && self.groups.is_empty()
    }

    /// Whether the process at the other end of `socket` may connect.
    ///
    /// # Errors
    ///
    /// Those of getsockopt(2). The process must not be served then.
    pub fn permit(&self, socket: BorrowedFd<'_>) -> io::Result<bool> {
        if self.is_everyone() {
            return Ok(true);
        }
        let peer = getsockopt(&socket, PeerCredentials)?;
        if self.users.contains(&peer.uid()) || self.groups.contains(&peer.gid()) {
            return Ok(true);
        }
        if self.groups.is_empty() {
            return Ok(false);
        }
        match sys::peer_groups(socket) {
            Ok(groups) => Ok(groups.iter().any(|group| self.groups.contains(group))),
            // Before Linux 4.13 the effective group alone is known.
            Err(Errno::NOPROTOOPT) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{getegid, geteuid, getgroups};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    fn permit(users: &[u32], groups: &[u32]) -> bool {
        let (socket, _peer) = UnixStream::pair().unwrap();
        AllowedPeers::new(users.to_vec(), groups.to_vec()).permit(socket.as_fd()).unwrap()
    }

    #[test]
    fn user_or_group_of_the_peer_suffices() {
        let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
        let (other_user, other_group) = (uid + 12_345, u32::MAX - 1);
        assert!(permit(&[], &[]));
        assert!(permit(&[other_user, uid], &[]));
        assert!(permit(&[other_user], &[gid]));
        assert!(!permit(&[other_user], &[]));
        assert!(!permit(&[], &[other_group]));
        assert!(!permit(&[other_user], &[other_group]));
    }

    #[test]
    fn supplementary_group_of_the_peer_suffices() {
        let (socket, _peer) = UnixStream::pair().unwrap();
        let expected: Vec<u32> = getgroups().unwrap().into_iter().map(|group| group.as_raw()).collect();
        let mut groups = sys::peer_groups(socket.as_fd()).unwrap();
        groups.sort_unstable();
        assert_eq!(groups, {
            let mut expected = expected;
            expected.sort_unstable();
            expected
        });
        for group in groups {
            assert!(permit(&[], &[group]));
        }
    }

    #[test]
    fn descriptor_that_is_not_a_socket_is_an_error() {
        let file = tempfile::tempfile().unwrap();
        assert!(AllowedPeers::new(vec![0], Vec::new()).permit(file.as_fd()).is_err());
        assert!(sys::peer_groups(file.as_fd()).is_err());
    }
}
