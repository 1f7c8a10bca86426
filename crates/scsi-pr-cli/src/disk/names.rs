//! Names in options and files, checked where they are read.

use std::fmt;
use std::str::FromStr;

use scsi_pr_iscsi::login::is_name;
use scsi_pr_store::UnitId;
use serde::{Deserialize, Serialize};

/// The iSCSI name of a target is this and the name of its unit.
const TARGET_PREFIX: &str = "iqn.2026-11.io.scsi-pr:";

/// The name of a unit in the store.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[serde(try_from = "String")]
pub(crate) struct UnitName(String);

impl UnitName {
    /// The unit in the store.
    pub(crate) fn id(&self) -> UnitId {
        UnitId::named(&self.0).expect("its characters are those of identifiers")
    }

    /// The target of a unit without another one.
    pub(crate) fn target(&self) -> TargetName {
        TargetName(format!("{TARGET_PREFIX}{self}"))
    }
}

impl FromStr for UnitName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
        if (1..=128).contains(&text.len()) && text.bytes().all(is_plain) {
            Ok(Self(text.to_owned()))
        } else {
            Err(format!("the name of a unit has 1 to 128 small letters, digits, - and ., unlike '{text}'"))
        }
    }
}

/// The iSCSI name of a target, in small letters.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(try_from = "String")]
pub(crate) struct TargetName(String);

/// The iSCSI name of an initiator, in small letters.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(try_from = "String")]
pub(crate) struct InitiatorIqn(String);

/// RFC 7143 4.2.7.2: names are compared without regard to case.
fn iscsi_name(text: &str) -> Result<String, String> {
    let lower = text.to_ascii_lowercase();
    if is_name(&lower) {
        Ok(lower)
    } else {
        Err(format!("an iSCSI name begins with iqn., eui. or naa. and has letters, digits, - . and :, unlike '{text}'"))
    }
}

impl FromStr for TargetName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        iscsi_name(text).map(Self)
    }
}

impl FromStr for InitiatorIqn {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        iscsi_name(text).map(Self)
    }
}

macro_rules! text {
    ($($name:ident),*) => {$(
        impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                text.parse()
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}

text!(UnitName, TargetName, InitiatorIqn);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_has_a_target_and_an_identifier() {
        let name: UnitName = "shared-1.disk".parse().unwrap();
        assert_eq!(name.target().as_ref(), "iqn.2026-11.io.scsi-pr:shared-1.disk");
        assert_eq!(name.id().as_str(), "name.shared-1.disk");
        assert!(is_name("x".repeat(128).parse::<UnitName>().unwrap().target().as_ref()));
    }

    #[test]
    fn other_names_are_refused() {
        for text in ["", "A", "a b", "a/b", "a=b", "ä", &"x".repeat(129)] {
            assert!(text.parse::<UnitName>().is_err(), "{text}");
        }
        assert!("vm1".parse::<InitiatorIqn>().is_err());
        assert_eq!(
            "IQN.2001-04.com.Example:VM".parse::<InitiatorIqn>().unwrap().as_ref(),
            "iqn.2001-04.com.example:vm"
        );
    }
}
