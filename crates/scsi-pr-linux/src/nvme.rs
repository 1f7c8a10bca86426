//! The reservation commands of NVMe, by the kernel's passthrough ioctls (NVM Express Base Specification 2.0, 8.19;
//! Linux `linux/nvme_ioctl.h`): for NVMe namespaces, where the block layer's ioctls cannot unregister, cannot tell who is
//! registered, and cannot read anything before Linux 6.19.
//!
//! What a command becomes is in `translate`, in bytes in `command`, what comes back in `report` and `outcome`; the system
//! calls are in `sys`.

mod command;
mod outcome;
mod report;
mod sys;
mod translate;

use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::io::Errno;
use scsi_pr::{Command, Completion, Error, Opcode, PrManager, ReserveIn, ReserveOut, SenseCode};

use crate::NotPermitted;
use crate::device::is_block_device;
use crate::permission::{self, Complaints, Stop};
use translate::Session;
pub(crate) use translate::{NOT_PREEMPTED, NOT_RELEASED};

/// Translates every command to those of NVMe, sent to the namespace behind the descriptor.
///
/// | command | NVMe | what is refused, and how |
/// | --- | --- | --- |
/// | READ KEYS, READ RESERVATION, READ FULL STATUS | Reservation Report | |
/// | REPORT CAPABILITIES | Identify Namespace (RESCAP): the types, PTPL_C; Reservation Report: PTPL_A; ATP_C, no SIP_C | |
/// | REGISTER of a key by who has none | Register; a host that has the same key already is no conflict, as it would be to SCSI | SPEC_I_PT; APTPL where RESCAP has no PTPL: 05/26/00 |
/// | REGISTER of another key; of zero | Register: Replace; Unregister | the same |
/// | REGISTER of zero by who has none | none: Reservation Report and Get Features (Host Identifier) tell whether it has one | where the host has no identifier: 05/26/00 |
/// | REGISTER AND IGNORE EXISTING KEY | Register: Register, and Replace with IEKEY if that is a conflict; of zero: Unregister with IEKEY | the same |
/// | RESERVE | Acquire | a type that the namespace has not: 05/24/00 |
/// | RELEASE; CLEAR | Release; Release: Clear | |
/// | PREEMPT; PREEMPT AND ABORT | Acquire: Preempt; Preempt and Abort | a TYPE that is none, even where it does not count: 05/24/00 |
/// | REGISTER AND MOVE, REPLACE LOST RESERVATION | none | 05/24/00 |
///
/// * **Registrants are hosts**, known by their HOSTID, not nexuses: all controllers, and all virtual machines, of a host
///   share one registration. READ KEYS and READ FULL STATUS name each host once; ALL_TG_PT is set, and may be asked for:
///   it is how every registration works here.
/// * **TransportIDs.** A host is shown as an SRP initiator port (protocol identifier 4h), whose INITIATOR PORT IDENTIFIER
///   is HOSTID byte for byte; before one of 64 bits there are eight zero bytes. A host whose HOSTID is zero is known to
///   each controller for itself: its identifier is zero, and RELATIVE TARGET PORT IDENTIFIER is the controller's CNTLID.
/// * **APTPL** 1 is CPTPL 11b, APTPL 0 is CPTPL 10b.
/// * **What is good was done.** After a preemption the report must show that the victim is gone, after a release of what
///   all registrants hold that nobody holds it; else the answer is 04/44/00 and the log says so. Linux' own target (nvmet
///   of 6.13 to 7.2) answers success and does nothing when the holder of a reservation preempts another registrant, which
///   is how nodes are fenced.
/// * **Status codes**: Reservation Conflict is RESERVATION CONFLICT; Invalid Field is the one ILLEGAL REQUEST that there
///   can be for a service action. Unit attentions do not exist.
/// * **Permission.** The kernel wants CAP_SYS_ADMIN; since Linux 6.2 it does without for I/O commands that the controller's
///   command effects log allows, those that change something on a descriptor open for writing (Linux' own target allows
///   all of reservations). To find out who this host is takes CAP_SYS_ADMIN in any case; it is asked only where a command
///   depends on it. [`try_execute`](Self::try_execute) tells this apart.
/// * A partition or a device-mapper device passes the commands on to what is beneath: put a [`DeviceRouter`](crate::DeviceRouter) around
///   this, unless it is known that the whole of it is meant.
/// * CLEANUP is good: nothing is kept here that would need cleaning.
#[derive(Debug)]
pub struct Nvme {
    timeout: Duration,
    complaints: Complaints,
}

impl Nvme {
    /// How long a namespace gets for each NVMe command: 30 s, as the kernel gives it by itself.
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

    /// With [`Nvme::DEFAULT_TIMEOUT`].
    pub const fn new() -> Self {
        Self::with_timeout(Self::DEFAULT_TIMEOUT)
    }

    /// With another time-out, in whole milliseconds from 1 to `i32::MAX` (24 days).
    pub const fn with_timeout(timeout: Duration) -> Self {
        Self { timeout, complaints: Complaints::new() }
    }

    fn run(&self, device: BorrowedFd<'_>, command: Command<'_>) -> Result<Completion, Stop> {
        let no_namespace = || Ok(Completion::check(SenseCode::INVALID_OPCODE));
        if command.opcode() == Opcode::Cleanup {
            return Ok(Completion::Good(Vec::new()));
        }
        // The numbers of these ioctls may mean something else to a character device.
        if !is_block_device(device).is_ok_and(|is| is) {
            return no_namespace();
        }
        let namespace = match sys::Device::new(device, self.timeout_in_milliseconds()) {
            Ok(namespace) => namespace,
            // What other drivers say to an ioctl that they do not know.
            Err(Errno::NOTTY | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => return no_namespace(),
            Err(errno) => return permission::of_errno(errno).map_err(Stop::NotPermitted),
        };
        let session = Session::new(&namespace);
        let refused = |code| Stop::With(Completion::check(code));
        match command.opcode() {
            Opcode::ReserveOut => session.write(&ReserveOut::parse(command).map_err(refused)?),
            _ => session.read(&ReserveIn::parse(command).map_err(refused)?),
        }
    }

    fn timeout_in_milliseconds(&self) -> u32 {
        // To the kernel 0 means its own default.
        self.timeout.as_millis().clamp(1, i32::MAX as u128) as u32
    }
}

impl Default for Nvme {
    fn default() -> Self {
        Self::new()
    }
}

impl Nvme {
    /// As [`execute`](PrManager::execute), but tells apart what the kernel does not permit to this process.
    ///
    /// # Errors
    ///
    /// [`NotPermitted`]: nothing was changed, and another process may run the command.
    pub fn try_execute(&self, device: BorrowedFd<'_>, command: Command<'_>) -> Result<Completion, NotPermitted> {
        self.complaints.settle(command, self.run(device, command))
    }
}

impl PrManager for Nvme {
    /// Never `Err`. What the kernel does not permit is CHECK CONDITION 0B/00/06, and the log says why, once a minute.
    fn execute(&self, device: BorrowedFd<'_>, command: Command<'_>) -> Result<Completion, Error> {
        let answer = self.try_execute(device, command);
        Ok(answer.unwrap_or_else(|not_permitted| self.complaints.give_up(command, not_permitted)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::commands;
    use proptest::prelude::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    const fn shareable<T: Send + Sync>() {}
    const _: () = shareable::<Nvme>();

    #[test]
    fn the_kernel_is_never_told_to_use_its_own_time_out() {
        assert_eq!(Nvme::default().timeout_in_milliseconds(), 30_000);
        assert_eq!(Nvme::with_timeout(Duration::ZERO).timeout_in_milliseconds(), 1);
        assert_eq!(Nvme::with_timeout(Duration::MAX).timeout_in_milliseconds(), i32::MAX as u32);
    }

    #[test]
    fn there_is_nothing_to_clean_up() {
        let null = File::open("/dev/null").unwrap();
        assert_eq!(Nvme::new().execute(null.as_fd(), Command::cleanup()).unwrap(), Completion::Good(Vec::new()));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn no_command_is_good_where_none_can_run(command in commands()) {
            // Not every machine has these, and not everybody may open them.
            for name in ["null", "loop0", "zram0"] {
                let Ok(device) = File::open(format!("/dev/{name}")) else { continue };
                let answer = Nvme::new().try_execute(device.as_fd(), command.command());
                prop_assert_eq!(answer, Ok(Completion::check(SenseCode::INVALID_OPCODE)), "{}", name);
            }
        }
    }
}
