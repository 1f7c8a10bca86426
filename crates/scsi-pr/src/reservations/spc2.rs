//! RESERVE and RELEASE of SPC-2 beside persistent reservations: the exceptions that CRH promises (SPC-4 5.13.3).

use super::{Access, CONFLICT, Nexus, Reservations};
use crate::Completion;

const GOOD: Completion = Completion::Good(Vec::new());

impl Reservations {
    /// RESERVE(6) or RESERVE(10) of the whole unit, without unit attentions.
    ///
    /// From a holder of the persistent reservation, and from a registrant under one of registrants only or all
    /// registrants, GOOD without any effect; while anything is registered, else RESERVATION CONFLICT. A SPC-2 reservation
    /// is no part of a [record](Self::to_record): it ends with the process, as with a reset.
    pub fn reserve_spc2(&mut self, nexus: &Nexus) -> Completion {
        if !self.permits(nexus, Access::ReserveSpc2) {
            return CONFLICT;
        }
        if self.registrations.is_empty() {
            self.spc2 = Some(nexus.clone());
        }
        GOOD
    }

    /// RELEASE(6) or RELEASE(10), without unit attentions. From a nexus that does not hold the SPC-2 reservation it is GOOD without
    /// effect; else it is as [`reserve_spc2`](Self::reserve_spc2).
    pub fn release_spc2(&mut self, nexus: &Nexus) -> Completion {
        if !self.permits(nexus, Access::ReleaseSpc2) {
            return CONFLICT;
        }
        if self.spc2.as_ref() == Some(nexus) {
            self.spc2 = None;
        }
        GOOD
    }

    /// The holder of the SPC-2 reservation.
    pub fn spc2_holder(&self) -> Option<&Nexus> {
        self.spc2.as_ref()
    }
}
