//! The reservation commands of NVMe, by the kernel's passthrough ioctls (NVM Express Base Specification 2.0, 8.19;
//! Linux `linux/nvme_ioctl.h`).
//!
//! On NVMe, the block layer's ioctls cannot unregister, cannot list the registrants, and cannot read before Linux 6.19.
//!
//! `translate` translates commands, `command` encodes them, `report` and `outcome` read the answers, and `sys` has the system
//! calls.

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
use crate::command_error::{self, CommandError, CommandErrorLog};
use crate::device::is_block_device;
use translate::Session;
pub(crate) use translate::{NOT_PREEMPTED, NOT_RELEASED};

/// Translates every command to those of NVMe, sent to the namespace behind the descriptor.
///
/// | command | NVMe | refusals |
/// | --- | --- | --- |
/// | READ KEYS, READ RESERVATION, READ FULL STATUS | Reservation Report | |
/// | REPORT CAPABILITIES | Identify Namespace (RESCAP): the types, PTPL_C; Reservation Report: PTPL_A; ATP_C, no SIP_C | |
/// | REGISTER of a key by an unregistered host | Register; a host with the same key is no conflict, unlike in SCSI | SPEC_I_PT; APTPL where RESCAP has no PTPL: 05/26/00 |
/// | REGISTER of another key; of zero | Register: Replace; Unregister | the same |
/// | REGISTER of zero by an unregistered host | none: Reservation Report and Get Features (Host Identifier) tell whether it is registered | a host without an identifier: 05/26/00 |
/// | REGISTER AND IGNORE EXISTING KEY | Register: Register, and Replace with IEKEY if that is a conflict; of zero: Unregister with IEKEY | the same |
/// | RESERVE | Acquire | a type that the namespace does not have: 05/24/00 |
/// | RELEASE; CLEAR | Release; Release: Clear | |
/// | PREEMPT; PREEMPT AND ABORT | Acquire: Preempt; Preempt and Abort | an invalid TYPE, even where it is ignored: 05/24/00 |
/// | REGISTER AND MOVE, REPLACE LOST RESERVATION | none | 05/24/00 |
///
/// * **Registrants are hosts**, by their HOSTID, not nexuses. All controllers and all virtual machines of a host share one
///   registration. READ KEYS and READ FULL STATUS have each host once. ALL_TG_PT is set, and a client may set it: every
///   registration works like that.
/// * **TransportIDs.** A host has the TransportID of an SRP initiator port (protocol identifier 4h). Its INITIATOR PORT
///   IDENTIFIER is the HOSTID byte for byte, after eight zero bytes where that has 64 bits. A HOSTID of zero belongs to one
///   controller: the identifier is zero, and RELATIVE TARGET PORT IDENTIFIER is the controller's CNTLID.
/// * **APTPL** 1 is CPTPL 11b, APTPL 0 is CPTPL 10b.
/// * **GOOD is verified.** After a preemption the report must lack the victim. After the release of an all-registrants
///   reservation it must show no holder. Otherwise the answer is 04/44/00, with a log line. Linux' own target (nvmet of
///   6.13 to 7.2) reports success and does nothing when the reservation holder preempts another registrant. Clusters fence
///   nodes by that.
/// * **Status codes.** Reservation Conflict is RESERVATION CONFLICT. Invalid Field is the one ILLEGAL REQUEST that is
///   possible for a service action. There are no unit attentions.
/// * **Permission.** The kernel wants CAP_SYS_ADMIN. Since Linux 6.2 it permits I/O commands that the controller's command
///   effects log allows without it; a change then needs a descriptor open for writing. Linux' own target allows all of
///   them. To read the host identifier takes CAP_SYS_ADMIN in any case, and only some commands need it.
///   [`try_execute`](Self::try_execute) reports a missing permission.
/// * A partition or a device-mapper device passes the commands on to the device beneath. Use a
///   [`DeviceRouter`](crate::DeviceRouter), unless the descriptor is of a whole namespace.
/// * CLEANUP is GOOD: there is no state to clean up.
#[derive(Debug)]
pub struct Nvme {
    timeout: Duration,
    error_log: CommandErrorLog,
}

impl Nvme {
    /// The time-out of each NVMe command: 30 s, as in the kernel.
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

    /// With [`Nvme::DEFAULT_TIMEOUT`].
    pub const fn new() -> Self {
        Self::with_timeout(Self::DEFAULT_TIMEOUT)
    }

    /// With another time-out, in whole milliseconds from 1 to `i32::MAX` (24 days).
    pub const fn with_timeout(timeout: Duration) -> Self {
        Self { timeout, error_log: CommandErrorLog::new() }
    }

    fn run(&self, device: BorrowedFd<'_>, command: Command<'_>) -> Result<Completion, CommandError> {
        let no_namespace = || Ok(Completion::check(SenseCode::INVALID_OPCODE));
        if command.opcode() == Opcode::Cleanup {
            return Ok(Completion::Good(Vec::new()));
        }
        // For a character device the numbers of these ioctls may mean something else.
        if !is_block_device(device).is_ok_and(|is| is) {
            return no_namespace();
        }
        let namespace = match sys::Device::new(device, self.timeout_in_milliseconds()) {
            Ok(namespace) => namespace,
            // The answers of other drivers to an unknown ioctl.
            Err(Errno::NOTTY | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => return no_namespace(),
            Err(errno) => return command_error::of_errno(errno).map_err(CommandError::NotPermitted),
        };
        let session = Session::new(&namespace);
        let refused = |code| CommandError::Answer(Completion::check(code));
        match command.opcode() {
            Opcode::ReserveOut => session.write(&ReserveOut::parse(command).map_err(refused)?),
            _ => session.read(&ReserveIn::parse(command).map_err(refused)?),
        }
    }

    fn timeout_in_milliseconds(&self) -> u32 {
        // For the kernel, 0 means its own default.
        self.timeout.as_millis().clamp(1, i32::MAX as u128) as u32
    }
}

impl Default for Nvme {
    fn default() -> Self {
        Self::new()
    }
}

impl Nvme {
    /// As [`execute`](PrManager::execute), but reports where the kernel does not permit the command to this process.
    ///
    /// # Errors
    ///
    /// [`NotPermitted`]: nothing was changed, and another process may run the command.
    pub fn try_execute(&self, device: BorrowedFd<'_>, command: Command<'_>) -> Result<Completion, NotPermitted> {
        self.error_log.resolve(command, self.run(device, command))
    }
}

impl PrManager for Nvme {
    /// Never `Err`. Without permission the answer is CHECK CONDITION 0B/00/06, and the log says why, once a minute.
    fn execute(&self, device: BorrowedFd<'_>, command: Command<'_>) -> Result<Completion, Error> {
        let answer = self.try_execute(device, command);
        Ok(answer.unwrap_or_else(|not_permitted| self.error_log.not_permitted(command, not_permitted)))
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
    fn timeout_is_never_the_kernel_s_default() {
        assert_eq!(Nvme::default().timeout_in_milliseconds(), 30_000);
        assert_eq!(Nvme::with_timeout(Duration::ZERO).timeout_in_milliseconds(), 1);
        assert_eq!(Nvme::with_timeout(Duration::MAX).timeout_in_milliseconds(), i32::MAX as u32);
    }

    #[test]
    fn cleanup_is_good() {
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
