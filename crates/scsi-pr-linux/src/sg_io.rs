//! SG_IO: the command as it is, to the device behind the descriptor (Linux `scsi/sg.h`, sg(4)).
//!
//! The CDB and the parameter list are not parsed. One command is one ioctl: nothing is sent twice. `outcome` translates the
//! answer, and `sys` has the system call.

pub(crate) mod outcome;
mod sys;

use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::thread::{CapabilitySet, capabilities};
use scsi_pr::{Command, Completion, Error, Opcode, PrManager, Sense};
use scsi_pr_daemon::RateLimiter;
use tracing::warn;

use outcome::Answer;
pub(crate) use outcome::Reached;
use sys::Transfer;

/// The least length of a buffer for data from the device. LIO of Linux 6.1 writes past the end of a shorter one, whatever the
/// allocation length.
const MIN_BUFFER: usize = 8192;

/// Sends every command to the device by SG_IO.
///
/// * The calling thread needs CAP_SYS_RAWIO. Without it the answer is CHECK CONDITION 0B/00/06, and the log says why, once a
///   minute.
/// * [`execute`](PrManager::execute) never returns `Err`: every answer of the kernel has a [`Completion`]. It is GOOD only
///   when the ioctl succeeded and host, driver and unit reported no error.
/// * No signal interrupts the ioctl on a block device. On `/dev/sgN` a signal can, after the command was sent. The answer is
///   then CHECK CONDITION 0B/00/06. The command is not sent again, because it might change something twice.
/// * After a handler with `SA_RESTART`, or SIGSTOP and SIGCONT, the kernel itself repeats the ioctl. So block signals in the
///   threads that run commands.
/// * CLEANUP is GOOD: a device with one path has nothing to clean up. [`DeviceRouter`](crate::DeviceRouter) keeps it away
///   from multipath maps.
#[derive(Debug)]
pub struct SgIo {
    timeout: Duration,
    /// The key is whether this process has the capability.
    not_permitted: RateLimiter<bool>,
}

impl SgIo {
    /// The time-out of a command: 30 s, as in QEMU's scsi-block and the kernel's disk driver. A busy array is slow to preempt,
    /// and a dead path must not block without limit.
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

    /// With [`SgIo::DEFAULT_TIMEOUT`].
    pub const fn new() -> Self {
        Self::with_timeout(Self::DEFAULT_TIMEOUT)
    }

    /// With another time-out, in whole milliseconds from 1 to `i32::MAX` (24 days). On a block device the kernel uses at
    /// least 7 s.
    pub const fn with_timeout(timeout: Duration) -> Self {
        Self { timeout, not_permitted: RateLimiter::new(1, 60, Duration::from_secs(60)) }
    }

    fn timeout_in_milliseconds(&self) -> u32 {
        // For the kernel, 0 means its own default, and more than `i32::MAX` no time-out.
        self.timeout.as_millis().clamp(1, i32::MAX as u128) as u32
    }

    /// The completion of `command`, and where it ended.
    pub(crate) fn send(&self, device: BorrowedFd<'_>, command: Command<'_>) -> (Completion, Reached) {
        let (completion, reached, errno) = self.exchange(device, command);
        self.explain(errno, command.opcode(), is_capable);
        (completion, reached)
    }

    /// The completion of `command`; `None` where the driver of the device does not know SG_IO, and has sent nothing.
    ///
    /// Some drivers from outside of Linux, multipath drivers of storage vendors above all, take SCSI commands on a block
    /// device that is not SCSI to the kernel.
    pub(crate) fn send_where_supported(&self, device: BorrowedFd<'_>, command: Command<'_>) -> Option<Completion> {
        let (completion, _, errno) = self.exchange(device, command);
        if errno.is_some_and(|errno| is_unknown(errno, is_capable)) {
            return None;
        }
        self.explain(errno, command.opcode(), is_capable);
        Some(completion)
    }

    fn exchange(&self, device: BorrowedFd<'_>, command: Command<'_>) -> (Completion, Reached, Option<Errno>) {
        match command.opcode() {
            Opcode::ReserveIn => {
                // A new buffer for each command, so it has no byte of another.
                let mut data = vec![0; command.cdb().allocation_length().max(MIN_BUFFER)];
                let answer = self.issue(device, command, Transfer::FromDevice(&mut data));
                let completion = answer.completion(&data, command.cdb().allocation_length());
                (completion, answer.reached(), answer.report.err())
            }
            Opcode::ReserveOut => {
                let answer = self.issue(device, command, Transfer::ToDevice(command.parameter_list()));
                (answer.completion(&[], 0), answer.reached(), answer.report.err())
            }
            Opcode::Cleanup => (Completion::Good(Vec::new()), Reached::Unit, None),
        }
    }

    fn issue(&self, device: BorrowedFd<'_>, command: Command<'_>, transfer: Transfer<'_>) -> Answer {
        let mut sense = [0; Sense::LENGTH];
        let timeout = self.timeout_in_milliseconds();
        let report = sys::sg_io(device, command.cdb().bytes(), transfer, &mut sense, timeout);
        Answer { report, sense }
    }

    /// Logs what the sense data do not tell.
    fn explain(&self, errno: Option<Errno>, opcode: Opcode, is_capable: impl FnOnce() -> bool) {
        if errno != Some(Errno::PERM) {
            return;
        }
        let is_capable = is_capable();
        if let Some(suppressed) = self.not_permitted.check(is_capable) {
            let remedy = match is_capable {
                false => "give this process the capability CAP_SYS_RAWIO",
                true => {
                    "this process has CAP_SYS_RAWIO. Either it has it in a user namespace alone, where it does not \
                     count, or the device's driver wants more and takes no SCSI commands (nbd)"
                }
            };
            warn!("the kernel refused a {opcode} by SG_IO (EPERM): {remedy}{suppressed}");
        }
    }
}

/// Whether this errno means that the driver does not know SG_IO, and has sent nothing.
///
/// Some drivers return EINVAL for an unknown ioctl: loop does. nbd returns EPERM for every ioctl without CAP_SYS_ADMIN. The
/// kernel itself returns EPERM without CAP_SYS_RAWIO, so EPERM counts only with that capability.
fn is_unknown(errno: Errno, is_capable: impl FnOnce() -> bool) -> bool {
    match errno {
        Errno::NOTTY | Errno::INVAL => true,
        Errno::PERM => is_capable(),
        _ => false,
    }
}

/// Whether this thread has the capability that SG_IO needs.
fn is_capable() -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_RAWIO))
}

impl Default for SgIo {
    fn default() -> Self {
        Self::new()
    }
}

impl PrManager for SgIo {
    fn execute(&self, device: BorrowedFd<'_>, command: Command<'_>) -> Result<Completion, Error> {
        Ok(self.send(device, command).0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Log;
    use crate::models::commands;
    use proptest::prelude::*;
    use scsi_pr::{Cdb, SenseCode};
    use std::fs::{File, OpenOptions};
    use std::os::fd::{AsFd, OwnedFd};
    use std::os::unix::net::UnixStream;

    const fn shareable<T: Send + Sync>() {}
    const _: () = shareable::<SgIo>();

    fn cdb(opcode: Opcode, length: u16) -> Cdb {
        let mut bytes = [0; 16];
        bytes[0] = opcode.byte();
        bytes[7..9].copy_from_slice(&length.to_be_bytes());
        Cdb::new(bytes).unwrap()
    }

    /// The answers to both commands on this descriptor.
    fn answers(device: impl AsFd) -> [Completion; 2] {
        let manager = SgIo::new();
        let run = |command| manager.execute(device.as_fd(), command).unwrap();
        [
            run(Command::new(cdb(Opcode::ReserveIn, 8192), &[]).unwrap()),
            run(Command::new(cdb(Opcode::ReserveOut, 24), &[0; 24]).unwrap()),
        ]
    }

    #[test]
    fn command_for_another_device_is_terminated() {
        let terminated = Completion::check(SenseCode::IO_PROCESS_TERMINATED);
        let expected = [terminated.clone(), terminated];
        let read_write = |path| OpenOptions::new().read(true).write(true).open(path).unwrap();
        for path in ["/dev/null", "/dev/zero", "/dev/full"] {
            assert_eq!(answers(read_write(path)), expected, "{path}");
        }
        assert_eq!(answers(tempfile::tempfile().unwrap()), expected, "regular file");
        assert_eq!(answers(File::open("/").unwrap()), expected, "directory");
        assert_eq!(answers(std::io::pipe().unwrap().1), expected, "pipe");
        assert_eq!(answers(UnixStream::pair().unwrap().0), expected, "socket");
        assert_eq!(answers(memory_file()), expected, "memfd");
        let path_only = rustix::fs::open("/dev/null", rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
        assert_eq!(answers(path_only), expected, "O_PATH");
    }

    fn memory_file() -> OwnedFd {
        rustix::fs::memfd_create("scsi-pr-linux", rustix::fs::MemfdFlags::CLOEXEC).unwrap()
    }

    #[test]
    fn block_device_without_scsi_refuses() {
        // Which of the two errors it is (ENOTTY, EINVAL) is the driver's choice; the loop driver says EINVAL.
        let refusals = [SenseCode::IO_PROCESS_TERMINATED, SenseCode::INVALID_FIELD_IN_CDB].map(Completion::check);
        for name in ["loop0", "vda", "zram0"] {
            // Not every machine has them, and not everybody may open them.
            let Ok(device) = File::open(format!("/dev/{name}")) else { continue };
            for answer in answers(device) {
                assert!(refusals.contains(&answer), "{name}: {answer}");
            }
        }
    }

    #[test]
    fn shortest_commands_are_sent_too() {
        let null = File::open("/dev/null").unwrap();
        for opcode in [Opcode::ReserveIn, Opcode::ReserveOut] {
            let answer = SgIo::new().execute(null.as_fd(), Command::new(cdb(opcode, 0), &[]).unwrap()).unwrap();
            assert_eq!(answer, Completion::check(SenseCode::IO_PROCESS_TERMINATED));
        }
    }

    #[test]
    fn cleanup_is_good() {
        let null = File::open("/dev/null").unwrap();
        assert_eq!(SgIo::new().execute(null.as_fd(), Command::cleanup()).unwrap(), Completion::Good(Vec::new()));
    }

    #[test]
    fn timeout_is_never_the_kernel_s_default_or_infinite() {
        assert_eq!(SgIo::default().timeout_in_milliseconds(), 30_000);
        assert_eq!(SgIo::with_timeout(Duration::ZERO).timeout_in_milliseconds(), 1);
        assert_eq!(SgIo::with_timeout(Duration::MAX).timeout_in_milliseconds(), i32::MAX as u32);
    }

    #[test]
    fn missing_privilege_is_logged_once_a_minute() {
        let log = Log::at(tracing::Level::WARN);
        let manager = SgIo::new();
        log.during(|| {
            for errno in [None, Some(Errno::NOTTY), Some(Errno::PERM), Some(Errno::PERM), Some(Errno::ACCESS)] {
                for is_capable in [false, true] {
                    manager.explain(errno, Opcode::ReserveOut, || is_capable);
                }
            }
        });
        let lines: Vec<_> = log.events().into_iter().map(|event| event.message).collect();
        let [missing, held] = &lines[..] else { panic!("{lines:?}") };
        assert!(missing.contains("PERSISTENT RESERVE OUT") && missing.contains("give this process"), "{missing}");
        assert!(held.contains("user namespace") && !held.contains("give this process"), "{held}");
    }

    #[test]
    fn eperm_with_the_capability_means_that_the_driver_does_not_know_sg_io() {
        for raw in 1..=4095 {
            let errno = Errno::from_raw_os_error(raw);
            let always = matches!(errno, Errno::NOTTY | Errno::INVAL);
            assert_eq!(is_unknown(errno, || false), always, "{errno:?}");
            assert_eq!(is_unknown(errno, || true), always || errno == Errno::PERM, "{errno:?}");
        }
    }

    proptest! {
        #[test]
        fn no_command_is_good_where_none_can_run(command in commands()) {
            let answer = SgIo::new().execute(memory_file().as_fd(), command.command()).unwrap();
            prop_assert_eq!(answer, Completion::check(SenseCode::IO_PROCESS_TERMINATED));
        }
    }
}
