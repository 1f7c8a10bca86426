//! PERSISTENT RESERVE OUT in words, for logs.

use std::fmt;

use super::ReserveOut;
use crate::TransportId;

/// How many initiator ports are named; a guest can list hundreds, and what it lists is not all meant for the log.
const NAMED_PORTS: usize = 4;

impl fmt::Display for ReserveOut {
    /// Service action and fields on one line, by the names of the standard.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flag = |set: &bool, name: &'static str| if *set { name } else { "" };
        write!(f, "{}", self.action())?;
        match self {
            Self::Register { key, service_action_key, initiator_ports, all_tg_pt, aptpl } => {
                write!(f, ", key {key}, service action key {service_action_key}")?;
                if let Some(ports) = initiator_ports {
                    write!(f, ", SPEC_I_PT of {}", Ports(ports))?;
                }
                write!(f, "{}{}", flag(all_tg_pt, ", ALL_TG_PT"), flag(aptpl, ", APTPL"))
            }
            Self::Reserve { key, reservation_type } | Self::Release { key, reservation_type } => {
                write!(f, ", key {key}, {reservation_type}")
            }
            Self::Clear { key } => write!(f, ", key {key}"),
            Self::Preempt { key, service_action_key, scope_type }
            | Self::PreemptAndAbort { key, service_action_key, scope_type } => {
                write!(f, ", key {key}, service action key {service_action_key}, {scope_type}")
            }
            Self::RegisterAndIgnoreExistingKey { service_action_key, all_tg_pt, aptpl } => {
                write!(f, ", service action key {service_action_key}")?;
                write!(f, "{}{}", flag(all_tg_pt, ", ALL_TG_PT"), flag(aptpl, ", APTPL"))
            }
            Self::RegisterAndMove {
                key,
                service_action_key,
                unregister,
                aptpl,
                relative_target_port,
                transport_id,
            } => {
                write!(f, ", key {key}, service action key {service_action_key}")?;
                write!(f, ", to {transport_id} at target port {relative_target_port}")?;
                write!(f, "{}{}", flag(unregister, ", UNREG"), flag(aptpl, ", APTPL"))
            }
            Self::ReplaceLostReservation { key, service_action_key, reservation_type, aptpl } => {
                write!(f, ", key {key}, service action key {service_action_key}, {reservation_type}")?;
                f.write_str(flag(aptpl, ", APTPL"))
            }
        }
    }
}

struct Ports<'a>(&'a [TransportId]);

impl fmt::Display for Ports<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [] => f.write_str("no initiator port"),
            [first, others @ ..] => {
                first.fmt(f)?;
                others.iter().take(NAMED_PORTS - 1).try_for_each(|port| write!(f, " and {port}"))?;
                match self.0.len().saturating_sub(NAMED_PORTS) {
                    0 => Ok(()),
                    more => write!(f, " and {more} more"),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{InitiatorPort, Key, ScopeType, Type};

    const KEY: Key = Key(1);
    const SARK: Key = Key(0x2a);

    #[test]
    fn text_of_each_service_action_has_its_fields() {
        let transport_id =
            TransportId::new(InitiatorPort::Iscsi { name: "iqn.2026-11.org.example:b", isid: None }).unwrap();
        let reservation_type = Type::WriteExclusiveRegistrantsOnly;
        let (key, service_action_key, all_tg_pt, aptpl) = (KEY, SARK, true, true);
        let scope_type = reservation_type.into();
        let sas = |address| TransportId::new(InitiatorPort::Sas { address }).unwrap();
        let register = |count| ReserveOut::Register {
            key,
            service_action_key,
            initiator_ports: Some((1..=count).map(sas).collect()),
            all_tg_pt: false,
            aptpl: false,
        };
        let (one, other) = ("0x0000000000000001", "0x000000000000002a");
        for (value, text) in [
            (
                ReserveOut::Register { key, service_action_key, initiator_ports: None, all_tg_pt, aptpl },
                format!("REGISTER, key {one}, service action key {other}, ALL_TG_PT, APTPL"),
            ),
            (register(0), format!("REGISTER, key {one}, service action key {other}, SPEC_I_PT of no initiator port")),
            (
                register(6),
                format!(
                    "REGISTER, key {one}, service action key {other}, SPEC_I_PT of SAS address {one} \
                     and SAS address 0x0000000000000002 and SAS address 0x0000000000000003 \
                     and SAS address 0x0000000000000004 and 2 more"
                ),
            ),
            (
                ReserveOut::Reserve { key, reservation_type },
                format!("RESERVE, key {one}, Write Exclusive - Registrants Only"),
            ),
            (
                ReserveOut::Release { key, reservation_type },
                format!("RELEASE, key {one}, Write Exclusive - Registrants Only"),
            ),
            (ReserveOut::Clear { key }, format!("CLEAR, key {one}")),
            (
                ReserveOut::Preempt { key, service_action_key, scope_type: ScopeType(0x2f) },
                format!("PREEMPT, key {one}, service action key {other}, scope 2h type fh"),
            ),
            (
                ReserveOut::PreemptAndAbort { key, service_action_key, scope_type },
                format!("PREEMPT AND ABORT, key {one}, service action key {other}, Write Exclusive - Registrants Only"),
            ),
            (
                ReserveOut::RegisterAndIgnoreExistingKey { service_action_key, all_tg_pt, aptpl },
                format!("REGISTER AND IGNORE EXISTING KEY, service action key {other}, ALL_TG_PT, APTPL"),
            ),
            (
                ReserveOut::RegisterAndMove {
                    key,
                    service_action_key,
                    unregister: true,
                    aptpl,
                    relative_target_port: 3,
                    transport_id,
                },
                format!(
                    "REGISTER AND MOVE, key {one}, service action key {other}, \
                     to iqn.2026-11.org.example:b at target port 3, UNREG, APTPL"
                ),
            ),
            (
                ReserveOut::ReplaceLostReservation { key: Key::ZERO, service_action_key, reservation_type, aptpl },
                format!(
                    "REPLACE LOST RESERVATION, key 0x0000000000000000, service action key {other}, \
                     Write Exclusive - Registrants Only, APTPL"
                ),
            ),
        ] {
            assert_eq!(value.to_string(), text);
        }
    }
}
