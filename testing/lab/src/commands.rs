//! The commands of the lab: their text in reports, and their bytes.

use std::fmt;

use scsi_pr::{
    Cdb, Command, CommandBuf, Key, Opcode, ReserveIn, ReserveInAction, ReserveOut, ScopeType, TransportId, Type,
};
use scsi_pr_helper::MAX_TRANSFER;

/// A command to send.
#[derive(Clone)]
pub(crate) struct Request {
    text: String,
    command: CommandBuf,
}

impl Request {
    /// The command for a [`PrManager`](scsi_pr::PrManager).
    pub(crate) fn command(&self) -> Command<'_> {
        self.command.command()
    }

    /// A command that need not be valid. `length` is the length in the CDB, whatever the length of `list`.
    pub(crate) fn raw(
        text: &str,
        opcode: Opcode,
        service_action: u8,
        scope_type: u8,
        length: u16,
        list: Vec<u8>,
    ) -> Self {
        let mut cdb = [0; 16];
        cdb[0] = opcode.byte();
        cdb[1] = service_action;
        cdb[2] = scope_type;
        cdb[7..9].copy_from_slice(&length.to_be_bytes());
        let command = Cdb::new(cdb).and_then(|cdb| CommandBuf::new(cdb, list));
        Self { text: text.to_owned(), command: command.expect("the lab's commands are within the limits") }
    }

    fn read(action: ReserveInAction) -> Self {
        Self { text: action.to_string(), command: ReserveIn::new(action, MAX_TRANSFER).encode() }
    }

    fn out(detail: impl fmt::Display, request: &ReserveOut) -> Self {
        let command = request.encode().expect("the lab's parameter lists are short");
        Self { text: format!("{} {detail}", request.action()), command }
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// READ KEYS.
pub(crate) fn read_keys() -> Request {
    Request::read(ReserveInAction::ReadKeys)
}

/// READ RESERVATION.
pub(crate) fn read_reservation() -> Request {
    Request::read(ReserveInAction::ReadReservation)
}

/// REPORT CAPABILITIES.
pub(crate) fn report_capabilities() -> Request {
    Request::read(ReserveInAction::ReportCapabilities)
}

/// READ FULL STATUS.
pub(crate) fn read_full_status() -> Request {
    Request::read(ReserveInAction::ReadFullStatus)
}

/// REGISTER: replaces the sender's key `from`, zero for none, by `to`.
pub(crate) fn register(from: Key, to: Key) -> Request {
    register_with(from, to, None, false, false)
}

/// REGISTER with ALL_TG_PT, for all target ports.
pub(crate) fn register_all_tg_pt(to: Key) -> Request {
    register_with(Key::ZERO, to, None, true, false)
}

/// REGISTER with APTPL, to persist through a power loss.
pub(crate) fn register_aptpl(to: Key) -> Request {
    register_with(Key::ZERO, to, None, false, true)
}

/// REGISTER with SPEC_I_PT, for the sender and for other ports.
pub(crate) fn register_spec_i_pt(to: Key, ports: &[TransportId]) -> Request {
    register_with(Key::ZERO, to, Some(ports.to_vec()), false, false)
}

fn register_with(from: Key, to: Key, ports: Option<Vec<TransportId>>, all_tg_pt: bool, aptpl: bool) -> Request {
    let mut detail = match (from.is_zero(), to.is_zero()) {
        (true, _) => short(to),
        (false, true) => format!("no key instead of {}", short(from)),
        (false, false) => format!("{} instead of {}", short(to), short(from)),
    };
    for (set, name) in [(ports.is_some(), " SPEC_I_PT"), (all_tg_pt, " ALL_TG_PT"), (aptpl, " APTPL")] {
        detail.push_str(if set { name } else { "" });
    }
    Request::out(
        detail,
        &ReserveOut::Register { key: from, service_action_key: to, initiator_ports: ports, all_tg_pt, aptpl },
    )
}

/// REGISTER AND IGNORE EXISTING KEY.
pub(crate) fn register_ignoring(to: Key) -> Request {
    let request = ReserveOut::RegisterAndIgnoreExistingKey { service_action_key: to, all_tg_pt: false, aptpl: false };
    Request::out(short(to), &request)
}

/// RESERVE.
pub(crate) fn reserve(key: Key, kind: Type) -> Request {
    Request::out(with(key, kind), &ReserveOut::Reserve { key, reservation_type: kind })
}

/// RELEASE.
pub(crate) fn release(key: Key, kind: Type) -> Request {
    Request::out(with(key, kind), &ReserveOut::Release { key, reservation_type: kind })
}

/// CLEAR.
pub(crate) fn clear(key: Key) -> Request {
    Request::out(format!("with {}", short(key)), &ReserveOut::Clear { key })
}

/// PREEMPT of the registrants with the key `victim`.
pub(crate) fn preempt(key: Key, victim: Key, kind: Type) -> Request {
    let detail = format!("{}, {}", short(victim), with(key, kind));
    Request::out(detail, &ReserveOut::Preempt { key, service_action_key: victim, scope_type: ScopeType::from(kind) })
}

/// PREEMPT AND ABORT of the registrants with the key `victim`.
pub(crate) fn preempt_and_abort(key: Key, victim: Key, kind: Type) -> Request {
    let detail = format!("{}, {}", short(victim), with(key, kind));
    Request::out(
        detail,
        &ReserveOut::PreemptAndAbort { key, service_action_key: victim, scope_type: ScopeType::from(kind) },
    )
}

/// REGISTER AND MOVE to `port`, with UNREG.
pub(crate) fn register_and_move(key: Key, to: Key, relative_target_port: u16, port: &TransportId) -> Request {
    let request = ReserveOut::RegisterAndMove {
        key,
        service_action_key: to,
        unregister: true,
        aptpl: false,
        relative_target_port,
        transport_id: port.clone(),
    };
    Request::out(format!("to {} with {}", short(to), short(key)), &request)
}

/// REPLACE LOST RESERVATION.
pub(crate) fn replace_lost(to: Key) -> Request {
    let request = ReserveOut::ReplaceLostReservation {
        key: Key::ZERO,
        service_action_key: to,
        reservation_type: Type::WriteExclusive,
        aptpl: false,
    };
    Request::out(short(to), &request)
}

fn with(key: Key, kind: Type) -> String {
    format!("{kind} with {}", short(key))
}

/// A key without its leading zeros.
pub(crate) fn short(key: Key) -> String {
    format!("{:#x}", key.0)
}
