//! [`Client`]: the process for which a command is run.

use std::cell::Cell;
use std::fmt;
use std::fs::File;
use std::io::Read;

use scsi_pr_daemon::log::cut;

use crate::routing::table::Target;

/// The process that connected to the socket (`SO_PEERCRED`, unix(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// Its process id; 0 when this PID namespace does not have the process.
    pub pid: u32,
    /// Its user id.
    pub uid: u32,
}

thread_local! {
    /// The command that this thread runs. Managers do not know their client, and a command stays on one thread.
    static CURRENT: Cell<Option<Running>> = const { Cell::new(None) };
}

#[derive(Clone, Copy)]
pub(super) struct Running {
    client: Client,
    /// Why a manager has refused the command. It has logged it.
    pub(super) refusal: Option<RefusalReason>,
    /// Where the router has looked for the route.
    pub(super) target: Option<Target>,
}

/// Why a command was not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RefusalReason {
    /// Its service action is denied.
    Denied,
    /// Its descriptor is not open for writing.
    ReadOnly,
    /// Reservations are not made on a device of this kind.
    Device,
    /// No worker could run it, or a worker says why it failed.
    Worker,
}

impl RefusalReason {
    /// Every reason, in the order of its number.
    pub(super) const ALL: [Self; 4] = [Self::Denied, Self::ReadOnly, Self::Device, Self::Worker];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::ReadOnly => "read-only",
            Self::Device => "device",
            Self::Worker => "worker",
        }
    }
}

impl Client {
    /// The client whose command this thread runs inside of [`Observed`](super::Observed), for log lines.
    pub fn current() -> Option<Self> {
        CURRENT.get().map(|running| running.client)
    }

    /// Runs `act` as a command of this client.
    pub(in crate::policy) fn run<T>(self, act: impl FnOnce() -> T) -> T {
        struct Restore(Option<Running>);
        impl Drop for Restore {
            fn drop(&mut self) {
                CURRENT.set(self.0);
            }
        }
        let _restore = Restore(CURRENT.replace(Some(Running { client: self, refusal: None, target: None })));
        act()
    }

    /// Notes that a manager has logged why it refuses the command of this thread. [`Observed`](super::Observed) logs no
    /// reason of its own then.
    pub fn note_refusal(reason: RefusalReason) {
        CURRENT.set(CURRENT.get().map(|running| Running { refusal: Some(reason), ..running }));
    }

    /// Notes where the router has looked for the route of the command of this thread.
    pub(crate) fn note_target(target: Target) {
        CURRENT.set(CURRENT.get().map(|running| Running { target: Some(target), ..running }));
    }

    /// The command that this thread runs.
    pub(super) fn running() -> Option<Running> {
        CURRENT.get()
    }

    /// The name that QEMU has on its command line (`-name guest=NAME`), at most 64 bytes of it. It is a label for a log
    /// line: the process chose it, and the process id may belong to another process by now. Nothing is decided by it.
    pub fn virtual_machine(self) -> Option<String> {
        let mut command_line = Vec::new();
        // libvirt names the virtual machine first.
        File::open(format!("/proc/{}/cmdline", self.pid)).ok()?.take(4096).read_to_end(&mut command_line).ok()?;
        name_on(&command_line)
    }
}

/// The guest's name on a command line as /proc has it.
fn name_on(command_line: &[u8]) -> Option<String> {
    const MAX_NAME: usize = 64;
    let mut arguments = command_line.split(|byte| *byte == 0);
    arguments.find(|argument| [&b"-name"[..], b"--name"].contains(argument))?;
    let options = String::from_utf8_lossy(arguments.next()?);
    // QEMU's option parser: parts between commas, a doubled comma is a comma, the first part needs no name.
    let options = options.replace(",,", "\0");
    let mut parts = options.split(',');
    let first = parts.next().filter(|part| !part.contains('='));
    let name = first.or_else(|| options.split(',').find_map(|part| part.strip_prefix("guest=")))?;
    let name = name.replace('\0', ",");
    (!name.is_empty()).then(|| cut(&name, MAX_NAME).to_owned())
}

impl fmt::Display for Client {
    /// `process 12 of user 107, virtual machine "web1"`: the last part where it is known.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} of user {}", self.pid, self.uid)?;
        match self.virtual_machine() {
            Some(name) => write!(f, ", virtual machine {name:?}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn guest_name_is_read_as_qemu_reads_it() {
        for (command_line, name) in [
            ("qemu\0-name\0guest=web1,debug-threads=on\0-S\0", Some("web1")),
            ("qemu\0-S\0-name\0web1\0", Some("web1")),
            ("qemu\0-name\0web1,process=x\0", Some("web1")),
            ("qemu\0--name\0debug-threads=on,guest=a,,b\0", Some("a,b")),
            ("qemu\0-name\0process=x\0", None),
            ("qemu\0-name\0guest=\0", None),
            ("qemu\0-name\0", None),
            ("qemu\0-name", None),
            ("qemu\0-names\0x\0", None),
            ("", None),
        ] {
            assert_eq!(name_on(command_line.as_bytes()).as_deref(), name, "{command_line:?}");
        }
        let long = name_on(format!("q\0-name\0{}\0", "ü".repeat(1000)).as_bytes()).unwrap();
        assert_eq!(long, "ü".repeat(32));
        assert!(name_on(b"q\0-name\0\xff\xfe\0").is_some());
    }

    #[test]
    fn client_is_displayed_with_its_virtual_machine_escaped() {
        let mut process = Command::new("sh")
            .args(["-c", "read line", "-name", "guest=a\nb \"c\",x=y"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let client = Client { pid: process.id(), uid: 107 };
        // spawn(3) may return before the new program has its command line.
        while client.virtual_machine().is_none() {
            std::thread::yield_now();
        }
        let expected = format!("process {} of user 107, virtual machine \"a\\nb \\\"c\\\"\"", process.id());
        assert_eq!(client.to_string(), expected);
        drop(process.stdin.take());
        process.wait().unwrap();
        assert_eq!(client.to_string(), format!("process {} of user 107", client.pid));
    }

    #[test]
    fn current_client_is_that_of_the_innermost_command() {
        let refusal = || Client::running().and_then(|running| running.refusal);
        let (outer, inner) = (Client { pid: 1, uid: 2 }, Client { pid: 3, uid: 4 });
        assert_eq!(Client::current(), None);
        outer.run(|| {
            inner.run(|| {
                assert!(Client::current() == Some(inner) && refusal().is_none());
                Client::note_refusal(RefusalReason::Device);
                Client::note_target(Target::Part);
                assert_eq!(refusal(), Some(RefusalReason::Device));
            });
            assert!(Client::current() == Some(outer) && refusal().is_none());
            assert!(Client::running().is_some_and(|running| running.target.is_none()));
        });
        assert!(std::panic::catch_unwind(|| outer.run(|| panic!("of a manager"))).is_err());
        assert_eq!(Client::current(), None);
    }
}
