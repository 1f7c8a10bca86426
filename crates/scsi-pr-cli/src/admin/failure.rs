//! [`Failure`]: why a command failed, in one line, with the exit code.

use std::fmt;

use scsi_pr::{Command, Completion, Opcode, SenseCode, SenseKey, Status};
use scsi_pr_daemon::log::escape;
use scsi_pr_store::{Fault, StoreError};

/// The exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Code {
    /// Another cause.
    Failure = 1,
    /// The command line is wrong, or DEVICE is not a disk. Clap uses the same code.
    Usage = 2,
    /// RESERVATION CONFLICT.
    Conflict = 3,
    /// The unit does not support the command.
    Unsupported = 4,
    /// The unit, helper, disk or store is busy or cannot be reached.
    Unavailable = 5,
    /// The command may have been run.
    OutcomeUnknown = 6,
    /// Some of several changes were made.
    PartlyDone = 7,
    /// SIGHUP ended the check, which removed its registration.
    HungUp = 129,
    /// The same of SIGINT.
    Interrupted = 130,
    /// The same of SIGTERM.
    Terminated = 143,
}

/// The part of the help and of the manual about exit codes.
pub(crate) const EXIT_CODES: &str = "Exit codes:
  0  done
  1  failed for another reason; nothing was changed, unless the message says so
  2  wrong command line, or DEVICE is not a disk
  3  RESERVATION CONFLICT: the unit refused the command because of a key or a reservation; or
     the unit has changed since it was read, and nothing was changed
  4  the unit does not support the command
  5  the unit, helper, disk or store is busy or cannot be reached; nothing was changed
  6  the answer was lost: the change may have been made. Look with \"scsi-pr show\"
  7  partly done: some changes were made, and another one failed or may have been made. Look
     with \"scsi-pr show\"
  129, 130, 143  SIGHUP, SIGINT or SIGTERM ended a check, which removed its registration";

/// A failed command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    code: Code,
    text: String,
}

/// Whether a command changes something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    Reads,
    Changes,
}

impl Effect {
    /// That of a reservation command: only PERSISTENT RESERVE IN reads.
    pub(crate) fn of(command: Command<'_>) -> Self {
        if command.opcode() == Opcode::ReserveIn { Self::Reads } else { Self::Changes }
    }
}

impl Failure {
    /// `text` says what failed, why, and what to do. It may come from a device or a peer.
    pub(crate) fn new(code: Code, text: impl fmt::Display) -> Self {
        Self { code, text: escape(&text.to_string()) }
    }

    pub(crate) fn usage(text: impl fmt::Display) -> Self {
        Self::new(Code::Usage, text)
    }

    /// The state that the administrator was shown does not hold any more.
    pub(crate) fn changed_meanwhile() -> Self {
        let text = "the change was not made, because the registrations or the reservation have changed meanwhile: look with \
                    \"scsi-pr show\", and try again";
        Self::new(Code::Conflict, text)
    }

    pub(crate) const fn code(&self) -> Code {
        self.code
    }

    /// The same, of one of several objects.
    pub(crate) fn of(self, object: impl fmt::Display) -> Self {
        Self { code: self.code, text: format!("{}: {}", escape(&object.to_string()), self.text) }
    }

    /// An answer that is not GOOD. `hint` says what to do about a RESERVATION CONFLICT.
    pub(crate) fn of_completion(completion: &Completion, effect: Effect, hint: &str) -> Self {
        let (code, remedy) = explain(completion, effect, hint);
        Self::new(code, format!("{completion}; {remedy}"))
    }

    /// There is no answer.
    pub(crate) fn of_error(error: &scsi_pr::Error, effect: Effect) -> Self {
        let code = match (error.may_have_run(), effect) {
            (true, Effect::Changes) => Code::OutcomeUnknown,
            _ => Code::Unavailable,
        };
        Self::new(code, error)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let code = match error.fault() {
            Fault::Unavailable | Fault::Contended => Code::Unavailable,
            Fault::Refused => Code::Failure,
            Fault::OutcomeUnknown => Code::OutcomeUnknown,
        };
        Self::new(code, error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The exit code of an answer that is not GOOD, and the remedy.
fn explain<'a>(completion: &Completion, effect: Effect, hint: &'a str) -> (Code, &'a str) {
    const AGAIN: &str = "try again";
    const LOOK: &str = "the change may have been made: look with \"scsi-pr show\"";
    let lost = match effect {
        Effect::Reads => (Code::Unavailable, AGAIN),
        Effect::Changes => (Code::OutcomeUnknown, LOOK),
    };
    let code = match completion {
        Completion::Good(_) => return (Code::Failure, "it brought no usable data"),
        Completion::Status(Status::RESERVATION_CONFLICT) => return (Code::Conflict, hint),
        Completion::Status(Status::BUSY | Status::TASK_SET_FULL | Status::ACA_ACTIVE) => {
            return (Code::Unavailable, AGAIN);
        }
        Completion::Status(_) => return lost,
        Completion::CheckCondition(sense) => match sense.code() {
            Some(code) => code,
            None => return lost,
        },
    };
    match code {
        SenseCode::INVALID_OPCODE => (Code::Unsupported, "the unit has no persistent reservations by this way"),
        SenseCode::INVALID_FIELD_IN_CDB => (Code::Unsupported, "the unit does not know this service action or type"),
        SenseCode::INVALID_RELEASE => {
            (Code::Failure, "the reservation has another type, or none was lost: see \"scsi-pr reservation\"")
        }
        SenseCode::INSUFFICIENT_REGISTRATION_RESOURCES => {
            (Code::Failure, "the unit has no room for another registration")
        }
        SenseCode::IO_PROCESS_TERMINATED => {
            (Code::Failure, "the kernel did not permit it, or DEVICE is no disk: run as root, on the whole disk")
        }
        SenseCode::MANUAL_INTERVENTION_REQUIRED => {
            (Code::Failure, "an administrator must act: see the log of the program that serves the unit")
        }
        SenseCode { key: SenseKey::NOT_READY, asc: 0x08, .. } if effect == Effect::Changes => {
            (Code::Unavailable, "LIO answers so to an initiator that is not registered: see \"scsi-pr show\"")
        }
        SenseCode { key: SenseKey::NOT_READY, .. } => (Code::Unavailable, "look at the disk and its paths; try again"),
        SenseCode { key: SenseKey::UNIT_ATTENTION, .. } => (Code::Unavailable, AGAIN),
        SenseCode { key: SenseKey::ABORTED_COMMAND, .. } => lost,
        SenseCode { key: SenseKey::ILLEGAL_REQUEST | SenseKey::DATA_PROTECT, .. } => {
            (Code::Failure, "the unit refused the command: see the log of the target")
        }
        // The target failed in the middle, perhaps after the change.
        _ => match effect {
            Effect::Reads => (Code::Failure, "see the kernel's log, and the log of the target"),
            Effect::Changes => lost,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use scsi_pr::Sense;

    #[test]
    fn answers_have_their_exit_codes() {
        let check = Completion::check;
        for (completion, reads, changes) in [
            (Completion::Status(Status::RESERVATION_CONFLICT), Code::Conflict, Code::Conflict),
            (Completion::Status(Status::BUSY), Code::Unavailable, Code::Unavailable),
            (Completion::Status(Status::TASK_ABORTED), Code::Unavailable, Code::OutcomeUnknown),
            (check(SenseCode::INVALID_OPCODE), Code::Unsupported, Code::Unsupported),
            (check(SenseCode::INVALID_FIELD_IN_CDB), Code::Unsupported, Code::Unsupported),
            (check(SenseCode::INVALID_RELEASE), Code::Failure, Code::Failure),
            (check(SenseCode::NOT_READY), Code::Unavailable, Code::Unavailable),
            (check(SenseCode::RESET), Code::Unavailable, Code::Unavailable),
            (check(SenseCode::IO_PROCESS_TERMINATED), Code::Failure, Code::Failure),
            (check(SenseCode::LUN_COMMUNICATION_FAILURE), Code::Unavailable, Code::OutcomeUnknown),
            (check(SenseCode::TARGET_FAILURE), Code::Failure, Code::OutcomeUnknown),
            (check(SenseCode::INVALID_FIELD_IN_PARAMETER_LIST), Code::Failure, Code::Failure),
        ] {
            assert_eq!(Failure::of_completion(&completion, Effect::Reads, "").code(), reads, "{completion}");
            assert_eq!(Failure::of_completion(&completion, Effect::Changes, "").code(), changes, "{completion}");
        }
    }

    proptest! {
        #[test]
        fn text_is_one_line_without_control_characters(text: String, object: String, sense: [u8; 32]) {
            let sense = Completion::CheckCondition(Sense::from_bytes(&sense));
            for failure in [Failure::usage(text), Failure::of_completion(&sense, Effect::Changes, "")] {
                let text = failure.of(&object).to_string();
                prop_assert!(!text.contains(char::is_control), "{text:?}");
            }
        }
    }
}
