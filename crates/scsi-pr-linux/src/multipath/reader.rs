//! [`MultipathReader`].

use std::os::fd::BorrowedFd;
use std::thread;
use std::time::{Duration, Instant};

use scsi_pr::{Command, Completion, Error, Opcode, PrManager, SenseCode, Status};

use super::health::PathHealth;
use crate::device::Sysfs;
use crate::sg_io::{Reached, SgIo};

/// Answers PERSISTENT RESERVE IN on multipath maps, in a process that needs no capability but to send SCSI commands
/// (CAP_SYS_RAWIO). It passes the other commands on to the inner manager, which may do more: a worker that is root and has
/// a [`Multipath`](super::Multipath).
///
/// It sends the command to the map by SG_IO, and the kernel sends it by the path that it uses: byte for byte, READ FULL
/// STATUS included.
///
/// * A map without a usable path, as sysfs has it, gets no command: with `queue_if_no_path`, the kernel would keep it until
///   a path comes back. The answer is CHECK CONDITION 02/04/00, LOGICAL UNIT NOT READY. Sysfs does not tell that device
///   mapper has failed a path that works as a SCSI device; with no other path left, the command then waits.
/// * While the map is suspended, as it is for moments when its table is swapped, the command is sent again for up to five
///   seconds; then the answer is BUSY.
/// * When the path has died and the kernel still uses it, the inner manager gets the command, and can choose another path.
///   If it fails, the first answer stays.
#[derive(Debug)]
pub struct MultipathReader<M> {
    inner: M,
    sg_io: SgIo,
    health: PathHealth,
    suspend_timeout: Duration,
}

/// How long a map may be suspended.
const SUSPEND_TIMEOUT: Duration = Duration::from_secs(5);

/// Tables are swapped within milliseconds; there is no event to wait for without privileges.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

impl<M> MultipathReader<M> {
    /// Around `inner`; `sysfs` has the paths.
    pub const fn new(inner: M, sysfs: Sysfs) -> Self {
        Self { inner, sg_io: SgIo::new(), health: PathHealth::new(sysfs), suspend_timeout: SUSPEND_TIMEOUT }
    }
}

impl<M: PrManager> PrManager for MultipathReader<M> {
    fn execute(&self, device: BorrowedFd<'_>, command: Command<'_>) -> Result<Completion, Error> {
        if command.opcode() != Opcode::ReserveIn {
            return self.inner.execute(device, command);
        }
        let send = || match self.health.is_without_path(device) {
            Ok(false) => Some(self.sg_io.send(device, command)),
            Ok(true) => Some((Completion::check(SenseCode::NOT_READY), Reached::Unit)),
            // The process has no room for another open file; it may have later.
            Err(_) => None,
        };
        let by_inner = || self.inner.execute(device, command).ok();
        Ok(retry(self.suspend_timeout, send, by_inner))
    }

    fn is_connected(&self) -> bool {
        self.inner.is_connected()
    }
}

/// Sends the command until the map takes it, for `timeout` at most.
fn retry(
    timeout: Duration,
    send: impl Fn() -> Option<(Completion, Reached)>,
    by_inner: impl FnOnce() -> Option<Completion>,
) -> Completion {
    let end = Instant::now() + timeout;
    loop {
        match send() {
            Some((completion, Reached::Unit)) => return completion,
            Some((completion, Reached::Path)) => return by_inner().unwrap_or(completion),
            Some((_, Reached::Suspended)) if Instant::now() < end => thread::sleep(POLL_INTERVAL),
            Some((_, Reached::Suspended)) | None => return Completion::Status(Status::BUSY),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::tests::block_device;
    use crate::multipath::map::tests::tree;
    use crate::policy::tests::{Recorder, reserve_in, reserve_out};
    use std::cell::Cell;
    use std::fs::File;
    use std::os::fd::AsFd;

    const fn shareable<T: Send + Sync>() {}
    const _: () = shareable::<MultipathReader<SgIo>>();

    const LONG: Duration = Duration::from_secs(600);

    fn good() -> Completion {
        Completion::Good(vec![1])
    }

    fn failure() -> Completion {
        Completion::check(SenseCode::IO_PROCESS_TERMINATED)
    }

    fn not_called() -> Option<Completion> {
        panic!("the inner manager was called")
    }

    #[test]
    fn the_units_answer_is_returned() {
        for answer in [good(), failure(), Completion::Status(Status::RESERVATION_CONFLICT)] {
            assert_eq!(retry(LONG, || Some((answer.clone(), Reached::Unit)), not_called), answer);
        }
    }

    #[test]
    fn a_suspended_map_is_retried_and_then_busy() {
        let tries = Cell::new(0);
        let resumed = || {
            tries.set(tries.get() + 1);
            Some(if tries.get() < 4 { (failure(), Reached::Suspended) } else { (good(), Reached::Unit) })
        };
        assert_eq!(retry(LONG, resumed, not_called), good());
        assert_eq!(tries.get(), 4);
        let suspended = || Some((failure(), Reached::Suspended));
        assert_eq!(retry(Duration::from_millis(30), suspended, not_called), Completion::Status(Status::BUSY));
        assert_eq!(retry(Duration::ZERO, suspended, not_called), Completion::Status(Status::BUSY));
    }

    #[test]
    fn a_dead_path_has_the_inner_manager_called() {
        let dead = || Some((failure(), Reached::Path));
        assert_eq!(retry(LONG, dead, || Some(good())), good());
        assert_eq!(retry(LONG, dead, || None), failure());
    }

    #[test]
    fn a_map_whose_state_cannot_be_read_is_busy() {
        assert_eq!(retry(LONG, || None, not_called), Completion::Status(Status::BUSY));
    }

    #[test]
    fn a_map_without_usable_path_gets_no_command() {
        let Some((device, number)) = block_device() else { return };
        let inner = Recorder::answering(good());
        for states in [&[][..], &["offline"], &["offline", "transport-offline"]] {
            let tree = tree(&number, states);
            let manager = MultipathReader::new(inner.clone(), tree.sysfs());
            assert_eq!(
                manager.execute(device.as_fd(), reserve_in(0)).unwrap(),
                Completion::check(SenseCode::NOT_READY)
            );
        }
        assert_eq!(inner.taken(), 0);
        // The descriptor is not open for ioctls, so the ioctl fails.
        let tree = tree(&number, &["offline", "running"]);
        let manager = MultipathReader::new(inner, tree.sysfs());
        assert_eq!(manager.execute(device.as_fd(), reserve_in(0)).unwrap(), failure());
    }

    #[test]
    fn a_device_that_is_no_map_gets_the_command() {
        let null = File::open("/dev/null").unwrap();
        let tree = tree("1:3", &["offline"]);
        let manager = MultipathReader::new(Recorder::answering(good()), tree.sysfs());
        assert_eq!(manager.execute(null.as_fd(), reserve_in(0)).unwrap(), failure());
    }

    #[test]
    fn other_commands_go_to_the_inner_manager() {
        let inner = Recorder::answering(good());
        let manager = MultipathReader::new(inner.clone(), Sysfs::default());
        let null = File::open("/dev/null").unwrap();
        for command in [reserve_out(1, &[0; 24]), Command::cleanup()] {
            assert_eq!(manager.execute(null.as_fd(), command).unwrap(), good());
        }
        assert_eq!(inner.taken(), 2);
        assert!(!manager.is_connected());
    }
}
