//! The NVMe commands for reservations, in bytes (NVM Express Base Specification 2.0: 7.2 to 7.5 for the four of
//! reservations, 5.17 Identify, 5.15 Get Features). No I/O.

use scsi_pr::{Key, Type};

use crate::type_number;

/// The queue of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Queue {
    /// The admin queue.
    Admin,
    /// An I/O queue.
    Io,
}

/// A command without its data and its namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) queue: Queue,
    pub(super) opcode: u8,
    pub(super) cdw10: u32,
    pub(super) cdw11: u32,
}

/// A command that changes something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Reservation Register, RREGA 000b, 001b and 010b.
    Register(Registration, Persistence),
    /// Reservation Acquire, RACQA 000b.
    Acquire { key: Key, reservation_type: Type },
    /// Reservation Acquire, RACQA 001b, or 010b with `abort`.
    Preempt { key: Key, victim: Key, reservation_type: Type, abort: bool },
    /// Reservation Release, RRELA 000b.
    Release { key: Key, reservation_type: Type },
    /// Reservation Release, RRELA 001b.
    Clear { key: Key },
}

/// The action of Reservation Register. `current` is `None` for any registered key (IEKEY).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Registration {
    Register { new: Key },
    Unregister { current: Option<Key> },
    Replace { current: Option<Key>, new: Key },
}

/// CPTPL: whether registrations and reservation survive a loss of power.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Persistence {
    /// 10b: they do not.
    Volatile,
    /// 11b: they do.
    Persistent,
}

const REGISTER: u8 = 0x0d;
const REPORT: u8 = 0x0e;
const ACQUIRE: u8 = 0x11;
const RELEASE: u8 = 0x15;
const IDENTIFY: u8 = 0x06;
const GET_FEATURES: u8 = 0x0a;

/// IEKEY.
const IGNORE_KEY: u32 = 1 << 3;

/// The length of the data of Identify, in bytes.
pub(super) const IDENTIFY_LENGTH: usize = 4096;
/// The offset of RESCAP in the data.
pub(super) const RESCAP: usize = 31;

impl Change {
    /// The command and its data.
    pub(super) fn encode(&self) -> (Request, Vec<u8>) {
        let rtype = |reservation_type| u32::from(type_number::of(reservation_type)) << 8;
        let (opcode, cdw10, current, other) = match *self {
            Self::Register(registration, persistence) => {
                let (action, current, new) = match registration {
                    Registration::Register { new } => (0, Some(Key::ZERO), new),
                    Registration::Unregister { current } => (1, current, Key::ZERO),
                    Registration::Replace { current, new } => (2, current, new),
                };
                let ignore_key = if current.is_none() { IGNORE_KEY } else { 0 };
                let cptpl = match persistence {
                    Persistence::Volatile => 0b10,
                    Persistence::Persistent => 0b11,
                };
                (REGISTER, action | ignore_key | cptpl << 30, current.unwrap_or_default(), Some(new))
            }
            Self::Acquire { key, reservation_type } => (ACQUIRE, rtype(reservation_type), key, Some(Key::ZERO)),
            Self::Preempt { key, victim, reservation_type, abort } => {
                let action = if abort { 2 } else { 1 };
                (ACQUIRE, action | rtype(reservation_type), key, Some(victim))
            }
            Self::Release { key, reservation_type } => (RELEASE, rtype(reservation_type), key, None),
            Self::Clear { key } => (RELEASE, 1, key, None),
        };
        let mut data = current.0.to_le_bytes().to_vec();
        data.extend(other.into_iter().flat_map(|other| other.0.to_le_bytes()));
        (Request { queue: Queue::Io, opcode, cdw10, cdw11: 0 }, data)
    }
}

/// Reservation Report of `length` bytes, a multiple of 4; `extended` (EDS) with host identifiers of 128 bits.
pub(super) fn report(length: usize, extended: bool) -> Request {
    // NUMD is zero-based.
    let dwords = u32::try_from(length / 4).unwrap_or(u32::MAX).saturating_sub(1);
    Request { queue: Queue::Io, opcode: REPORT, cdw10: dwords, cdw11: extended.into() }
}

/// Identify, the namespace (CNS 00h).
pub(super) const fn identify_namespace() -> Request {
    Request { queue: Queue::Admin, opcode: IDENTIFY, cdw10: 0, cdw11: 0 }
}

/// Get Features, Host Identifier (81h), of 16 bytes (EXHID) or of 8.
pub(super) fn host_identifier(extended: bool) -> Request {
    Request { queue: Queue::Admin, opcode: GET_FEATURES, cdw10: 0x81, cdw11: extended.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_change_has_its_bytes() {
        let (one, two) = (Key(0x0102_0304_0506_0708), Key(0xa));
        let ones = [8, 7, 6, 5, 4, 3, 2, 1];
        let twos = [0xa, 0, 0, 0, 0, 0, 0, 0];
        let none = [0; 8];
        let (volatile, persistent) = (Persistence::Volatile, Persistence::Persistent);
        for (change, opcode, cdw10, data) in [
            (Change::Register(Registration::Register { new: one }, volatile), 0x0d, 0x8000_0000, vec![none, ones]),
            (Change::Register(Registration::Register { new: one }, persistent), 0x0d, 0xc000_0000, vec![none, ones]),
            (
                Change::Register(Registration::Unregister { current: Some(one) }, volatile),
                0x0d,
                0x8000_0001,
                vec![ones, none],
            ),
            (
                Change::Register(Registration::Unregister { current: None }, volatile),
                0x0d,
                0x8000_0009,
                vec![none, none],
            ),
            (
                Change::Register(Registration::Replace { current: Some(one), new: two }, volatile),
                0x0d,
                0x8000_0002,
                vec![ones, twos],
            ),
            (
                Change::Register(Registration::Replace { current: None, new: two }, persistent),
                0x0d,
                0xc000_000a,
                vec![none, twos],
            ),
            (Change::Acquire { key: one, reservation_type: Type::WriteExclusive }, 0x11, 0x100, vec![ones, none]),
            (
                Change::Preempt { key: one, victim: two, reservation_type: Type::ExclusiveAccess, abort: false },
                0x11,
                0x201,
                vec![ones, twos],
            ),
            (
                Change::Preempt {
                    key: one,
                    victim: two,
                    reservation_type: Type::ExclusiveAccessAllRegistrants,
                    abort: true,
                },
                0x11,
                0x602,
                vec![ones, twos],
            ),
            (
                Change::Release { key: one, reservation_type: Type::WriteExclusiveAllRegistrants },
                0x15,
                0x500,
                vec![ones],
            ),
            (Change::Clear { key: one }, 0x15, 1, vec![ones]),
        ] {
            let request = Request { queue: Queue::Io, opcode, cdw10, cdw11: 0 };
            assert_eq!(change.encode(), (request, data.concat()), "{change:?}");
        }
    }

    #[test]
    fn each_question_has_its_bytes() {
        let io = |opcode, cdw10, cdw11| Request { queue: Queue::Io, opcode, cdw10, cdw11 };
        let admin = |opcode, cdw10, cdw11| Request { queue: Queue::Admin, opcode, cdw10, cdw11 };
        assert_eq!(report(4096, true), io(0x0e, 1023, 1));
        assert_eq!(report(24, false), io(0x0e, 5, 0));
        assert_eq!(identify_namespace(), admin(0x06, 0, 0));
        assert_eq!(host_identifier(true), admin(0x0a, 0x81, 1));
        assert_eq!(host_identifier(false), admin(0x0a, 0x81, 0));
    }
}
