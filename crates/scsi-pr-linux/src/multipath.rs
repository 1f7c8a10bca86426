//! dm-multipath: one logical unit by several paths. Each path is an I_T nexus of its own to the unit.
//!
//! A reservation that is made by one path shuts the others out, and is lost with its path. So PERSISTENT RESERVE OUT goes
//! through libmpathpersist (multipath-tools), which registers every path; multipathd registers those that appear or come
//! back later. The two halves of the work need different privileges:
//!
//! * [`MultipathReader`] answers PERSISTENT RESERVE IN with the capability to send SCSI commands alone.
//! * [`Multipath`] does the rest, as root, in a process that lives for one command.
//! * [`recover`] looks after a map when such a process has died.
//!
//! | module | contents |
//! | --- | --- |
//! | `map` | a map and its paths, from sysfs |
//! | `health` | whether a map has a usable path |
//! | `path` | the paths, opened one by one |
//! | `ports` | this host's initiator ports, from sysfs |
//! | `per_path` | operations by single paths, without the library |
//! | `reserve_out` | the phases of each PERSISTENT RESERVE OUT |
//! | `dead_paths` | has multipathd notice paths that a command left without registration |
//! | `dm` | orders to device mapper |
//! | `translate`, `sys`, `version` | commands and return values in the library's terms; its calls; its version |
//! | `daemon`, `keys` | questions to multipathd; the keys that its configuration allows |
//! | `diagnosis` | the causes that the log names |
//! | `tools` | the state of multipath-tools, for an administrator |

mod daemon;
mod dead_paths;
mod diagnosis;
mod dm;
mod health;
mod host;
mod keys;
mod map;
mod path;
mod per_path;
mod ports;
mod reader;
mod recover;
mod reserve_out;
mod sys;
mod tools;
mod translate;
mod version;

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::OnceLock;
use std::time::Duration;

use scsi_pr::{Command, Completion, Error, Key, Opcode, PrManager, ReserveOut, Sense, SenseCode, Status};
use scsi_pr_daemon::RateLimiter;
use tracing::warn;

use crate::device::{Device, DeviceClass, Number};
use crate::sg_io::SgIo;
use diagnosis::Cause;
use host::{Host, Library, Machine};
use map::Map;
use path::Path;
pub use reader::MultipathReader;
pub use recover::{is_suspended, recover};
use sys::Unavailable;
pub use tools::{DaemonState, ReservationKey, Tools};
use translate::Request;

/// Runs commands on multipath maps, as root.
///
/// Use it in a process that is started for one command. libmpathpersist reads multipath.conf once, may end the process
/// (`exit(1)`, when it cannot reach device mapper) and may hang with a device; and its state of one map must not delay
/// another map. A process has one `Multipath` at most: the library cannot be started again.
///
/// | command | how it is run |
/// | --- | --- |
/// | IN | sent to the first path that works, byte for byte |
/// | REGISTER, REGISTER AND IGNORE EXISTING KEY | libmpathpersist, on every path; with a new key only if multipathd answers and multipath.conf allows that key. A REGISTER that names the present key first registers the paths that lack it, and releases the host's reservation before it unregisters. If a path dies meanwhile, the others complete the registration |
/// | RESERVE, CLEAR, PREEMPT, PREEMPT AND ABORT | libmpathpersist, on one path, and again if that path lacked its registration. Registrations of this host's other paths that a PREEMPT removed are made again |
/// | RELEASE | by every path. A reservation that a dead path of this host holds is taken over first, unless another host has registered the same key |
/// | REGISTER AND MOVE, REPLACE LOST RESERVATION | refused: 05/24/00 |
/// | SPEC_I_PT | refused (05/26/00) where libmpathpersist would send the TransportIDs cut or not at all, and on maps of several paths |
/// | CLEANUP | multipathd forgets the key of the map; the host is unregistered by every path |
///
/// Several hosts may use one key. A path is registered if the unit accepts a REGISTER of its key to the same key by it; the
/// holder of a reservation is known by its initiator port (READ FULL STATUS, and this host's ports in sysfs). Where the
/// holder cannot be known, the unit's answer stays, and the log has the reason.
///
/// A map without a usable path is CHECK CONDITION 02/04/00. A host without libmpathpersist, or with one that is too old, is
/// 05/20/00, as a disk without reservations. A key that multipath.conf does not allow is refused for good (05/26/00) where it
/// would be registered, and is a RESERVATION CONFLICT where it should be registered already. A multipathd that does not answer
/// is 0B/08/00 to REGISTER. For each, the log names the map, the cause and the remedy, once a minute.
///
/// Known limits: while registrations are made again after a PREEMPT of the sender's own key, for milliseconds, the unit may
/// refuse writes by the other paths. Another host that registers this host's key just when a dead path's reservation is
/// taken over loses that registration.
pub struct Multipath {
    host: Box<dyn Host>,
    library: OnceLock<Result<Box<dyn Library>, Unavailable>>,
    log_limit: RateLimiter<(Option<Number>, u8)>,
}

impl fmt::Debug for Multipath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Multipath").finish_non_exhaustive()
    }
}

impl Default for Multipath {
    fn default() -> Self {
        Self::new()
    }
}

impl PrManager for Multipath {
    fn execute(&self, device: BorrowedFd<'_>, command: Command<'_>) -> Result<Completion, Error> {
        Ok(match self.host.map(device) {
            Ok(Ok(map)) => Execution { manager: self, map: &map, device, command }.run(),
            Ok(Err(other)) => self.run_without_map(&other, device, command),
            Err(error) => {
                let completion = Completion::Status(Status::BUSY);
                self.log(None, &"a device", command, &completion, &Cause::SysfsUnreadable(&error));
                completion
            }
        })
    }
}

impl Multipath {
    /// For the maps of this machine. The library is opened when it is first needed.
    pub fn new() -> Self {
        Self::on(Box::new(Machine::new()))
    }

    fn on(host: Box<dyn Host>) -> Self {
        // One line of each cause for each map in a period.
        let log_limit = RateLimiter::new(1, 100, Duration::from_secs(60));
        Self { host, library: OnceLock::new(), log_limit }
    }

    /// Answers for a device that is no map. Only IN is sent to it.
    fn run_without_map(&self, other: &Device, device: BorrowedFd<'_>, command: Command<'_>) -> Completion {
        match (command.opcode(), other.class()) {
            (Opcode::ReserveIn, _) => SgIo::new().send(device, command).0,
            (Opcode::ReserveOut, _) | (Opcode::Cleanup, DeviceClass::Unexplained { .. }) => {
                let completion = Completion::check(SenseCode::INVALID_OPCODE);
                self.log(other.number(), other, command, &completion, &Cause::NoMap);
                completion
            }
            // There is nothing to clean up.
            (Opcode::Cleanup, _) => GOOD,
        }
    }

    fn library(&self) -> Result<&dyn Library, &Unavailable> {
        self.library.get_or_init(|| self.host.library()).as_deref()
    }

    fn log(
        &self,
        number: Option<Number>,
        device: &dyn fmt::Display,
        command: Command<'_>,
        completion: &Completion,
        cause: &Cause<'_>,
    ) {
        if let Some(suppressed) = self.log_limit.check((number, cause.kind())) {
            warn!("{command}, on {device}: {completion}: {cause}{suppressed}");
        }
    }
}

/// One command on one map. `Err` of its methods is the answer of a command that ends early.
struct Execution<'a> {
    manager: &'a Multipath,
    map: &'a Map,
    device: BorrowedFd<'a>,
    command: Command<'a>,
}

impl Execution<'_> {
    fn run(&self) -> Completion {
        match self.command.opcode() {
            Opcode::ReserveIn => self.reserve_in(),
            Opcode::ReserveOut => self.reserve_out().unwrap_or_else(|refusal| refusal),
            Opcode::Cleanup => self.clean_up().unwrap_or_else(|refusal| refusal),
        }
    }

    fn reserve_in(&self) -> Completion {
        match self.paths() {
            Ok(paths) => per_path::ask(&paths, |path| path.send(self.command)).unwrap_or(NOT_READY),
            Err(refusal) => refusal,
        }
    }

    /// QEMU's CLEANUP: the host is to be unregistered, as QEMU's helper does it. multipathd forgets the key first, or it
    /// would register again the paths that are unregistered here.
    fn clean_up(&self) -> Result<Completion, Completion> {
        self.manager
            .host
            .forget(self.map)
            .map_err(|why| self.refuse(SenseCode::LUN_COMMUNICATION_FAILURE, &Cause::Daemon(&why)))?;
        self.check_usable_path()?;
        let unregister =
            ReserveOut::RegisterAndIgnoreExistingKey { service_action_key: Key::ZERO, all_tg_pt: false, aptpl: false };
        let request = Request::new(&unregister).map_err(Completion::check)?;
        match self.run_library(&request)? {
            translate::SUCCESS => Ok(GOOD),
            code => Ok(self.library_failure(code, &request)),
        }
    }

    fn check_usable_path(&self) -> Result<(), Completion> {
        match self.map.has_usable_path() {
            true => Ok(()),
            false => Err(self.refuse(SenseCode::NOT_READY, &Cause::NoUsablePath)),
        }
    }

    /// The usable paths, open; at least one.
    fn paths(&self) -> Result<Vec<Box<dyn Path>>, Completion> {
        self.check_usable_path()?;
        let paths = self.manager.host.paths(self.map);
        match paths.is_empty() {
            false => Ok(paths),
            true => Err(self.refuse(SenseCode::LUN_COMMUNICATION_FAILURE, &Cause::NotOpened)),
        }
    }

    fn refuse(&self, code: SenseCode, cause: &Cause<'_>) -> Completion {
        let completion = Completion::check(code);
        self.log(&completion, cause);
        completion
    }

    fn log(&self, completion: &Completion, cause: &Cause<'_>) {
        self.manager.log(Some(self.map.number), self.map, self.command, completion, cause);
    }
}

const GOOD: Completion = Completion::Good(Vec::new());

const NOT_READY: Completion = Completion::CheckCondition(Sense::fixed(SenseCode::NOT_READY));

#[cfg(test)]
mod tests;
