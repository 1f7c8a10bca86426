//! Other events of a unit: RESERVE and RELEASE of SPC-2, resets, and the loss of a nexus or of power (SPC-2 5.5.1, SPC-4
//! 5.13.3, 5.13.5).

use crate::model::{Answer, Done, Model, Nexus};
use crate::ways;

impl Model {
    /// RESERVE (6) or (10) of SPC-2, or RELEASE.
    pub fn spc2(&mut self, nexus: &Nexus, reserve: bool) -> Done {
        if let Some((code, qualifier)) = self.take_attention(nexus) {
            return done(Answer::Check(6, code, qualifier), ways::UNIT_ATTENTION);
        }
        // SPC-4 5.13.3, table 64: a nexus with access by its registration gets GOOD without effect.
        let by_registration = match &self.reservation {
            Some(reservation) if matches!(reservation.kind, 5..=8) => self.key_of(nexus).is_some(),
            Some(_) => self.is_holder(nexus),
            None => false,
        };
        if by_registration {
            return done(Answer::Good(vec![]), ways::SPC2_WITHOUT_EFFECT);
        }
        if !self.registrants.is_empty() {
            return done(Answer::Conflict, ways::SPC2_REGISTRATIONS);
        }
        let mine = self.spc2_holder.as_ref() == Some(nexus);
        match (reserve, mine) {
            (true, false) if self.spc2_holder.is_some() => done(Answer::Conflict, ways::SPC2_RESERVED_BY_ANOTHER),
            (true, false) => {
                self.spc2_holder = Some(nexus.clone());
                done(Answer::Good(vec![]), ways::SPC2_RESERVE)
            }
            (true, true) => done(Answer::Good(vec![]), ways::SPC2_RESERVE_AGAIN),
            (false, true) => {
                self.spc2_holder = None;
                done(Answer::Good(vec![]), ways::SPC2_RELEASE)
            }
            (false, false) => done(Answer::Good(vec![]), ways::SPC2_RELEASE_NOTHING),
        }
    }

    /// The nexus is lost. This ends its reservation of SPC-2, and nothing else.
    pub fn lose_nexus(&mut self, nexus: &Nexus) -> Done {
        if self.spc2_holder.as_ref() == Some(nexus) {
            self.spc2_holder = None;
        }
        self.establish(nexus, NEXUS_LOST);
        done(Answer::Good(vec![]), ways::NEXUS_LOSS)
    }

    /// The unit is reset. This ends a reservation of SPC-2, and nothing else.
    pub fn reset(&mut self) -> Done {
        self.spc2_holder = None;
        for nexus in self.known() {
            self.establish(&nexus, RESET);
        }
        done(Answer::Good(vec![]), ways::RESET)
    }

    /// The unit's power goes off and on.
    pub fn lose_power(&mut self) -> Done {
        let known = self.known();
        self.spc2_holder = None;
        self.generation = 0;
        self.attentions.clear();
        for nexus in known {
            self.establish(&nexus, RESET);
        }
        if self.aptpl {
            return done(Answer::Good(vec![]), ways::POWER_LOSS_APTPL);
        }
        self.registrants.clear();
        self.reservation = None;
        done(Answer::Good(vec![]), ways::POWER_LOSS)
    }

    /// The nexuses that are registered or have a pending unit attention.
    fn known(&self) -> Vec<Nexus> {
        let registered = self.registrants.iter().map(|one| one.nexus.clone());
        registered.chain(self.attentions.iter().map(|(whose, _)| whose.clone())).collect()
    }
}

const RESET: (u8, u8) = (0x29, 0x00);
const NEXUS_LOST: (u8, u8) = (0x29, 0x07);

fn done(answer: Answer, way: ways::Way) -> Done {
    Done { answer, aborted: vec![], way }
}
