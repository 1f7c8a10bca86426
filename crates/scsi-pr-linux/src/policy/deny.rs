//! [`DenyServiceActions`].

use std::fmt::Display;
use std::os::fd::{AsFd, BorrowedFd};
use std::str::FromStr;

use scsi_pr::{Command, Completion, Error, Opcode, PrManager, ReserveInAction, ReserveOutAction};

use super::observed::Described;
use super::refusals::Refusals;
use crate::device::BlockDevice;

/// A set of service actions of PERSISTENT RESERVE IN and PERSISTENT RESERVE OUT.
///
/// As text it is a list with commas of the names that the standard has for them (SPC-4 6.15.2, 6.16.2), in small letters with hyphens:
/// `preempt,preempt-and-abort`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceActions {
    /// A bit for each code.
    reserve_in: u32,
    reserve_out: u32,
}

/// A name that no service action has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid service action '{0}'; the valid ones are: {names}", names = names().join(", "))]
pub struct UnknownServiceAction(pub String);

impl ServiceActions {
    /// Whether the set has the service action of a command. It never has CLEANUP.
    pub fn contains(&self, command: Command<'_>) -> bool {
        let codes = match command.opcode() {
            Opcode::ReserveIn => self.reserve_in,
            Opcode::ReserveOut => self.reserve_out,
            Opcode::Cleanup => 0,
        };
        // A service action has five bits.
        codes & 1 << (command.cdb().service_action() & 0x1f) != 0
    }

    /// Those of both.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self { reserve_in: self.reserve_in | other.reserve_in, reserve_out: self.reserve_out | other.reserve_out }
    }
}

impl FromStr for ServiceActions {
    type Err = UnknownServiceAction;

    fn from_str(list: &str) -> Result<Self, UnknownServiceAction> {
        let mut actions = Self::default();
        for text in list.split(',') {
            let read = ReserveInAction::ALL.into_iter().find(|action| name(action) == text);
            let change = ReserveOutAction::ALL.into_iter().find(|action| name(action) == text);
            match (read, change) {
                (Some(action), _) => actions.reserve_in |= 1 << action.code(),
                (None, Some(action)) => actions.reserve_out |= 1 << action.code(),
                (None, None) => return Err(UnknownServiceAction(text.to_owned())),
            }
        }
        Ok(actions)
    }
}

fn names() -> Vec<String> {
    ReserveInAction::ALL.iter().map(name).chain(ReserveOutAction::ALL.iter().map(name)).collect()
}

/// The standard's name in small letters with hyphens.
pub(super) fn name(action: &impl Display) -> String {
    action.to_string().to_ascii_lowercase().replace(' ', "-")
}

/// Refuses the service actions of a set. The answer is CHECK CONDITION 05/24/00, INVALID FIELD IN CDB: that of a device
/// server without the service action. Other service actions work, so the answer is not 05/20/00, which
/// says that the unit has no reservations at all.
///
/// It protects against clients, not against the process that it runs in.
#[derive(Debug)]
pub struct DenyServiceActions<M> {
    inner: M,
    denied: ServiceActions,
    refusals: Refusals,
}

impl<M> DenyServiceActions<M> {
    /// Around `inner`, which gets the commands whose service action is not in `denied`. `remedy` says in the log what an
    /// administrator can do about a refusal.
    pub const fn new(inner: M, denied: ServiceActions, remedy: &'static str) -> Self {
        Self { inner, denied, refusals: Refusals::of_service_actions(remedy) }
    }
}

impl<M: PrManager> PrManager for DenyServiceActions<M> {
    fn execute(&self, device: BorrowedFd<'_>, command: Command<'_>) -> Result<Completion, Error> {
        if !self.denied.contains(command) {
            return self.inner.execute(device, command);
        }
        let number = BlockDevice::of(device).ok().flatten().map(|device| device.number());
        Ok(self.refusals.refuse(command, number, || Described(device.as_fd()), "this service action is denied"))
    }

    fn is_connected(&self) -> bool {
        self.inner.is_connected()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Recorder, reserve_in, reserve_out};
    use super::*;
    use crate::log::Log;
    use scsi_pr::SenseCode;
    use std::fs::File;

    #[test]
    fn every_service_action_has_its_name_in_the_standard() {
        assert_eq!(
            names(),
            [
                "read-keys",
                "read-reservation",
                "report-capabilities",
                "read-full-status",
                "register",
                "reserve",
                "release",
                "clear",
                "preempt",
                "preempt-and-abort",
                "register-and-ignore-existing-key",
                "register-and-move",
                "replace-lost-reservation",
            ]
        );
        let all: ServiceActions = names().join(",").parse().unwrap();
        assert_eq!(all, ServiceActions { reserve_in: 0xf, reserve_out: 0x1ff });
    }

    #[test]
    fn name_that_no_service_action_has_is_an_error_with_the_valid_ones() {
        for (list, unknown) in [
            ("", ""),
            ("clear,", ""),
            ("PREEMPT", "PREEMPT"),
            ("clear,steal", "steal"),
            ("clear preempt", "clear preempt"),
        ] {
            let error = list.parse::<ServiceActions>().unwrap_err();
            assert_eq!(error, UnknownServiceAction(unknown.to_owned()));
            assert!(error.to_string().ends_with("register-and-move, replace-lost-reservation"), "{error}");
        }
    }

    #[test]
    fn denied_service_actions_are_refused_and_all_others_run() {
        let null = File::open("/dev/null").unwrap();
        let denied: ServiceActions = "preempt,read-keys".parse().unwrap();
        let denied = denied.union("preempt-and-abort".parse().unwrap());
        let inner = Recorder::good();
        let manager = DenyServiceActions::new(inner.clone(), denied, "do this");
        for code in 0..=0x1f {
            let answers = [reserve_in(code), reserve_out(code, &[0; 24])]
                .map(|command| manager.execute(null.as_fd(), command).unwrap() == Completion::Good(Vec::new()));
            assert_eq!(answers, [code != 0, ![4, 5].contains(&code)], "{code}");
        }
        assert_eq!(inner.taken(), 31 + 30);
        assert_eq!(manager.execute(null.as_fd(), Command::cleanup()).unwrap(), Completion::Good(Vec::new()));
    }

    #[test]
    fn denied_command_is_an_invalid_field_and_one_line_of_the_log() {
        let null = File::open("/dev/null").unwrap();
        let manager = DenyServiceActions::new(Recorder::good(), "clear".parse().unwrap(), "do this");
        let log = Log::at(tracing::Level::WARN);
        log.during(|| {
            for _ in 0..3 {
                let answer = manager.execute(null.as_fd(), reserve_out(3, &[0; 24])).unwrap();
                assert_eq!(answer, Completion::check(SenseCode::INVALID_FIELD_IN_CDB));
            }
        });
        let [event] = &log.events()[..] else { panic!("one line is expected") };
        assert!(event.message.starts_with("PERSISTENT RESERVE OUT, CLEAR, "), "{}", event.message);
        let end = "refused on 1:3 (null), a character device: this service action is denied; do this";
        assert!(event.message.ends_with(end), "{}", event.message);
    }
}
