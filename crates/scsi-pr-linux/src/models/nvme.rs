//! An NVMe namespace with reservations after the NVM Express Base Specification 2.0 (8.19, and 7.2 to 7.5 for the
//! commands), or as Linux' own target has them.

use scsi_pr::{Completion, Key, Type};

use super::spc::{NEXUSES, Nexus, Taken, Unit};
use crate::type_number;

/// Statuses: SCT in bits 10–8, SC in the others.
pub(crate) const SUCCESS: u16 = 0x000;
pub(crate) const INVALID_OPCODE: u16 = 0x001;
pub(crate) const INVALID_FIELD: u16 = 0x002;
pub(crate) const HOST_ID_INCONSISTENT: u16 = 0x018;
pub(crate) const CONFLICT: u16 = 0x083;
/// "Do not retry", as targets say it with errors.
pub(crate) const DNR: u16 = 0x4000;

/// The rules of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rules {
    /// The specification's.
    Standard,
    /// Those of nvmet, Linux 6.13 to 7.2, where they differ: a reservation of all registrants has one holder, the first. A
    /// Preempt by the holder has no effect and succeeds.
    Nvmet,
}

/// How hosts are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HostIds {
    /// 128 bits.
    Long,
    /// 64 bits, and the namespace says so when asked for the long ones.
    Short,
    /// 64 bits, and the namespace does not know of long ones: it reports the short structure whatever it is asked for.
    Old,
}

/// The state of a namespace.
#[derive(Clone, Debug)]
pub(crate) struct Namespace {
    pub(crate) rules: Rules,
    pub(crate) host_ids: HostIds,
    /// RESCAP of Identify Namespace.
    pub(crate) rescap: u8,
    pub(crate) generation: u32,
    /// In the order of registering. The key zero can be registered.
    pub(crate) registrants: Vec<(Nexus, u64)>,
    /// RTYPE, and who took it.
    pub(crate) reservation: Option<(u8, Nexus)>,
    pub(crate) ptpl: bool,
    /// How many controllers each host is connected to.
    pub(crate) controllers: u16,
}

fn is_of_all(rtype: u8) -> bool {
    rtype == 5 || rtype == 6
}

fn key_at(data: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(data[offset..offset + 8].try_into().unwrap())
}

impl Namespace {
    pub(crate) fn new(rules: Rules, host_ids: HostIds) -> Self {
        Self {
            rules,
            host_ids,
            rescap: 0xfe,
            generation: 0,
            registrants: Vec::new(),
            reservation: None,
            ptpl: false,
            controllers: 1,
        }
    }

    /// The host identifier of a host, 16 or 8 bytes.
    pub(crate) fn host_id(&self, host: Nexus) -> Vec<u8> {
        let length = if self.host_ids == HostIds::Long { 16 } else { 8 };
        (0..length).map(|index| 0x10 * (host as u8 + 1) + index).collect()
    }

    fn key_of(&self, host: Nexus) -> Option<u64> {
        self.registrants.iter().find(|registrant| registrant.0 == host).map(|registrant| registrant.1)
    }

    /// As a SCSI unit would be in this state. A registration of the key zero is none of SCSI's.
    pub(crate) fn unit(&self) -> Unit {
        let mut keys = [None; NEXUSES];
        self.registrants.iter().for_each(|(host, key)| keys[*host] = Some(Key(*key)));
        let reservation = self.reservation.map(|(rtype, holder)| {
            let reservation_type = type_number::named(rtype.into()).unwrap();
            Taken { reservation_type, holder: (!reservation_type.is_all_registrants()).then_some(holder) }
        });
        Unit { generation: self.generation, keys, reservation }
    }

    /// Runs an I/O command of `host` that sends data.
    pub(crate) fn change(&mut self, host: Nexus, opcode: u8, cdw10: u32, data: &[u8]) -> u16 {
        let action = (cdw10 & 7) as u8;
        let ignore_key = cdw10 & 8 != 0;
        let rtype = (cdw10 >> 8) as u8;
        let current = key_at(data, 0);
        let status = match opcode {
            0x0d => self.register(host, action, ignore_key, current, key_at(data, 8), cdw10 >> 30),
            0x11 if ignore_key || !(1..=6).contains(&rtype) => INVALID_FIELD,
            0x15 if ignore_key => INVALID_FIELD,
            0x11 | 0x15 if self.key_of(host) != Some(current) => CONFLICT,
            0x11 => match action {
                0 => self.acquire(host, rtype),
                1 | 2 => self.preempt(host, rtype, key_at(data, 8)),
                _ => INVALID_FIELD,
            },
            0x15 => match action {
                0 => self.release(host, rtype),
                1 => {
                    (self.registrants, self.reservation) = (Vec::new(), None);
                    self.count()
                }
                _ => INVALID_FIELD,
            },
            _ => INVALID_OPCODE,
        };
        if status == SUCCESS { status } else { status | DNR }
    }

    fn register(&mut self, host: Nexus, action: u8, ignore_key: bool, current: u64, new: u64, cptpl: u32) -> u16 {
        if cptpl == 3 && self.rescap & 1 == 0 && self.rules == Rules::Standard {
            return INVALID_FIELD;
        }
        let own = self.key_of(host);
        let status = match (action, own) {
            (0, None) => {
                self.registrants.push((host, new));
                self.count()
            }
            (0, Some(own)) if own == new => self.count(),
            (1, Some(own)) if ignore_key || own == current => {
                self.remove(host);
                self.count()
            }
            (2, Some(own)) if ignore_key || own == current => {
                self.registrants.iter_mut().filter(|registrant| registrant.0 == host).for_each(|one| one.1 = new);
                self.count()
            }
            (0..=2, _) => CONFLICT,
            _ => INVALID_FIELD,
        };
        if status == SUCCESS && cptpl >= 2 && self.rescap & 1 != 0 {
            self.ptpl = cptpl == 3;
        }
        status
    }

    fn is_holder(&self, host: Nexus) -> bool {
        self.reservation.is_some_and(|(rtype, holder)| match self.rules {
            Rules::Standard if is_of_all(rtype) => self.key_of(host).is_some(),
            _ => holder == host,
        })
    }

    fn acquire(&mut self, host: Nexus, rtype: u8) -> u16 {
        match self.reservation {
            None => {
                self.reservation = Some((rtype, host));
                SUCCESS
            }
            Some((held, _)) if self.is_holder(host) && held == rtype => SUCCESS,
            Some(_) => CONFLICT,
        }
    }

    fn preempt(&mut self, host: Nexus, rtype: u8, victim: u64) -> u16 {
        match self.reservation {
            Some((held, _)) if is_of_all(held) && victim == 0 => {
                self.registrants.retain(|registrant| registrant.0 == host);
                self.reservation = Some((rtype, host));
                self.count()
            }
            Some((held, holder)) if !is_of_all(held) && self.rules == Rules::Nvmet && holder == host => {
                self.reservation = Some((rtype, host));
                self.count()
            }
            Some((held, holder)) if !is_of_all(held) && self.key_of(holder) == Some(victim) => {
                self.registrants.retain(|registrant| registrant.0 == host || registrant.1 != victim);
                self.reservation = Some((rtype, host));
                self.count()
            }
            Some((held, _)) if !is_of_all(held) && victim == 0 => INVALID_FIELD,
            _ => {
                let hit: Vec<_> = self.registrants.iter().filter(|one| one.1 == victim).map(|one| one.0).collect();
                if hit.is_empty() {
                    return CONFLICT;
                }
                hit.into_iter().for_each(|host| self.remove(host));
                self.count()
            }
        }
    }

    fn release(&mut self, host: Nexus, rtype: u8) -> u16 {
        match self.reservation {
            Some((held, _)) if self.is_holder(host) => {
                if held != rtype {
                    return if self.rules == Rules::Nvmet { CONFLICT } else { INVALID_FIELD };
                }
                self.reservation = None;
                SUCCESS
            }
            _ => SUCCESS,
        }
    }

    fn remove(&mut self, host: Nexus) {
        self.registrants.retain(|registrant| registrant.0 != host);
        if let Some((rtype, holder)) = self.reservation
            && holder == host
        {
            self.reservation = self.registrants.first().filter(|_| is_of_all(rtype)).map(|first| (rtype, first.0));
        }
    }

    fn count(&mut self) -> u16 {
        self.generation = self.generation.wrapping_add(1);
        SUCCESS
    }

    /// Reservation Report into `data`, which is as long as the command says.
    pub(crate) fn report(&self, extended: bool, data: &mut [u8]) -> u16 {
        let long = match (self.host_ids, extended) {
            (HostIds::Long, false) | (HostIds::Short, true) => return HOST_ID_INCONSISTENT | DNR,
            (HostIds::Long, true) => true,
            (HostIds::Short | HostIds::Old, _) => false,
        };
        let mut whole = vec![0; if long { 64 } else { 24 }];
        whole[..4].copy_from_slice(&self.generation.to_le_bytes());
        whole[4] = self.reservation.map_or(0, |reservation| reservation.0);
        let entries = self.registrants.len() as u16 * self.controllers;
        whole[5..7].copy_from_slice(&entries.to_le_bytes());
        whole[9] = self.ptpl.into();
        for (host, key) in &self.registrants {
            let holds = self.reservation.is_some_and(|(rtype, holder)| is_of_all(rtype) || holder == *host);
            for controller in 0..self.controllers {
                let mut entry = vec![0; if long { 64 } else { 24 }];
                entry[..2].copy_from_slice(&(controller + 1).to_le_bytes());
                entry[2] = holds.into();
                let (key_at, id_at) = if long { (8, 16) } else { (16, 8) };
                entry[key_at..key_at + 8].copy_from_slice(&key.to_le_bytes());
                let id = self.host_id(*host);
                entry[id_at..id_at + id.len()].copy_from_slice(&id);
                whole.extend(entry);
            }
        }
        let length = whole.len().min(data.len());
        data[..length].copy_from_slice(&whole[..length]);
        SUCCESS
    }

    /// Whether both say the same but for the generation: keys, and the reservation.
    pub(crate) fn agrees_with(&self, unit: &Unit) -> bool {
        let own = self.unit();
        (own.keys, own.reservation) == (unit.keys, unit.reservation)
    }
}

/// Whether a completion says that a command was done.
pub(crate) fn is_good(completion: &Completion) -> bool {
    matches!(completion, Completion::Good(_))
}

#[test]
fn the_targets_differ_where_linux_differs_from_the_specification() {
    let keys = |current: u64, other: u64| [current.to_le_bytes(), other.to_le_bytes()].concat();
    for (rules, removed) in [(Rules::Standard, true), (Rules::Nvmet, false)] {
        let mut namespace = Namespace::new(rules, HostIds::Long);
        assert_eq!(namespace.change(0, 0x0d, 0, &keys(0, 1)), SUCCESS);
        assert_eq!(namespace.change(1, 0x0d, 0, &keys(0, 2)), SUCCESS);
        let rtype = u32::from(type_number::of(Type::WriteExclusiveRegistrantsOnly)) << 8;
        assert_eq!(namespace.change(0, 0x11, rtype, &keys(1, 0)), SUCCESS);
        assert_eq!(namespace.change(0, 0x11, rtype | 2, &keys(1, 2)), SUCCESS);
        assert_eq!(namespace.registrants.len() == 1, removed);
    }
}
