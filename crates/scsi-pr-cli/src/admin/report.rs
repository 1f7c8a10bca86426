//! The state of a unit as values for text and JSON, made from the data of PERSISTENT RESERVE IN. No I/O.

use scsi_pr::{
    Capabilities, FullStatus, FullStatusDescriptor, Generation, Held, InitiatorPort, Key, Keys, Reservation,
    TransportId, Type,
};
use scsi_pr_daemon::log::escape;
use scsi_pr_store::InitiatorName;
use serde::Serialize;

use super::options::type_name;

/// A key: `"key":"0x…"`, and `"key-text"` where its bytes are text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct KeyReport {
    pub(crate) key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) key_text: Option<String>,
}

impl From<Key> for KeyReport {
    fn from(key: Key) -> Self {
        Self { key: key.to_string(), key_text: text_of_key(key) }
    }
}

/// The key as text: printable ASCII, filled with zeros or blanks to 8 bytes.
fn text_of_key(key: Key) -> Option<String> {
    let bytes = key.0.to_be_bytes();
    let length = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let text = std::str::from_utf8(&bytes[..length]).ok()?.trim_end_matches(' ');
    let is_printable = !text.is_empty() && text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    is_printable.then(|| text.to_owned())
}

/// A reservation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct ReservationReport {
    #[serde(rename = "type")]
    pub(crate) type_name: &'static str,
    #[serde(skip)]
    pub(crate) reservation_type: Type,
    /// The key of the holder; `None` if every registrant is a holder.
    #[serde(flatten)]
    pub(crate) holder: Option<KeyReport>,
    pub(crate) all_registrants: bool,
}

impl From<Held> for ReservationReport {
    fn from(Held { key, reservation_type }: Held) -> Self {
        let all_registrants = reservation_type.is_all_registrants();
        Self {
            type_name: type_name(reservation_type),
            reservation_type,
            holder: (!all_registrants || !key.is_zero()).then(|| key.into()),
            all_registrants,
        }
    }
}

/// A registration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct RegistrationReport {
    #[serde(flatten)]
    pub(crate) key: KeyReport,
    /// The initiator's name for an administrator; `None` where the unit does not tell.
    pub(crate) initiator: Option<String>,
    /// The initiator port in full.
    pub(crate) transport_id: Option<String>,
    /// `None` for every target port, or where the unit does not tell.
    pub(crate) target_port: Option<u16>,
    pub(crate) all_target_ports: bool,
    /// `None`: several have the holder's key, and the unit does not tell which one holds.
    pub(crate) holder: Option<bool>,
    /// Whether it is this host's, or of the initiator as which the administrator acts.
    pub(crate) own: bool,
}

/// The initiator ports whose registrations are the administrator's own.
pub(crate) struct Own<'a> {
    pub(crate) is_own: Box<dyn Fn(&TransportId) -> bool + 'a>,
    /// The remark for these registrations: "this host".
    pub(crate) remark: &'static str,
}

/// The state of a unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct StateReport {
    pub(crate) generation: u32,
    pub(crate) reservation: Option<ReservationReport>,
    pub(crate) registrations: Vec<RegistrationReport>,
    /// Whether every registration is there.
    pub(crate) complete: bool,
    /// Limits of this reading, for an administrator.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) notes: Vec<String>,
    #[serde(skip)]
    pub(crate) own_remark: &'static str,
}

/// A list that was read, and whether it is whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reading<T> {
    pub(crate) value: T,
    pub(crate) is_whole: bool,
}

impl StateReport {
    /// The state by READ KEYS, READ RESERVATION and, where the unit supports it, READ FULL STATUS: all of one generation.
    pub(crate) fn new(
        keys: &Reading<Keys>,
        reservation: &Reservation,
        status: Option<&Reading<FullStatus>>,
        own: &Own<'_>,
    ) -> Self {
        let mut report = match status {
            Some(status) => Self::of_status(&status.value, own),
            None => Self {
                generation: keys.value.generation.0,
                reservation: None,
                registrations: Vec::new(),
                complete: true,
                notes: vec!["the unit does not support READ FULL STATUS, so the initiators are not known".to_owned()],
                own_remark: own.remark,
            },
        };
        report.reservation = reservation.held.map(ReservationReport::from);
        let named = report.registrations.len();
        // Of an initiator port that is registered on all target ports, there may be one descriptor for several keys.
        let for_all_ports: Vec<Key> = status.map(|status| keys_for_all_ports(&status.value)).unwrap_or_default();
        let rest = rest_of_keys(&keys.value.keys, status.map(|status| &status.value));
        let rest: Vec<Key> = rest.into_iter().filter(|key| !for_all_ports.contains(key)).collect();
        let holders = holders(reservation, &keys.value.keys);
        report.registrations.extend(rest.iter().map(|key| RegistrationReport {
            key: (*key).into(),
            initiator: None,
            transport_id: None,
            target_port: None,
            all_target_ports: false,
            holder: match status {
                // Its descriptor would be there if it were the only holder and the list were whole.
                Some(status) if status.value.descriptors.iter().any(is_only_holder) => Some(false),
                _ => holders(*key),
            },
            own: false,
        }));
        if status.is_some() && !rest.is_empty() {
            let all = report.registrations.len();
            report.notes.push(format!("the unit told the initiators of {named} of {all} registrations"));
        }
        report.with_completeness(keys.is_whole)
    }

    /// The state by READ FULL STATUS alone, which is of one moment.
    pub(crate) fn of_full_status(status: &Reading<FullStatus>, own: &Own<'_>) -> Self {
        Self::of_status(&status.value, own).with_completeness(status.is_whole)
    }

    /// The same, with a note if the list of registrations is cut.
    fn with_completeness(mut self, is_whole: bool) -> Self {
        self.complete = is_whole;
        if !is_whole {
            self.notes.push("the list is cut: there are more registrations than this way can read".to_owned());
        }
        self
    }

    fn of_status(status: &FullStatus, own: &Own<'_>) -> Self {
        let held = status.descriptors.iter().find_map(|descriptor| Some((descriptor.key, descriptor.held?)));
        let held = held.map(|(key, reservation_type)| Held {
            key: if reservation_type.is_all_registrants() { Key::ZERO } else { key },
            reservation_type,
        });
        Self {
            generation: status.generation.0,
            reservation: held.map(ReservationReport::from),
            registrations: status.descriptors.iter().map(|descriptor| registration(descriptor, own)).collect(),
            complete: true,
            notes: Vec::new(),
            own_remark: own.remark,
        }
    }
}

fn is_only_holder(descriptor: &FullStatusDescriptor) -> bool {
    descriptor.held.is_some_and(|held| !held.is_all_registrants())
}

fn keys_for_all_ports(status: &FullStatus) -> Vec<Key> {
    let descriptors = status.descriptors.iter();
    descriptors.filter(|descriptor| descriptor.all_tg_pt).map(|descriptor| descriptor.key).collect()
}

/// The keys that no descriptor has, each as often as it is there more often.
fn rest_of_keys(keys: &[Key], status: Option<&FullStatus>) -> Vec<Key> {
    let mut named = std::collections::HashMap::new();
    for descriptor in status.into_iter().flat_map(|status| &status.descriptors) {
        *named.entry(descriptor.key).or_insert(0_usize) += 1;
    }
    let is_rest = |key: &&Key| match named.get_mut(*key) {
        Some(count) if *count > 0 => {
            *count -= 1;
            false
        }
        _ => true,
    };
    keys.iter().filter(is_rest).copied().collect()
}

/// Whether a registration with a key holds the reservation, as far as the keys tell.
fn holders(reservation: &Reservation, keys: &[Key]) -> impl Fn(Key) -> Option<bool> {
    let held = reservation.held;
    let sharing = held.map_or(0, |held| keys.iter().filter(|key| **key == held.key).count());
    move |key| match held {
        None => Some(false),
        Some(held) if held.reservation_type.is_all_registrants() => Some(true),
        Some(held) if held.key != key => Some(false),
        Some(_) => (sharing == 1).then_some(true),
    }
}

fn registration(descriptor: &FullStatusDescriptor, own: &Own<'_>) -> RegistrationReport {
    let id = descriptor.transport_id();
    let (initiator, transport_id, is_own) = match &id {
        Ok(id) => (initiator_name(id), id.to_string(), (own.is_own)(id)),
        Err(_) => {
            let bytes = crate::disk::hex::encode(descriptor.transport_id_bytes());
            (format!("unknown initiator port {bytes}"), bytes, false)
        }
    };
    RegistrationReport {
        key: descriptor.key.into(),
        initiator: Some(initiator),
        transport_id: Some(transport_id),
        target_port: (!descriptor.all_tg_pt).then_some(descriptor.relative_target_port),
        all_target_ports: descriptor.all_tg_pt,
        holder: Some(descriptor.held.is_some()),
        own: is_own,
    }
}

/// The name of an initiator port as an administrator gave it: that of a store without its prefix, and an iSCSI name without
/// the ISID 0, which stands for all sessions of an initiator.
pub(crate) fn initiator_name(id: &TransportId) -> String {
    match id.port() {
        InitiatorPort::Iscsi { name, isid: Some([0, 0, 0, 0, 0, 0]) } => {
            // Names of other programs may have characters that those of a store have not.
            escape(&name.parse::<InitiatorName>().map_or_else(|_| name.to_owned(), |name| name.to_string()))
        }
        _ => escape(&id.to_string()),
    }
}

/// READ KEYS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct KeysReport {
    pub(crate) generation: u32,
    pub(crate) keys: Vec<KeyReport>,
    pub(crate) complete: bool,
}

impl From<&Reading<Keys>> for KeysReport {
    fn from(keys: &Reading<Keys>) -> Self {
        let Keys { generation: Generation(generation), keys: all } = &keys.value;
        let reports = all.iter().map(|key| (*key).into()).collect();
        Self { generation: *generation, keys: reports, complete: keys.is_whole }
    }
}

/// READ RESERVATION.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct HolderReport {
    pub(crate) generation: u32,
    pub(crate) reservation: Option<ReservationReport>,
}

impl From<&Reservation> for HolderReport {
    fn from(reservation: &Reservation) -> Self {
        Self { generation: reservation.generation.0, reservation: reservation.held.map(ReservationReport::from) }
    }
}

/// REPORT CAPABILITIES, by the names of the standard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct CapabilitiesReport {
    pub(crate) rlr_c: bool,
    pub(crate) crh: bool,
    pub(crate) sip_c: bool,
    pub(crate) atp_c: bool,
    pub(crate) ptpl_c: bool,
    pub(crate) ptpl_a: bool,
    pub(crate) allow_commands: u8,
    /// `None`: the unit does not tell.
    pub(crate) types: Option<Vec<&'static str>>,
}

impl From<&Capabilities> for CapabilitiesReport {
    fn from(capabilities: &Capabilities) -> Self {
        let Capabilities { rlr_c, crh, sip_c, atp_c, ptpl_c, tmv, allow_commands, ptpl_a, type_mask } = *capabilities;
        let types = tmv.then(|| type_mask.iter().map(type_name).collect());
        Self { rlr_c, crh, sip_c, atp_c, ptpl_c, ptpl_a, allow_commands: allow_commands.code(), types }
    }
}
