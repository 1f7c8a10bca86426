//! [`InitiatorName`]: the identity of a virtual machine, wherever it runs.

use std::fmt;
use std::str::FromStr;

use scsi_pr::{InitiatorPort, TransportId};

/// The name of an initiator, which an administrator gives to a virtual machine.
///
/// To the standard it is an iSCSI initiator port (SPC-4 7.6.4.6) with the ISID 0: NAME itself when it begins with
/// `iqn.`,
/// `eui.` or `naa.`, else `iqn.2026-11.scsi-pr:NAME`. Nothing of the host goes into it: a virtual machine that has
/// moved is
/// the same initiator, and two on one host are two.
///
/// Names are compared byte for byte: `vm1` and `VM1` are two initiators.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct InitiatorName {
    transport_id: TransportId,
}

/// The prefix of a name that is no iSCSI name.
const PREFIX: &str = "iqn.2026-11.scsi-pr:";

impl InitiatorName {
    /// An initiator called `name`.
    ///
    /// # Errors
    ///
    /// [`InvalidInitiatorName`] unless it has only visible ASCII characters, of which none is a comma, and is short
    /// enough for an iSCSI name: 203 bytes, or 223 with a prefix of its own.
    pub fn new(name: &str) -> Result<Self, InvalidInitiatorName> {
        let invalid = || InvalidInitiatorName(name.to_owned());
        let own_prefix = ["iqn.", "eui.", "naa."].into_iter().find(|prefix| name.starts_with(prefix));
        let rest = own_prefix.map_or(name, |prefix| &name[prefix.len()..]);
        if rest.is_empty() || !rest.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(invalid());
        }
        let prefix = if own_prefix.is_some() { "" } else { PREFIX };
        let port = InitiatorPort::Iscsi { name: &format!("{prefix}{name}"), isid: Some([0; 6]) };
        Ok(Self { transport_id: TransportId::new(port).map_err(|_| invalid())? })
    }

    /// The initiator port of this name.
    pub fn transport_id(&self) -> &TransportId {
        &self.transport_id
    }

    /// The iSCSI name: `iqn.2026-11.scsi-pr:vm1`.
    pub fn iscsi_name(&self) -> &str {
        match self.transport_id.port() {
            InitiatorPort::Iscsi { name, .. } => name,
            _ => unreachable!("it was made of an iSCSI name"),
        }
    }
}

impl FromStr for InitiatorName {
    type Err = InvalidInitiatorName;

    fn from_str(name: &str) -> Result<Self, InvalidInitiatorName> {
        Self::new(name)
    }
}

impl fmt::Display for InitiatorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.iscsi_name();
        f.write_str(name.strip_prefix(PREFIX).unwrap_or(name))
    }
}

/// A text that is no name for an initiator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "an initiator has a name of visible ASCII characters without commas, at most 203 (223 when it begins with iqn., eui. or \
     naa.), unlike {0:?}"
)]
pub struct InvalidInitiatorName(String);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_name_becomes_an_iscsi_port() {
        let name = InitiatorName::new("web-1").unwrap();
        assert_eq!(name.transport_id().to_string(), "iqn.2026-11.scsi-pr:web-1,i,0x000000000000");
        assert_eq!((name.to_string().as_str(), name.iscsi_name()), ("web-1", "iqn.2026-11.scsi-pr:web-1"));
        for own in ["iqn.1994-05.com.example:node", "eui.02004567a425678d", "naa.52004567ba64678d"] {
            let name = InitiatorName::new(own).unwrap();
            assert_eq!(name.transport_id().to_string(), format!("{own},i,0x000000000000"));
            assert_eq!(name.to_string(), own);
        }
    }

    #[test]
    fn a_name_and_what_it_stands_for_are_one_initiator() {
        assert_eq!(InitiatorName::new("vm"), InitiatorName::new("iqn.2026-11.scsi-pr:vm"));
        assert_ne!(InitiatorName::new("vm"), InitiatorName::new("VM"));
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let long = "x".repeat(204);
        for name in ["", "a b", "a,b", "a\nb", "é", "iqn.", "naa.", &long, &format!("iqn.{}", "x".repeat(220))] {
            assert_eq!(InitiatorName::new(name), Err(InvalidInitiatorName(name.to_owned())), "{name:?}");
        }
        assert!(InitiatorName::new(&"x".repeat(203)).is_ok());
        assert!(InitiatorName::new(&format!("iqn.{}", "x".repeat(219))).is_ok());
    }

    proptest! {
        #[test]
        fn different_names_are_different_initiators(one in "[!-~]{1,40}", other in "[!-~]{1,40}") {
            let names = (InitiatorName::new(&one), InitiatorName::new(&other));
            if let (Ok(first), Ok(second)) = names {
                prop_assert_eq!(first.transport_id() == second.transport_id(), first.to_string() == second.to_string());
                prop_assert_eq!(InitiatorName::new(&first.to_string()), Ok(first));
            }
        }
    }
}
