//! [`Refusals`].

use std::fmt::Display;
use std::io;
use std::time::Duration;

use scsi_pr::{Command, Completion, SenseCode, Status};
use tracing::warn;

use crate::device::Number;
use crate::throttle::Throttle;

/// Why a part of a unit, or what is made of several, is not reserved.
pub(super) const NOT_THE_WHOLE: &str = "the whole of what is beneath would be reserved, not this part";

/// Why a device that sysfs does not explain is not reserved.
pub(super) const NOT_EXPLAINED: &str = "it may be a part of a logical unit, or one of several paths to it";

/// What the policies of a helper daemon say to do about a refusal.
pub(super) const SEND_IT_ALL_THE_SAME: &str = "if it must be sent all the same, start the helper with --manager=sg-io";

/// What policies that look at devices answer when they do not pass a command on, and what they tell the log of it: once a
/// minute of each device.
#[derive(Debug)]
pub struct Refusals {
    remedy: &'static str,
    told: Throttle<Option<Number>>,
}

impl Refusals {
    /// `remedy` says what an administrator can do about a refusal.
    pub const fn new(remedy: &'static str) -> Self {
        Self { remedy, told: Throttle::new(Duration::from_secs(60)) }
    }

    /// CHECK CONDITION 05/20/00, INVALID COMMAND OPERATION CODE: the device does not do this. It is the answer of a disk
    /// without persistent reservations, with which cluster software gives up at once and says why; a status that asks to
    /// try again (BUSY), or speaks of this one command (INVALID FIELD), would have it go on.
    ///
    /// `device` says what the device is, for the log, and `why` why it is refused.
    pub fn refuse<D: Display>(
        &self,
        command: Command<'_>,
        number: Option<Number>,
        device: impl FnOnce() -> D,
        why: &str,
    ) -> Completion {
        if self.told.permits(number) {
            warn!("{command}, refused on {}: {why}; {}", device(), self.remedy);
        }
        Completion::check(SenseCode::INVALID_OPCODE)
    }

    /// BUSY: while no file of sysfs can be opened, because this process or the machine has too many open. That passes.
    pub fn put_off(&self, command: Command<'_>, error: &io::Error) -> Completion {
        if self.told.permits(None) {
            warn!("{command}, answered with BUSY: cannot tell what the device is: {error}");
        }
        Completion::Status(Status::BUSY)
    }
}
