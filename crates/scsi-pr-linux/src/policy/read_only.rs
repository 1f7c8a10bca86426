//! [`RefuseReadOnly`].

use std::os::fd::BorrowedFd;

use scsi_pr::{Command, Completion, Error, PrManager};

use crate::routing::refuse_read_only;

/// Refuses PERSISTENT RESERVE OUT and CLEANUP on a descriptor that is not open for writing, or was opened with `O_PATH`.
/// The answer is CHECK CONDITION 05/20/00, INVALID COMMAND OPERATION CODE, as of QEMU's helper. The kernel would not refuse:
/// with CAP_SYS_RAWIO, SG_IO takes any descriptor.
///
/// [`DeviceRouter`](crate::routing::DeviceRouter) has the same rule built in.
#[derive(Debug)]
pub struct RefuseReadOnly<M>(M);

impl<M> RefuseReadOnly<M> {
    /// Around `inner`, which gets the other commands.
    pub const fn new(inner: M) -> Self {
        Self(inner)
    }
}

impl<M: PrManager> PrManager for RefuseReadOnly<M> {
    fn execute(&self, device: BorrowedFd<'_>, command: Command<'_>) -> Result<Completion, Error> {
        match refuse_read_only(device, command)? {
            Some(completion) => Ok(completion),
            None => self.0.execute(device, command),
        }
    }

    fn is_connected(&self) -> bool {
        self.0.is_connected()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Recorder, reserve_in, reserve_out};
    use super::*;
    use rustix::fs::{Mode, OFlags, open};
    use scsi_pr::SenseCode;
    use std::os::fd::AsFd;

    /// The answers of `/dev/null`, opened so, to IN, OUT and CLEANUP, and how many of them the inner manager got.
    fn answers(flags: OFlags) -> ([Completion; 3], usize) {
        let device = open("/dev/null", flags, Mode::empty()).unwrap();
        let inner = Recorder::good();
        let manager = RefuseReadOnly::new(inner.clone());
        let answers = [reserve_in(0), reserve_out(0, &[0; 24]), Command::cleanup()]
            .map(|command| manager.execute(device.as_fd(), command).unwrap());
        (answers, inner.taken())
    }

    #[test]
    fn changes_need_a_descriptor_that_may_write() {
        let good = Completion::Good(Vec::new());
        let refused = Completion::check(SenseCode::INVALID_OPCODE);
        for flags in [OFlags::RDONLY, OFlags::RDONLY | OFlags::NONBLOCK, OFlags::PATH, OFlags::PATH | OFlags::RDWR] {
            assert_eq!(answers(flags), ([good.clone(), refused.clone(), refused.clone()], 1), "{flags:?}");
        }
        // 3 is Linux's "neither, but ioctl".
        for flags in [OFlags::RDWR, OFlags::WRONLY, OFlags::from_bits_retain(3)] {
            assert_eq!(answers(flags), ([good.clone(), good.clone(), good.clone()], 3), "{flags:?}");
        }
    }

    #[test]
    fn the_connection_is_that_of_the_manager_inside() {
        assert!(!RefuseReadOnly::new(Recorder::good()).is_connected());
    }
}
