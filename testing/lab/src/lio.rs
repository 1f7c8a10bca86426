//! The deviations of LIO, the target of Linux 6.1, from the standard of persistent reservations. [`Lio`] predicts LIO's
//! answers.
//!
//! A [`Deviation`] is an additional check, a check in another order, or another effect. Everything else follows the model
//! of the standard.

use model::{Answer, Holding, Model, Nexus, Registrant};

/// A deviation from the standard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Deviation {
    pub(crate) name: &'static str,
    /// LIO's behaviour.
    pub(crate) reason: &'static str,
}

macro_rules! deviations {
    ($($name:ident = $text:literal, $reason:literal;)*) => {
        $(const $name: Deviation = Deviation { name: $text, reason: $reason };)*

        /// Every deviation.
        pub(crate) const DEVIATIONS: &[Deviation] = &[$($name),*];
    };
}

deviations! {
    ONE_ATTENTION = "one unit attention for all", "LIO reports the oldest unit attention and drops the others";
    CONFLICT_FIRST = "conflict before the list", "a reservation conflict is checked before the parameter list";
    KEY_FIRST = "key first", "the key is checked before the scope, and before the lengths in the lists of REGISTER and REGISTER AND MOVE";
    NOT_REGISTERED = "02/08/00 for RESERVATION CONFLICT", "an unregistered initiator gets LOGICAL UNIT COMMUNICATION FAILURE";
    SPEC_I_PT_FIRST = "SPEC_I_PT first", "SPEC_I_PT with another service action than REGISTER is refused before all checks but that of the length";
    TYPE_FIRST = "type first", "the type is checked before registration and key, and with PREEMPT always";
    SCOPE_IN_LIST = "05/26/00 for the scope", "another scope is an error of the parameter list, and is checked after the key";
    REPLACE_UNKNOWN = "REPLACE LOST RESERVATION unknown", "LIO does not support it";
    RELEASE_ANY_KEY = "RELEASE without its key", "an initiator that is not the holder gets GOOD with any key";
    RELEASE_TYPE = "conflict for 05/26/04", "RELEASE of another type is a conflict";
    MOVE_LIST_FIRST = "REGISTER AND MOVE: list first", "key and TransportID are checked before the reservation, and a wrong length is an error of the list";
    NOT_COUNTED = "unregistering does not count", "PRGENERATION stays when REGISTER removes a registration, or finds none to remove";
    SPEC_I_PT_COUNTS_EACH = "SPEC_I_PT counts each", "PRGENERATION counts every nexus that SPEC_I_PT registers";
    SPEC_I_PT_SKIPS = "SPEC_I_PT skips registrants", "nexuses that are registered already stay unchanged";
    SPEC_I_PT_LENGTH = "05/26/00 for a list without TransportIDs", "SPEC_I_PT with too short a list is an error of the list";
    SPEC_I_PT_UNREAD = "SPEC_I_PT unread", "without a key to register, the TransportIDs are ignored";
    ALL_TG_PT_REQUIRED = "ALL_TG_PT required", "a registration with ALL_TG_PT can be changed only with ALL_TG_PT: else 05/24/00";
    ALL_TG_PT_SHOWN = "ALL_TG_PT shown", "READ FULL STATUS shows the bit, and then no target port";
    CLEAR_APTPL = "CLEAR ends APTPL", "CLEAR disables APTPL";
    PREEMPT_REMEMBERED = "one of all registrants", "LIO stores one of all registrants as the holder; PREEMPT with its key takes the reservation over";
    MOVED_SCOPE = "type as scope", "REGISTER AND MOVE stores the type as the sender's scope; if the reservation moves back, RESERVE and RELEASE conflict, and PREEMPT is a change of type";
    ALLOW_COMMANDS = "ALLOW COMMANDS 001b", "LIO allows fewer commands than SPC-4 does";
    SHORT_READ = "05/24/00 for a short allocation length", "LIO requires space for the header";
    SPC2_HOLDER = "SPC-2 for the holder alone", "under registrants only and all registrants, a registrant that is not the holder gets a conflict for RESERVE and RELEASE of SPC-2";
    CUT_READ = "data cut at the wrong place", "READ KEYS returns zeros for a partial key, READ RESERVATION if the type does not fit";
    SPC2_CONFLICTS_MORE = "SPC-2 conflicts with more", "under another's RESERVE of SPC-2 even READ CAPACITY conflicts";
    NO_DATA = "no data, no write", "under write exclusive, a command without data, SYNCHRONIZE CACHE too, passes from an unregistered initiator and conflicts from a registrant";
    READ_CAPACITY = "READ CAPACITY reads", "READ CAPACITY (10) and (16) are not among the commands that always pass";
    LOSS_UNREPORTED = "no 06/29/07", "LIO establishes no unit attention for a new session after the loss of the nexus";
    MODE_SENSE = "MODE SENSE for registrants", "a registrant may send it under another's exclusive access";
}

/// LIO's state.
#[derive(Clone, Debug)]
pub(crate) struct Lio {
    /// The state by the standard.
    pub(crate) model: Model,
    /// The registrant that LIO treats as the holder of an all-registrants reservation.
    remembered: Option<Nexus>,
    /// The nexuses that registered with ALL_TG_PT.
    all_tg_pt: Vec<Nexus>,
    /// The registrants with a scope other than zero.
    scopes: Vec<(Nexus, u8)>,
}

/// The expected result of a command.
pub(crate) struct Expected {
    /// LIO's answer.
    pub(crate) answer: Answer,
    /// The way of the standard's model, one of `model::WAYS`.
    pub(crate) way: &'static str,
    /// The deviation, if LIO's answer or effect differs.
    pub(crate) deviation: Option<Deviation>,
}

/// A check that ends a command.
struct Check {
    answer: Answer,
    /// The deviation, if the standard may answer differently.
    name: Option<Deviation>,
}

fn ends(answer: Answer) -> Option<Check> {
    Some(Check { answer, name: None })
}

fn differs(answer: Answer, name: Deviation) -> Option<Check> {
    Some(Check { answer, name: Some(name) })
}

const CONFLICT: Answer = Answer::Conflict;
const LENGTH: Answer = Answer::Check(5, 0x1a, 0);
const CDB: Answer = Answer::Check(5, 0x24, 0);
const LIST: Answer = Answer::Check(5, 0x26, 0);
const FAILURE: Answer = Answer::Check(2, 8, 0);

fn good() -> Answer {
    Answer::Good(Vec::new())
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

impl Lio {
    pub(crate) fn new(model: Model) -> Self {
        Self { model, remembered: None, all_tg_pt: Vec::new(), scopes: Vec::new() }
    }

    /// Whether the histories leave this command out, because it would bring LIO into an invalid or invisible state. With
    /// SPEC_I_PT, LIO registers a nexus twice if the list names it twice, or if the sender names itself. LIO takes a
    /// TransportID of an iSCSI node without a port for any port of the node; the standard permits to refuse it.
    pub(crate) fn is_excluded(nexus: &Nexus, cdb: &[u8; 16], list: &[u8]) -> bool {
        let names_a_node = |at: usize| list.get(at) == Some(&0x05);
        if cdb[0] == 0x5f && (cdb[1] == 7 && names_a_node(24) || cdb[1] == 0 && names_a_node(28)) {
            return true;
        }
        if cdb[..2] != [0x5f, 0] || list.len() <= 28 || list[20] & 8 == 0 {
            return false;
        }
        let ids = ids(list).unwrap_or_default();
        ids.contains(&nexus.initiator) || ids.iter().enumerate().any(|(at, id)| ids[..at].contains(id))
    }

    /// A persistent reservation command.
    pub(crate) fn execute(&mut self, nexus: &Nexus, cdb: &[u8; 16], list: &[u8]) -> Expected {
        let before = self.clone();
        let done = self.model.execute(nexus, cdb, list);
        let expected = |answer, deviation| Expected { answer, way: done.way, deviation };
        if let Answer::Check(6, ..) = done.answer {
            let dropped = self.drop_attentions(nexus);
            return expected(done.answer, dropped);
        }
        let (answer, deviation) = match cdb[0] {
            0x5e => before.read(cdb, done.answer),
            _ => match before.checks(nexus, cdb, list) {
                Some(Check { answer, name }) => {
                    let differs = answer != done.answer || self.model != before.model;
                    *self = before;
                    return expected(answer, name.filter(|_| differs));
                }
                None => {
                    let result = self.effect(&before, nexus, cdb, list, done.answer);
                    self.update_scopes(&before, nexus, cdb[1], list);
                    result
                }
            },
        };
        self.update_holder(nexus);
        expected(answer, deviation)
    }

    /// RESERVE (6) or RELEASE of SPC-2.
    pub(crate) fn spc2(&mut self, nexus: &Nexus, reserve: bool) -> Expected {
        let before = self.clone();
        let done = self.model.spc2(nexus, reserve);
        let expected = |answer, deviation| Expected { answer, way: done.way, deviation };
        if let Answer::Check(6, ..) = done.answer {
            let dropped = self.drop_attentions(nexus);
            return expected(done.answer, dropped);
        }
        let beside_another = before.apparent_holder().is_some_and(|holder| holder != nexus);
        if done.answer == good() && beside_another && before.model.key_of(nexus).is_some() {
            return expected(CONFLICT, Some(SPC2_HOLDER));
        }
        expected(done.answer, None)
    }

    /// LOGICAL UNIT RESET; these are the nexuses with a session.
    pub(crate) fn reset(&mut self, nexuses: &[Nexus]) -> Expected {
        let pending = std::mem::take(&mut self.model.attentions);
        let done = self.model.reset();
        // SPC-4 permits the more specific code of a reset, BUS DEVICE RESET FUNCTION OCCURRED.
        self.model.attentions = nexuses.iter().map(|nexus| (nexus.clone(), (0x29, 0x03))).chain(pending).collect();
        Expected { answer: done.answer, way: done.way, deviation: None }
    }

    /// The loss of a nexus, and a new session of it.
    pub(crate) fn lose_nexus(&mut self, nexus: &Nexus) -> Expected {
        let pending = self.model.attentions.clone();
        let done = self.model.lose_nexus(nexus);
        self.model.attentions = pending;
        Expected { answer: done.answer, way: done.way, deviation: Some(LOSS_UNREPORTED) }
    }

    /// Any other command that the model knows; with `data` to or from the unit.
    pub(crate) fn access(&mut self, nexus: &Nexus, cdb: &[u8], data: bool) -> Expected {
        let way = "another command";
        if cdb[0] == 0x12 {
            return Expected { answer: good(), way, deviation: None };
        }
        if let Some((asc, ascq)) = self.model.take_attention(nexus) {
            let deviation = self.drop_attentions(nexus);
            return Expected { answer: Answer::Check(6, asc, ascq), way, deviation };
        }
        let permitted = self.model.permits(nexus, cdb);
        let registered = self.model.key_of(nexus).is_some();
        let differs = match (&self.model.spc2_holder, &self.model.reservation) {
            (Some(holder), _) => (permitted && matches!(cdb[0], 0x25 | 0x9e) && holder != nexus, SPC2_CONFLICTS_MORE),
            (None, Some(reservation)) if !self.model.is_holder(nexus) => match (cdb[0], reservation.kind) {
                // SYNCHRONIZE CACHE, VERIFY.
                (0x35 | 0x2f, 1) if !data => (permitted == registered, NO_DATA),
                (0x35 | 0x2f, 5 | 7) if !data => (!permitted, NO_DATA),
                (0x25 | 0x9e, 3) => (permitted, READ_CAPACITY),
                (0x25 | 0x9e, 6 | 8) => (permitted && !registered, READ_CAPACITY),
                (0x1a, 3) => (registered, MODE_SENSE),
                _ => (false, NO_DATA),
            },
            _ => (false, NO_DATA),
        };
        let answer = if permitted != differs.0 { good() } else { CONFLICT };
        Expected { answer, way, deviation: differs.0.then_some(differs.1) }
    }

    /// Drops the other unit attentions of `nexus` after it has received one.
    fn drop_attentions(&mut self, nexus: &Nexus) -> Option<Deviation> {
        let more = self.model.attentions.len();
        self.model.attentions.retain(|(whose, _)| whose != nexus);
        (self.model.attentions.len() < more).then_some(ONE_ATTENTION)
    }

    /// PERSISTENT RESERVE IN.
    fn read(&self, cdb: &[u8; 16], standard: Answer) -> (Answer, Option<Deviation>) {
        let allocation_length = usize::from(u16::from_be_bytes([cdb[7], cdb[8]]));
        let Answer::Good(data) = &standard else { return (standard, None) };
        if allocation_length < if cdb[1] == 2 { 6 } else { 8 } {
            return (CDB, Some(SHORT_READ));
        }
        let mut data = data.clone();
        match cdb[1] {
            0 if data.len() % 8 != 0 => {
                let whole = data.len() / 8 * 8;
                data[whole..].fill(0);
                (Answer::Good(data), Some(CUT_READ))
            }
            1 if (9..22).contains(&data.len()) => {
                data[8..].fill(0);
                (Answer::Good(data), Some(CUT_READ))
            }
            2 => {
                data[3] = data[3] & 0x8f | 0x10;
                (Answer::Good(data), Some(ALLOW_COMMANDS))
            }
            3 if !self.all_tg_pt.is_empty() => {
                let mut at = 8;
                for Registrant { nexus, .. } in &self.model.registrants {
                    if self.all_tg_pt.contains(nexus) {
                        data[at + 12] |= 2;
                        data[at + 18..at + 20].fill(0);
                    }
                    at += 24 + nexus.initiator.len();
                }
                (Answer::Good(data), Some(ALL_TG_PT_SHOWN))
            }
            _ => (Answer::Good(data), None),
        }
    }

    /// The checks of PERSISTENT RESERVE OUT in LIO's order. Returns the check that ends the command.
    fn checks(&self, nexus: &Nexus, cdb: &[u8; 16], list: &[u8]) -> Option<Check> {
        let action = cdb[1];
        let registered = self.model.key_of(nexus);
        if self.model.spc2_holder.is_some() {
            return ends(CONFLICT);
        }
        if let (Some(reservation), false) = (&self.model.reservation, self.apparent_holder() == Some(nexus)) {
            let passes = match (registered, reservation.kind) {
                (None, _) => matches!(action, 0 | 6),
                (Some(_), 1 | 3) => matches!(action, 0 | 2..=6),
                (Some(_), _) => action < 8,
            };
            if !passes {
                return differs(CONFLICT, CONFLICT_FIRST);
            }
        }
        let spec_i_pt = action != 7 && list.len() > 20 && list[20] & 8 != 0;
        if list.len() < 24 {
            return ends(LENGTH);
        }
        if spec_i_pt && action != 0 {
            return differs(LIST, SPEC_I_PT_FIRST);
        }
        if !spec_i_pt && action != 7 && list.len() != 24 {
            return ends(LENGTH);
        }
        if action > 7 {
            return differs(CDB, REPLACE_UNKNOWN);
        }
        if matches!(action, 1 | 4 | 5) && ![1, 3, 5, 6, 7, 8].contains(&(cdb[2] & 0xf)) {
            return differs(CDB, TYPE_FIRST);
        }
        if registered.is_none() && !matches!(action, 0 | 6) {
            // PREEMPT is as in the standard.
            return if matches!(action, 4 | 5) { ends(CONFLICT) } else { differs(FAILURE, NOT_REGISTERED) };
        }
        let wrong_key = registered != Some(number(&list[0..8]));
        match action {
            0 | 6 => self.checks_of_register(nexus, action == 0, list),
            2 => self.checks_of_release(nexus, wrong_key, cdb[2]),
            7 => self.checks_of_move(nexus, wrong_key, list),
            _ if wrong_key => differs(CONFLICT, KEY_FIRST),
            1 | 4 | 5 if cdb[2] >> 4 != 0 => differs(LIST, SCOPE_IN_LIST),
            1 if self.model.is_holder(nexus) && self.scope() != 0 => differs(CONFLICT, MOVED_SCOPE),
            4 | 5 => self.checks_of_preempt(number(&list[8..16])),
            _ => None,
        }
    }

    fn checks_of_register(&self, nexus: &Nexus, by_key: bool, list: &[u8]) -> Option<Check> {
        let (key, service_action_key) = (number(&list[0..8]), number(&list[8..16]));
        let (spec_i_pt, all_tg_pt) = (list[20] & 8 != 0, list[20] & 4 != 0);
        match self.model.key_of(nexus) {
            registered if by_key && key != registered.unwrap_or(0) => differs(CONFLICT, KEY_FIRST),
            None if service_action_key == 0 && spec_i_pt => differs(good(), SPEC_I_PT_UNREAD),
            None if spec_i_pt && (list.len() < 28 || ids(list).is_none()) => differs(LIST, SPEC_I_PT_LENGTH),
            None => None,
            Some(_) if spec_i_pt => differs(LIST, SPEC_I_PT_LENGTH),
            Some(_) if self.all_tg_pt.contains(nexus) && !all_tg_pt => differs(CDB, ALL_TG_PT_REQUIRED),
            Some(_) => None,
        }
    }

    fn checks_of_release(&self, nexus: &Nexus, wrong_key: bool, scope_type: u8) -> Option<Check> {
        match &self.model.reservation {
            Some(reservation) if self.model.is_holder(nexus) => match () {
                () if wrong_key => differs(CONFLICT, KEY_FIRST),
                () if self.scope() << 4 | reservation.kind == scope_type => None,
                () if self.scope() != 0 => differs(CONFLICT, MOVED_SCOPE),
                () if reservation.kind != scope_type => differs(CONFLICT, RELEASE_TYPE),
                () => None,
            },
            _ => differs(good(), RELEASE_ANY_KEY),
        }
    }

    fn checks_of_preempt(&self, service_action_key: u64) -> Option<Check> {
        let held_by_all = matches!(self.model.reservation, Some(Holding { holder: None, .. }));
        match service_action_key {
            0 if held_by_all => None,
            0 => ends(LIST),
            key if self.model.registrants.iter().any(|one| one.key == key) => None,
            _ => ends(CONFLICT),
        }
    }

    fn checks_of_move(&self, nexus: &Nexus, wrong_key: bool, list: &[u8]) -> Option<Check> {
        let length = number(&list[20..24]) as usize + 24;
        let destination = model::transport_id(&list[24..]).filter(|id| *id != nexus.initiator);
        let target_port = number(&list[18..20]);
        match &self.model.reservation {
            _ if wrong_key => differs(CONFLICT, KEY_FIRST),
            _ if number(&list[8..16]) == 0 => differs(LIST, MOVE_LIST_FIRST),
            _ if length != list.len() || target_port != 1 || destination.is_none() => differs(LIST, MOVE_LIST_FIRST),
            None => ends(CDB),
            Some(Holding { holder: Some(holder), .. }) if holder == nexus => None,
            Some(_) => ends(CONFLICT),
        }
    }

    /// The holder, or the registrant that LIO treats as the holder.
    fn apparent_holder(&self) -> Option<&Nexus> {
        self.model.reservation.as_ref()?.holder.as_ref().or(self.remembered.as_ref())
    }

    /// The scope that LIO has stored for the reservation.
    fn scope(&self) -> u8 {
        let holder = self.model.reservation.as_ref().and_then(|reservation| reservation.holder.as_ref());
        self.scopes.iter().find(|(nexus, _)| Some(nexus) == holder).map_or(0, |(_, scope)| *scope)
    }

    fn holders_key(&self) -> Option<u64> {
        self.apparent_holder().and_then(|nexus| self.model.key_of(nexus))
    }

    fn remembered_key(&self) -> Option<u64> {
        self.remembered.as_ref().and_then(|nexus| self.model.key_of(nexus))
    }

    /// Applies LIO's effect after all checks. The model has already applied the standard's effect.
    fn effect(
        &mut self,
        before: &Self,
        nexus: &Nexus,
        cdb: &[u8; 16],
        list: &[u8],
        standard: Answer,
    ) -> (Answer, Option<Deviation>) {
        let service_action_key = number(&list[8..16]);
        let registered = before.model.key_of(nexus).is_some();
        match cdb[1] {
            0 | 6 if service_action_key == 0 => {
                self.model.generation = before.model.generation;
                if !registered {
                    self.model.aptpl = before.model.aptpl;
                }
                (good(), Some(NOT_COUNTED))
            }
            0 if list[20] & 8 != 0 => {
                let skipped = standard != good();
                *self = before.clone();
                self.register(nexus, service_action_key, list[20] & 4 != 0);
                for initiator in ids(list).unwrap_or_default() {
                    let nexus = Nexus { initiator, target_port: nexus.target_port };
                    if self.model.key_of(&nexus).is_none() {
                        self.register(&nexus, service_action_key, list[20] & 4 != 0);
                    }
                }
                self.model.aptpl = list[20] & 1 != 0;
                (good(), Some(if skipped { SPEC_I_PT_SKIPS } else { SPEC_I_PT_COUNTS_EACH }))
            }
            0 | 6 => {
                if !registered && list[20] & 4 != 0 {
                    self.all_tg_pt.push(nexus.clone());
                }
                (standard, None)
            }
            3 => {
                self.model.aptpl = false;
                (standard, before.model.aptpl.then_some(CLEAR_APTPL))
            }
            2 if standard != good() => {
                // The scope is the stored one.
                *self = before.clone();
                let mut cdb = *cdb;
                cdb[2] &= 0xf;
                (self.model.execute(nexus, &cdb, list).answer, Some(MOVED_SCOPE))
            }
            4 | 5 if before.scope() != 0 && before.holders_key() == Some(service_action_key) => {
                // LIO acts as if the reservation had another type.
                *self = before.clone();
                let mut differs = false;
                if let Some(reservation) = &mut self.model.reservation {
                    differs = reservation.kind == cdb[2];
                    reservation.kind = if cdb[2] == 1 { 3 } else { 1 };
                }
                (self.model.execute(nexus, cdb, list).answer, differs.then_some(MOVED_SCOPE))
            }
            4 | 5 => {
                let held_by_all = before.model.reservation.as_ref().is_some_and(|it| it.holder.is_none());
                if !held_by_all {
                    return (standard, None);
                }
                if service_action_key != 0 && before.remembered_key() == Some(service_action_key) {
                    // LIO acts as if the stored registrant were the only holder.
                    *self = before.clone();
                    let kind = self.model.reservation.as_ref().map_or(0, |it| it.kind);
                    self.model.reservation = Some(Holding { kind, holder: self.remembered.clone() });
                    let done = self.model.execute(nexus, cdb, list);
                    self.remembered = None;
                    return (done.answer, Some(PREEMPT_REMEMBERED));
                }
                if service_action_key == 0 {
                    self.remembered = None;
                }
                (standard, None)
            }
            _ => (standard, None),
        }
    }

    /// Updates the stored scopes after a command of `nexus` that took effect.
    fn update_scopes(&mut self, before: &Self, nexus: &Nexus, action: u8, list: &[u8]) {
        let holds = match action {
            1 | 2 | 7 => true,
            4 | 5 => [0, before.holders_key().unwrap_or(0)].contains(&number(&list[8..16])),
            _ => false,
        };
        if holds {
            self.scopes.retain(|(one, _)| one != nexus);
        }
        if let (7, Some(reservation)) = (action, &before.model.reservation) {
            self.scopes.push((nexus.clone(), reservation.kind));
        }
        self.scopes.retain(|(one, _)| self.model.key_of(one).is_some());
    }

    fn register(&mut self, nexus: &Nexus, key: u64, all_tg_pt: bool) {
        self.model.generation = self.model.generation.wrapping_add(1);
        self.model.registrants.push(Registrant { nexus: nexus.clone(), key });
        if all_tg_pt {
            self.all_tg_pt.push(nexus.clone());
        }
    }

    /// Updates the registrant that LIO treats as the holder, after a command of `nexus`.
    fn update_holder(&mut self, nexus: &Nexus) {
        let Self { model, remembered, all_tg_pt, .. } = self;
        all_tg_pt.retain(|one| model.key_of(one).is_some());
        match &model.reservation {
            Some(Holding { holder: None, .. }) => match remembered {
                None => *remembered = Some(nexus.clone()),
                Some(one) if model.key_of(one).is_none() => {
                    *remembered = model.registrants.first().map(|one| one.nexus.clone());
                }
                Some(_) => {}
            },
            _ => *remembered = None,
        }
    }
}

/// The TransportIDs of a list with SPEC_I_PT; `None` when it is malformed.
fn ids(list: &[u8]) -> Option<Vec<Vec<u8>>> {
    if number(&list[24..28]) as usize + 28 != list.len() {
        return None;
    }
    model::transport_ids(&list[28..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::history::{Act, Mix, World, histories};
    use proptest::prelude::*;

    const MIX: Mix = Mix { spc2: 0, losses: 0, room_for_full_status: 8192 };

    proptest! {
        #[test]
        fn lio_without_deviation_equals_the_model(history in histories(MIX, 200)) {
            let world = World::new(4, &[1]);
            let mut lio = Lio::new(Model::new(&[1]));
            for step in &history {
                let Act::Command { from, cdb, list } = world.act(step, &lio.model) else { continue };
                let nexus = &world.nexuses[from];
                if Lio::is_excluded(nexus, &cdb, &list) {
                    continue;
                }
                let mut standard = lio.model.clone();
                let done = standard.execute(nexus, &cdb, &list);
                let expected = lio.execute(nexus, &cdb, &list);
                if expected.deviation.is_none() {
                    prop_assert_eq!(&expected.answer, &done.answer);
                    prop_assert_eq!(&lio.model, &standard);
                }
                if let Some(Holding { holder: Some(holder), .. }) = &lio.model.reservation {
                    prop_assert!(lio.model.key_of(holder).is_some());
                }
            }
        }
    }
}
