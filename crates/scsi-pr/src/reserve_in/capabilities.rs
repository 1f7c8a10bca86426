//! The data of REPORT CAPABILITIES (SPC-4 6.15.4).

use std::fmt;

use zerocopy::byteorder::big_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{InvalidData, Parsed, prefix};
use crate::Type;

/// The capabilities of a device server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// RLR_C: REPLACE LOST RESERVATION is supported.
    pub rlr_c: bool,
    /// CRH: RESERVE and RELEASE of SPC-2 do no harm to a persistent reservation.
    pub crh: bool,
    /// SIP_C: SPEC_I_PT is supported.
    pub sip_c: bool,
    /// ATP_C: ALL_TG_PT is supported.
    pub atp_c: bool,
    /// PTPL_C: APTPL is supported.
    pub ptpl_c: bool,
    /// TMV: the type mask is valid.
    pub tmv: bool,
    /// ALLOW COMMANDS.
    pub allow_commands: AllowCommands,
    /// PTPL_A: registrations and reservation survive a loss of power as it is now.
    pub ptpl_a: bool,
    /// PERSISTENT RESERVATION TYPE MASK: the types that are supported. It says something only with `tmv`.
    pub type_mask: TypeMask,
}

/// ALLOW COMMANDS, three bits: which commands pass a reservation that the standard leaves to the device server.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct AllowCommands(u8);

impl AllowCommands {
    /// 000b: nothing is said.
    pub const NOT_STATED: Self = Self(0b000);
    /// 100b: all commands pass that SPC-4 allows to pass.
    pub const ALL: Self = Self(0b100);

    /// The value with this code; `None` over 111b.
    pub const fn from_code(code: u8) -> Option<Self> {
        if code <= 0b111 { Some(Self(code)) } else { None }
    }

    /// The code, at most 111b.
    pub const fn code(self) -> u8 {
        self.0
    }
}

impl fmt::Debug for AllowCommands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AllowCommands({:03b}b)", self.0)
    }
}

/// A set of reservation types.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct TypeMask(u16);

impl TypeMask {
    /// Every type: EA01h.
    pub const ALL: Self = {
        let mut mask = 0;
        let mut index = 0;
        while index < Type::ALL.len() {
            mask |= bit(Type::ALL[index]);
            index += 1;
        }
        Self(mask)
    };

    /// The bytes 4 and 5 of the data; bits that stand for no type are dropped.
    const fn from_bits(bits: u16) -> Self {
        Self(bits & Self::ALL.0)
    }

    /// Whether `reservation_type` is in the set.
    pub const fn contains(self, reservation_type: Type) -> bool {
        self.0 & bit(reservation_type) != 0
    }

    /// The types in the set, in the order of their codes.
    pub fn iter(self) -> impl Iterator<Item = Type> {
        Type::ALL.into_iter().filter(move |reservation_type| self.contains(*reservation_type))
    }
}

/// Byte 4 has the bit of its code for each type but the last, whose bit is the lowest of byte 5.
const fn bit(reservation_type: Type) -> u16 {
    match reservation_type {
        Type::ExclusiveAccessAllRegistrants => 0x0001,
        other => 0x0100 << other.code(),
    }
}

impl FromIterator<Type> for TypeMask {
    fn from_iter<I: IntoIterator<Item = Type>>(types: I) -> Self {
        Self(types.into_iter().fold(0, |mask, reservation_type| mask | bit(reservation_type)))
    }
}

impl fmt::Debug for TypeMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Layout {
    length: U16,
    capable: u8,
    state: u8,
    type_mask: U16,
}

/// The value of LENGTH: `Layout` and two reserved bytes.
const LENGTH: u16 = 8;

const RLR_C: u8 = 0x80;
const CRH: u8 = 0x10;
const SIP_C: u8 = 0x08;
const ATP_C: u8 = 0x04;
const PTPL_C: u8 = 0x01;

const TMV: u8 = 0x80;
const ALLOW_COMMANDS_SHIFT: u8 = 4;
const PTPL_A: u8 = 0x01;

impl Capabilities {
    /// Reads returned data.
    ///
    /// # Errors
    ///
    /// [`InvalidData::Short`] under 6 bytes, [`InvalidData::Length`] when LENGTH is not 8.
    pub fn parse(data: &[u8]) -> Result<Parsed<Self>, InvalidData> {
        let (Layout { length, capable, state, type_mask }, _) = prefix(data)?;
        if length.get() != LENGTH {
            return Err(InvalidData::Length(length.get().into()));
        }
        let value = Self {
            rlr_c: capable & RLR_C != 0,
            crh: capable & CRH != 0,
            sip_c: capable & SIP_C != 0,
            atp_c: capable & ATP_C != 0,
            ptpl_c: capable & PTPL_C != 0,
            tmv: state & TMV != 0,
            allow_commands: AllowCommands((state >> ALLOW_COMMANDS_SHIFT) & 0b111),
            ptpl_a: state & PTPL_A != 0,
            type_mask: TypeMask::from_bits(type_mask.get()),
        };
        Ok(Parsed { value, length: LENGTH.into(), truncated: data.len() < LENGTH.into() })
    }

    /// The data to be returned, before they are cut to the allocation length.
    pub fn encode(&self) -> Vec<u8> {
        let bits = |flags: &[(bool, u8)]| flags.iter().filter(|(set, _)| *set).fold(0, |bits, (_, bit)| bits | bit);
        let layout = Layout {
            length: LENGTH.into(),
            capable: bits(&[
                (self.rlr_c, RLR_C),
                (self.crh, CRH),
                (self.sip_c, SIP_C),
                (self.atp_c, ATP_C),
                (self.ptpl_c, PTPL_C),
            ]),
            state: bits(&[(self.tmv, TMV), (self.ptpl_a, PTPL_A)]) | self.allow_commands.0 << ALLOW_COMMANDS_SHIFT,
            type_mask: self.type_mask.0.into(),
        };
        [layout.as_bytes(), &[0; 2]].concat()
    }
}

impl fmt::Display for Capabilities {
    /// The bits that are set, by the names of the standard, and the types.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (set, name) in [
            (self.rlr_c, "RLR_C"),
            (self.crh, "CRH"),
            (self.sip_c, "SIP_C"),
            (self.atp_c, "ATP_C"),
            (self.ptpl_c, "PTPL_C"),
            (self.ptpl_a, "PTPL_A"),
        ] {
            if set {
                write!(f, "{name}, ")?;
            }
        }
        write!(f, "ALLOW COMMANDS {:03b}b, types", self.allow_commands.0)?;
        if !self.tmv {
            return f.write_str(" not stated");
        }
        let mut types = self.type_mask.iter();
        match types.next() {
            None => f.write_str(" none"),
            Some(first) => {
                write!(f, " {first}")?;
                types.try_for_each(|reservation_type| write!(f, ", {reservation_type}"))
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::reservation_type::tests::types;
    use proptest::prelude::*;

    pub(crate) fn values() -> impl Strategy<Value = Capabilities> {
        (any::<[bool; 7]>(), 0u8..8, prop::collection::vec(types(), 0..6)).prop_map(|(flags, code, types)| {
            let [rlr_c, crh, sip_c, atp_c, ptpl_c, tmv, ptpl_a] = flags;
            let allow_commands = AllowCommands::from_code(code).unwrap();
            let type_mask = types.into_iter().collect();
            Capabilities { rlr_c, crh, sip_c, atp_c, ptpl_c, tmv, allow_commands, ptpl_a, type_mask }
        })
    }

    #[test]
    fn each_field_has_its_bit() {
        let only = |set: fn(&mut Capabilities)| {
            let mut capabilities = Capabilities::default();
            set(&mut capabilities);
            capabilities.encode()
        };
        assert_eq!(only(|_| ()), [0, 8, 0, 0, 0, 0, 0, 0]);
        assert_eq!(only(|c| c.rlr_c = true)[2], 0x80);
        assert_eq!(only(|c| c.crh = true)[2], 0x10);
        assert_eq!(only(|c| c.sip_c = true)[2], 0x08);
        assert_eq!(only(|c| c.atp_c = true)[2], 0x04);
        assert_eq!(only(|c| c.ptpl_c = true)[2], 0x01);
        assert_eq!(only(|c| c.tmv = true)[3], 0x80);
        assert_eq!(only(|c| c.allow_commands = AllowCommands::ALL)[3], 0x40);
        assert_eq!(only(|c| c.ptpl_a = true)[3], 0x01);
        assert_eq!(only(|c| c.type_mask = TypeMask::ALL), [0, 8, 0, 0, 0xea, 0x01, 0, 0]);
        for (reservation_type, mask) in Type::ALL.into_iter().zip([
            [0x02, 0x00],
            [0x08, 0x00],
            [0x20, 0x00],
            [0x40, 0x00],
            [0x80, 0x00],
            [0x00, 0x01],
        ]) {
            let type_mask = TypeMask::from_iter([reservation_type]);
            assert_eq!(Capabilities { type_mask, ..Capabilities::default() }.encode()[4..6], mask);
            assert!(type_mask.iter().eq([reservation_type]));
        }
    }

    #[test]
    fn a_whole_answer_is_read() {
        let data = [0, 8, 0x1d, 0x91, 0xea, 0x01, 0, 0];
        let Parsed { value, length, truncated } = Capabilities::parse(&data).unwrap();
        assert_eq!((length, truncated), (8, false));
        let allow_commands = AllowCommands::from_code(1).unwrap();
        let expected = Capabilities {
            rlr_c: false,
            crh: true,
            sip_c: true,
            atp_c: true,
            ptpl_c: true,
            tmv: true,
            allow_commands,
            ptpl_a: true,
            type_mask: TypeMask::ALL,
        };
        assert_eq!(value, expected);
        assert_eq!(value.encode(), data);
        assert_eq!(
            value.to_string(),
            "CRH, SIP_C, ATP_C, PTPL_C, PTPL_A, ALLOW COMMANDS 001b, types Write Exclusive, Exclusive Access, \
             Write Exclusive - Registrants Only, Exclusive Access - Registrants Only, \
             Write Exclusive - All Registrants, Exclusive Access - All Registrants"
        );
        assert_eq!(Capabilities::default().to_string(), "ALLOW COMMANDS 000b, types not stated");
        let tmv = Capabilities { tmv: true, ..Capabilities::default() };
        assert_eq!(tmv.to_string(), "ALLOW COMMANDS 000b, types none");
        assert!(Capabilities::parse(&data[..6]).unwrap().truncated);
        assert_eq!(Capabilities::parse(&data[..5]), Err(InvalidData::Short { needed: 6, actual: 5 }));
        assert_eq!(Capabilities::parse(&[0; 8]), Err(InvalidData::Length(0)));
    }

    #[test]
    fn a_code_of_four_bits_is_none() {
        assert_eq!(AllowCommands::from_code(8), None);
    }
}
