//! TransportIDs from the text by which they are shown.

use std::str::FromStr;

use super::{ISID_SEPARATOR, InitiatorPort, InvalidTransportId, TransportId, read_isid};

impl FromStr for TransportId {
    type Err = InvalidTransportId;

    /// Reads the text of [`Display`](std::fmt::Display): an iSCSI name that begins with `iqn.`, `eui.` or `naa.`, with or
    /// without its ISID, or the words and the number of another protocol.
    fn from_str(text: &str) -> Result<Self, InvalidTransportId> {
        if ["iqn.", "eui.", "naa."].iter().any(|prefix| text.starts_with(prefix)) {
            return match text.split_once(ISID_SEPARATOR) {
                None => Self::new(InitiatorPort::Iscsi { name: text, isid: None }),
                Some((name, isid)) => Self::new(InitiatorPort::Iscsi { name, isid: Some(read_isid(isid)?) }),
            };
        }
        let number = |prefix: &str| text.strip_prefix(prefix).map(hexadecimal);
        let port = if let Some(port_name) = number("Fibre Channel port ") {
            InitiatorPort::FibreChannel { port_name: number_of(port_name)? }
        } else if let Some(address) = number("SAS address ") {
            InitiatorPort::Sas { address: number_of(address)? }
        } else if let Some(eui64) = number("SBP node ") {
            InitiatorPort::Sbp { eui64: number_of(eui64)? }
        } else if let Some(port_identifier) = number("SRP port ") {
            InitiatorPort::Srp { port_identifier: number_of(port_identifier)? }
        } else if let Some(routing_id) = number("SOP routing id ") {
            InitiatorPort::Sop { routing_id: number_of(routing_id)? }
        } else {
            let rest = text.strip_prefix("parallel SCSI address ").ok_or(InvalidTransportId::Text)?;
            let (address, port) = rest.split_once(" at target port ").ok_or(InvalidTransportId::Text)?;
            let number = |text: &str| text.parse().map_err(|_| InvalidTransportId::Text);
            InitiatorPort::ParallelScsi { address: number(address)?, relative_target_port: number(port)? }
        };
        Self::new(port)
    }
}

/// A number of hexadecimal digits after `0x`.
fn hexadecimal(text: &str) -> Option<u128> {
    let digits = text.strip_prefix("0x")?;
    // `from_str_radix` alone would take a sign.
    digits.bytes().all(|byte| byte.is_ascii_hexdigit()).then(|| u128::from_str_radix(digits, 16).ok()).flatten()
}

fn number_of<T: TryFrom<u128>>(number: Option<u128>) -> Result<T, InvalidTransportId> {
    number.and_then(|number| number.try_into().ok()).ok_or(InvalidTransportId::Text)
}

#[cfg(test)]
mod tests {
    use super::super::tests::transport_ids;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn other_text_is_refused() {
        for text in [
            "",
            "vm1",
            "SAS address 5000",
            "SAS address 0x",
            "SAS address 0x+1",
            "SAS address 0x10000000000000000",
            "SOP routing id 0x10000",
            "parallel SCSI address 1",
            "iqn.x y",
            "iqn.x,i,0x1",
        ] {
            assert!(text.parse::<TransportId>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn shown_port_is_read_again(id in transport_ids()) {
            let text = id.to_string();
            // Other names are no iSCSI names (RFC 7143 4.2.7), and may be escaped.
            prop_assume!(!matches!(id.port(), InitiatorPort::Iscsi { name, .. } if !name.starts_with("iqn.")));
            prop_assert_eq!(text.parse::<TransportId>(), Ok(id));
        }

        #[test]
        fn any_text_is_read_or_refused(text: String) {
            let _ = text.parse::<TransportId>();
        }
    }
}
