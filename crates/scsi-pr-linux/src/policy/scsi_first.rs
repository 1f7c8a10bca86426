//! [`ScsiFirst`].

use std::os::fd::BorrowedFd;

use scsi_pr::{Command, Completion, Error, PrManager};

use crate::SgIo;

/// Sends commands as they are to devices whose driver takes them, and has the manager inside run those for others.
///
/// For block devices that are neither SCSI disks nor NVMe namespaces to the kernel. Some drivers from outside of Linux,
/// multipath drivers of storage makers above all, pass SCSI commands on, as QEMU's helper has them do; what a driver of
/// Linux itself has for reservations, if anything, are the ioctls of [`BlockIoctl`](crate::BlockIoctl).
///
/// A driver that does not know SG_IO says so (`ENOTTY`, and `EINVAL` by some; nbd has `EPERM` for who lacks CAP_SYS_ADMIN,
/// which counts where this process has the CAP_SYS_RAWIO that SG_IO itself takes), and has done nothing. Every other
/// answer is the answer.
#[derive(Debug)]
pub struct ScsiFirst<M> {
    sg_io: SgIo,
    inner: M,
}

impl<M> ScsiFirst<M> {
    /// `inner` gets what cannot be sent as it is.
    pub const fn new(inner: M) -> Self {
        Self { sg_io: SgIo::new(), inner }
    }
}

impl<M: PrManager> PrManager for ScsiFirst<M> {
    fn execute(&self, device: BorrowedFd<'_>, command: Command<'_>) -> Result<Completion, Error> {
        match self.sg_io.send_where_taken(device, command) {
            Some(completion) => Ok(completion),
            None => self.inner.execute(device, command),
        }
    }

    fn is_connected(&self) -> bool {
        self.inner.is_connected()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BlockIoctl;
    use crate::policy::tests::{Recorder, keys, reserve_in, reserve_out};
    use rustix::fs::{Mode, OFlags, open};
    use scsi_pr::SenseCode;
    use std::fs::File;
    use std::os::fd::AsFd;

    fn answers(manager: &impl PrManager, device: impl AsFd) -> [Completion; 2] {
        [reserve_in(0), reserve_out(0, &keys(0, 1))].map(|command| manager.execute(device.as_fd(), command).unwrap())
    }

    #[test]
    fn who_takes_no_scsi_commands_is_asked_otherwise() {
        let good = || Completion::Good(Vec::new());
        let inner = Recorder::good();
        let manager = ScsiFirst::new(inner.clone());
        assert_eq!(answers(&manager, File::open("/dev/null").unwrap()), [good(), good()]);
        assert_eq!(inner.taken(), 2);
        // One that fails otherwise may be SCSI's, so that is the answer.
        let path_only = open("/dev/null", OFlags::PATH, Mode::empty()).unwrap();
        let failed = || Completion::check(SenseCode::IO_PROCESS_TERMINATED);
        assert_eq!(answers(&manager, path_only), [failed(), failed()]);
        assert_eq!(inner.taken(), 0);
    }

    #[test]
    fn a_disk_without_reservations_says_so_whatever_its_driver_says() {
        let manager = ScsiFirst::new(BlockIoctl::default());
        for name in ["loop0", "zram0", "vda", "nbd0"] {
            // Not every machine has them, and not everybody may open them.
            let Ok(device) = File::options().read(true).write(true).open(format!("/dev/{name}")) else { continue };
            let none = || Completion::check(SenseCode::INVALID_OPCODE);
            let [read, registered] = answers(&manager, device);
            assert_eq!(registered, none(), "{name}");
            // Before Linux 6.19 nobody can ask for keys this way.
            assert!([none(), Completion::check(SenseCode::INVALID_FIELD_IN_CDB)].contains(&read), "{name}: {read}");
        }
    }

    #[test]
    fn there_is_nothing_to_clean_up_and_nobody_is_asked() {
        let inner = Recorder::good();
        let null = File::open("/dev/null").unwrap();
        let answer = ScsiFirst::new(inner.clone()).execute(null.as_fd(), Command::cleanup()).unwrap();
        assert_eq!((answer, inner.taken()), (Completion::Good(Vec::new()), 0));
    }

    #[test]
    fn the_connection_is_that_of_the_manager_inside() {
        assert!(!ScsiFirst::new(Recorder::good()).is_connected());
    }
}
