//! Bytes with one passed descriptor, over a Unix stream socket (SCM_RIGHTS, unix(7)).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// Whether a call waits until the socket is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoMode {
    /// It does, unless the socket itself is non-blocking (O_NONBLOCK, open(2)).
    Blocking,
    /// It does not (MSG_DONTWAIT, recv(2)): the error is [`WouldBlock`](io::ErrorKind::WouldBlock) then.
    Nonblocking,
}

/// The descriptors that came with a piece of a stream.
#[derive(Debug)]
pub enum Passed {
    /// None.
    None,
    /// Exactly one; close-on-exec.
    One(OwnedFd),
    /// More than one. Those that came are closed already.
    Many,
    /// The kernel dropped what was sent: this process has no room for another descriptor, or a security module refused it.
    Dropped,
}

/// Room for one descriptor, which by the alignment of control messages is room for two (cmsg(3)). So a second one is noticed,
/// and a client cannot fill the descriptor table of this process.
#[repr(C, align(8))]
struct ControlBuffer([MaybeUninit<u8>; rustix::cmsg_aligned_space!(ScmRights(1))]);

/// Receives at most `room` bytes and the descriptors that came with them; 0 bytes are the end of the stream.
///
/// At most two descriptors are taken into this process; the kernel drops any further ones. Those that are not wanted are
/// closed here, on the calling thread, which can block for as long as the file's owner likes.
///
/// The kernel sets MSG_CTRUNC if it dropped a descriptor. It passes them in their order, and stops at the first that does not
/// fit into the control buffer or into the descriptor table, or that a security module refuses. So if one came and another
/// was dropped, the client sent more than one. If none came, it may have sent only one, and is not to blame.
///
/// # Errors
///
/// Those of recvmsg(2); `EINTR` is retried.
pub fn receive(socket: impl AsFd, room: &mut [u8], mode: IoMode) -> io::Result<(usize, Passed)> {
    let wait = if mode == IoMode::Nonblocking { RecvFlags::DONTWAIT } else { RecvFlags::empty() };
    let mut space = ControlBuffer([MaybeUninit::uninit(); rustix::cmsg_aligned_space!(ScmRights(1))]);
    let mut control = RecvAncillaryBuffer::new(&mut space.0);
    let received = rustix::io::retry_on_intr(|| {
        recvmsg(socket.as_fd(), &mut [IoSliceMut::new(room)], &mut control, wait | RecvFlags::CMSG_CLOEXEC)
    })?;
    let mut descriptors = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten();
    let is_truncated = received.flags.contains(ReturnFlags::CTRUNC);
    let passed = match (descriptors.next(), descriptors.next()) {
        (None, _) if is_truncated => Passed::Dropped,
        (None, _) => Passed::None,
        (Some(only), None) if !is_truncated => Passed::One(only),
        // One that came and one that the kernel dropped are two as well.
        (Some(_), _) => Passed::Many,
    };
    Ok((received.bytes, passed))
}

/// Sends `bytes` with `descriptor`; how many bytes went out. The descriptor goes with the first of them.
///
/// # Errors
///
/// Those of sendmsg(2), `EPIPE` in place of SIGPIPE; `EINTR` is retried.
pub fn send(socket: impl AsFd, bytes: &[u8], descriptor: BorrowedFd<'_>, mode: IoMode) -> io::Result<usize> {
    let wait = if mode == IoMode::Nonblocking { SendFlags::DONTWAIT } else { SendFlags::empty() };
    let descriptors = [descriptor];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let sent = rustix::io::retry_on_intr(|| {
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fits = control.push(SendAncillaryMessage::ScmRights(&descriptors));
        debug_assert!(fits, "the space is made for one descriptor");
        sendmsg(socket.as_fd(), &[IoSlice::new(bytes)], &mut control, wait | SendFlags::NOSIGNAL)
    })?;
    Ok(sent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_descriptor_travels_with_the_first_byte() {
        let (a, b) = UnixStream::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        assert_eq!(send(&a, &[1, 2, 3], file.as_fd(), IoMode::Blocking).unwrap(), 3);
        let mut room = [0; 1];
        let (count, passed) = receive(&b, &mut room, IoMode::Blocking).unwrap();
        assert_eq!((count, room), (1, [1]));
        let Passed::One(received) = passed else { panic!("{passed:?}") };
        let inode = |fd: BorrowedFd<'_>| rustix::fs::fstat(fd).unwrap().st_ino;
        assert_eq!(inode(received.as_fd()), inode(file.as_fd()));
        assert!(rustix::io::fcntl_getfd(&received).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        let (count, passed) = receive(&b, &mut [0; 8], IoMode::Blocking).unwrap();
        assert!(count == 2 && matches!(passed, Passed::None));
    }

    #[test]
    fn several_descriptors_are_many_and_closed() {
        let (a, b) = UnixStream::pair().unwrap();
        for count in [2, 16, 17, 253] {
            let (mut reader, writer) = std::io::pipe().unwrap();
            let descriptors = vec![writer.as_fd(); count];
            let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
            sendmsg(&a, &[IoSlice::new(&[0; 16])], &mut control, SendFlags::empty()).unwrap();
            let (bytes, passed) = receive(&b, &mut [0; 16], IoMode::Blocking).unwrap();
            assert!(bytes == 16 && matches!(passed, Passed::Many), "{count}: {passed:?}");
            drop(writer);
            // The end of the file comes once the last descriptor of the writing end is closed.
            assert_eq!(reader.read(&mut [0; 1]).unwrap(), 0);
        }
    }

    #[test]
    fn the_end_of_the_stream_is_zero_bytes() {
        let (a, b) = UnixStream::pair().unwrap();
        drop(a);
        assert!(matches!(receive(&b, &mut [0; 4], IoMode::Blocking), Ok((0, Passed::None))));
    }
}
