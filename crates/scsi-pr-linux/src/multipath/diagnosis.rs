//! Why a command was refused or failed on a map, for the administrator: one line that names the map, the cause and what
//! to do. The guest sees a sense code only.

use std::fmt;
use std::io;

use scsi_pr::Key;

use super::daemon::Unanswered;
use super::sys::Unavailable;
use super::translate;

/// What the log is told about a command on a map.
#[derive(Debug)]
pub(super) enum Cause<'a> {
    /// `reservation_key` is not set for the map.
    NoKey,
    /// It is this key, and the guest's is another.
    OtherKey(Key),
    /// Every key is allowed, but the guest's is not the one that was registered through the map.
    NotRegistered,
    /// multipathd could not be asked.
    Daemon(&'a Unanswered),
    /// The host is registered now, but multipathd will not register paths that appear or come back.
    LaterPaths(Option<&'a Unanswered>),
    /// libmpathpersist cannot be used.
    Library(&'a Unavailable),
    /// It returned this.
    Code(i32),
    /// None of the map's paths works.
    NoPath,
    /// TransportIDs for a map of so many paths.
    InitiatorPorts(usize),
    /// So many paths are left without a registration.
    Unregistered(usize),
    /// Another host preempted this one while it was registering again.
    Preempted,
    /// Some may work, and none can be opened.
    Unopened,
    /// It is no map.
    NoMap,
    /// Sysfs cannot be read.
    Unread(&'a io::Error),
}

impl Cause<'_> {
    /// Which cause it is, whatever its details: each is told by itself now and then.
    pub(super) fn kind(&self) -> u8 {
        match self {
            Self::NoKey => 0,
            Self::OtherKey(_) => 1,
            Self::NotRegistered => 2,
            Self::Daemon(_) => 3,
            Self::LaterPaths(_) => 4,
            Self::Library(_) => 5,
            Self::Code(_) => 6,
            Self::NoPath => 7,
            Self::InitiatorPorts(_) => 8,
            Self::Unregistered(_) => 9,
            Self::Preempted => 10,
            Self::Unread(_) => 11,
            Self::Unopened => 12,
            Self::NoMap => 13,
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
                f.write_str("the paths of now are registered, but multipathd is not known to register later ones")?;
                why.map_or(Ok(()), |why| write!(f, " ({why})"))?;
                f.write_str(": check it with `multipathd getprstatus`")
            }
            Self::Library(why) => why.fmt(f),
            Self::Code(code) => {
                write!(f, "libmpathpersist returned {code}, {}: see what multipathd logs", translate::meaning(*code))
            }
            Self::NoPath => f.write_str("none of its paths works: see `multipath -ll`"),
            Self::InitiatorPorts(paths) => write!(
                f,
                "libmpathpersist may leave out the TransportIDs (SPEC_I_PT) when a map has more than one path, and this \
                 has {paths}: register each initiator by itself"
            ),
            Self::Unregistered(paths) => write!(
                f,
                "{paths} of its paths could not be registered: have the guest send REGISTER AND IGNORE EXISTING KEY, or \
                 I/O by them will fail"
            ),
            Self::Preempted => f.write_str(
                "another host preempted this one meanwhile, so it was not registered again by the other paths",
            ),
            Self::Unread(why) => write!(f, "sysfs does not tell what it is: {why}"),
            Self::Unopened => f.write_str("none of its paths can be opened: their device files must be in /dev"),
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
    fn every_cause_says_what_to_do() {
        let down = Unanswered::NotThere(io::ErrorKind::ConnectionRefused.into());
        let slow = Unanswered::TooSlow(Duration::from_secs(5));
        let missing = Unavailable::NotInstalled("no such file".to_owned());
        let unread = io::Error::other("gone");
        let causes = [
            (Cause::NoKey, "`reservation_key file` to the section `defaults` of /etc/multipath.conf"),
            (Cause::OtherKey(Key(0x123)), "reservation_key 0x0000000000000123 alone"),
            (Cause::NotRegistered, "multipathd getprkey"),
            (Cause::Daemon(&down), "does not listen (connection refused): start it (`systemctl start multipathd`)"),
            (Cause::LaterPaths(Some(&slow)), "(multipathd did not answer within 5s): check it with"),
            (Cause::Library(&missing), "multipath-tools"),
            (Cause::Code(15), "returned 15, an error of the transport"),
            (Cause::NoPath, "multipath -ll"),
            (Cause::InitiatorPorts(2), "this has 2"),
            (Cause::Unregistered(3), "3 of its paths"),
            (Cause::Preempted, "another host preempted"),
            (Cause::Unread(&unread), "gone"),
            (Cause::Unopened, "/dev"),
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
