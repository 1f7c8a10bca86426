//! The events of a unit other than commands (SAM-5 6.3): resets, loss of a nexus, loss of power.

use super::{Attention, Attentions, ByNexus, Nexus, Reservations};
use crate::Generation;

impl Reservations {
    /// The nexus is lost: its initiator port logged out, or its virtual machine has ended. Registrations and the persistent
    /// reservation stay; a SPC-2 reservation of this nexus ends. If the nexus comes back, it gets the unit attention I_T NEXUS
    /// LOSS OCCURRED (29/07).
    pub fn lose_nexus(&mut self, nexus: &Nexus) {
        if self.spc2.as_ref() == Some(nexus) {
            self.spc2 = None;
        }
        match self.registrations.get_mut(nexus) {
            Some(registration) => registration.attentions.add(Attention::NexusLoss),
            None => {
                let pending = self.unregistered.get(nexus).copied().unwrap_or(Attentions::NONE);
                self.set_attentions_of_unregistered(nexus.clone(), pending.with(Attention::NexusLoss));
            }
        }
    }

    /// A hard reset or a reset of the logical unit. Registrations and the persistent reservation stay; a SPC-2 reservation ends.
    /// Every nexus that is registered, or has a pending unit attention, gets the unit attention of a reset (29/00). The device
    /// server establishes it for the others.
    pub fn reset(&mut self) {
        self.spc2 = None;
        let registered = self.registrations.values_mut().map(|registration| &mut registration.attentions);
        registered.chain(self.unregistered.values_mut()).for_each(|pending| pending.add(Attention::Reset));
    }

    /// Power is lost, and comes back. PRGENERATION is zero, a SPC-2 reservation ends, and registrations and the persistent
    /// reservation stay only with [`aptpl`](Self::aptpl). Every nexus that is registered, or has a pending unit attention, gets
    /// the unit attention of a power on (29/00) in place of all others.
    pub fn lose_power(&mut self) {
        self.generation = Generation(0);
        self.spc2 = None;
        let power_on = Attentions::NONE.with(Attention::Reset);
        self.unregistered.values_mut().for_each(|pending| *pending = power_on);
        if self.aptpl {
            let releases = self.releases;
            self.registrations.values_mut().for_each(|registration| {
                (registration.attentions, registration.releases) = (power_on, releases);
            });
        } else {
            self.reservation = None;
            let registrations = std::mem::replace(&mut self.registrations, ByNexus::new());
            registrations.iter().for_each(|(nexus, _)| self.set_attentions_of_unregistered(nexus.clone(), power_on));
        }
    }
}
