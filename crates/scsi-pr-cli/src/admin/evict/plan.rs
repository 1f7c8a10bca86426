//! The commands that remove the registrations of an initiator without a loss of protection. No I/O.

use scsi_pr::{FullStatus, FullStatusDescriptor, InitiatorPort, Key, Nexus, ReserveOut, ScopeType, Type};
use scsi_pr_store::InitiatorName;

use crate::admin::failure::{Code, Failure};
use crate::admin::report::{Reading, initiator_name};
use crate::admin::text;

/// The removal of one registration, or of several with one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// REGISTER with key 0, as the initiator itself. `releases` is the reservation that ends with the last registration.
    Unregister { nexus: Nexus, key: Key, releases: Option<Type>, aptpl: bool },
    /// PREEMPT by a registrant, which gets the reservation.
    Preempt { successor: Nexus, successor_key: Key, key: Key, reservation_type: Type },
}

impl Step {
    /// The key of the removed registration.
    pub(super) const fn key(&self) -> Key {
        match self {
            Self::Unregister { key, .. } | Self::Preempt { key, .. } => *key,
        }
    }

    /// The sender of the request.
    pub(super) const fn sender(&self) -> &Nexus {
        match self {
            Self::Unregister { nexus, .. } => nexus,
            Self::Preempt { successor, .. } => successor,
        }
    }

    pub(super) fn request(&self) -> ReserveOut {
        match *self {
            // APTPL of the last REGISTER counts for the whole unit, so it must stay as it is.
            Self::Unregister { key, aptpl, .. } => ReserveOut::Register {
                key,
                service_action_key: Key::ZERO,
                initiator_ports: None,
                all_tg_pt: false,
                aptpl,
            },
            Self::Preempt { successor_key, key, reservation_type, .. } => ReserveOut::Preempt {
                key: successor_key,
                service_action_key: key,
                scope_type: ScopeType::from(reservation_type),
            },
        }
    }

    /// The registrant that gets the reservation.
    pub(super) fn preempted_by(&self) -> Option<String> {
        match self {
            Self::Unregister { .. } => None,
            Self::Preempt { successor, .. } => Some(initiator_name(successor.initiator())),
        }
    }

    /// The step in words, before it is done.
    pub(super) fn intention(&self, name: &InitiatorName) -> String {
        let key = text::key(&self.key().into());
        match self {
            Self::Unregister { nexus, releases: None, .. } => {
                let port = nexus.relative_target_port();
                format!(
                    "removes key {key} of {name} at target port {port}; other registrations and the reservation stay"
                )
            }
            Self::Unregister { releases: Some(released), .. } => {
                format!("removes key {key} of {name}, the last registration, and releases the reservation ({released})")
            }
            Self::Preempt { successor, reservation_type, .. } => {
                let successor = initiator_name(successor.initiator());
                format!("{successor} preempts key {key} of {name}, and gets the reservation ({reservation_type})")
            }
        }
    }
}

/// The steps that remove `name` from a unit; none if it is not registered. `aptpl` is that of the unit.
pub(super) fn plan(
    status: &Reading<FullStatus>,
    aptpl: bool,
    name: &InitiatorName,
    successor: Option<&InitiatorName>,
) -> Result<Vec<Step>, Failure> {
    if !status.is_whole {
        let text = "the list of registrations is cut, so others with the same key may be missed: stop the disk, and use --store";
        return Err(Failure::new(Code::Failure, text));
    }
    let (stale, others): (Vec<_>, Vec<_>) =
        status.value.descriptors.iter().partition(|descriptor| is_of(descriptor, name));
    let mut steps = Vec::new();
    let mut preempted = None;
    let sole_holder =
        |descriptor: &&&FullStatusDescriptor| descriptor.held.is_some_and(|held| !held.is_all_registrants());
    if let Some(holder) = stale.iter().find(sole_holder)
        && let Some(reservation_type) = holder.held
        && !others.is_empty()
    {
        if let Some(sharing) = others.iter().find(|other| other.key == holder.key) {
            let text = format!(
                "{} has registered the same key {} as {name}, and would be removed as well: let it register another key",
                port_name(sharing),
                holder.key
            );
            return Err(Failure::new(Code::Failure, text));
        }
        let successor = choose(name, successor, &others, reservation_type)?;
        steps.push(Step::Preempt {
            successor: nexus(successor)?,
            successor_key: successor.key,
            key: holder.key,
            reservation_type,
        });
        preempted = Some(holder.key);
    }
    let rest: Vec<_> = stale.iter().filter(|one| Some(one.key) != preempted).collect();
    for (index, one) in rest.iter().enumerate() {
        let is_last = others.is_empty() && index + 1 == rest.len();
        let held = stale.iter().find_map(|one| one.held);
        steps.push(Step::Unregister { nexus: nexus(one)?, key: one.key, releases: held.filter(|_| is_last), aptpl });
    }
    Ok(steps)
}

/// The registrant that gets the reservation of `name`.
fn choose<'a>(
    name: &InitiatorName,
    wanted: Option<&InitiatorName>,
    others: &[&'a FullStatusDescriptor],
    reservation_type: Type,
) -> Result<&'a FullStatusDescriptor, Failure> {
    if let Some(wanted) = wanted {
        let found = others.iter().find(|other| is_of(other, wanted)).copied();
        return found.ok_or_else(|| {
            Failure::new(Code::Failure, format!("the successor {wanted} is not registered: see \"scsi-pr show\""))
        });
    }
    match others.first() {
        // Every registrant has access already.
        Some(first) if reservation_type.is_registrants_only() => Ok(first),
        _ => Err(Failure::usage(format!(
            "{name} alone may use the unit ({reservation_type}): name with --successor the registrant that may use it then"
        ))),
    }
}

fn is_of(descriptor: &FullStatusDescriptor, initiator: &InitiatorName) -> bool {
    descriptor
        .transport_id()
        .is_ok_and(|id| matches!(id.port(), InitiatorPort::Iscsi { name, .. } if name == initiator.iscsi_name()))
}

fn port_name(descriptor: &FullStatusDescriptor) -> String {
    descriptor.transport_id().map_or_else(|_| "an unknown initiator".to_owned(), |id| initiator_name(&id))
}

fn nexus(descriptor: &FullStatusDescriptor) -> Result<Nexus, Failure> {
    match descriptor.transport_id() {
        Ok(id) => Ok(Nexus::new(id, descriptor.relative_target_port)),
        Err(error) => Err(Failure::new(Code::Failure, format!("a registrant has an unknown initiator port: {error}"))),
    }
}

#[cfg(test)]
mod tests;
