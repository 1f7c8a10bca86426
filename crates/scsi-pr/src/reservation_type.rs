//! [`Type`]: what a reservation shuts out, and the byte in which it travels, [`ScopeType`].

use std::fmt;

/// The type of a persistent reservation (SPC-4 6.15.3.4). The other codes are obsolete or reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Type {
    /// 1h: only the holder writes, everybody reads.
    WriteExclusive = 0x1,
    /// 3h: only the holder reads and writes.
    ExclusiveAccess = 0x3,
    /// 5h: only registrants write, everybody reads; one nexus is the holder.
    WriteExclusiveRegistrantsOnly = 0x5,
    /// 6h: only registrants read and write; one nexus is the holder.
    ExclusiveAccessRegistrantsOnly = 0x6,
    /// 7h: only registrants write, everybody reads; every registrant is a holder.
    WriteExclusiveAllRegistrants = 0x7,
    /// 8h: only registrants read and write; every registrant is a holder.
    ExclusiveAccessAllRegistrants = 0x8,
}

impl Type {
    /// Every type there is, in the order of their codes.
    pub const ALL: [Self; 6] = [
        Self::WriteExclusive,
        Self::ExclusiveAccess,
        Self::WriteExclusiveRegistrantsOnly,
        Self::ExclusiveAccessRegistrantsOnly,
        Self::WriteExclusiveAllRegistrants,
        Self::ExclusiveAccessAllRegistrants,
    ];

    /// The type with this code, four bits; `None` for an obsolete or reserved one.
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            0x1 => Some(Self::WriteExclusive),
            0x3 => Some(Self::ExclusiveAccess),
            0x5 => Some(Self::WriteExclusiveRegistrantsOnly),
            0x6 => Some(Self::ExclusiveAccessRegistrantsOnly),
            0x7 => Some(Self::WriteExclusiveAllRegistrants),
            0x8 => Some(Self::ExclusiveAccessAllRegistrants),
            _ => None,
        }
    }

    /// The code in a CDB or in returned data.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// Whether those who are shut out may still read.
    pub const fn is_write_exclusive(self) -> bool {
        matches!(self, Self::WriteExclusive | Self::WriteExclusiveRegistrantsOnly | Self::WriteExclusiveAllRegistrants)
    }

    /// Whether one nexus is the holder and every registrant has access.
    pub const fn is_registrants_only(self) -> bool {
        matches!(self, Self::WriteExclusiveRegistrantsOnly | Self::ExclusiveAccessRegistrantsOnly)
    }

    /// Whether every registrant is a holder.
    pub const fn is_all_registrants(self) -> bool {
        matches!(self, Self::WriteExclusiveAllRegistrants | Self::ExclusiveAccessAllRegistrants)
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WriteExclusive => "Write Exclusive",
            Self::ExclusiveAccess => "Exclusive Access",
            Self::WriteExclusiveRegistrantsOnly => "Write Exclusive - Registrants Only",
            Self::ExclusiveAccessRegistrantsOnly => "Exclusive Access - Registrants Only",
            Self::WriteExclusiveAllRegistrants => "Write Exclusive - All Registrants",
            Self::ExclusiveAccessAllRegistrants => "Exclusive Access - All Registrants",
        })
    }
}

/// The byte of SCOPE (bits 7–4) and TYPE (bits 3–0), not yet judged.
///
/// PREEMPT carries one that counts only if it creates a reservation, so any byte may come. The only scope that SPC-4
/// has left is LU_SCOPE, 0h: the whole logical unit.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ScopeType(pub u8);

impl ScopeType {
    /// The type; `None` when the scope is not LU_SCOPE or the type is obsolete or reserved.
    pub const fn reservation_type(self) -> Option<Type> {
        // With a scope that is not zero, the byte is over the greatest code.
        Type::from_code(self.0)
    }
}

impl From<Type> for ScopeType {
    fn from(reservation_type: Type) -> Self {
        Self(reservation_type.code())
    }
}

impl fmt::Display for ScopeType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reservation_type() {
            Some(reservation_type) => reservation_type.fmt(f),
            None => write!(f, "scope {:x}h type {:x}h", self.0 >> 4, self.0 & 0xf),
        }
    }
}

impl fmt::Debug for ScopeType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ScopeType({self})")
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Any type.
    pub(crate) fn types() -> impl Strategy<Value = Type> {
        prop::sample::select(&Type::ALL[..])
    }

    #[test]
    fn a_byte_is_a_type_of_the_whole_unit_or_none() {
        for byte in 0..=u8::MAX {
            let expected = Type::ALL.into_iter().find(|t| t.code() == byte);
            assert_eq!(ScopeType(byte).reservation_type(), expected, "{byte:#x}");
        }
    }

    #[test]
    fn the_predicates_agree_with_the_names() {
        for reservation_type in Type::ALL {
            let name = reservation_type.to_string();
            assert_eq!(reservation_type.is_write_exclusive(), name.starts_with("Write Exclusive"));
            assert_eq!(reservation_type.is_registrants_only(), name.ends_with("Registrants Only"));
            assert_eq!(reservation_type.is_all_registrants(), name.ends_with("All Registrants"));
        }
    }

    #[test]
    fn other_bytes_are_shown_in_figures() {
        assert_eq!(ScopeType(0x25).to_string(), "scope 2h type 5h");
        assert_eq!(ScopeType(0x05).to_string(), "Write Exclusive - Registrants Only");
    }
}
