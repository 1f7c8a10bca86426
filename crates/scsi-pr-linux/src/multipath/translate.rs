//! PERSISTENT RESERVE OUT as libmpathpersist takes it, and what it returns as a [`Completion`]. No I/O.

use scsi_pr::{Completion, Key, ReserveOut, ReserveOutAction, ScopeType, SenseCode, Status, TransportId};

/// A PERSISTENT RESERVE OUT that libmpathpersist can run.
///
/// A command that the library would send otherwise than it came is no `Request`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) action: ReserveOutAction,
    pub(super) scope_type: ScopeType,
    pub(super) key: Key,
    pub(super) service_action_key: Key,
    /// SPEC_I_PT, ALL_TG_PT and APTPL, where the parameter list has them.
    pub(super) flags: u8,
    /// At most [`Request::MOST_TRANSPORT_IDS`].
    pub(super) transport_ids: Vec<LibraryTransportId>,
}

/// SPEC_I_PT: TransportIDs follow.
pub(super) const SPEC_I_PT: u8 = 0x08;
const ALL_TG_PT: u8 = 0x04;
const APTPL: u8 = 0x01;

/// A TransportID as libmpathpersist takes it (`struct transportid` of `mpath_persist.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(super) struct LibraryTransportId {
    /// TPID FORMAT, in its place in the byte that it shares with the next.
    format_code: u8,
    /// PROTOCOL IDENTIFIER.
    protocol_id: u8,
    /// The port's name; with iSCSI, after two bytes of ADDITIONAL LENGTH.
    name: [u8; 256],
}

const _: () = assert!(size_of::<LibraryTransportId>() == 258 && align_of::<LibraryTransportId>() == 1);

const FIBRE_CHANNEL: u8 = 0x0;
const ISCSI: u8 = 0x5;

impl LibraryTransportId {
    /// `None` when the library would send another TransportID than this.
    fn new(id: &TransportId) -> Option<Self> {
        let bytes = id.bytes();
        let mut library = Self { format_code: bytes[0] & 0xc0, protocol_id: bytes[0] & 0x0f, name: [0; 256] };
        let name = match library.protocol_id {
            FIBRE_CHANNEL => bytes.get(8..16)?,
            ISCSI => bytes.get(2..)?,
            // Of SAS addresses the library (0.9.4, and those since) sends TransportIDs that are 8 bytes too short, and
            // what follows is read as the rest of them. It does not know the other protocols.
            _ => return None,
        };
        library.name.get_mut(..name.len())?.copy_from_slice(name);
        (library.as_sent() == bytes).then_some(library)
    }

    /// The bytes that the library makes of it.
    pub(super) fn as_sent(&self) -> Vec<u8> {
        let mut bytes = vec![self.format_code | self.protocol_id];
        match self.protocol_id {
            FIBRE_CHANNEL => {
                bytes.extend([0; 7]);
                bytes.extend(&self.name[..8]);
                bytes.extend([0; 8]);
            }
            // The length is taken from one byte of the two.
            _ => {
                bytes.push(0);
                bytes.extend(&self.name[..usize::from(self.name[1]).saturating_add(2).min(256)]);
            }
        }
        bytes
    }
}

impl Request {
    /// `MPATH_MX_TIDS`: the most TransportIDs that the library has room for.
    pub(super) const MOST_TRANSPORT_IDS: usize = 32;

    /// The request for the library.
    ///
    /// # Errors
    ///
    /// [`INVALID_FIELD_IN_CDB`](SenseCode::INVALID_FIELD_IN_CDB): the library does not know the service action.
    /// [`INVALID_FIELD_IN_PARAMETER_LIST`](SenseCode::INVALID_FIELD_IN_PARAMETER_LIST): it would not send the
    /// TransportIDs as they are.
    pub(super) fn new(out: &ReserveOut) -> Result<Self, SenseCode> {
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        let request = |key: Key, service_action_key: Key| Self {
            action: out.action(),
            scope_type: ScopeType(0),
            key,
            service_action_key,
            flags: 0,
            transport_ids: Vec::new(),
        };
        Ok(match out {
            ReserveOut::Register { key, service_action_key, initiator_ports, all_tg_pt, aptpl } => Self {
                flags: flag(initiator_ports.is_some(), SPEC_I_PT) | flag(*all_tg_pt, ALL_TG_PT) | flag(*aptpl, APTPL),
                transport_ids: transport_ids(initiator_ports.as_deref().unwrap_or_default())?,
                ..request(*key, *service_action_key)
            },
            ReserveOut::RegisterAndIgnoreExistingKey { service_action_key, all_tg_pt, aptpl } => Self {
                flags: flag(*all_tg_pt, ALL_TG_PT) | flag(*aptpl, APTPL),
                ..request(Key::ZERO, *service_action_key)
            },
            ReserveOut::Reserve { key, reservation_type } | ReserveOut::Release { key, reservation_type } => {
                Self { scope_type: (*reservation_type).into(), ..request(*key, Key::ZERO) }
            }
            ReserveOut::Clear { key } => request(*key, Key::ZERO),
            ReserveOut::Preempt { key, service_action_key, scope_type }
            | ReserveOut::PreemptAndAbort { key, service_action_key, scope_type } => {
                Self { scope_type: *scope_type, ..request(*key, *service_action_key) }
            }
            // REGISTER AND MOVE, REPLACE LOST RESERVATION, and what later standards add.
            _ => return Err(SenseCode::INVALID_FIELD_IN_CDB),
        })
    }

    /// Whether this names other initiator ports to be registered.
    pub(super) fn names_initiator_ports(&self) -> bool {
        self.flags & SPEC_I_PT != 0
    }

    /// Whether this gives the host a key, a first or another one.
    pub(super) fn registers(&self) -> bool {
        use ReserveOutAction::{Register, RegisterAndIgnoreExistingKey};
        matches!(self.action, Register | RegisterAndIgnoreExistingKey) && !self.service_action_key.is_zero()
    }

    /// The REGISTER AND IGNORE EXISTING KEY that does by every path what this REGISTER does by those that have its key.
    pub(super) fn ignoring_existing_keys(&self) -> Self {
        Self {
            action: ReserveOutAction::RegisterAndIgnoreExistingKey,
            key: Key::ZERO,
            flags: self.flags & !SPEC_I_PT,
            transport_ids: Vec::new(),
            ..self.clone()
        }
    }

    /// Whether this may take away the registrations of the sender's other paths: a PREEMPT of its own key, or of every
    /// registrant but the nexus that sends it.
    pub(super) fn preempts_itself(&self) -> bool {
        use ReserveOutAction::{Preempt, PreemptAndAbort};
        matches!(self.action, Preempt | PreemptAndAbort)
            && (self.service_action_key == self.key || self.service_action_key.is_zero())
    }

    /// The answer that the library's return value stands for.
    ///
    /// Only 0 is GOOD. A syntax error of the library is a key that multipath.conf does not allow. No other key can be
    /// registered: a command that must come with the registered key gets the unit's answer to another key, RESERVATION
    /// CONFLICT; one that would register another key is refused for good. With NO SENSE, and all values that are no
    /// answer of a unit, the effect of the command is unknown.
    pub(super) fn completion(&self, code: i32) -> Completion {
        Completion::check(match code {
            SUCCESS => return Completion::Good(Vec::new()),
            SYNTAX_ERROR if self.registers() => SenseCode::INVALID_FIELD_IN_PARAMETER_LIST,
            SYNTAX_ERROR | RESERVATION_CONFLICT => return Completion::Status(Status::RESERVATION_CONFLICT),
            NOT_READY => SenseCode::NOT_READY,
            3 => SenseCode::READ_ERROR,
            4 => SenseCode::TARGET_FAILURE,
            5 => SenseCode::INVALID_FIELD_IN_PARAMETER_LIST,
            6 => SenseCode::BUS_RESET,
            7 => SenseCode::INVALID_OPCODE,
            8 => SenseCode::IO_PROCESS_TERMINATED,
            _ => SenseCode::LUN_COMMUNICATION_FAILURE,
        })
    }
}

/// `MPATH_PR_SUCCESS`.
pub(super) const SUCCESS: i32 = 0;
/// `MPATH_PR_SYNTAX_ERROR`.
pub(super) const SYNTAX_ERROR: i32 = 1;
/// `MPATH_PR_SENSE_NOT_READY`.
pub(super) const NOT_READY: i32 = 2;
/// `MPATH_PR_RESERV_CONFLICT`.
pub(super) const RESERVATION_CONFLICT: i32 = 11;

/// Whether this return value is the unit's own answer, which needs no line in the log.
pub(super) fn is_of_the_unit(code: i32) -> bool {
    matches!(code, SUCCESS | 2..=8 | RESERVATION_CONFLICT)
}

/// The library's names of its return values (`mpath_persist.h`), for the log.
pub(super) fn meaning(code: i32) -> &'static str {
    match code {
        SUCCESS => "success",
        SYNTAX_ERROR => "a key that it does not allow",
        NOT_READY => "the unit is not ready",
        3 => "a medium error",
        4 => "a hardware error",
        5 => "an illegal request",
        6 => "a unit attention",
        7 => "an invalid operation code",
        8 => "an aborted command",
        9 => "no sense",
        10 => "sense data that are malformed",
        RESERVATION_CONFLICT => "a reservation conflict",
        12 => "a device file that cannot be opened",
        13 => "an error of device mapper or multipathd, or no path that works",
        14 => "a thread that cannot be started",
        15 => "an error of the transport or a driver",
        _ => "an unknown error",
    }
}

fn transport_ids(ids: &[TransportId]) -> Result<Vec<LibraryTransportId>, SenseCode> {
    let ids: Option<Vec<_>> = ids.iter().map(LibraryTransportId::new).collect();
    ids.filter(|ids| ids.len() <= Request::MOST_TRANSPORT_IDS).ok_or(SenseCode::INVALID_FIELD_IN_PARAMETER_LIST)
}

#[cfg(test)]
pub(super) mod tests;
