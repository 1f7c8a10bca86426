//! The commands of the demo's nodes, and the answers, in bytes and as text.

use std::fmt;

use anyhow::{Context, Result, bail};
use scsi_pr::{
    Command, CommandBuf, Completion, FullStatus, InitiatorPort, Key, Keys, MAX_TRANSFER, Reservation, ReserveIn,
    ReserveInAction, ReserveOut, ScopeType, SenseKey, Type,
};

pub(super) const KEY_1: Key = Key(0x1111);
pub(super) const KEY_2: Key = Key(0x2222);
const TYPE: Type = Type::WriteExclusive;

/// A command of a node.
pub(super) struct Request {
    text: String,
    command: CommandBuf,
}

impl Request {
    pub(super) fn command(&self) -> Command<'_> {
        self.command.command()
    }

    fn read(action: ReserveInAction) -> Self {
        Self { text: action.to_string(), command: ReserveIn::new(action, MAX_TRANSFER).encode() }
    }

    fn out(request: &ReserveOut, detail: &str) -> Self {
        let command = request.encode().expect("the parameter lists of the demo are short");
        Self { text: format!("{} {detail}", request.action()), command }
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

pub(super) fn read_keys() -> Request {
    Request::read(ReserveInAction::ReadKeys)
}

pub(super) fn read_reservation() -> Request {
    Request::read(ReserveInAction::ReadReservation)
}

pub(super) fn read_full_status() -> Request {
    Request::read(ReserveInAction::ReadFullStatus)
}

pub(super) fn register(to: Key) -> Request {
    let request = ReserveOut::Register {
        key: Key::ZERO,
        service_action_key: to,
        initiator_ports: None,
        all_tg_pt: false,
        aptpl: false,
    };
    Request::out(&request, &short(to))
}

pub(super) fn reserve(key: Key) -> Request {
    Request::out(&ReserveOut::Reserve { key, reservation_type: TYPE }, &format!("{TYPE} with {}", short(key)))
}

pub(super) fn release(key: Key) -> Request {
    Request::out(&ReserveOut::Release { key, reservation_type: TYPE }, &format!("with {}", short(key)))
}

pub(super) fn preempt_and_abort(key: Key, victim: Key) -> Request {
    let request = ReserveOut::PreemptAndAbort { key, service_action_key: victim, scope_type: ScopeType::from(TYPE) };
    Request::out(&request, &format!("{} with {}", short(victim), short(key)))
}

/// The answer to `request`, as text.
pub(super) fn as_text(request: &Request, completion: &Completion) -> Result<String> {
    let data = match completion {
        Completion::CheckCondition(sense) => {
            return Ok(match sense.code() {
                Some(code) if code.key == SenseKey::UNIT_ATTENTION => format!("UNIT ATTENTION {code}"),
                _ => completion.to_string(),
            });
        }
        Completion::Status(status) => return Ok(status.to_string()),
        Completion::Good(data) => data,
    };
    let Ok(read) = ReserveIn::parse(request.command()) else { return Ok("GOOD".to_owned()) };
    Ok(match read.action() {
        ReserveInAction::ReadKeys => {
            let Keys { generation, keys } = Keys::parse(data)?.value;
            let keys: Vec<_> = keys.into_iter().map(short).collect();
            format!("generation {generation}: {}", keys.join(", "))
        }
        ReserveInAction::ReadReservation => match Reservation::parse(data)?.value.held {
            Some(held) => format!("held by {}, {}", short(held.key), held.reservation_type),
            None => "not reserved".to_owned(),
        },
        ReserveInAction::ReadFullStatus => registrants(&FullStatus::parse(data)?.value)?.join("; "),
        other => bail!("{other} has no words"),
    })
}

/// The registrants, in the order of their registrations.
fn registrants(status: &FullStatus) -> Result<Vec<String>> {
    let descriptors = status.descriptors.iter();
    descriptors
        .map(|descriptor| {
            let id = descriptor.transport_id().context("read the name of a registrant")?;
            let InitiatorPort::Iscsi { name, .. } = id.port() else { bail!("{id} is not an initiator of the demo") };
            let name = name.rsplit(':').next().unwrap_or(name);
            let holder = if descriptor.held.is_some() { ", the holder" } else { "" };
            Ok(format!("{name} with {}{holder}", short(descriptor.key)))
        })
        .collect()
}

/// A key without its leading zeros.
fn short(key: Key) -> String {
    format!("{:#x}", key.0)
}
