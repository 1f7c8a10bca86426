//! The bytes of PERSISTENT RESERVE OUT: CDB and parameter lists (SPC-4 6.16.1 to 6.16.4), read and written.

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{ReserveOut, ReserveOutAction};
use crate::{Cdb, Command, CommandBuf, InvalidCommand, Key, Opcode, ScopeType, SenseCode, TransportId};

/// The CDB, padded to 16 bytes.
#[derive(Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct CdbLayout {
    opcode: u8,
    service_action: u8,
    scope_type: u8,
    reserved: [u8; 2],
    parameter_list_length: U32,
    control: u8,
    padding: [u8; 6],
}

/// The basic parameter list: of every service action but REGISTER AND MOVE.
#[derive(Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct BasicList {
    key: U64,
    service_action_key: U64,
    obsolete: [u8; 4],
    flags: u8,
    reserved: u8,
    obsolete_after: [u8; 2],
}

const SPEC_I_PT: u8 = 0x08;
const ALL_TG_PT: u8 = 0x04;
/// In both lists.
const APTPL: u8 = 0x01;

/// The parameter list of REGISTER AND MOVE, up to its TransportID.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct MoveList {
    key: U64,
    service_action_key: U64,
    reserved: u8,
    flags: u8,
    relative_target_port: U16,
    transport_id_length: U32,
}

const UNREG: u8 = 0x02;

impl ReserveOut {
    /// Reads what `command` asks for.
    ///
    /// The length of the list is checked first, then the service action, scope and type where they count, then the
    /// fields of the list: all that can be known without the state of the unit. The standard checks the
    /// registration and the key before the fields of the list. A caller that needs that order checks
    /// the key first. Reserved bits that other versions of the standard may use are ignored, except those
    /// beside the service action.
    ///
    /// # Errors
    ///
    /// The sense that refuses the command:
    ///
    /// * [`INVALID_OPCODE`](SenseCode::INVALID_OPCODE): it is no PERSISTENT RESERVE OUT.
    /// * [`PARAMETER_LIST_LENGTH_ERROR`](SenseCode::PARAMETER_LIST_LENGTH_ERROR): the list is shorter or longer than its
    ///   kind; or the upper half of PARAMETER LIST LENGTH (bytes 5–6 of the CDB) is not zero, which the helper protocol
    ///   takes no account of.
    /// * [`INVALID_FIELD_IN_CDB`](SenseCode::INVALID_FIELD_IN_CDB): the service action is unknown, or the scope or type
    ///   of one that uses them.
    /// * [`INVALID_FIELD_IN_PARAMETER_LIST`](SenseCode::INVALID_FIELD_IN_PARAMETER_LIST): SPEC_I_PT with anything but
    ///   REGISTER, or TransportIDs that are malformed or do not fill the list.
    pub fn parse(command: Command<'_>) -> Result<Self, SenseCode> {
        if command.opcode() != Opcode::ReserveOut {
            return Err(SenseCode::INVALID_OPCODE);
        }
        let cdb: &CdbLayout = zerocopy::transmute_ref!(command.cdb().bytes());
        let list = command.parameter_list();
        if usize::try_from(cdb.parameter_list_length.get()) != Ok(list.len()) {
            return Err(SenseCode::PARAMETER_LIST_LENGTH_ERROR);
        }
        let action = ReserveOutAction::from_code(cdb.service_action);
        if action == Some(ReserveOutAction::RegisterAndMove) {
            return parse_move(list);
        }
        let (list, rest) = BasicList::ref_from_prefix(list).map_err(|_| SenseCode::PARAMETER_LIST_LENGTH_ERROR)?;
        let spec_i_pt = list.flags & SPEC_I_PT != 0;
        if !spec_i_pt && !rest.is_empty() {
            return Err(SenseCode::PARAMETER_LIST_LENGTH_ERROR);
        }

        let key = Key(list.key.get());
        let service_action_key = Key(list.service_action_key.get());
        let all_tg_pt = list.flags & ALL_TG_PT != 0;
        let aptpl = list.flags & APTPL != 0;
        let scope_type = ScopeType(cdb.scope_type);
        let reservation_type = || scope_type.reservation_type().ok_or(SenseCode::INVALID_FIELD_IN_CDB);
        let parsed = match action {
            Some(ReserveOutAction::Register) => {
                let initiator_ports = if spec_i_pt { Some(parse_initiator_ports(rest)?) } else { None };
                return Ok(Self::Register { key, service_action_key, initiator_ports, all_tg_pt, aptpl });
            }
            Some(ReserveOutAction::Reserve) => Self::Reserve { key, reservation_type: reservation_type()? },
            Some(ReserveOutAction::Release) => Self::Release { key, reservation_type: reservation_type()? },
            Some(ReserveOutAction::Clear) => Self::Clear { key },
            Some(ReserveOutAction::Preempt) => Self::Preempt { key, service_action_key, scope_type },
            Some(ReserveOutAction::PreemptAndAbort) => Self::PreemptAndAbort { key, service_action_key, scope_type },
            Some(ReserveOutAction::RegisterAndIgnoreExistingKey) => {
                Self::RegisterAndIgnoreExistingKey { service_action_key, all_tg_pt, aptpl }
            }
            Some(ReserveOutAction::ReplaceLostReservation) => {
                let reservation_type = reservation_type()?;
                Self::ReplaceLostReservation { key, service_action_key, reservation_type, aptpl }
            }
            // REGISTER AND MOVE has a list of its own.
            Some(ReserveOutAction::RegisterAndMove) | None => return Err(SenseCode::INVALID_FIELD_IN_CDB),
        };
        if spec_i_pt { Err(SenseCode::INVALID_FIELD_IN_PARAMETER_LIST) } else { Ok(parsed) }
    }

    /// RESERVATION KEY and SERVICE ACTION RESERVATION KEY, which every list begins with; `None` when this one is too short.
    pub fn keys(command: Command<'_>) -> Option<(Key, Key)> {
        let ([key, service_action_key], _) = <[U64; 2]>::ref_from_prefix(command.parameter_list()).ok()?;
        Some((Key(key.get()), Key(service_action_key.get())))
    }

    /// The command that asks for this. Fields that do not count are zero.
    ///
    /// # Errors
    ///
    /// [`InvalidCommand::TransferLength`] for more initiator ports than 65,535 bytes have room for. A transport may have a lower
    /// limit: [`Cdb::check_transfer_length`].
    pub fn encode(&self) -> Result<CommandBuf, InvalidCommand> {
        let none = ScopeType(0);
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        let (scope_type, key, service_action_key, flags) = match self {
            Self::Register { key, service_action_key, initiator_ports, all_tg_pt, aptpl } => {
                let spec_i_pt = flag(initiator_ports.is_some(), SPEC_I_PT);
                (none, *key, *service_action_key, spec_i_pt | flag(*all_tg_pt, ALL_TG_PT) | flag(*aptpl, APTPL))
            }
            Self::Reserve { key, reservation_type } | Self::Release { key, reservation_type } => {
                ((*reservation_type).into(), *key, Key::ZERO, 0)
            }
            Self::Clear { key } => (none, *key, Key::ZERO, 0),
            Self::Preempt { key, service_action_key, scope_type }
            | Self::PreemptAndAbort { key, service_action_key, scope_type } => {
                (*scope_type, *key, *service_action_key, 0)
            }
            Self::RegisterAndIgnoreExistingKey { service_action_key, all_tg_pt, aptpl } => {
                (none, Key::ZERO, *service_action_key, flag(*all_tg_pt, ALL_TG_PT) | flag(*aptpl, APTPL))
            }
            Self::RegisterAndMove {
                key,
                service_action_key,
                unregister,
                aptpl,
                relative_target_port,
                transport_id,
            } => {
                let id = transport_id.bytes();
                let list = MoveList {
                    key: key.0.into(),
                    service_action_key: service_action_key.0.into(),
                    reserved: 0,
                    flags: flag(*unregister, UNREG) | flag(*aptpl, APTPL),
                    relative_target_port: (*relative_target_port).into(),
                    transport_id_length: length(id),
                };
                return self.command(none, [list.as_bytes(), id].concat());
            }
            Self::ReplaceLostReservation { key, service_action_key, reservation_type, aptpl } => {
                ((*reservation_type).into(), *key, *service_action_key, flag(*aptpl, APTPL))
            }
        };
        let list = BasicList {
            key: key.0.into(),
            service_action_key: service_action_key.0.into(),
            flags,
            ..BasicList::default()
        };
        let mut list = list.as_bytes().to_vec();
        if let Self::Register { initiator_ports: Some(ports), .. } = self {
            let ports = ports.iter().map(TransportId::bytes).collect::<Vec<_>>().concat();
            list.extend_from_slice(length(&ports).as_bytes());
            list.extend_from_slice(&ports);
        }
        self.command(scope_type, list)
    }

    fn command(&self, scope_type: ScopeType, parameter_list: Vec<u8>) -> Result<CommandBuf, InvalidCommand> {
        let opcode = Opcode::ReserveOut;
        let max = usize::from(u16::MAX);
        if parameter_list.len() > max {
            return Err(InvalidCommand::TransferLength { opcode, length: parameter_list.len(), max });
        }
        let cdb = CdbLayout {
            opcode: opcode.byte(),
            service_action: self.action().code(),
            scope_type: scope_type.0,
            parameter_list_length: length(&parameter_list),
            ..CdbLayout::default()
        };
        CommandBuf::new(Cdb::new(zerocopy::transmute!(cdb))?, parameter_list)
    }
}

/// How many bytes these are; what is over 32 bits is over what a command can carry too.
fn length(bytes: &[u8]) -> U32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX).into()
}

/// The bytes after the basic list when SPEC_I_PT is set.
fn parse_initiator_ports(bytes: &[u8]) -> Result<Vec<TransportId>, SenseCode> {
    let (length, ids) = U32::ref_from_prefix(bytes).map_err(|_| SenseCode::PARAMETER_LIST_LENGTH_ERROR)?;
    if usize::try_from(length.get()) != Ok(ids.len()) {
        return Err(SenseCode::INVALID_FIELD_IN_PARAMETER_LIST);
    }
    TransportId::list_from_bytes(ids).map_err(|_| SenseCode::INVALID_FIELD_IN_PARAMETER_LIST)
}

fn parse_move(list: &[u8]) -> Result<ReserveOut, SenseCode> {
    let (list, id) = MoveList::ref_from_prefix(list).map_err(|_| SenseCode::PARAMETER_LIST_LENGTH_ERROR)?;
    if usize::try_from(list.transport_id_length.get()) != Ok(id.len()) {
        return Err(SenseCode::PARAMETER_LIST_LENGTH_ERROR);
    }
    Ok(ReserveOut::RegisterAndMove {
        key: Key(list.key.get()),
        service_action_key: Key(list.service_action_key.get()),
        unregister: list.flags & UNREG != 0,
        aptpl: list.flags & APTPL != 0,
        relative_target_port: list.relative_target_port.get(),
        transport_id: TransportId::from_bytes(id).map_err(|_| SenseCode::INVALID_FIELD_IN_PARAMETER_LIST)?,
    })
}
