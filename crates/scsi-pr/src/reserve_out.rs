//! PERSISTENT RESERVE OUT as a value: what a guest wants to have done (SPC-4 6.16).
//!
//! [`ReserveOut::parse`] is for managers that must know what a command means; those that only pass it on keep the
//! [`Command`], whose bytes are exact. [`ReserveOut::encode`] is the way back, for clients.

mod layout;
#[cfg(test)]
pub(crate) mod tests;
mod text;

use std::fmt;

use crate::{Key, ScopeType, TransportId, Type};

/// The service actions of PERSISTENT RESERVE OUT (SPC-4 6.16.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum ReserveOutAction {
    /// 00h.
    Register = 0x00,
    /// 01h.
    Reserve = 0x01,
    /// 02h.
    Release = 0x02,
    /// 03h.
    Clear = 0x03,
    /// 04h.
    Preempt = 0x04,
    /// 05h.
    PreemptAndAbort = 0x05,
    /// 06h.
    RegisterAndIgnoreExistingKey = 0x06,
    /// 07h.
    RegisterAndMove = 0x07,
    /// 08h.
    ReplaceLostReservation = 0x08,
}

impl ReserveOutAction {
    /// Every service action there is, in the order of their codes.
    pub const ALL: [Self; 9] = [
        Self::Register,
        Self::Reserve,
        Self::Release,
        Self::Clear,
        Self::Preempt,
        Self::PreemptAndAbort,
        Self::RegisterAndIgnoreExistingKey,
        Self::RegisterAndMove,
        Self::ReplaceLostReservation,
    ];

    /// The service action with this code; `None` for a reserved one.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }

    /// The code in the CDB.
    pub const fn code(self) -> u8 {
        self as u8
    }
}

impl fmt::Display for ReserveOutAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Register => "REGISTER",
            Self::Reserve => "RESERVE",
            Self::Release => "RELEASE",
            Self::Clear => "CLEAR",
            Self::Preempt => "PREEMPT",
            Self::PreemptAndAbort => "PREEMPT AND ABORT",
            Self::RegisterAndIgnoreExistingKey => "REGISTER AND IGNORE EXISTING KEY",
            Self::RegisterAndMove => "REGISTER AND MOVE",
            Self::ReplaceLostReservation => "REPLACE LOST RESERVATION",
        })
    }
}

/// The meaning of a PERSISTENT RESERVE OUT: the fields of its CDB and parameter list that count for the service action.
///
/// `key` is RESERVATION KEY, the sender's own; `service_action_key` is SERVICE ACTION RESERVATION KEY, whose meaning
/// depends on the service action. `aptpl` asks for registrations and reservation to survive a loss of power.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReserveOut {
    /// REGISTER: registers the sender, changes its key or, with a `service_action_key` of zero, unregisters it.
    Register {
        /// The key that is registered now; zero when there is none.
        key: Key,
        /// The new key.
        service_action_key: Key,
        /// SPEC_I_PT: the other initiator ports to be registered too; `None` when the bit is not set.
        initiator_ports: Option<Vec<TransportId>>,
        /// ALL_TG_PT: on every target port.
        all_tg_pt: bool,
        /// APTPL.
        aptpl: bool,
    },
    /// RESERVE: makes the sender the holder.
    Reserve {
        /// The sender's key.
        key: Key,
        /// Of which type.
        reservation_type: Type,
    },
    /// RELEASE: gives up the reservation; the registrations stay.
    Release {
        /// The sender's key.
        key: Key,
        /// The type of the reservation that is given up.
        reservation_type: Type,
    },
    /// CLEAR: removes the reservation and every registration.
    Clear {
        /// The sender's key.
        key: Key,
    },
    /// PREEMPT: removes registrations, and takes the reservation over if it was theirs.
    Preempt {
        /// The sender's key.
        key: Key,
        /// The key of the registrations to remove. Zero means those of all others, if every registrant is a holder.
        service_action_key: Key,
        /// Counts only if a reservation is created. An invalid one must then be refused.
        scope_type: ScopeType,
    },
    /// PREEMPT AND ABORT: as PREEMPT, and the commands of those who were preempted are aborted.
    PreemptAndAbort {
        /// The sender's key.
        key: Key,
        /// As with PREEMPT.
        service_action_key: Key,
        /// As with PREEMPT.
        scope_type: ScopeType,
    },
    /// REGISTER AND IGNORE EXISTING KEY: as REGISTER, whatever key is registered.
    RegisterAndIgnoreExistingKey {
        /// The new key; zero unregisters.
        service_action_key: Key,
        /// ALL_TG_PT: on every target port.
        all_tg_pt: bool,
        /// APTPL.
        aptpl: bool,
    },
    /// REGISTER AND MOVE: registers another nexus and hands it the reservation.
    RegisterAndMove {
        /// The sender's key.
        key: Key,
        /// The key to register for the other nexus.
        service_action_key: Key,
        /// UNREG: the sender is unregistered afterwards.
        unregister: bool,
        /// APTPL.
        aptpl: bool,
        /// RELATIVE TARGET PORT IDENTIFIER of the other nexus.
        relative_target_port: u16,
        /// The initiator port of the other nexus.
        transport_id: TransportId,
    },
    /// REPLACE LOST RESERVATION: begins anew after the unit has lost what it knew.
    ReplaceLostReservation {
        /// Must be zero.
        key: Key,
        /// The key to register.
        service_action_key: Key,
        /// The type of the new reservation.
        reservation_type: Type,
        /// APTPL.
        aptpl: bool,
    },
}

impl ReserveOut {
    /// The service action.
    pub const fn action(&self) -> ReserveOutAction {
        match self {
            Self::Register { .. } => ReserveOutAction::Register,
            Self::Reserve { .. } => ReserveOutAction::Reserve,
            Self::Release { .. } => ReserveOutAction::Release,
            Self::Clear { .. } => ReserveOutAction::Clear,
            Self::Preempt { .. } => ReserveOutAction::Preempt,
            Self::PreemptAndAbort { .. } => ReserveOutAction::PreemptAndAbort,
            Self::RegisterAndIgnoreExistingKey { .. } => ReserveOutAction::RegisterAndIgnoreExistingKey,
            Self::RegisterAndMove { .. } => ReserveOutAction::RegisterAndMove,
            Self::ReplaceLostReservation { .. } => ReserveOutAction::ReplaceLostReservation,
        }
    }
}
