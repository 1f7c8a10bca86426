//! Policies: managers around a manager. Each implements [`PrManager`](scsi_pr::PrManager) and either answers by itself or
//! asks the one inside, so a mechanism has no exceptions in it and a policy is left out by not naming it.
//!
//! * [`RefuseReadOnly`]: who may not write to a device may not reserve it either.
//! * [`ByDevice`]: each kind of device has its manager, and what is a part of a unit is not reserved.
//! * [`Escalate`]: what the kernel does not let this process do is done by another.
//! * [`ScsiFirst`]: who takes SCSI commands as they are gets them so.
//! * [`WholeUnit`]: what is one path to a unit, or a part of one, is not reserved as if it were the unit.
//! * [`Refusals`]: what is answered and logged when a command goes no further.
//! * [`Observed`]: who did what, for the log, tracing and counters.
//!
//! A helper daemon makes `RefuseReadOnly(ByDevice)` once, so that what is remembered, counted and logged now and then is so
//! for all clients together, and an `Observed` around it (in an `Arc`) for each connection.

mod by_device;
mod escalate;
mod observed;
mod read_only;
mod refusals;
mod scsi_first;
mod whole_unit;

pub use by_device::{ByDevice, Routes};
pub use escalate::Escalate;
pub use observed::{Client, Counters, Counts, Observed};
pub use read_only::RefuseReadOnly;
pub use refusals::Refusals;
pub use scsi_first::ScsiFirst;
pub use whole_unit::WholeUnit;

#[cfg(test)]
pub(crate) mod tests {
    //! For the tests of the policies: a manager inside that writes down what it is asked.

    use scsi_pr::{Cdb, Command, Completion, Error, PrManager};
    use std::os::fd::BorrowedFd;
    use std::sync::{Arc, Mutex};

    /// Answers every command alike, and remembers the CDBs.
    #[derive(Clone)]
    pub(crate) struct Recorder {
        answer: Completion,
        asked: Arc<Mutex<Vec<[u8; 16]>>>,
    }

    impl Recorder {
        pub(crate) fn answering(answer: Completion) -> Self {
            Self { answer, asked: Arc::default() }
        }

        pub(crate) fn good() -> Self {
            Self::answering(Completion::Good(Vec::new()))
        }

        /// How many commands came since this was last asked.
        pub(crate) fn taken(&self) -> usize {
            std::mem::take(&mut *self.asked.lock().unwrap()).len()
        }
    }

    impl PrManager for Recorder {
        fn execute(&self, _: BorrowedFd<'_>, command: Command<'_>) -> Result<Completion, Error> {
            self.asked.lock().unwrap().push(*command.cdb().bytes());
            Ok(self.answer.clone())
        }

        fn is_connected(&self) -> bool {
            false
        }
    }

    /// A PERSISTENT RESERVE IN.
    pub(crate) fn reserve_in(service_action: u8) -> Command<'static> {
        let mut bytes = [0; 16];
        (bytes[0], bytes[1], bytes[8]) = (0x5e, service_action, 24);
        Command::new(Cdb::new(bytes).unwrap(), &[]).unwrap()
    }

    /// A PERSISTENT RESERVE OUT with this parameter list.
    pub(crate) fn reserve_out(service_action: u8, list: &[u8]) -> Command<'_> {
        let mut bytes = [0; 16];
        (bytes[0], bytes[1]) = (0x5f, service_action);
        bytes[7..9].copy_from_slice(&u16::try_from(list.len()).unwrap().to_be_bytes());
        Command::new(Cdb::new(bytes).unwrap(), list).unwrap()
    }

    /// A parameter list of 24 bytes with a RESERVATION KEY and a SERVICE ACTION RESERVATION KEY.
    pub(crate) fn keys(key: u64, service_action_key: u64) -> [u8; 24] {
        let mut list = [0; 24];
        list[..8].copy_from_slice(&key.to_be_bytes());
        list[8..16].copy_from_slice(&service_action_key.to_be_bytes());
        list
    }
}
