//! The user and the group that the helper runs as.

use std::ffi::OsStr;

use nix::unistd::{Group, User};
use scsi_pr_daemon::privileges::Capability;

use crate::number::decimal;

/// The value that `set*id` calls take as "leave it": the C helper accepts it, and then changes nothing.
const UNCHANGED: u32 = u32::MAX;

/// An id of the wanted kind, or the C helper's "nothing to change".
pub(crate) type Id = Option<u32>;

/// The user that a helper runs as that was started as root without `-u`.
pub(crate) const DEFAULT_USER: &str = "qemu-pr-helper";

/// The user and the group to become, from the values of `-u` and `-g` if they were given; `None` to stay.
///
/// Without `-u`, root becomes [`DEFAULT_USER`] where that exists. `-u root` keeps root.
pub(crate) fn to_run_as(user: Option<Id>, group: Option<Id>) -> (Id, Id) {
    let group_of = |default: Id| group.unwrap_or(default);
    if let Some(user) = user {
        return (user, group_of(None));
    }
    if !rustix::process::geteuid().is_root() {
        return (None, group_of(None));
    }
    let permitted = |capability: Capability| capability.is_permitted().unwrap_or(false);
    match in_passwd(&std::fs::read_to_string("/etc/passwd").unwrap_or_default(), DEFAULT_USER) {
        Some((user, own_group)) if permitted(Capability::SetUid) && permitted(Capability::SetGid) => {
            (Some(user), group_of(Some(own_group)))
        }
        Some(_) => {
            tracing::info!("the helper stays root, without root's capabilities: it may not become {DEFAULT_USER}");
            (None, group_of(None))
        }
        None => {
            tracing::info!(
                "the helper stays root, without root's capabilities: create the user {DEFAULT_USER}, or name one with -u"
            );
            (None, group_of(None))
        }
    }
}

/// The user id and the group id of a user in the text of /etc/passwd. A system user is there; other sources of users may
/// take long, and would delay each start.
fn in_passwd(text: &str, name: &str) -> Option<(u32, u32)> {
    let mut fields =
        text.lines().map(|line| line.split(':')).find_map(|mut fields| (fields.next()? == name).then_some(fields))?;
    let (user, group) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
    (user != UNCHANGED && group != UNCHANGED).then_some((user, group))
}

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
    fn default_user_is_looked_up_in_passwd() {
        let passwd =
            "root:x:0:0:root:/root:/bin/sh\nqemu-pr-helper2:x:1:2::/:\nqemu-pr-helper:x:983:982::/:/bin/false\n";
        assert_eq!(in_passwd(passwd, DEFAULT_USER), Some((983, 982)));
        for without in
            ["", "qemu-pr-helper", "qemu-pr-helper:x", "qemu-pr-helper:x:a:b:", "qemu-pr-helper:x:4294967295:1:"]
        {
            assert_eq!(in_passwd(without, DEFAULT_USER), None, "{without}");
        }
    }

    #[test]
    fn given_ids_are_taken_unchanged() {
        assert_eq!(to_run_as(Some(Some(5)), None), (Some(5), None));
        assert_eq!(to_run_as(Some(None), Some(Some(6))), (None, Some(6)));
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
