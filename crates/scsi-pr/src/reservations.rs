//! The rules of persistent reservations (SPC-4 5.13) as a pure value: [`Reservations`] are those of one logical unit.
//!
//! A device server passes every PERSISTENT RESERVE IN and OUT to [`Reservations::execute`], and acts on the [`Outcome`]. Before
//! every other command it asks [`Reservations::permits`], with the command's [`Access`]. [`Reservations::to_record`] makes the
//! record that outlives the process. There is no clock, no I/O and no lock here.
//!
//! `docs/reference/standard.md` has each choice that the standard leaves, and each one in which implementations differ.

mod access;
mod attention;
mod by_nexus;
mod events;
mod nexus;
mod record;
mod reserve_out;
mod spc2;
#[cfg(test)]
mod tests;

use std::fmt;

pub use access::Access;
pub use nexus::Nexus;
pub use record::InvalidRecord;

use attention::{Attention, Attentions};
use by_nexus::ByNexus;

use crate::reserve_in::{Encoder, full_status, keys};
use crate::{
    AllowCommands, Capabilities, Command, Completion, Generation, Held, Key, Opcode, Reservation, ReserveIn,
    ReserveInAction, ReserveOut, ReserveOutAction, SenseCode, Status, Type, TypeMask,
};

/// The number of registrants for which there is room, unless [`Reservations::with_room_for`] sets another.
const DEFAULT_ROOM: u32 = 10_000;

/// The most room there can be. The record of so many registrants has fewer than 2^32 bytes.
const MOST_ROOM: u32 = 1_000_000;

/// RELATIVE TARGET PORT IDENTIFIER of the only target port, unless [`Reservations::with_target_ports`] sets others.
const DEFAULT_TARGET_PORT: u16 = 1;

/// The persistent reservations of one logical unit: registrations, the reservation, PRGENERATION, APTPL, and pending unit
/// attention conditions.
///
/// # Bounds
///
/// There are no more registrations than there is room for. A registrant's unit attentions are never dropped: there are five kinds,
/// and each is kept once. Unregistered nexuses with pending unit attentions are kept up to the same number; beyond it, the oldest
/// are dropped. Such a nexus still learns of the event: its next command that needs a registration conflicts.
///
/// # Equality
///
/// Two values are equal if no command distinguishes them. The order of registrations and of unit attentions counts.
#[derive(Clone)]
pub struct Reservations {
    generation: Generation,
    aptpl: bool,
    registrations: ByNexus<Registration>,
    reservation: Option<Holding>,
    /// The unit attentions of unregistered nexuses. None is empty.
    unregistered: ByNexus<Attentions>,
    /// The number of RESERVATIONS RELEASED for all registrants but one. It is a counter, so that RELEASE need not visit them all.
    releases: u64,
    /// The holder of a SPC-2 reservation. While there is one, there are no registrations.
    spc2: Option<Nexus>,
    /// In ascending order, each once; at least one.
    target_ports: Vec<u16>,
    /// The number of registrants for which there is room.
    room: u32,
}

#[derive(Clone, Copy, Debug)]
struct Registration {
    key: Key,
    /// The pending unit attentions, without those of `releases`.
    attentions: Attentions,
    /// The [releases](Reservations::releases) that were reported to it, or do not concern it.
    releases: u64,
}

/// The reservation.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Holding {
    reservation_type: Type,
    /// Registered; `None` if every registrant is a holder.
    holder: Option<Nexus>,
}

impl Holding {
    fn new(reservation_type: Type, holder: &Nexus) -> Self {
        let holder = if reservation_type.is_all_registrants() { None } else { Some(holder.clone()) };
        Self { reservation_type, holder }
    }
}

/// A view of a registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registrant<'a> {
    /// The registered nexus.
    pub nexus: &'a Nexus,
    /// Never zero.
    pub key: Key,
    /// Whether this nexus holds the reservation.
    pub is_holder: bool,
}

/// A view of the reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserved<'a> {
    /// TYPE.
    pub reservation_type: Type,
    /// The only holder; `None` if every registrant is a holder.
    pub holder: Option<&'a Nexus>,
}

/// The result of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Outcome {
    /// The answer.
    pub completion: Completion,
    /// Whether the value has changed. If so, the device server must store the record before it answers.
    pub changed: bool,
    /// After PREEMPT AND ABORT, the nexuses whose commands the device server must abort before it answers, in the order of their
    /// registrations. The sender is among them if its own key was preempted too (only commands other than this one
    /// are aborted). Else empty.
    pub aborted: Vec<Nexus>,
}

impl Outcome {
    /// An answer that changes nothing.
    fn unchanged(completion: Completion) -> Self {
        Self { completion, changed: false, aborted: Vec::new() }
    }
}

const CONFLICT: Completion = Completion::Status(Status::RESERVATION_CONFLICT);

impl Default for Reservations {
    fn default() -> Self {
        Self::new()
    }
}

impl Reservations {
    /// Nothing registered, nothing reserved, generation 0, APTPL off; one target port, with relative identifier 1; room
    /// for 10,000 registrants.
    pub fn new() -> Self {
        Self {
            generation: Generation(0),
            aptpl: false,
            registrations: ByNexus::new(),
            reservation: None,
            unregistered: ByNexus::new(),
            releases: 0,
            spc2: None,
            target_ports: vec![DEFAULT_TARGET_PORT],
            room: DEFAULT_ROOM,
        }
    }

    /// As [`new`](Self::new), of a unit with these target ports: those that ALL_TG_PT means and that REGISTER AND MOVE
    /// may name. Without any, it has port 1.
    pub fn with_target_ports(relative_target_ports: impl IntoIterator<Item = u16>) -> Self {
        let mut new = Self::new();
        new.set_target_ports(relative_target_ports);
        new
    }

    /// Sets the target ports, as [`with_target_ports`](Self::with_target_ports) does. Existing registrants stay, also those of
    /// other ports.
    pub fn set_target_ports(&mut self, relative_target_ports: impl IntoIterator<Item = u16>) {
        self.target_ports = relative_target_ports.into_iter().collect();
        self.target_ports.sort_unstable();
        self.target_ports.dedup();
        if self.target_ports.is_empty() {
            self.target_ports.push(DEFAULT_TARGET_PORT);
        }
    }

    /// The same with room for `registrants`, at most 1,000,000. Beyond that, a registration is refused with 05/55/04. Existing
    /// registrants stay.
    #[must_use]
    pub fn with_room_for(mut self, registrants: usize) -> Self {
        self.set_room_for(registrants);
        self
    }

    /// Sets the room for registrants, as [`with_room_for`](Self::with_room_for) does.
    pub fn set_room_for(&mut self, registrants: usize) {
        self.room = u32::try_from(registrants).map_or(MOST_ROOM, |room| room.min(MOST_ROOM));
    }

    /// PRGENERATION.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Whether registrations and reservation survive a loss of power.
    pub fn aptpl(&self) -> bool {
        self.aptpl
    }

    /// The registrations, in the order in which they were made: that of READ KEYS and READ FULL STATUS.
    pub fn registrations(&self) -> impl ExactSizeIterator<Item = Registrant<'_>> {
        self.registrations.iter().map(|(nexus, registration)| Registrant {
            nexus,
            key: registration.key,
            is_holder: self.is_holder(nexus),
        })
    }

    /// The persistent reservation.
    pub fn reservation(&self) -> Option<Reserved<'_>> {
        let Holding { reservation_type, holder } = self.reservation.as_ref()?;
        Some(Reserved { reservation_type: *reservation_type, holder: holder.as_ref() })
    }

    /// The key that `nexus` has registered.
    pub fn key_of(&self, nexus: &Nexus) -> Option<Key> {
        self.registrations.get(nexus).map(|registration| registration.key)
    }

    /// Whether `nexus` holds the persistent reservation, alone or as one of all registrants.
    pub fn is_holder(&self, nexus: &Nexus) -> bool {
        match &self.reservation {
            None => false,
            Some(Holding { holder: Some(holder), .. }) => holder == nexus,
            Some(Holding { holder: None, .. }) => self.registrations.contains(nexus),
        }
    }

    /// Whether a command of this class from `nexus` may be processed now; if not, it is a RESERVATION CONFLICT. The table
    /// is at [`Access`].
    ///
    /// A device server asks when it begins to process a command, after unit attentions; INQUIRY, REPORT LUNS and REQUEST SENSE
    /// report none. For PERSISTENT RESERVE OUT, this considers the reservation of another nexus only: [`execute`](Self::execute)
    /// checks that, and the keys.
    pub fn permits(&self, nexus: &Nexus, access: Access) -> bool {
        if let Some(holder) = &self.spc2 {
            return match holder == nexus {
                true => !access.conflicts_with_own_spc2(),
                false => access.passes_spc2_of_another(),
            };
        }
        let Some(Holding { reservation_type, holder }) = &self.reservation else {
            // A RESERVE of SPC-2 beside registrations would be two kinds of reservation at once.
            return !matches!(access, Access::ReserveSpc2 | Access::ReleaseSpc2) || self.registrations.is_empty();
        };
        match access {
            Access::Always | Access::Status | Access::ReserveIn => return true,
            Access::Read if reservation_type.is_write_exclusive() => return true,
            _ => {}
        }
        if holder.as_ref() == Some(nexus) {
            return true;
        }
        let registered = || self.registrations.contains(nexus);
        match access {
            Access::ReserveOut(action) => match action {
                ReserveOutAction::Register | ReserveOutAction::RegisterAndIgnoreExistingKey => true,
                ReserveOutAction::Reserve | ReserveOutAction::RegisterAndMove => holder.is_none() && registered(),
                ReserveOutAction::Release
                | ReserveOutAction::Clear
                | ReserveOutAction::Preempt
                | ReserveOutAction::PreemptAndAbort
                | ReserveOutAction::ReplaceLostReservation => registered(),
            },
            _ => (holder.is_none() || reservation_type.is_registrants_only()) && registered(),
        }
    }

    /// Runs one command from `nexus`, as a device server does. A pending unit attention is the answer, and the command is not
    /// run. Else the checks follow in the order of the standard, and then the effect.
    ///
    /// A refused command changes nothing, except that a reported unit attention is no longer pending.
    ///
    /// QEMU's CLEANUP is no command of the standard and reports no unit attention. It unregisters `nexus` as REGISTER AND
    /// IGNORE EXISTING KEY with a key of zero does, except that APTPL stays. It is GOOD also when there is nothing to do.
    pub fn execute(&mut self, nexus: &Nexus, command: Command<'_>) -> Outcome {
        if command.opcode() != Opcode::Cleanup
            && let Some(code) = self.take_unit_attention(nexus)
        {
            return Outcome { completion: Completion::check(code), changed: true, aborted: Vec::new() };
        }
        self.process(nexus, command)
    }

    /// Does the same as [`execute`](Self::execute), but reports no unit attention.
    ///
    /// It is for a front that receives PERSISTENT RESERVE IN and OUT alone. An initiator fetches unit attentions with TEST
    /// UNIT READY, reads and writes, and expects none from the commands that follow. Such a front also calls
    /// [`clear_unit_attentions`](Self::clear_unit_attentions) before it stores a change.
    pub fn process(&mut self, nexus: &Nexus, command: Command<'_>) -> Outcome {
        if command.opcode() == Opcode::Cleanup {
            return self.clean_up(nexus);
        }
        if let Some(completion) = self.answer(nexus, command) {
            return Outcome::unchanged(completion);
        }
        if self.spc2.is_some() {
            return Outcome::unchanged(CONFLICT);
        }
        match ReserveOut::parse(command) {
            Ok(value) => self.reserve_out(nexus, &value),
            Err(code) => Outcome::unchanged(self.refuse_malformed(nexus, command, code)),
        }
    }

    /// The answer to a PERSISTENT RESERVE IN, without unit attentions: `None` for any other command. It changes nothing.
    pub fn answer(&self, nexus: &Nexus, command: Command<'_>) -> Option<Completion> {
        if command.opcode() != Opcode::ReserveIn {
            return None;
        }
        Some(match ReserveIn::parse(command) {
            _ if self.spc2.is_some() => CONFLICT,
            Ok(value) => self.reserve_in(nexus, &value),
            Err(code) => Completion::check(code),
        })
    }

    /// PERSISTENT RESERVE IN, without unit attentions. Time and memory depend on the allocation length, not on the number of
    /// registrations.
    pub fn reserve_in(&self, nexus: &Nexus, value: &ReserveIn) -> Completion {
        if !self.permits(nexus, Access::ReserveIn) {
            return CONFLICT;
        }
        value.answer(self.reserve_in_data(value.action(), value.allocation_length()))
    }

    /// The data of PERSISTENT RESERVE IN; of a list, at most `limit` bytes. An allocation length ends at 65,535, and `limit`
    /// may be more: a program that has the record itself can read all of it.
    pub fn reserve_in_data(&self, action: ReserveInAction, limit: usize) -> Vec<u8> {
        match action {
            ReserveInAction::ReadKeys => {
                let keys = self.registrations.iter().map(|(_, registration)| registration.key);
                keys::encode(self.generation, keys, limit)
            }
            ReserveInAction::ReadReservation => self.read_reservation().encode(),
            ReserveInAction::ReportCapabilities => self.capabilities().encode(),
            ReserveInAction::ReadFullStatus => self.full_status(limit),
        }
    }

    /// The reservation and the generation, as READ RESERVATION returns them (SPC-4 6.15.3).
    pub fn read_reservation(&self) -> Reservation {
        let held = self.reservation.as_ref().map(|Holding { reservation_type, holder }| Held {
            key: holder.as_ref().and_then(|holder| self.key_of(holder)).unwrap_or(Key::ZERO),
            reservation_type: *reservation_type,
        });
        Reservation { generation: self.generation, held }
    }

    /// The data of READ FULL STATUS, at most `limit` bytes.
    fn full_status(&self, limit: usize) -> Vec<u8> {
        let length = full_status::descriptors_length(self.registrations.len(), self.registrations.transport_id_bytes());
        let mut encoder = Encoder::new(self.generation, length, limit);
        let reservation_type = self.reservation.as_ref().map(|holding| holding.reservation_type);
        for Registrant { nexus, key, is_holder } in self.registrations() {
            if encoder.is_full() {
                break;
            }
            let held = reservation_type.filter(|_| is_holder);
            let port = nexus.relative_target_port();
            full_status::push_descriptor(&mut encoder, key, false, held, port, nexus.initiator().bytes());
        }
        encoder.finish()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            // The rules never find that information was lost.
            rlr_c: false,
            crh: true,
            sip_c: true,
            atp_c: true,
            ptpl_c: true,
            tmv: true,
            allow_commands: AllowCommands::ALL,
            ptpl_a: self.aptpl,
            type_mask: TypeMask::ALL,
        }
    }

    /// Takes the next unit attention of `nexus`, for the sense data of a CHECK CONDITION. It is the answer to every command except
    /// INQUIRY, REPORT LUNS and REQUEST SENSE (which returns it as data). If it is `Some`, the value has changed.
    pub fn take_unit_attention(&mut self, nexus: &Nexus) -> Option<SenseCode> {
        let releases = self.releases;
        let taken = if let Some(registration) = self.registrations.get_mut(nexus) {
            let mut pending = registration.pending(releases);
            let taken = pending.take()?;
            (registration.attentions, registration.releases) = (pending, releases);
            taken
        } else {
            let pending = self.unregistered.get_mut(nexus)?;
            let taken = pending.take()?;
            if pending.is_empty() {
                self.unregistered.remove(nexus);
            }
            taken
        };
        Some(taken.sense())
    }

    /// Makes no unit attention pending, for any nexus.
    pub fn clear_unit_attentions(&mut self) {
        let releases = self.releases;
        for registration in self.registrations.values_mut() {
            (registration.attentions, registration.releases) = (Attentions::NONE, releases);
        }
        self.unregistered = ByNexus::new();
    }

    /// Whether a unit attention is pending for `nexus`.
    pub fn has_unit_attention(&self, nexus: &Nexus) -> bool {
        match self.registrations.get(nexus) {
            Some(registration) => !registration.pending(self.releases).is_empty(),
            None => self.unregistered.contains(nexus),
        }
    }

    /// Registers `nexus`, which is not registered.
    fn add(&mut self, nexus: Nexus, key: Key) {
        let attentions = self.unregistered.remove(&nexus).unwrap_or(Attentions::NONE);
        self.registrations.insert(nexus, Registration { key, attentions, releases: self.releases });
    }

    /// Removes the registration of `nexus`, and establishes `attention` for it. Its pending unit attentions stay. Returns whether
    /// it was registered.
    fn remove(&mut self, nexus: &Nexus, attention: Option<Attention>) -> bool {
        let Some(registration) = self.registrations.remove(nexus) else { return false };
        let mut pending = registration.pending(self.releases);
        attention.into_iter().for_each(|attention| pending.add(attention));
        self.set_attentions_of_unregistered(nexus.clone(), pending);
        true
    }

    /// Sets the unit attentions of an unregistered nexus.
    fn set_attentions_of_unregistered(&mut self, nexus: Nexus, pending: Attentions) {
        if !pending.is_empty() {
            self.unregistered.insert(nexus, pending);
            let room = usize::try_from(self.room).unwrap_or(usize::MAX);
            while self.unregistered.len() > room {
                self.unregistered.pop_first();
            }
        }
    }

    /// Establishes RESERVATIONS RELEASED for every registrant except `sender`.
    fn establish_reservations_released(&mut self, sender: &Nexus) {
        let before = self.releases;
        self.releases += 1;
        // If an earlier release is pending for the sender, it stays pending.
        if let Some(registration) = self.registrations.get_mut(sender)
            && registration.releases == before
        {
            registration.releases = self.releases;
        }
    }

    /// The pending unit attentions of each nexus: first of registrants, then of others.
    fn all_attentions(&self) -> impl Iterator<Item = (&Nexus, Attentions)> {
        let registered = self.registrations.iter().map(|(nexus, it)| (nexus, it.pending(self.releases)));
        registered.chain(self.unregistered.iter().map(|(nexus, pending)| (nexus, *pending)))
    }
}

impl Registration {
    /// All pending unit attentions, after this number of releases.
    fn pending(&self, releases: u64) -> Attentions {
        match self.releases == releases {
            true => self.attentions,
            false => self.attentions.with(Attention::ReservationsReleased),
        }
    }
}

impl PartialEq for Reservations {
    fn eq(&self, other: &Self) -> bool {
        self.generation == other.generation
            && self.aptpl == other.aptpl
            && self.reservation == other.reservation
            && self.spc2 == other.spc2
            && self.target_ports == other.target_ports
            && self.room == other.room
            && self.registrations().eq(other.registrations())
            && self.all_attentions().eq(other.all_attentions())
    }
}

impl Eq for Reservations {}

impl fmt::Debug for Reservations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let attentions = self.all_attentions().filter(|(_, pending)| !pending.is_empty());
        let attentions: Vec<_> = attentions
            .map(|(nexus, pending)| (nexus, pending.iter().map(Attention::sense).collect::<Vec<_>>()))
            .collect();
        f.debug_struct("Reservations")
            .field("generation", &self.generation)
            .field("aptpl", &self.aptpl)
            .field("reservation", &self.reservation)
            .field("registrations", &self.registrations().collect::<Vec<_>>())
            .field("unit_attentions", &attentions)
            .field("spc2", &self.spc2)
            .field("target_ports", &self.target_ports)
            .field("room", &self.room)
            .finish()
    }
}
