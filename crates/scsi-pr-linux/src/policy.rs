//! Policies: managers around a manager. Each implements [`PrManager`](scsi_pr::PrManager), and either answers a command or
//! passes it on. So a mechanism has no exceptions in it.
//!
//! * [`AllowedPeers`]: the processes that may connect.
//! * [`DenyServiceActions`]: commands that no client may send.
//! * [`RefuseReadOnly`]: a client that may not write to a device may not reserve it.
//! * [`Refusals`]: the answers and log lines for commands that are not run.
//! * [`Observed`]: log lines, trace events and counters of commands.
//!
//! A helper daemon makes one [`DeviceRouter`](crate::routing::DeviceRouter) for all clients, and an `Observed` around it (in
//! an `Arc`) for each connection.

mod allowed_peers;
mod deny;
mod observed;
mod read_only;
mod refusals;

pub use allowed_peers::AllowedPeers;
pub use deny::{DenyServiceActions, ServiceActions, UnknownServiceAction};
pub use observed::{Client, CommandCount, CommandMetrics, Counters, Counts, Latency, Observed, RefusalReason};
pub use read_only::RefuseReadOnly;
pub use refusals::Refusals;

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
