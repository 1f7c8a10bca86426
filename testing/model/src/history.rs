//! Random histories: a few initiators with few keys, so that their commands conflict.
//!
//! A [`Step`] is symbolic ("with its own key", "by the holder"). [`World::act`] encodes it when it runs, from the state of
//! the [`Model`] at that time. So most commands are nearly valid, and a shrunk history keeps its meaning.

use std::fmt;

use proptest::prelude::*;
use proptest::sample::select;

use crate::model::{Model, Nexus};

/// The nexuses of a history.
#[derive(Clone, Debug)]
pub struct World {
    /// The relative identifiers of the unit's target ports.
    pub target_ports: Vec<u16>,
    /// Every initiator port at every target port. Each sends commands.
    pub nexuses: Vec<Nexus>,
}

/// A symbolic key.
#[derive(Clone, Copy, Debug)]
pub enum KeyChoice {
    /// 0.
    Zero,
    /// The sender's key, or 0 if it has none.
    Own,
    /// The key of this nexus, or the key that it would register if it has none.
    Of(usize),
    /// The holder's key.
    Holders,
    /// One of four keys.
    Some(u8),
}

/// SCOPE and TYPE.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// The type of the present reservation.
    Same,
    /// This byte.
    Byte(u8),
}

/// A defect of a parameter list.
#[derive(Clone, Copy, Debug)]
pub enum Spoiled {
    /// No defect.
    No,
    /// It is cut or padded with zeros to this length.
    Length(u16),
    /// A TransportID has an undefined protocol.
    Protocol,
    /// The length of the TransportIDs is too large by 4.
    InnerLength,
    /// A TransportID names an iSCSI node without a port.
    Node,
}

/// A symbolic PERSISTENT RESERVE OUT.
#[derive(Clone, Debug)]
pub struct Out {
    /// The sending nexus.
    pub from: usize,
    /// Whether the holder sends it instead, if there is one.
    pub by_holder: bool,
    /// The service action.
    pub action: u8,
    /// SCOPE and TYPE.
    pub kind: Kind,
    /// RESERVATION KEY.
    pub key: KeyChoice,
    /// SERVICE ACTION RESERVATION KEY.
    pub service_action_key: KeyChoice,
    /// SPEC_I_PT, ALL_TG_PT and APTPL, or UNREG and APTPL.
    pub flags: u8,
    /// The nexuses whose TransportIDs it lists. REGISTER AND MOVE uses the first.
    pub listed: Vec<usize>,
    /// Its defect.
    pub spoiled: Spoiled,
}

/// One step of a history.
#[derive(Clone, Debug)]
pub enum Step {
    /// PERSISTENT RESERVE IN.
    In {
        /// The sending nexus.
        from: usize,
        /// The service action.
        action: u8,
        /// ALLOCATION LENGTH.
        room: u16,
    },
    /// PERSISTENT RESERVE OUT.
    Out(Out),
    /// Another event.
    Event(Event),
}

/// A step in bytes.
#[derive(Clone, PartialEq, Eq)]
pub enum Act {
    /// A PERSISTENT RESERVE IN or OUT.
    Command {
        /// The sending nexus.
        from: usize,
        /// The CDB.
        cdb: [u8; 16],
        /// The parameter list.
        list: Vec<u8>,
    },
    /// Another event.
    Event(Event),
}

/// An event other than a persistent reservation command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// RESERVE or RELEASE of SPC-2.
    Spc2 {
        /// The sending nexus.
        from: usize,
        /// Whether it is RESERVE.
        reserve: bool,
    },
    /// The loss of a nexus.
    NexusLoss(usize),
    /// A reset of the unit.
    Reset,
    /// The unit's power goes off and on.
    PowerLoss,
}

/// The frequencies of steps.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    /// RESERVE and RELEASE of SPC-2, in steps of a thousand.
    pub spc2: u32,
    /// Power losses, nexus losses and resets, in steps of a thousand for each.
    pub losses: u32,
    /// The least ALLOCATION LENGTH of READ FULL STATUS.
    pub room_for_full_status: u16,
}

impl World {
    /// `initiators` initiators of several protocols at each of the target ports.
    pub fn new(initiators: usize, target_ports: &[u16]) -> Self {
        let ids: Vec<Vec<u8>> = (0..initiators).map(initiator).collect();
        let nexuses = ids.iter().flat_map(|id| {
            target_ports.iter().map(|target_port| Nexus { initiator: id.clone(), target_port: *target_port })
        });
        Self { nexuses: nexuses.collect(), target_ports: target_ports.to_vec() }
    }

    /// Encodes `step` for the state of `model`.
    pub fn act(&self, step: &Step, model: &Model) -> Act {
        let count = self.nexuses.len();
        match step {
            Step::In { from, action, room } => {
                let mut cdb = [0; 16];
                (cdb[0], cdb[1]) = (0x5e, *action);
                cdb[7..9].copy_from_slice(&room.to_be_bytes());
                Act::Command { from: from % count, cdb, list: Vec::new() }
            }
            Step::Out(out) => self.out(out, model),
            Step::Event(event) => Act::Event(match *event {
                Event::Spc2 { from, reserve } => Event::Spc2 { from: from % count, reserve },
                Event::NexusLoss(from) => Event::NexusLoss(from % count),
                event => event,
            }),
        }
    }

    fn out(&self, out: &Out, model: &Model) -> Act {
        let holder = self.nexuses.iter().position(|one| out.by_holder && model.is_holder(one));
        let from = holder.unwrap_or(out.from % self.nexuses.len());
        let nexus = |index: usize| &self.nexuses[index % self.nexuses.len()];
        let key = |choice: KeyChoice| match choice {
            KeyChoice::Zero => 0,
            KeyChoice::Own => model.key_of(nexus(from)).unwrap_or(0),
            KeyChoice::Of(index) => model.key_of(nexus(index)).unwrap_or(some_key((index % 4) as u8)),
            KeyChoice::Holders => {
                let holder = self.nexuses.iter().find(|one| model.is_holder(one));
                holder.and_then(|holder| model.key_of(holder)).unwrap_or(some_key(0))
            }
            KeyChoice::Some(number) => some_key(number),
        };
        let scope_type = match (out.kind, &model.reservation) {
            (Kind::Byte(byte), _) => byte,
            (Kind::Same, Some(reservation)) => reservation.kind,
            (Kind::Same, None) => 5,
        };
        let mut ids: Vec<Vec<u8>> = out.listed.iter().map(|index| nexus(*index).initiator.clone()).collect();
        match (out.spoiled, ids.first_mut()) {
            (Spoiled::Protocol, Some(id)) => id[0] = 0x0f,
            (Spoiled::Node, Some(id)) => *id = [&[5, 0, 0, 20][..], b"iqn.2026-11.rules:0\0"].concat(),
            _ => {}
        }
        let more = if matches!(out.spoiled, Spoiled::InnerLength) { 4 } else { 0 };
        let mut list = Vec::new();
        list.extend(key(out.key).to_be_bytes());
        list.extend(key(out.service_action_key).to_be_bytes());
        if out.action == 7 {
            let to = nexus(out.listed.first().copied().unwrap_or(0));
            let id = ids.into_iter().next().unwrap_or_default();
            list.extend([0, out.flags & 3]);
            list.extend(if out.flags & 0x80 == 0 { to.target_port } else { 99 }.to_be_bytes());
            list.extend((id.len() as u32 + more).to_be_bytes());
            list.extend(id);
        } else {
            list.extend([0, 0, 0, 0, out.flags & 0x0d, 0, 0, 0]);
            if out.flags & 8 != 0 {
                let ids = ids.concat();
                list.extend((ids.len() as u32 + more).to_be_bytes());
                list.extend(ids);
            }
        }
        if let Spoiled::Length(length) = out.spoiled {
            list.resize(length.into(), 0);
        }
        let mut cdb = [0; 16];
        (cdb[0], cdb[1], cdb[2]) = (0x5f, out.action, scope_type);
        cdb[5..9].copy_from_slice(&(list.len() as u32).to_be_bytes());
        Act::Command { from, cdb, list }
    }
}

/// The TransportID of an initiator of a world, in its canonical form.
fn initiator(number: usize) -> Vec<u8> {
    let byte = number as u8 + 1;
    let mut id = vec![0; 24];
    match number % 3 {
        0 => {
            let text = format!("iqn.2026-11.rules:{number},i,0x00000000000{byte}\0\0\0\0");
            id = [&[0x45, 0, 0, 40][..], text.as_bytes()].concat();
        }
        1 => (id[0], id[11]) = (6, byte),
        _ => (id[0], id[15]) = (0, byte),
    }
    id
}

/// Keys that differ in every byte.
fn some_key(number: u8) -> u64 {
    u64::from_be_bytes([0xa0 + number; 8])
}

/// A history of up to `length` steps.
pub fn histories(mix: Mix, length: usize) -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(steps(mix), 1..=length)
}

fn steps(mix: Mix) -> impl Strategy<Value = Step> {
    let from = || any::<u8>().prop_map(usize::from);
    let losses = mix.losses;
    prop_oneof![
        150 => reads(mix),
        850 => outs().prop_map(Step::Out),
        mix.spc2 => (from(), prop::bool::weighted(0.6))
            .prop_map(|(from, reserve)| Step::Event(Event::Spc2 { from, reserve })),
        losses => from().prop_map(|from| Step::Event(Event::NexusLoss(from))),
        losses => Just(Step::Event(Event::Reset)),
        losses => Just(Step::Event(Event::PowerLoss)),
    ]
}

fn reads(mix: Mix) -> impl Strategy<Value = Step> {
    let action = prop_oneof![30 => select(vec![0u8, 1, 2, 3, 3]), 1 => 4..32u8];
    let room = prop_oneof![8 => Just(8192u16), 1 => 0..64u16, 1 => Just(8u16), 1 => Just(24u16)];
    (any::<u8>(), action, room).prop_map(move |(from, action, room)| {
        let room = if action == 3 { room.max(mix.room_for_full_status) } else { room };
        Step::In { from: from.into(), action, room }
    })
}

fn outs() -> impl Strategy<Value = Out> {
    let action = prop_oneof![
        26 => Just(0u8),
        14 => Just(1u8),
        9 => Just(2u8),
        2 => Just(3u8),
        14 => Just(4u8),
        9 => Just(5u8),
        12 => Just(6u8),
        10 => Just(7u8),
        1 => Just(8u8),
        1 => 9..32u8,
    ];
    (any::<u8>(), action).prop_flat_map(|(from, action)| {
        // The holder alone can run these with an effect.
        let by_holder = prop::bool::weighted(if matches!(action, 2 | 7) { 0.6 } else { 0.05 });
        let kind = prop_oneof![
            4 => Just(Kind::Same),
            6 => select(vec![1, 3, 5, 6, 7, 8, 7, 8]).prop_map(Kind::Byte),
            1 => any::<u8>().prop_map(Kind::Byte),
        ];
        let key = prop_oneof![15 => Just(KeyChoice::Own), 1 => Just(KeyChoice::Zero), 1 => some_keys()];
        let service_action_key = match action {
            0 | 6 => prop_oneof![2 => Just(KeyChoice::Zero), 5 => some_keys()].boxed(),
            4 | 5 => prop_oneof![
                3 => Just(KeyChoice::Holders),
                4 => any::<u8>().prop_map(|index| KeyChoice::Of(index.into())),
                2 => Just(KeyChoice::Zero),
                1 => Just(KeyChoice::Own),
                1 => some_keys(),
            ]
            .boxed(),
            _ => prop_oneof![8 => some_keys(), 1 => Just(KeyChoice::Zero)].boxed(),
        };
        let flags = match action {
            // APTPL; ALL_TG_PT; SPEC_I_PT.
            0 => {
                prop_oneof![10 => Just(0u8), 2 => Just(1u8), 3 => Just(4u8), 4 => Just(8u8), 1 => Just(0x0d_u8)].boxed()
            }
            6 => prop_oneof![10 => Just(0u8), 2 => Just(1u8), 3 => Just(4u8), 1 => Just(8u8)].boxed(),
            // UNREG, APTPL; and a target port that does not exist.
            7 => prop_oneof![3 => 0..4u8, 1 => Just(0x80_u8)].boxed(),
            _ => prop_oneof![30 => Just(0u8), 1 => Just(1u8), 1 => Just(4u8), 1 => Just(8u8)].boxed(),
        };
        let listed = prop::collection::vec(any::<u8>().prop_map(usize::from), 0..3);
        let listed = prop_oneof![1 => listed, 3 => any::<u8>().prop_map(|one| vec![one.into()])];
        let spoiled = prop_oneof![
            30 => Just(Spoiled::No),
            1 => prop_oneof![0..80u16, 22..30u16].prop_map(Spoiled::Length),
            1 => Just(Spoiled::Protocol),
            1 => Just(Spoiled::InnerLength),
            1 => Just(Spoiled::Node),
        ];
        (by_holder, kind, key, service_action_key, flags, listed, spoiled).prop_map(
            move |(by_holder, kind, key, service_action_key, flags, listed, spoiled)| Out {
                from: from.into(),
                by_holder,
                action,
                kind,
                key,
                service_action_key,
                flags,
                listed,
                spoiled,
            },
        )
    })
}

fn some_keys() -> impl Strategy<Value = KeyChoice> {
    (0..4u8).prop_map(KeyChoice::Some)
}

impl fmt::Debug for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Command { from, cdb, list } => {
                write!(f, "{from}: {}", action_name(cdb))?;
                write!(f, " cdb {} list {}", hexadecimal(&cdb[..10]), hexadecimal(list))
            }
            Self::Event(Event::Spc2 { from, reserve: true }) => write!(f, "{from}: SPC-2 RESERVE"),
            Self::Event(Event::Spc2 { from, reserve: false }) => write!(f, "{from}: SPC-2 RELEASE"),
            Self::Event(Event::NexusLoss(from)) => write!(f, "{from}: nexus loss"),
            Self::Event(Event::Reset) => f.write_str("reset"),
            Self::Event(Event::PowerLoss) => f.write_str("power loss"),
        }
    }
}

fn action_name(cdb: &[u8; 16]) -> &'static str {
    let reads = ["READ KEYS", "READ RESERVATION", "REPORT CAPABILITIES", "READ FULL STATUS"];
    let changes = [
        "REGISTER",
        "RESERVE",
        "RELEASE",
        "CLEAR",
        "PREEMPT",
        "PREEMPT AND ABORT",
        "REGISTER AND IGNORE EXISTING KEY",
        "REGISTER AND MOVE",
        "REPLACE LOST RESERVATION",
    ];
    let names = if cdb[0] == 0x5e { &reads[..] } else { &changes[..] };
    names.get(usize::from(cdb[1])).copied().unwrap_or("unknown service action")
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}
