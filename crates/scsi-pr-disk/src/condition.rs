//! [`ChangeCondition`]: the state in which an administrator's change may be made.

use scsi_pr::{Nexus, Reservation};

/// The state in which an administrator's change may be made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangeCondition {
    /// The reservation and the generation (SPC-4 6.15.3); `None`: any.
    pub reservation: Option<Reservation>,
    /// A nexus that must hold the reservation; `None`: any. RESERVE and RELEASE do not change the generation, and two nexuses may
    /// have one key, so `reservation` does not tell who holds it.
    pub holder: Option<Nexus>,
    /// The iSCSI name of an initiator that must have no session; `None`: any may have one.
    pub without_session: Option<String>,
}

/// The part of a [`ChangeCondition`] that does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnmetCondition {
    /// The reservation, its holder or the generation is another one.
    Reservation,
    /// The initiator has a session.
    Session,
}
