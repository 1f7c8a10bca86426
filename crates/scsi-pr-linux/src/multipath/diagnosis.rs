//! The cause of a refusal or a failure on a map, for the administrator: one line that names the map, the cause and the
//! remedy. The guest sees only a sense code.

use std::fmt;
use std::io;

use scsi_pr::Key;

use super::daemon::Unanswered;
use super::sys::Unavailable;
use super::translate;

/// The cause in a log line about a command on a map.
#[derive(Debug)]
pub(super) enum Cause<'a> {
    /// `reservation_key` is not set for the map.
    NoKey,
    /// `reservation_key` is this key, and the guest's is another.
    OtherKey(Key),
    /// Every key is allowed, but the guest's is not the one that was registered through the map.
    NotRegistered,
    /// multipathd did not answer.
    Daemon(&'a Unanswered),
    /// The host is registered now, but multipathd will not register paths that appear or come back.
    LaterPaths(Option<&'a Unanswered>),
    /// libmpathpersist cannot be used.
    Library(&'a Unavailable),
    /// libmpathpersist returned this.
    Code(i32),
    /// The map has no usable path.
    NoUsablePath,
    /// TransportIDs for a map of so many paths.
    InitiatorPorts(usize),
    /// These paths could not be registered.
    Unregistered(&'a [String]),
    /// These dead paths lack a registration with this key, and multipathd may not register them when they come back; why it
    /// did not tell.
    Unnoticed(&'a [String], Key, Option<&'a Unanswered>),
    /// Another host preempted this one while it was registering again.
    Preempted,
    /// A dead path of this host holds the reservation, and another host has the same key.
    SharedKey,
    /// A dead path of this host or another host holds the reservation; the reason why that is not known.
    HolderUnknown(&'a str),
    /// No usable path could be opened.
    NotOpened,
    /// The device is no map.
    NoMap,
    /// Sysfs cannot be read.
    SysfsUnreadable(&'a io::Error),
}

impl Cause<'_> {
    /// The number of the variant: each has its own rate limit.
    pub(super) fn kind(&self) -> u8 {
        match self {
            Self::NoKey => 0,
            Self::OtherKey(_) => 1,
            Self::NotRegistered => 2,
            Self::Daemon(_) => 3,
            Self::LaterPaths(_) => 4,
            Self::Library(_) => 5,
            Self::Code(_) => 6,
            Self::NoUsablePath => 7,
            Self::InitiatorPorts(_) => 8,
            Self::Unregistered(_) => 9,
            Self::Preempted => 10,
            Self::SysfsUnreadable(_) => 11,
            Self::NotOpened => 12,
            Self::NoMap => 13,
            Self::SharedKey => 14,
            Self::HolderUnknown(_) => 15,
            Self::Unnoticed(..) => 16,
        }
    }
}

impl fmt::Display for Cause<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoKey => write!(
                f,
                "multipath.conf has no reservation_key for it, so multipathd would not register paths that appear or come \
                 back: add the line `reservation_key file` {DEFAULTS}"
            ),
            Self::OtherKey(key) => write!(
                f,
                "multipath.conf allows it the reservation_key {key} alone: have the guest use that key, or put the line \
                 `reservation_key file` in its place {DEFAULTS}"
            ),
            Self::NotRegistered => f.write_str(
                "the key is not the one that is registered through multipath, which `multipathd getprkey` shows",
            ),
            Self::Daemon(why) => write!(f, "{why}: {START}"),
            Self::LaterPaths(why) => {
                f.write_str("the present paths are registered, but multipathd may not register later ones")?;
                why.map_or(Ok(()), |why| write!(f, " ({why})"))?;
                f.write_str(": check it with `multipathd getprstatus`")
            }
            Self::Library(why) => why.fmt(f),
            Self::Code(code) => {
                write!(f, "libmpathpersist returned {code}, {}: see what multipathd logs", translate::meaning(*code))
            }
            Self::NoUsablePath => f.write_str("none of its paths works: see `multipath -ll`"),
            Self::InitiatorPorts(paths) => write!(
                f,
                "libmpathpersist may leave out the TransportIDs (SPEC_I_PT) when a map has more than one path, and this \
                 has {paths}: register each initiator by itself"
            ),
            Self::Unregistered(paths) => write!(
                f,
                "of its paths, {} could not be registered, and I/O by them will fail: when they work, run `mpathpersist \
                 --out --register-ignore` with the key, or have the guest send REGISTER AND IGNORE EXISTING KEY",
                paths.join(", ")
            ),
            Self::Unnoticed(paths, key, why) => {
                write!(f, "of its paths, {} are dead and not registered, and multipathd has not noticed", paths.join(", "))?;
                why.map_or(Ok(()), |why| write!(f, " ({why})"))?;
                write!(
                    f,
                    ", so it may not register them when they come back: if writes then fail with a reservation conflict, \
                     run `mpathpersist --out --register-ignore --param-sark={key} DEVICE` with the map as DEVICE"
                )
            }
            Self::Preempted => f.write_str(
                "the unit has removed this host's registrations meanwhile, as another host preempted them or the unit \
                 removes the sender's own, so the other paths were not registered again: if that was not intended, have the \
                 guest register again",
            ),
            Self::SharedKey => f.write_str(
                "a path of this host that does not work holds the reservation, and another host has registered the same \
                 key, so no other path can take the reservation over: bring the path back and release again; give each \
                 host a key of its own",
            ),
            Self::HolderUnknown(why) => write!(
                f,
                "the reservation remains, and its holder may be another host with the same key or a path of this host \
                 that does not work, as {why}: find the holder with `sg_persist --in --read-full-status`; give each host a \
                 key of its own"
            ),
            Self::SysfsUnreadable(why) => write!(f, "sysfs cannot be read: {why}"),
            Self::NotOpened => f.write_str("none of its paths can be opened: their device files must be in /dev"),
            Self::NoMap => f.write_str("it is no multipath map"),
        }
    }
}

/// Where a line of multipath.conf goes, and what makes it count.
const DEFAULTS: &str = "to the section `defaults` of /etc/multipath.conf and run `multipathd reconfigure`";

const START: &str = "start it (`systemctl start multipathd`); a container needs the host's /run/multipathd.socket (from \
                     multipath-tools 0.12 on) or network namespace";

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::time::Duration;

    #[test]
    fn every_cause_names_a_remedy() {
        let down = Unanswered::NotListening(Vec::new(), io::ErrorKind::ConnectionRefused.into());
        let slow = Unanswered::Timeout(Duration::from_secs(5));
        let missing = Unavailable::NotInstalled("no such file".to_owned());
        let unread = io::Error::other("gone");
        let lost = ["sdb".to_owned(), "sdc".to_owned()];
        let causes = [
            (Cause::NoKey, "`reservation_key file` to the section `defaults` of /etc/multipath.conf"),
            (Cause::OtherKey(Key(0x123)), "reservation_key 0x0000000000000123 alone"),
            (Cause::NotRegistered, "multipathd getprkey"),
            (Cause::Daemon(&down), "does not listen (connection refused): start it (`systemctl start multipathd`)"),
            (Cause::LaterPaths(Some(&slow)), "(multipathd did not answer within 5s): check it with"),
            (Cause::Library(&missing), "multipath-tools"),
            (Cause::Code(15), "returned 15, an error of the transport"),
            (Cause::NoUsablePath, "multipath -ll"),
            (Cause::InitiatorPorts(2), "this has 2"),
            (Cause::Unregistered(&lost), "of its paths, sdb, sdc could not"),
            (Cause::Unnoticed(&lost, Key(0x1), None), "sdb, sdc are dead and not registered"),
            (Cause::SharedKey, "a key of its own"),
            (Cause::HolderUnknown("it is hidden"), "as it is hidden: find the holder"),
            (Cause::Preempted, "have the guest register again"),
            (Cause::SysfsUnreadable(&unread), "gone"),
            (Cause::NotOpened, "/dev"),
            (Cause::NoMap, "no multipath map"),
        ];
        for (cause, part) in &causes {
            let text = cause.to_string();
            assert!(text.contains(part) && !text.contains('\n'), "{text}");
        }
        let kinds: BTreeSet<_> = causes.iter().map(|(cause, _)| cause.kind()).collect();
        assert_eq!(kinds.len(), causes.len());
        assert!(Cause::LaterPaths(None).to_string().contains("later ones: check it"));
    }
}
