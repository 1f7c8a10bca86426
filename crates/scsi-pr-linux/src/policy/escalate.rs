//! [`Escalate`].

use std::os::fd::BorrowedFd;

use scsi_pr::{Command, Completion, Error, PrManager};

use crate::Attempt;

/// Runs commands in this process where the kernel permits it, and hands the others to one with more privileges.
///
/// What the kernel does not permit has changed nothing ([`NotPermitted`](crate::NotPermitted)), so that the other manager,
/// a worker process say, starts from the beginning. Its answer is the answer, whatever it is. Only if it could not be
/// handed the command at all ([`Error::may_have_run`] is false) the answer is CHECK CONDITION 0B/00/06, as without it, and
/// the log says why, once a minute.
#[derive(Debug)]
pub struct Escalate<M, W> {
    here: M,
    elsewhere: W,
}

impl<M, W> Escalate<M, W> {
    /// `here` is tried first; `elsewhere` has more privileges.
    pub const fn new(here: M, elsewhere: W) -> Self {
        Self { here, elsewhere }
    }
}

impl<M: Attempt, W: PrManager> PrManager for Escalate<M, W> {
    /// `Err` only when the command may have been run elsewhere, and nobody knows how it ended.
    fn execute(&self, device: BorrowedFd<'_>, command: Command<'_>) -> Result<Completion, Error> {
        let not_permitted = match self.here.try_execute(device, command) {
            Ok(completion) => return Ok(completion),
            Err(not_permitted) => not_permitted,
        };
        match self.elsewhere.execute(device, command) {
            Err(error) if !error.may_have_run() => Ok(self.here.give_up(command, not_permitted, Some(&error))),
            answer => answer,
        }
    }

    /// Whether the manager of this process is: many a kernel permits it all.
    fn is_connected(&self) -> bool {
        self.here.is_connected()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NotPermitted;
    use crate::log::Log;
    use crate::models::commands;
    use crate::permission::Complaints;
    use crate::policy::tests::{Recorder, reserve_out};
    use proptest::prelude::*;
    use rustix::io::Errno;
    use scsi_pr::SenseCode;
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    const fn shareable<T: Send + Sync>() {}
    const _: () = shareable::<Escalate<crate::Nvme, crate::SgIo>>();
    const _: () = shareable::<Escalate<crate::BlockIoctl, crate::SgIo>>();

    /// The kernel's word, again and again.
    struct Kernel {
        says: Result<Completion, NotPermitted>,
        asked: AtomicUsize,
        complaints: Complaints,
    }

    impl Kernel {
        fn saying(says: Result<Completion, NotPermitted>) -> Self {
            Self { says, asked: AtomicUsize::new(0), complaints: Complaints::new() }
        }
    }

    impl Attempt for Kernel {
        fn try_execute(&self, _: BorrowedFd<'_>, _: Command<'_>) -> Result<Completion, NotPermitted> {
            self.asked.fetch_add(1, Relaxed);
            self.says.clone()
        }

        fn give_up(&self, command: Command<'_>, not_permitted: NotPermitted, why: Option<&Error>) -> Completion {
            self.complaints.give_up(command, not_permitted, why)
        }
    }

    impl PrManager for Kernel {
        fn execute(&self, _: BorrowedFd<'_>, _: Command<'_>) -> Result<Completion, Error> {
            panic!("this would lose what the kernel did not permit")
        }
    }

    /// A worker that fails.
    struct Failing(fn(&'static str) -> Error);

    impl PrManager for Failing {
        fn execute(&self, _: BorrowedFd<'_>, _: Command<'_>) -> Result<Completion, Error> {
            Err((self.0)("start a worker").because("the monitor is gone"))
        }
    }

    fn execute<W: PrManager>(escalate: &Escalate<Kernel, W>, command: Command<'_>) -> Result<Completion, Error> {
        escalate.execute(File::open("/dev/null").unwrap().as_fd(), command)
    }

    fn answers() -> impl Strategy<Value = Completion> {
        let statuses = any::<u8>().prop_filter_map("a status", scsi_pr::Status::from_byte).prop_map(Completion::Status);
        let checks = any::<[u8; 3]>().prop_map(|[key, asc, ascq]| {
            Completion::check(SenseCode { key: scsi_pr::SenseKey::from_byte(key), asc, ascq })
        });
        prop_oneof![prop::collection::vec(any::<u8>(), 0..32).prop_map(Completion::Good), statuses, checks]
    }

    proptest! {
        #[test]
        fn what_is_answered_here_goes_nowhere_else(command in commands(), answer in answers()) {
            let worker = Recorder::good();
            let escalate = Escalate::new(Kernel::saying(Ok(answer.clone())), worker.clone());
            prop_assert_eq!(execute(&escalate, command.command()).unwrap(), answer);
            prop_assert_eq!((escalate.here.asked.load(Relaxed), worker.taken()), (1, 0));
        }

        #[test]
        fn what_is_not_permitted_here_is_run_elsewhere_once(command in commands(), answer in answers()) {
            let worker = Recorder::answering(answer.clone());
            let not_permitted = NotPermitted(Errno::PERM);
            let escalate = Escalate::new(Kernel::saying(Err(not_permitted)), worker.clone());
            prop_assert_eq!(execute(&escalate, command.command()).unwrap(), answer);
            prop_assert_eq!((escalate.here.asked.load(Relaxed), worker.taken()), (1, 1));
        }
    }

    #[test]
    fn where_nobody_else_can_be_asked_it_is_refused_and_the_log_says_why() {
        let not_permitted = NotPermitted(Errno::ACCESS);
        let escalate = Escalate::new(Kernel::saying(Err(not_permitted)), Failing(Error::not_run));
        let log = Log::at(tracing::Level::WARN);
        let list = [0; 24];
        for _ in 0..2 {
            let answer = log.during(|| execute(&escalate, reserve_out(1, &list)));
            assert_eq!(answer.unwrap(), Completion::check(SenseCode::IO_PROCESS_TERMINATED));
        }
        let [line] = &log.events()[..] else { panic!("{:?}", log.events()) };
        for part in ["RESERVE", "not run", "CAP_SYS_ADMIN", "cannot start a worker: the monitor is gone"] {
            assert!(line.message.contains(part), "{part}: {}", line.message);
        }
    }

    #[test]
    fn what_may_have_been_run_is_not_called_refused() {
        let escalate = Escalate::new(Kernel::saying(Err(NotPermitted(Errno::PERM))), Failing(Error::outcome_unknown));
        assert!(execute(&escalate, reserve_out(1, &[0; 24])).unwrap_err().may_have_run());
    }

    #[test]
    fn the_connection_is_that_of_this_process() {
        let good = || Ok(Completion::Good(Vec::new()));
        assert!(Escalate::new(Kernel::saying(good()), Recorder::good()).is_connected());
    }
}
