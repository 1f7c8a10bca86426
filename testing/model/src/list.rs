//! Parameter lists and TransportIDs (SPC-4 6.16.3, 6.16.4, 7.6.4).

/// The fields of a parameter list of PERSISTENT RESERVE OUT. The list must be long enough for the field.
pub(crate) struct List<'a>(pub(crate) &'a [u8]);

impl List<'_> {
    pub(crate) fn key(&self) -> u64 {
        number(&self.0[0..8])
    }

    pub(crate) fn service_action_key(&self) -> u64 {
        number(&self.0[8..16])
    }

    pub(crate) fn spec_i_pt(&self) -> bool {
        self.0[20] & 8 != 0
    }

    pub(crate) fn all_tg_pt(&self) -> bool {
        self.0[20] & 4 != 0
    }

    pub(crate) fn aptpl(&self) -> bool {
        self.0[20] & 1 != 0
    }

    pub(crate) fn move_unregisters(&self) -> bool {
        self.0[17] & 2 != 0
    }

    pub(crate) fn move_aptpl(&self) -> bool {
        self.0[17] & 1 != 0
    }

    pub(crate) fn move_target_port(&self) -> u16 {
        number(&self.0[18..20]) as u16
    }
}

/// An unsigned number, big endian.
pub(crate) fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// The TransportIDs that fill `bytes`, each in its canonical form. `None` if one is malformed.
pub fn transport_ids(bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut ids = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let length = match bytes[at] & 0xf {
            5 => 4 + number(bytes.get(at + 2..at + 4)?) as usize,
            _ => 24,
        };
        ids.push(transport_id(bytes.get(at..at + length)?)?);
        at += length;
    }
    Some(ids)
}

/// The canonical form of a TransportID: every byte that does not identify the port is zero. `None` if it is malformed or
/// has an unknown protocol.
pub fn transport_id(bytes: &[u8]) -> Option<Vec<u8>> {
    let first = *bytes.first()?;
    if first & 0x0f == 5 {
        return iscsi(bytes);
    }
    // The ranges of the bytes that identify the port.
    let identifying: &[(usize, usize)] = match first {
        0x00 | 0x03 => &[(8, 16)],
        0x01 => &[(2, 4), (6, 8)],
        0x04 => &[(8, 24)],
        0x06 => &[(4, 12)],
        0x0a => &[(2, 4)],
        _ => return None,
    };
    if bytes.len() != 24 {
        return None;
    }
    let mut plain = vec![0; 24];
    plain[0] = first;
    for (from, to) in identifying {
        plain[*from..*to].copy_from_slice(&bytes[*from..*to]);
    }
    Some(plain)
}

fn iscsi(bytes: &[u8]) -> Option<Vec<u8>> {
    let format = bytes[0] >> 4;
    let additional = number(bytes.get(2..4)?) as usize;
    if !(20..=252).contains(&additional) || !additional.is_multiple_of(4) || bytes.len() != 4 + additional {
        return None;
    }
    let text = &bytes[4..];
    let end = text.iter().position(|byte| *byte == 0)?;
    if text[end..].iter().any(|byte| *byte != 0) {
        return None;
    }
    let text = std::str::from_utf8(&text[..end]).ok()?;
    let (name, isid) = match format {
        0 => (text, None),
        4 => {
            let at = text.find(",i,0x")?;
            (&text[..at], Some(text[at + 5..].to_lowercase()))
        }
        _ => return None,
    };
    if name.is_empty() || name.len() > 223 || name.chars().any(|c| c == ',' || c.is_whitespace() || c.is_control()) {
        return None;
    }
    if isid.as_ref().is_some_and(|isid| isid.len() != 12 || !isid.chars().all(|c| c.is_ascii_hexdigit())) {
        return None;
    }
    let mut plain = format!("{name}{}\0", isid.map(|isid| format!(",i,0x{isid}")).unwrap_or_default()).into_bytes();
    while !plain.len().is_multiple_of(4) || plain.len() < 20 {
        plain.push(0);
    }
    Some([vec![format << 4 | 5, 0, 0, plain.len() as u8], plain].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_do_not_identify_the_port_are_cleared() {
        let mut sas = vec![0xff; 24];
        sas[0] = 6;
        let plain = [vec![6, 0, 0, 0], vec![0xff; 8], vec![0; 12]].concat();
        assert_eq!(transport_id(&sas), Some(plain));

        let long = [&[0x45, 0, 0, 24][..], b"iqn.a,i,0x00000000ABcd\0\0"].concat();
        let short = [&[0x45, 0, 0, 24][..], b"iqn.a,i,0x00000000abcd\0\0"].concat();
        assert_eq!(transport_id(&long), Some(short));
        let padded = [&[5, 0, 0, 28][..], b"iqn.a", &[0; 23]].concat();
        assert_eq!(transport_id(&padded), Some([&[5, 0, 0, 20][..], b"iqn.a", &[0; 15]].concat()));
    }

    #[test]
    fn malformed_transport_id_is_none() {
        for bad in [
            &[0xf; 24][..],
            &[6; 23],
            &[0x46; 24],
            b"\x45\0\0\x14iqn.a,i,0x00000000000\0",
            b"\x05\0\0\x14aaaaaaaaaaaaaaaaaaaa",
            b"\x05\0\0\x14iqn.a\0x\0\0\0\0\0\0\0\0\0\0\0\0\0",
        ] {
            assert_eq!(transport_id(bad), None, "{bad:02x?}");
        }
        assert_eq!(transport_ids(&[6; 25]), None);
        assert_eq!(transport_ids(&[]), Some(vec![]));
    }
}
