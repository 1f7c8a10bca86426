//! [`Recorder`]: an access path that keeps the unit attentions of another one.

use std::sync::{Arc, Mutex, PoisonError};

use scsi_pr::{Command, Completion};

use super::identifiers::Identifiers;
use crate::admin::access::{AccessPath, Sender, Unit, is_unit_attention};
use crate::admin::failure::Failure;
use crate::admin::report::Own;

/// Records the unit attentions that the commands of a unit get. All readings are commands, never records of a store.
pub(super) struct Recorder {
    path: Box<dyn AccessPath>,
    unit_attentions: UnitAttentions,
}

/// The recorded unit attentions, each with its command.
#[derive(Clone, Default)]
pub(super) struct UnitAttentions(Arc<Mutex<Vec<String>>>);

impl UnitAttentions {
    /// The unit attentions since the last call.
    pub(super) fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Recorder {
    /// The same unit, recorded.
    pub(super) fn wrap(unit: Unit) -> (Unit, UnitAttentions) {
        let unit_attentions = UnitAttentions::default();
        let recorder = Self { path: unit.path, unit_attentions: unit_attentions.clone() };
        (Unit { path: Box::new(recorder), ..unit }, unit_attentions)
    }
}

impl AccessPath for Recorder {
    fn execute(&self, sender: Sender<'_>, command: Command<'_>) -> Result<Completion, Failure> {
        let completion = self.path.execute(sender, command)?;
        if is_unit_attention(&completion) {
            let mut all = self.unit_attentions.0.lock().unwrap_or_else(PoisonError::into_inner);
            all.push(format!("{completion} to {}", command.opcode()));
        }
        Ok(completion)
    }

    fn max_allocation_length(&self) -> usize {
        self.path.max_allocation_length()
    }

    fn own(&self) -> Own<'_> {
        self.path.own()
    }

    fn identifiers(&self) -> Identifiers {
        self.path.identifiers()
    }
}
