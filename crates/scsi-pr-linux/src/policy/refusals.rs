//! [`Refusals`]: the answers and log lines of policies that do not run a command.

use std::fmt::Display;
use std::io;
use std::time::Duration;

use scsi_pr::{Command, Completion, SenseCode, Status};
use scsi_pr_daemon::{RepeatLimiter, Suppressed};
use tracing::warn;

use super::observed::{Client, RefusalReason};
use crate::device::Number;

/// The answers to commands that a policy does not run. Each has a line in the log that says which client sent it, what
/// and on which device, why it was refused, and what to do.
///
/// The lines are limited to one a minute for each process and device. A process with many devices has 60 lines a minute,
/// so that it does not suppress the lines of others.
#[derive(Debug)]
pub struct Refusals {
    remedy: &'static str,
    reason: RefusalReason,
    code: SenseCode,
    limiter: RefusalLimiter,
}

impl Refusals {
    /// Refuses commands to devices by CHECK CONDITION 05/20/00, INVALID COMMAND OPERATION CODE: the answer of a disk without
    /// persistent reservations. Cluster software gives up at once then. It would try again after BUSY, or after a status
    /// about this one command (INVALID FIELD).
    ///
    /// `remedy` says what an administrator can do about a refusal.
    pub const fn new(remedy: &'static str) -> Self {
        Self::with_answer(remedy, RefusalReason::Device, SenseCode::INVALID_OPCODE)
    }

    /// Refuses service actions by CHECK CONDITION 05/24/00, INVALID FIELD IN CDB: the answer of a device server without the
    /// service action. It is about this one command: the unit has reservations.
    ///
    /// `remedy` says what an administrator can do about a refusal.
    pub const fn of_service_actions(remedy: &'static str) -> Self {
        Self::with_answer(remedy, RefusalReason::Denied, SenseCode::INVALID_FIELD_IN_CDB)
    }

    const fn with_answer(remedy: &'static str, reason: RefusalReason, code: SenseCode) -> Self {
        Self { remedy, reason, code, limiter: RefusalLimiter::new() }
    }

    /// Logs the refusal, and returns the answer.
    ///
    /// `device` describes the device for the log, and `why` is the reason.
    pub fn refuse<D: Display>(
        &self,
        command: Command<'_>,
        number: Option<Number>,
        device: impl FnOnce() -> D,
        why: &str,
    ) -> Completion {
        self.limiter.log(number, self.reason, || (command, device(), why, self.remedy));
        Completion::check(self.code)
    }

    /// BUSY: this process or the machine has too many files open to open one of sysfs. That passes.
    pub fn put_off(&self, command: Command<'_>, error: &io::Error) -> Completion {
        if let Some(suppressed) = self.limiter.check(None) {
            warn!("{command}, answered with BUSY: cannot tell what the device is: {error}{suppressed}");
        }
        Completion::Status(Status::BUSY)
    }
}

/// The limit on lines about refused commands: by process and device.
#[derive(Debug)]
pub(super) struct RefusalLimiter(RepeatLimiter<u32, Option<Number>>);

impl RefusalLimiter {
    pub(super) const fn new() -> Self {
        Self(RepeatLimiter::new(60, 256, Duration::from_secs(60)))
    }

    fn check(&self, number: Option<Number>) -> Option<Suppressed> {
        self.0.check(Client::current().map_or(0, |client| client.pid), number)
    }

    /// Logs a refusal, of which `refusal` gives command, device, reason and remedy.
    pub(super) fn log<'a, D: Display>(
        &self,
        number: Option<Number>,
        reason: RefusalReason,
        refusal: impl FnOnce() -> (Command<'a>, D, &'a str, &'a str),
    ) {
        Client::note_refusal(reason);
        let Some(suppressed) = self.check(number) else { return };
        let (command, device, why, remedy) = refusal();
        let device = device.to_string();
        match Client::current() {
            Some(client) => warn!(
                name: "pr_helper_refused",
                pid = client.pid,
                uid = client.uid,
                virtual_machine = client.virtual_machine(),
                device,
                "{command}, refused on {device}, for {client}: {why}; {remedy}{suppressed}",
            ),
            None => warn!(
                name: "pr_helper_refused",
                device,
                "{command}, refused on {device}: {why}; {remedy}{suppressed}",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::reserve_out;
    use super::*;
    use crate::log::Log;

    const FLOODING: Client = Client { pid: u32::MAX, uid: 107 };
    const OTHER: Client = Client { pid: u32::MAX - 1, uid: 108 };

    fn refuse(refusals: &Refusals, client: Client, minor: u32) {
        let number = Number { major: 8, minor };
        let answer = client.run(|| refusals.refuse(reserve_out(0, &[0; 24]), Some(number), || number, "why not"));
        assert_eq!(answer, Completion::check(SenseCode::INVALID_OPCODE));
    }

    #[test]
    fn refusal_is_logged_once_a_minute_for_each_process_and_device() {
        let refusals = Refusals::new("do this");
        let log = Log::at(tracing::Level::WARN);
        log.during(|| {
            for client in [FLOODING, FLOODING, OTHER] {
                (0..2).for_each(|minor| refuse(&refusals, client, minor));
            }
        });
        let events = log.events();
        assert_eq!(events.len(), 4);
        let message = &events[0].message;
        assert!(message.starts_with("PERSISTENT RESERVE OUT, REGISTER, "), "{message}");
        let end = "refused on 8:0, for process 4294967295 of user 107: why not; do this";
        assert!(message.ends_with(end), "{message}");
        assert_eq!(events[0].fields["device"], "\"8:0\"");
        assert_eq!(events[0].fields["pid"], "4294967295");
    }

    #[test]
    fn process_with_many_devices_suppresses_no_refusal_of_another() {
        let refusals = Refusals::new("do this");
        let log = Log::at(tracing::Level::WARN);
        log.during(|| {
            (0..10_000).for_each(|minor| refuse(&refusals, FLOODING, minor));
            refuse(&refusals, OTHER, 0);
        });
        let of_other = log.events().into_iter().filter(|event| event.message.contains("of user 108")).count();
        assert_eq!((log.events().len(), of_other), (61, 1), "60 lines of the one, one of the other");
    }
}
