//! The model: the reservations of a logical unit, and its answers (SPC-4 5.13, 6.15, 6.16).
//!
//! The code follows the tables and is not optimized: it searches lists from the start and copies them.

use crate::list::{List, number, transport_id, transport_ids};
use crate::ways::{self, Way};

/// An initiator port, as a TransportID in its canonical form ([`crate::transport_id`]), at a target port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nexus {
    /// The initiator port.
    pub initiator: Vec<u8>,
    /// RELATIVE TARGET PORT IDENTIFIER.
    pub target_port: u16,
}

/// A registered nexus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registrant {
    /// The nexus.
    pub nexus: Nexus,
    /// Its key, never 0.
    pub key: u64,
}

/// The reservation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    /// The code of its type.
    pub kind: u8,
    /// The holder. `None` with the types of all registrants, which every registrant holds.
    pub holder: Option<Nexus>,
}

/// The answer to a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// GOOD, with data.
    Good(Vec<u8>),
    /// RESERVATION CONFLICT.
    Conflict,
    /// CHECK CONDITION: sense key, additional sense code and qualifier.
    Check(u8, u8, u8),
}

/// The result of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// The answer.
    pub answer: Answer,
    /// The nexuses whose commands PREEMPT AND ABORT aborts.
    pub aborted: Vec<Nexus>,
    /// The case of the standard that applied, one of [`WAYS`](crate::WAYS).
    pub way: Way,
}

/// The reservations of a logical unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// The relative identifiers of its target ports.
    pub target_ports: Vec<u16>,
    /// PRGENERATION.
    pub generation: u32,
    /// Whether the state persists through a power loss.
    pub aptpl: bool,
    /// In the order of their registration.
    pub registrants: Vec<Registrant>,
    /// The reservation, if there is one.
    pub reservation: Option<Holding>,
    /// The pending unit attentions, the oldest first: additional sense code and qualifier.
    pub attentions: Vec<(Nexus, (u8, u8))>,
    /// The nexus that has reserved the unit by RESERVE of SPC-2.
    pub spc2_holder: Option<Nexus>,
}

const RESERVATIONS_PREEMPTED: (u8, u8) = (0x2a, 0x03);
const RESERVATIONS_RELEASED: (u8, u8) = (0x2a, 0x04);
const REGISTRATIONS_PREEMPTED: (u8, u8) = (0x2a, 0x05);

const CONFLICT: Answer = Answer::Conflict;
const PARAMETER_LIST_LENGTH_ERROR: Answer = Answer::Check(5, 0x1a, 0);
const INVALID_FIELD_IN_CDB: Answer = Answer::Check(5, 0x24, 0);
const INVALID_FIELD_IN_PARAMETER_LIST: Answer = Answer::Check(5, 0x26, 0);
const INVALID_RELEASE: Answer = Answer::Check(5, 0x26, 4);

/// Whether `kind` is the code of a type.
fn is_type(kind: u8) -> bool {
    [1, 3, 5, 6, 7, 8].contains(&kind)
}

/// Whether one nexus holds a reservation of this type and every registrant has access.
fn is_registrants_only(kind: u8) -> bool {
    kind == 5 || kind == 6
}

/// Whether every registrant holds a reservation of this type.
fn is_all_registrants(kind: u8) -> bool {
    kind == 7 || kind == 8
}

/// Whether the TransportID names an iSCSI node without a port. 7.6.4.6 permits to refuse it.
fn names_a_node(nexus: &Nexus) -> bool {
    nexus.initiator[0] == 0x05
}

fn done(answer: Answer, way: Way) -> Done {
    Done { answer, aborted: Vec::new(), way }
}

fn good(way: Way) -> Done {
    done(Answer::Good(Vec::new()), way)
}

impl Model {
    /// A unit without registrations.
    pub fn new(target_ports: &[u16]) -> Self {
        Self {
            target_ports: target_ports.to_vec(),
            generation: 0,
            aptpl: false,
            registrants: Vec::new(),
            reservation: None,
            attentions: Vec::new(),
            spc2_holder: None,
        }
    }

    /// The key of `nexus`, if it is registered.
    pub fn key_of(&self, nexus: &Nexus) -> Option<u64> {
        self.registrants.iter().find(|one| one.nexus == *nexus).map(|one| one.key)
    }

    /// Whether `nexus` holds the reservation.
    pub fn is_holder(&self, nexus: &Nexus) -> bool {
        match &self.reservation {
            Some(Holding { holder: Some(holder), .. }) => holder == nexus,
            Some(Holding { holder: None, .. }) => self.key_of(nexus).is_some(),
            None => false,
        }
    }

    /// Runs a PERSISTENT RESERVE IN or OUT.
    pub fn execute(&mut self, nexus: &Nexus, cdb: &[u8], list: &[u8]) -> Done {
        if let Some((code, qualifier)) = self.take_attention(nexus) {
            return done(Answer::Check(6, code, qualifier), ways::UNIT_ATTENTION);
        }
        // SPC-2 5.5.1: the holder gets a conflict too.
        if self.spc2_holder.is_some() {
            return done(CONFLICT, ways::SPC2_CONFLICT);
        }
        match cdb[0] {
            0x5e => self.reserve_in(cdb),
            0x5f => self.reserve_out(nexus, cdb, list),
            other => panic!("{other:#x} is neither PERSISTENT RESERVE IN nor OUT"),
        }
    }

    /// Removes and returns the next unit attention of `nexus`: one with ASC 29h if there is one, else the oldest.
    pub fn take_attention(&mut self, nexus: &Nexus) -> Option<(u8, u8)> {
        let mine = |asc: Option<u8>| {
            self.attentions.iter().position(|(whose, code)| whose == nexus && asc.is_none_or(|asc| asc == code.0))
        };
        let at = mine(Some(0x29)).or_else(|| mine(None))?;
        Some(self.attentions.remove(at).1)
    }

    /// Whether `nexus` has a pending unit attention.
    pub fn has_attention(&self, nexus: &Nexus) -> bool {
        self.attentions.iter().any(|(whose, _)| whose == nexus)
    }

    /// Establishes a unit attention (SAM-5 5.14).
    pub(crate) fn establish(&mut self, nexus: &Nexus, code: (u8, u8)) {
        let attention = (nexus.clone(), code);
        if !self.attentions.contains(&attention) {
            self.attentions.push(attention);
        }
    }

    /// Establishes a unit attention for all registrants but `sender`.
    fn establish_for_registrants(&mut self, sender: &Nexus, code: (u8, u8)) {
        for one in self.registrants.clone() {
            if one.nexus != *sender {
                self.establish(&one.nexus, code);
            }
        }
    }

    // ---- PERSISTENT RESERVE IN ----------------------------------------------------------------------------------

    fn reserve_in(&self, cdb: &[u8]) -> Done {
        let (mut data, way) = match cdb[1] & 0x1f {
            0 => (self.keys(), ways::READ_KEYS),
            1 => (self.read_reservation(), ways::READ_RESERVATION),
            2 => (self.capabilities(), ways::REPORT_CAPABILITIES),
            3 => (self.full_status(), ways::READ_FULL_STATUS),
            _ => return done(INVALID_FIELD_IN_CDB, ways::IN_UNKNOWN),
        };
        let allocation_length = number(&cdb[7..9]) as usize;
        let way = if allocation_length < data.len() { ways::IN_CUT } else { way };
        data.truncate(allocation_length);
        done(Answer::Good(data), way)
    }

    fn with_header(&self, data: &[u8]) -> Vec<u8> {
        [&self.generation.to_be_bytes()[..], &(data.len() as u32).to_be_bytes(), data].concat()
    }

    fn keys(&self) -> Vec<u8> {
        let keys: Vec<u8> = self.registrants.iter().flat_map(|one| one.key.to_be_bytes()).collect();
        self.with_header(&keys)
    }

    fn read_reservation(&self) -> Vec<u8> {
        let Some(reservation) = &self.reservation else { return self.with_header(&[]) };
        let key = match &reservation.holder {
            Some(holder) => self.key_of(holder).expect("a holder is registered"),
            None => 0,
        };
        self.with_header(&[&key.to_be_bytes()[..], &[0, 0, 0, 0, 0, reservation.kind, 0, 0]].concat())
    }

    fn capabilities(&self) -> Vec<u8> {
        // CRH, SIP_C, ATP_C, PTPL_C; TMV and ALLOW COMMANDS 100b; all six types.
        vec![0, 8, 0b0001_1101, 0b1100_0000 | u8::from(self.aptpl), 0xea, 0x01, 0, 0]
    }

    fn full_status(&self) -> Vec<u8> {
        let mut data = Vec::new();
        for Registrant { nexus, key } in &self.registrants {
            let holds = self.is_holder(nexus);
            data.extend(key.to_be_bytes());
            data.extend([0; 4]);
            data.push(u8::from(holds));
            data.push(if holds { self.reservation.as_ref().expect("it is held").kind } else { 0 });
            data.extend([0; 4]);
            data.extend(nexus.target_port.to_be_bytes());
            data.extend((nexus.initiator.len() as u32).to_be_bytes());
            data.extend(&nexus.initiator);
        }
        self.with_header(&data)
    }

    // ---- PERSISTENT RESERVE OUT ---------------------------------------------------------------------------------

    fn reserve_out(&mut self, nexus: &Nexus, cdb: &[u8], list: &[u8]) -> Done {
        let action = cdb[1] & 0x1f;
        let (scope, kind) = (cdb[2] >> 4, cdb[2] & 0xf);
        // The length is checked before the contents.
        if list.len() < 24 || number(&cdb[5..9]) as usize != list.len() {
            return done(PARAMETER_LIST_LENGTH_ERROR, ways::LIST_LENGTH);
        }
        let list_bytes = list;
        let list = List(list);
        if action != 7 && !list.spec_i_pt() && list_bytes.len() != 24 {
            return done(PARAMETER_LIST_LENGTH_ERROR, ways::LIST_LENGTH);
        }
        if action == 0 && list.spec_i_pt() && list_bytes.len() < 28 {
            return done(PARAMETER_LIST_LENGTH_ERROR, ways::LIST_LENGTH);
        }
        if action == 7 && number(&list_bytes[20..24]) as usize != list_bytes.len() - 24 {
            return done(PARAMETER_LIST_LENGTH_ERROR, ways::LIST_LENGTH);
        }
        if action > 8 {
            return done(INVALID_FIELD_IN_CDB, ways::OUT_UNKNOWN);
        }
        if [1, 2, 8].contains(&action) && (scope != 0 || !is_type(kind)) {
            return done(INVALID_FIELD_IN_CDB, ways::SCOPE_TYPE);
        }
        let own_key = self.key_of(nexus);
        match action {
            0 if list.key() != own_key.unwrap_or(0) => return done(CONFLICT, ways::REGISTER_WRONG_KEY),
            0 | 6 => {}
            8 if own_key.is_none() && self.reservation.is_some() => return done(CONFLICT, ways::NOT_REGISTERED),
            8 if list.key() != 0 => return done(CONFLICT, ways::WRONG_KEY),
            8 => {}
            _ if own_key.is_none() => return done(CONFLICT, ways::NOT_REGISTERED),
            _ if own_key != Some(list.key()) => return done(CONFLICT, ways::WRONG_KEY),
            _ => {}
        }
        if action != 0 && action != 7 && list.spec_i_pt() {
            return done(INVALID_FIELD_IN_PARAMETER_LIST, ways::SPEC_I_PT_ELSEWHERE);
        }
        match action {
            0 => self.register(nexus, list_bytes),
            1 => self.reserve(nexus, kind),
            2 => self.release(nexus, kind),
            3 => self.clear(nexus),
            4 | 5 => self.preempt(nexus, cdb[2], list.service_action_key(), action == 5),
            6 => {
                let others = if list.all_tg_pt() { self.target_ports.clone() } else { vec![nexus.target_port] };
                self.set_keys(nexus, &others, list.service_action_key(), list.aptpl(), true)
            }
            7 => self.register_and_move(nexus, list_bytes),
            // The model never loses a reservation.
            _ => done(INVALID_RELEASE, ways::REPLACE_NOTHING_LOST),
        }
    }

    /// Table 67, once the key is right.
    fn register(&mut self, nexus: &Nexus, list_bytes: &[u8]) -> Done {
        let list = List(list_bytes);
        let mut initiators = Vec::new();
        if list.spec_i_pt() {
            if number(&list_bytes[24..28]) as usize != list_bytes.len() - 28 {
                return done(INVALID_FIELD_IN_PARAMETER_LIST, ways::SPEC_I_PT_MALFORMED);
            }
            match transport_ids(&list_bytes[28..]) {
                Some(ids) => initiators = ids,
                None => return done(INVALID_FIELD_IN_PARAMETER_LIST, ways::SPEC_I_PT_MALFORMED),
            }
        }
        // ALL_TG_PT has the effect of one command through each target port (6.16.3).
        let ports = if list.all_tg_pt() { self.target_ports.clone() } else { vec![nexus.target_port] };
        for target_port in &ports {
            let sender = Nexus { initiator: nexus.initiator.clone(), target_port: *target_port };
            if list.key() != self.key_of(&sender).unwrap_or(0) {
                return done(CONFLICT, ways::REGISTER_WRONG_KEY_ELSEWHERE);
            }
        }
        if list.spec_i_pt() && self.key_of(nexus).is_some() {
            return done(INVALID_FIELD_IN_PARAMETER_LIST, ways::SPEC_I_PT_REGISTERED);
        }
        let key = list.service_action_key();
        if !list.spec_i_pt() || key == 0 {
            return self.set_keys(nexus, &ports, key, list.aptpl(), false);
        }
        let mut listed = Vec::new();
        for initiator in initiators {
            for port in &ports {
                listed.push(Nexus { initiator: initiator.clone(), target_port: *port });
            }
        }
        if listed.iter().any(names_a_node) {
            return done(INVALID_FIELD_IN_PARAMETER_LIST, ways::SPEC_I_PT_NODE);
        }
        if listed.iter().any(|one| self.key_of(one).is_some()) {
            return done(INVALID_FIELD_IN_PARAMETER_LIST, ways::SPEC_I_PT_KNOWN);
        }
        self.set_keys(nexus, &ports, key, list.aptpl(), false);
        for one in listed {
            self.set_key(&one, key);
        }
        good(ways::SPEC_I_PT_REGISTERS)
    }

    /// REGISTER and REGISTER AND IGNORE EXISTING KEY of the sender alone, at these target ports.
    fn set_keys(&mut self, nexus: &Nexus, ports: &[u16], key: u64, aptpl: bool, ignoring: bool) -> Done {
        let was_registered = self.key_of(nexus).is_some();
        self.aptpl = aptpl;
        self.generation = self.generation.wrapping_add(1);
        let all = ports.iter().map(|port| Nexus { initiator: nexus.initiator.clone(), target_port: *port });
        let all: Vec<Nexus> = all.collect();
        if key == 0 {
            self.unregister(nexus, &all);
        } else {
            for one in &all {
                self.set_key(one, key);
            }
        }
        good(match (ignoring, was_registered, key) {
            (false, false, 0) => ways::REGISTER_NOTHING,
            (false, true, 0) => ways::UNREGISTER,
            (false, false, _) => ways::REGISTER,
            (false, true, _) => ways::CHANGE_KEY,
            (true, false, 0) => ways::IGNORE_NOTHING,
            (true, true, 0) => ways::IGNORE_UNREGISTER,
            (true, false, _) => ways::IGNORE_REGISTER,
            (true, true, _) => ways::IGNORE_CHANGE_KEY,
        })
    }

    fn set_key(&mut self, nexus: &Nexus, key: u64) {
        match self.registrants.iter_mut().find(|one| one.nexus == *nexus) {
            Some(one) => one.key = key,
            None => self.registrants.push(Registrant { nexus: nexus.clone(), key }),
        }
    }

    /// Removes registrations, and the reservation if it ends with them (5.13.11.3).
    fn unregister(&mut self, sender: &Nexus, leaving: &[Nexus]) {
        self.registrants.retain(|one| !leaving.contains(&one.nexus));
        let Some(Holding { kind, holder }) = self.reservation.clone() else { return };
        match holder {
            Some(holder) if leaving.contains(&holder) => {
                self.reservation = None;
                if is_registrants_only(kind) {
                    self.establish_for_registrants(sender, RESERVATIONS_RELEASED);
                }
            }
            None if self.registrants.is_empty() => self.reservation = None,
            _ => {}
        }
    }

    fn reserve(&mut self, nexus: &Nexus, kind: u8) -> Done {
        match &self.reservation {
            None => {
                self.make_reservation(nexus, kind);
                good(ways::RESERVE)
            }
            Some(_) if !self.is_holder(nexus) => done(CONFLICT, ways::RESERVE_OF_ANOTHER),
            Some(reservation) if reservation.kind != kind => done(CONFLICT, ways::RESERVE_OF_ANOTHER_TYPE),
            Some(_) => good(ways::RESERVE_AGAIN),
        }
    }

    fn make_reservation(&mut self, nexus: &Nexus, kind: u8) {
        let holder = if is_all_registrants(kind) { None } else { Some(nexus.clone()) };
        self.reservation = Some(Holding { kind, holder });
    }

    fn release(&mut self, nexus: &Nexus, kind: u8) -> Done {
        let Some(reservation) = self.reservation.clone() else { return good(ways::RELEASE_NOTHING) };
        if !self.is_holder(nexus) {
            return good(ways::RELEASE_OF_ANOTHER);
        }
        if reservation.kind != kind {
            return done(INVALID_RELEASE, ways::RELEASE_OF_ANOTHER_TYPE);
        }
        self.reservation = None;
        if is_registrants_only(kind) || is_all_registrants(kind) {
            self.establish_for_registrants(nexus, RESERVATIONS_RELEASED);
        }
        good(ways::RELEASE)
    }

    fn clear(&mut self, nexus: &Nexus) -> Done {
        self.establish_for_registrants(nexus, RESERVATIONS_PREEMPTED);
        self.registrants.clear();
        self.reservation = None;
        self.generation = self.generation.wrapping_add(1);
        good(ways::CLEAR)
    }

    /// Table 72.
    fn preempt(&mut self, nexus: &Nexus, scope_type: u8, key: u64, aborting: bool) -> Done {
        let held_by_all = self.reservation.as_ref().is_some_and(|reservation| reservation.holder.is_none());
        let holders_key = match &self.reservation {
            Some(Holding { holder: Some(holder), .. }) => self.key_of(holder),
            _ => None,
        };
        if key == 0 && !held_by_all {
            return done(INVALID_FIELD_IN_PARAMETER_LIST, ways::PREEMPT_ZERO);
        }
        let takes_over = (key == 0 && held_by_all) || (key != 0 && holders_key == Some(key));
        if takes_over && !is_type(scope_type) {
            return done(INVALID_FIELD_IN_CDB, ways::PREEMPT_SCOPE_TYPE);
        }
        let matching = |one: &Registrant| key == 0 || one.key == key;
        if !takes_over && !self.registrants.iter().any(matching) {
            return done(CONFLICT, ways::PREEMPT_UNKNOWN_KEY);
        }

        let before = self.reservation.clone();
        // 5.13.11.2.6: PREEMPT AND ABORT aborts the sender's commands too if its key matches, even if it stays registered.
        let matching: Vec<Nexus> =
            self.registrants.iter().filter(|one| matching(one)).map(|one| one.nexus.clone()).collect();
        // The new holder stays registered. Under all registrants, no PREEMPT removes its own sender.
        let stays = takes_over || held_by_all;
        let removed: Vec<Nexus> = matching.iter().filter(|one| !(stays && *one == nexus)).cloned().collect();
        self.registrants.retain(|one| !removed.contains(&one.nexus));
        for one in &removed {
            if one != nexus {
                self.establish(one, REGISTRATIONS_PREEMPTED);
            }
        }
        if takes_over {
            self.make_reservation(nexus, scope_type);
            if before.as_ref().is_some_and(|before| before.kind != scope_type) {
                self.establish_for_registrants(nexus, RESERVATIONS_RELEASED);
            }
        }
        self.generation = self.generation.wrapping_add(1);

        let way = match (before, takes_over) {
            (Some(Holding { holder: None, .. }), true) => ways::PREEMPT_ALL,
            (Some(Holding { holder: Some(holder), .. }), true) if holder == *nexus => ways::PREEMPT_SELF,
            (_, true) => ways::PREEMPT_HOLDER,
            (Some(Holding { holder: None, .. }), false) if matching.contains(nexus) => ways::PREEMPT_SELF_OF_ALL,
            (_, false) if removed.contains(nexus) => ways::PREEMPT_OWN_KEY,
            (Some(Holding { holder: None, .. }), false) => ways::PREEMPT_SOME_OF_ALL,
            (Some(_), false) => ways::PREEMPT_OTHERS,
            (None, false) => ways::PREEMPT_UNRESERVED,
        };
        let way = if aborting { ways::aborting(way) } else { way };
        Done { aborted: if aborting { matching } else { Vec::new() }, ..good(way) }
    }

    /// Table 70, once the key is right.
    fn register_and_move(&mut self, nexus: &Nexus, list_bytes: &[u8]) -> Done {
        let list = List(list_bytes);
        let key = list.service_action_key();
        if self.reservation.is_some() && !self.is_holder(nexus) {
            return done(CONFLICT, ways::MOVE_OF_ANOTHER);
        }
        if key == 0 {
            return done(INVALID_FIELD_IN_PARAMETER_LIST, ways::MOVE_ZERO);
        }
        let kind = match &self.reservation {
            Some(Holding { holder: None, .. }) => return done(CONFLICT, ways::MOVE_OF_ALL),
            Some(Holding { kind, .. }) => *kind,
            None => return done(INVALID_FIELD_IN_CDB, ways::MOVE_NOTHING),
        };
        let Some(initiator) = transport_id(&list_bytes[24..]) else {
            return done(INVALID_FIELD_IN_PARAMETER_LIST, ways::MOVE_MALFORMED);
        };
        if initiator == nexus.initiator {
            return done(INVALID_FIELD_IN_PARAMETER_LIST, ways::MOVE_TO_ITSELF);
        }
        let destination = Nexus { initiator, target_port: list.move_target_port() };
        if names_a_node(&destination) {
            return done(INVALID_FIELD_IN_PARAMETER_LIST, ways::MOVE_TO_NODE);
        }
        if !self.target_ports.contains(&destination.target_port) {
            return done(INVALID_FIELD_IN_PARAMETER_LIST, ways::MOVE_TO_NO_PORT);
        }
        let way = match (self.key_of(&destination).is_some(), list.move_unregisters()) {
            (false, false) => ways::MOVE,
            (true, false) => ways::MOVE_TO_REGISTRANT,
            (_, true) => ways::MOVE_UNREGISTERING,
        };
        self.set_key(&destination, key);
        self.reservation = Some(Holding { kind, holder: Some(destination) });
        if list.move_unregisters() {
            self.registrants.retain(|one| one.nexus != *nexus);
        }
        self.aptpl = list.move_aptpl();
        self.generation = self.generation.wrapping_add(1);
        good(way)
    }
}
