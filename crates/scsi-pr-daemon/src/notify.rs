//! The state of a daemon for its service manager (sd_notify(3)).

use std::env;
use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The service manager's socket, if there is one.
#[derive(Debug)]
pub struct ServiceManager(Option<UnixDatagram>);

impl ServiceManager {
    /// The one that `NOTIFY_SOCKET` names. Connects now, before this process gives up its privileges.
    pub fn from_environment() -> Self {
        Self(env::var_os("NOTIFY_SOCKET").and_then(|name| connect(&name)))
    }

    /// READY=1: the daemon serves clients.
    pub fn ready(&self) {
        self.send("READY=1");
    }

    /// RELOADING=1: the daemon reads its settings again; [`ready`](Self::ready) follows.
    pub fn reloading(&self) {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={}", now.tv_sec * 1_000_000 + now.tv_nsec / 1_000));
    }

    /// STOPPING=1: the daemon completes running commands, and then ends.
    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    fn send(&self, state: &str) {
        if let Some(socket) = &self.0 {
            // The daemon serves without a manager that listens.
            let _ = socket.send(state.as_bytes());
        }
    }
}

fn connect(name: &OsStr) -> Option<UnixDatagram> {
    let address = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(name),
    };
    let socket = UnixDatagram::unbound().ok()?;
    socket.connect_addr(&address.ok()?).ok()?;
    // A manager that does not read must not delay the daemon.
    socket.set_nonblocking(true).ok()?;
    Some(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_arrive_at_paths_and_abstract_names() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let abstract_name = format!("scsi-pr-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&abstract_name).unwrap();
        for (receiver, name) in [
            (UnixDatagram::bind(&path).unwrap(), path.as_os_str().to_owned()),
            (UnixDatagram::bind_addr(&address).unwrap(), format!("@{abstract_name}").into()),
        ] {
            let manager = ServiceManager(connect(&name));
            manager.ready();
            manager.stopping();
            let mut room = [0; 16];
            for expected in ["READY=1", "STOPPING=1"] {
                let length = receiver.recv(&mut room).unwrap();
                assert_eq!(room[..length], *expected.as_bytes());
            }
        }
    }

    #[test]
    fn missing_manager_changes_nothing() {
        ServiceManager(connect(OsStr::new("/nonexistent/notify"))).ready();
        ServiceManager(connect(OsStr::new(""))).ready();
        ServiceManager(None).stopping();
    }
}
