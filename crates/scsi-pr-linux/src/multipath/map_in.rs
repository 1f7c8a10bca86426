//! [`MapIn`].

use std::os::fd::BorrowedFd;
use std::thread;
use std::time::{Duration, Instant};

use scsi_pr::{Command, Completion, Error, Opcode, PrManager, SenseCode, Status};

use super::map::Watch;
use crate::device::Sysfs;
use crate::sg_io::{Reached, SgIo};

/// Answers PERSISTENT RESERVE IN on multipath maps, in a process that may do no more than send SCSI commands
/// (CAP_SYS_RAWIO); hands the rest to the manager inside, which may do more: a worker that is root and has a
/// [`Multipath`](super::Multipath).
///
/// The command goes to the map by SG_IO, and the kernel sends it down the path that it uses: byte for byte, READ FULL
/// STATUS included.
///
/// * A map of which no path works, as sysfs has it, is not asked: with `queue_if_no_path`, the kernel would keep the
///   command until a path comes back. The answer is CHECK CONDITION 02/04/00, LOGICAL UNIT NOT READY. That a path works as
///   a SCSI device, and device mapper has given it up all the same, sysfs does not tell; with no other path left, the
///   command then waits.
/// * While the map is suspended, as it is for moments when its table is swapped, the command is tried again for up to five
///   seconds; then the answer is BUSY.
/// * When the path has died and the kernel still uses it, the manager inside is asked, which can choose another. What it
///   cannot answer keeps the first answer.
#[derive(Debug)]
pub struct MapIn<M> {
    inner: M,
    sg_io: SgIo,
    paths: Watch,
    patience: Duration,
}

/// How long a map may be suspended.
const PATIENCE: Duration = Duration::from_secs(5);

/// Tables are swapped within milliseconds; there is no event to wait for without privileges.
const PAUSE: Duration = Duration::from_millis(10);

impl<M> MapIn<M> {
    /// Around `inner`; `sysfs` tells the paths.
    pub const fn new(inner: M, sysfs: Sysfs) -> Self {
        Self { inner, sg_io: SgIo::new(), paths: Watch::new(sysfs), patience: PATIENCE }
    }
}

impl<M: PrManager> PrManager for MapIn<M> {
    fn execute(&self, device: BorrowedFd<'_>, command: Command<'_>) -> Result<Completion, Error> {
        if command.opcode() != Opcode::ReserveIn {
            return self.inner.execute(device, command);
        }
        let send = || match self.paths.is_without_path(device) {
            Ok(false) => Some(self.sg_io.send(device, command)),
            Ok(true) => Some((Completion::check(SenseCode::NOT_READY), Reached::Unit)),
            // No room for another open file: it may be told later.
            Err(_) => None,
        };
        let another_way = || self.inner.execute(device, command).ok();
        Ok(insist(self.patience, send, another_way))
    }

    fn is_connected(&self) -> bool {
        self.inner.is_connected()
    }
}

/// Has the command sent until the map takes it, at most for `patience`.
fn insist(
    patience: Duration,
    send: impl Fn() -> Option<(Completion, Reached)>,
    another_way: impl FnOnce() -> Option<Completion>,
) -> Completion {
    let end = Instant::now() + patience;
    loop {
        match send() {
            Some((completion, Reached::Unit)) => return completion,
            Some((completion, Reached::Path)) => return another_way().unwrap_or(completion),
            Some((_, Reached::Suspended)) if Instant::now() < end => thread::sleep(PAUSE),
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
    const _: () = shareable::<MapIn<SgIo>>();

    const LONG: Duration = Duration::from_secs(600);

    fn good() -> Completion {
        Completion::Good(vec![1])
    }

    fn failure() -> Completion {
        Completion::check(SenseCode::IO_PROCESS_TERMINATED)
    }

    fn nobody() -> Option<Completion> {
        panic!("another way was tried")
    }

    #[test]
    fn what_the_unit_says_is_the_answer() {
        for answer in [good(), failure(), Completion::Status(Status::RESERVATION_CONFLICT)] {
            assert_eq!(insist(LONG, || Some((answer.clone(), Reached::Unit)), nobody), answer);
        }
    }

    #[test]
    fn a_suspended_map_is_tried_again_and_is_busy_at_last() {
        let tries = Cell::new(0);
        let resumed = || {
            tries.set(tries.get() + 1);
            Some(if tries.get() < 4 { (failure(), Reached::Suspended) } else { (good(), Reached::Unit) })
        };
        assert_eq!(insist(LONG, resumed, nobody), good());
        assert_eq!(tries.get(), 4);
        let suspended = || Some((failure(), Reached::Suspended));
        assert_eq!(insist(Duration::from_millis(30), suspended, nobody), Completion::Status(Status::BUSY));
        assert_eq!(insist(Duration::ZERO, suspended, nobody), Completion::Status(Status::BUSY));
    }

    #[test]
    fn a_dead_path_has_another_one_tried() {
        let dead = || Some((failure(), Reached::Path));
        assert_eq!(insist(LONG, dead, || Some(good())), good());
        assert_eq!(insist(LONG, dead, || None), failure());
    }

    #[test]
    fn a_map_that_cannot_be_looked_at_is_busy() {
        assert_eq!(insist(LONG, || None, nobody), Completion::Status(Status::BUSY));
    }

    #[test]
    fn a_map_of_which_no_path_works_is_not_asked() {
        let Some((device, number)) = block_device() else { return };
        let inner = Recorder::answering(good());
        for states in [&[][..], &["offline"], &["offline", "transport-offline"]] {
            let tree = tree(&number, states);
            let manager = MapIn::new(inner.clone(), tree.sysfs());
            assert_eq!(
                manager.execute(device.as_fd(), reserve_in(0)).unwrap(),
                Completion::check(SenseCode::NOT_READY)
            );
        }
        assert_eq!(inner.taken(), 0);
        // The descriptor is not open for ioctls, so that one that is made fails.
        let tree = tree(&number, &["offline", "running"]);
        let manager = MapIn::new(inner, tree.sysfs());
        assert_eq!(manager.execute(device.as_fd(), reserve_in(0)).unwrap(), failure());
    }

    #[test]
    fn what_is_no_map_is_asked_as_it_is() {
        let null = File::open("/dev/null").unwrap();
        let tree = tree("1:3", &["offline"]);
        let manager = MapIn::new(Recorder::answering(good()), tree.sysfs());
        assert_eq!(manager.execute(null.as_fd(), reserve_in(0)).unwrap(), failure());
    }

    #[test]
    fn the_rest_is_the_manager_insides() {
        let inner = Recorder::answering(good());
        let manager = MapIn::new(inner.clone(), Sysfs::default());
        let null = File::open("/dev/null").unwrap();
        for command in [reserve_out(1, &[0; 24]), Command::cleanup()] {
            assert_eq!(manager.execute(null.as_fd(), command).unwrap(), good());
        }
        assert_eq!(inner.taken(), 2);
        assert!(!manager.is_connected());
    }
}
