//! The numbers of reservation types in the block layer (`enum pr_type` of Linux `linux/pr.h`) and in NVMe (RTYPE): 1 to 6, in
//! the order of SPC's codes without their gaps.

use scsi_pr::Type;

/// The number of a type, 1 to 6.
pub(crate) const fn of(reservation_type: Type) -> u8 {
    match reservation_type {
        Type::WriteExclusive => 1,
        Type::ExclusiveAccess => 2,
        Type::WriteExclusiveRegistrantsOnly => 3,
        Type::ExclusiveAccessRegistrantsOnly => 4,
        Type::WriteExclusiveAllRegistrants => 5,
        Type::ExclusiveAccessAllRegistrants => 6,
    }
}

/// The type with this number; `None` for 0, which means no reservation, and for numbers over 6.
pub(crate) fn named(number: u32) -> Option<Type> {
    Type::ALL.into_iter().find(|reservation_type| u32::from(of(*reservation_type)) == number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_headers_and_not_the_codes_of_scsi() {
        let table = [(0x1, 1), (0x3, 2), (0x5, 3), (0x6, 4), (0x7, 5), (0x8, 6)];
        assert_eq!(Type::ALL.map(|reservation_type| (reservation_type.code(), of(reservation_type))), table);
        for number in 0..=u32::from(u8::MAX) {
            let expected = table.iter().find(|row| u32::from(row.1) == number).map(|row| row.0);
            assert_eq!(named(number).map(Type::code), expected, "{number}");
        }
    }
}
