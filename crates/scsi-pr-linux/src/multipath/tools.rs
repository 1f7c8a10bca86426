//! [`Tools`]: the state of multipath-tools on this host, for an administrator.

use super::daemon::{Daemon, Unanswered};
use super::keys::AllowedKeys;
use super::sys;

/// multipathd and libmpathpersist, as [`Multipath`](super::Multipath) needs them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tools {
    /// multipathd.
    pub daemon: DaemonState,
    /// The interface number of libmultipath that libmpathpersist uses; `None` where the library names none. `Err` says why
    /// the library cannot be used, and what to do.
    pub library: Result<Option<u32>, String>,
}

/// The state of multipathd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DaemonState {
    /// It does not run.
    NotListening,
    /// It gave no usable answer; the reason.
    Failed(String),
    /// It runs, and has this `reservation_key` in the section `defaults`.
    Running(ReservationKey),
}

/// `reservation_key` of multipath.conf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReservationKey {
    /// It is not set.
    Unset,
    /// `file`: a map may be registered with each key.
    File,
    /// A map may be registered with this key only.
    Only(scsi_pr::Key),
}

impl Tools {
    /// The present state. It asks multipathd, for five seconds at most, and opens the library without starting it.
    pub fn inspect() -> Self {
        Self {
            daemon: daemon(Daemon::new().configuration()),
            library: sys::Library::interface().map_err(|why| why.to_string()),
        }
    }
}

fn daemon(configuration: Result<String, Unanswered>) -> DaemonState {
    match configuration {
        Ok(configuration) => DaemonState::Running(match AllowedKeys::of(&configuration, "") {
            AllowedKeys::None => ReservationKey::Unset,
            AllowedKeys::All => ReservationKey::File,
            AllowedKeys::Only(key) => ReservationKey::Only(key),
        }),
        Err(Unanswered::NotListening(..)) => DaemonState::NotListening,
        Err(other) => DaemonState::Failed(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use scsi_pr::Key;

    #[test]
    fn answer_of_multipathd_is_its_state() {
        let running = |line: &str| daemon(Ok(format!("defaults {{\n\t{line}\n}}\n")));
        assert_eq!(running("verbosity 2"), DaemonState::Running(ReservationKey::Unset));
        assert_eq!(running("reservation_key file"), DaemonState::Running(ReservationKey::File));
        assert_eq!(running("reservation_key 0x12"), DaemonState::Running(ReservationKey::Only(Key(0x12))));
        let down = Unanswered::NotListening(Vec::new(), std::io::ErrorKind::NotFound.into());
        assert_eq!(daemon(Err(down)), DaemonState::NotListening);
        assert!(matches!(daemon(Err(Unanswered::NotRoot(7))), DaemonState::Failed(why) if why.contains("user 7")));
    }
}
