//! The user and the group that `-u` and `-g` name.

use std::ffi::OsStr;

use nix::unistd::{Group, User};

use crate::number::decimal;

/// The value that `set*id` calls take as "leave it": the C helper accepts it, and then changes nothing.
const UNCHANGED: u32 = u32::MAX;

/// An id of the wanted kind, or the C helper's "nothing to change".
pub(crate) type Id = Option<u32>;

/// The user id that `text` means: a name of the user database, else a decimal number. `None`: it means none.
pub(crate) fn user(text: &OsStr) -> Option<Id> {
    id(text, |name| User::from_name(name).ok().flatten().map(|user| user.uid.as_raw()))
}

/// The group id that `text` means: a name of the group database, else a decimal number. `None`: it means none.
pub(crate) fn group(text: &OsStr) -> Option<Id> {
    id(text, |name| Group::from_name(name).ok().flatten().map(|group| group.gid.as_raw()))
}

fn id(text: &OsStr, by_name: impl Fn(&str) -> Option<u32>) -> Option<Id> {
    let text = text.to_str()?;
    let id = by_name(text).or_else(|| match decimal(text)? {
        (false, number) | (true, number @ 0) => u32::try_from(number).ok(),
        (true, _) => None,
    })?;
    Some((id != UNCHANGED).then_some(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_before_numbers() {
        let by_name = |name: &str| (name == "12").then_some(7);
        assert_eq!(id(OsStr::new("12"), by_name), Some(Some(7)));
        assert_eq!(id(OsStr::new("13"), by_name), Some(Some(13)));
        assert_eq!(user(OsStr::new("root")), Some(Some(0)));
        assert_eq!(group(OsStr::new("root")), Some(Some(0)));
    }

    #[test]
    fn numbers_are_read_as_the_c_helper_reads_them() {
        for (text, expected) in [
            (" 12", Some(Some(12))),
            ("+12", Some(Some(12))),
            ("012", Some(Some(12))),
            ("4294967294", Some(Some(4_294_967_294))),
            ("4294967295", Some(None)),
            ("4294967296", None),
            ("-1", None),
            ("12 ", None),
            ("12abc", None),
            ("0x10", None),
            ("", None),
            ("nosuch", None),
        ] {
            assert_eq!(user(OsStr::new(text)), expected, "{text:?}");
            assert_eq!(group(OsStr::new(text)), expected, "{text:?}");
        }
    }
}
