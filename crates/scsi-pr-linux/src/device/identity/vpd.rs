//! The Device Identification VPD page, 83h (SPC-4 7.8.6), as in sysfs (`vpd_pg83`).
//!
//! A unit may have many designators, and every host and path must choose the same one. So the order is fixed: by type, the
//! longest of a type first, then by text. The place in the page does not count: a target may fill the page differently on
//! each port. Only designators of the logical unit itself count (ASSOCIATION 00b).

use super::{Identity, Scope};

/// The preference of a designator; the first is the best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// NAA IEEE Registered Extended (6h), 16 bytes.
    NaaRegisteredExtended,
    /// NAA IEEE Registered (5h) and IEEE Extended (2h), 8 bytes.
    Naa,
    /// EUI-64 based: 16, 12, 8 bytes.
    Eui16,
    Eui12,
    Eui8,
    /// UUID (SPC-5 7.7.6.11).
    Uuid,
    /// SCSI name string.
    Name,
    /// T10 vendor identification and a vendor-specific identifier. Some vendors repeat them.
    T10,
    /// NAA Locally Assigned (3h): unique where the administrator made it unique.
    NaaLocal,
}

/// A designator of a logical unit (SPC-4 7.8.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Designator<'a> {
    /// DESIGNATOR TYPE.
    pub designator_type: u8,
    /// CODE SET.
    pub code_set: u8,
    /// DESIGNATOR.
    pub bytes: &'a [u8],
}

/// The designators of the logical unit itself (ASSOCIATION 00b) in its Device Identification VPD page, 83h.
///
/// A designator that is cut off, empty or all zeros is left out: some targets write zeros where they have none.
pub fn unit_designators(page: &[u8]) -> impl Iterator<Item = Designator<'_>> {
    let mut rest = match page {
        [_, 0x83, high, low, descriptors @ ..] => {
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            &descriptors[..length.min(descriptors.len())]
        }
        _ => &[],
    };
    let all = std::iter::from_fn(move || {
        let [first, second, _, length, after @ ..] = rest else { return None };
        let (bytes, next) = after.split_at_checked(usize::from(*length))?;
        rest = next;
        Some((second & 0x30, Designator { designator_type: second & 0xf, code_set: first & 0xf, bytes }))
    });
    let of_the_unit = all.filter(|(association, _)| *association == 0).map(|(_, designator)| designator);
    of_the_unit.filter(|designator| designator.bytes.iter().any(|byte| *byte != 0))
}

/// The identity of the unit whose page this is; `None` where the page has no usable designator.
///
/// A designator that is too long for an [`Identity`] is ignored.
pub(super) fn identify(page: &[u8]) -> Option<Identity> {
    unit_designators(page).filter_map(read).min().map(|(_, unit)| unit)
}

/// CODE SET 1h: binary; 2h ASCII; 3h: UTF-8 (SPC-4 table 590).
const BINARY: u8 = 1;

/// The rank and the identity of one designator.
fn read(Designator { designator_type, code_set, bytes: designator }: Designator<'_>) -> Option<(Rank, Identity)> {
    let unit = |prefix: &str, rank: Rank| {
        let scope = if rank == Rank::NaaLocal { Scope::Host } else { Scope::Global };
        Some((rank, Identity::fit(format!("{prefix}{}", Hex(designator)), scope)?))
    };
    match (designator_type, code_set, designator.len()) {
        (0x1, ..) => {
            // Eight bytes of vendor identification alone identify nothing.
            let text = Some(trim(designator)).filter(|text| text.len() > 8)?;
            Some((Rank::T10, Identity::fit([b"t10.", text].concat(), Scope::Global)?))
        }
        (0x2, BINARY, 16) => unit("eui.", Rank::Eui16),
        (0x2, BINARY, 12) => unit("eui.", Rank::Eui12),
        (0x2, BINARY, 8) => unit("eui.", Rank::Eui8),
        (0x3, BINARY, length) => match (designator[0] >> 4, length) {
            (0x6, 16) => unit("naa.", Rank::NaaRegisteredExtended),
            (0x2 | 0x5, 8) => unit("naa.", Rank::Naa),
            (0x3, 8) => unit("naa.", Rank::NaaLocal),
            _ => None,
        },
        (0x8, 2 | 3, _) => {
            let text = trim(designator);
            let shaped = [b"iqn.".as_slice(), b"naa.", b"eui."].iter().any(|prefix| text.starts_with(prefix));
            // The hexadecimal digits of naa. and eui. names may be of either case.
            let text = if text.starts_with(b"iqn.") { text.to_vec() } else { text.to_ascii_lowercase() };
            Some((Rank::Name, Identity::fit(shaped.then_some(text)?, Scope::Global)?))
        }
        (0xa, BINARY, 18) if designator[0] == 0x10 => {
            Some((Rank::Uuid, Identity::fit(format!("uuid.{}", Hex(&designator[2..])), Scope::Global)?))
        }
        _ => None,
    }
}

/// The text without trailing NULs and blanks.
fn trim(text: &[u8]) -> &[u8] {
    let end = text.iter().rposition(|byte| !matches!(byte, 0 | b' ')).map_or(0, |last| last + 1);
    &text[..end]
}

struct Hex<'a>(&'a [u8]);

impl std::fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests;
