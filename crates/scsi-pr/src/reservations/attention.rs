//! Unit attention conditions of one nexus (SAM-5 5.14).

use crate::{SenseCode, SenseKey};

/// A unit attention condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Attention {
    /// 29/00: the unit was reset or lost its power.
    Reset = 1,
    /// 29/07.
    NexusLoss = 2,
    /// 2A/03: another nexus sent CLEAR.
    ReservationsPreempted = 3,
    /// 2A/04: the reservation is gone, or has another type.
    ReservationsReleased = 4,
    /// 2A/05: another nexus sent PREEMPT or PREEMPT AND ABORT.
    RegistrationsPreempted = 5,
}

impl Attention {
    const ALL: [Self; 5] = [
        Self::Reset,
        Self::NexusLoss,
        Self::ReservationsPreempted,
        Self::ReservationsReleased,
        Self::RegistrationsPreempted,
    ];

    /// The code in a record.
    pub(super) const fn code(self) -> u8 {
        self as u8
    }

    pub(super) fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|attention| attention.code() == code)
    }

    /// The code in the sense data.
    pub(super) const fn sense(self) -> SenseCode {
        match self {
            Self::Reset => SenseCode::RESET,
            Self::NexusLoss => SenseCode { key: SenseKey::UNIT_ATTENTION, ..SenseCode::NEXUS_LOSS },
            Self::ReservationsPreempted => SenseCode::RESERVATIONS_PREEMPTED,
            Self::ReservationsReleased => SenseCode::RESERVATIONS_RELEASED,
            Self::RegistrationsPreempted => SenseCode::REGISTRATIONS_PREEMPTED,
        }
    }

    /// Whether it is reported before the conditions of reservations, whenever it occurred.
    const fn is_first(self) -> bool {
        matches!(self, Self::Reset | Self::NexusLoss)
    }
}

/// The pending conditions of a nexus, each once: resets first, then in their order of occurrence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Attentions([Option<Attention>; Attention::ALL.len()]);

impl Attentions {
    pub(super) const NONE: Self = Self([None; Attention::ALL.len()]);

    pub(super) fn iter(&self) -> impl Iterator<Item = Attention> {
        self.0.into_iter().flatten()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0[0].is_none()
    }

    pub(super) fn add(&mut self, attention: Attention) {
        if self.iter().any(|pending| pending == attention) {
            return;
        }
        let place = self.iter().filter(|pending| pending.is_first() || !attention.is_first()).count();
        self.0[place..].rotate_right(1);
        self.0[place] = Some(attention);
    }

    pub(super) fn with(mut self, attention: Attention) -> Self {
        self.add(attention);
        self
    }

    /// Takes the condition to be reported next.
    pub(super) fn take(&mut self) -> Option<Attention> {
        let first = self.0[0].take()?;
        self.0.rotate_left(1);
        Some(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_has_its_sense() {
        let text = Attention::ALL.map(|attention| attention.sense().to_string()[..8].to_owned());
        assert_eq!(text, ["06/29/00", "06/29/07", "06/2a/03", "06/2a/04", "06/2a/05"]);
    }

    #[test]
    fn codes_are_read_again() {
        for code in 0..=u8::MAX {
            match Attention::from_code(code) {
                Some(attention) => assert_eq!(attention.code(), code),
                None => assert!(!(1..=5).contains(&code)),
            }
        }
    }

    proptest! {
        #[test]
        fn resets_come_first_and_the_others_in_their_order(
            added in prop::collection::vec(prop::sample::select(&Attention::ALL[..]), 0..12),
        ) {
            let mut queue = Attentions::NONE;
            added.iter().for_each(|attention| queue.add(*attention));
            let mut expected: Vec<Attention> = Vec::new();
            for attention in added {
                if !expected.contains(&attention) {
                    expected.push(attention);
                }
            }
            expected.sort_by_key(|attention| !attention.is_first());
            prop_assert!(queue.iter().eq(expected.iter().copied()));
            prop_assert!(std::iter::from_fn(|| queue.take()).eq(expected));
            prop_assert_eq!(queue, Attentions::NONE);
        }
    }
}
