//! dm-multipath: one unit by several paths, each an initiator port of its own to the unit.
//!
//! A reservation that is made through one path shuts the others out, and is lost with its path. So PERSISTENT RESERVE OUT
//! goes through libmpathpersist (multipath-tools), which registers on every path; multipathd registers on those that
//! appear or come back later. The two halves of the work need different privileges:
//!
//! * [`MapIn`] answers PERSISTENT RESERVE IN with the capability to send SCSI commands alone.
//! * [`Multipath`] does the rest, as root, in a process that lives for one command.
//!
//! Inside: `map` is what sysfs tells; `route` are the paths, opened one by one; `native` is what is done by them without
//! the library; `translate` are commands and return values in the library's terms, and `sys` its calls; `daemon` asks
//! multipathd, `keys` reads which keys its configuration allows; `diagnosis` is what the log is told. [`recover`] sees after a
//! map when such a process has died.

mod daemon;
mod diagnosis;
mod host;
mod keys;
mod map;
mod map_in;
mod native;
mod recover;
mod route;
mod sys;
mod translate;

use std::fmt;
use std::os::fd::BorrowedFd;
use std::panic::resume_unwind;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use scsi_pr::{
    Command, Completion, Error, Key, Opcode, PrManager, ReserveOut, ReserveOutAction, Sense, SenseCode, Status,
};
use tracing::warn;

use crate::device::{Device, Kind, Number};
use crate::sg_io::SgIo;
use crate::throttle::Throttle;
use daemon::Unanswered;
use diagnosis::Cause;
use host::{Host, Library, Machine};
use keys::AllowedKeys;
use map::Map;
pub use map_in::MapIn;
use native::{Released, Restored};
pub use recover::{is_suspended, recover};
use route::Route;
use sys::Unavailable;
use translate::Request;

/// Runs commands on multipath maps, as root.
///
/// Use it in a process that is started for one command. libmpathpersist reads multipath.conf once, may end the process
/// (`exit(1)`, when it cannot reach device mapper) and may hang with a device; and what it has of one map must not keep
/// another one waiting. One `Multipath` in the life of a process: the library cannot be started again.
///
/// | command | what is done |
/// | --- | --- |
/// | IN | sent to the first path that works, byte for byte |
/// | REGISTER, REGISTER AND IGNORE EXISTING KEY | libmpathpersist, on every path; with a new key only if multipathd answers and multipath.conf allows that key; for a REGISTER that names the present key, paths that lack it get it first, and a reservation is given up before that is unregistered; what a path that dies meanwhile has left half done is completed by the others |
/// | RESERVE, CLEAR, PREEMPT, PREEMPT AND ABORT | libmpathpersist, on one path; again when that path lacked its registration; registrations of the other paths that this took away are made again |
/// | RELEASE | by every path; by libmpathpersist where it may be trusted with it (0.13 and later, this host's own reservation) |
/// | REGISTER AND MOVE, REPLACE LOST RESERVATION | refused: 05/24/00 |
/// | SPEC_I_PT | refused (05/26/00) where libmpathpersist would send the TransportIDs cut or not at all, and on maps of several paths |
/// | CLEANUP | multipathd forgets the key of the map; the host is unregistered by every path |
///
/// A map of which no path works is CHECK CONDITION 02/04/00. A host without libmpathpersist is 05/20/00, as a disk without
/// reservations. A key that multipath.conf does not allow is refused for good (05/26/00) where it would be registered, and
/// is a RESERVATION CONFLICT where it should be registered already. A multipathd that does not answer is 0B/08/00 to who
/// registers. For each, the log names the map, the cause and what to do, once a minute.
///
/// What cannot be helped: a path that is dead for so short a time that multipathd does not notice, just when something is
/// registered or preempted, lacks its registration until the guest's next command that finds out. While registrations are
/// made again after a PREEMPT of the own key, within milliseconds, writes by the other paths may be refused.
pub struct Multipath {
    host: Box<dyn Host>,
    library: OnceLock<Result<Box<dyn Library>, Unavailable>>,
    told: Throttle<(Option<Number>, u8)>,
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
            Ok(Ok(map)) => Task { manager: self, map: &map, device, command }.run(),
            Ok(Err(other)) => self.run_elsewhere(&other, device, command),
            Err(error) => {
                let completion = Completion::Status(Status::BUSY);
                self.tell(None, &"a device", command, &completion, &Cause::Unread(&error));
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
        Self { host, library: OnceLock::new(), told: Throttle::new(Duration::from_secs(60)) }
    }

    /// The answer of what is no map: what it returns to IN; nothing else is sent to it.
    fn run_elsewhere(&self, other: &Device, device: BorrowedFd<'_>, command: Command<'_>) -> Completion {
        match (command.opcode(), other.kind()) {
            (Opcode::ReserveIn, _) => SgIo::new().send(device, command).0,
            (Opcode::ReserveOut, _) | (Opcode::Cleanup, Kind::Unexplained { .. }) => {
                let completion = Completion::check(SenseCode::INVALID_OPCODE);
                self.tell(other.number(), other, command, &completion, &Cause::NoMap);
                completion
            }
            // There is nothing to clean up.
            (Opcode::Cleanup, _) => GOOD,
        }
    }

    fn library(&self) -> Result<&dyn Library, &Unavailable> {
        self.library.get_or_init(|| self.host.library()).as_deref()
    }

    fn tell(
        &self,
        number: Option<Number>,
        device: &dyn fmt::Display,
        command: Command<'_>,
        completion: &Completion,
        cause: &Cause<'_>,
    ) {
        if self.told.permits((number, cause.kind())) {
            warn!("{command}, on {device}: {completion}: {cause}");
        }
    }
}

/// One command on one map.
struct Task<'a> {
    manager: &'a Multipath,
    map: &'a Map,
    device: BorrowedFd<'a>,
    command: Command<'a>,
}

impl Task<'_> {
    fn run(&self) -> Completion {
        match self.command.opcode() {
            Opcode::ReserveIn => self.reserve_in(),
            Opcode::ReserveOut => self.reserve_out().unwrap_or_else(|refusal| refusal),
            Opcode::Cleanup => self.clean_up().unwrap_or_else(|refusal| refusal),
        }
    }

    fn reserve_in(&self) -> Completion {
        match self.routes() {
            Ok(routes) => native::ask(&routes, |route| route.send(self.command)).unwrap_or(NOT_READY),
            Err(refusal) => refusal,
        }
    }

    fn reserve_out(&self) -> Result<Completion, Completion> {
        let out = ReserveOut::parse(self.command).map_err(Completion::check)?;
        let request = Request::new(&out).map_err(Completion::check)?;
        if !self.map.has_usable_path() {
            return Err(self.refuse(SenseCode::NOT_READY, &Cause::NoPath));
        }
        if let ReserveOut::Release { key, reservation_type } = out {
            let routes = self.routes()?;
            let released = native::release(&routes, key, reservation_type, || self.release_by_library(&request));
            let completion = self.released(released);
            if completion == GOOD {
                // From 0.13 on, multipathd and the library take a RESERVE that is refused for one that is granted while
                // they believe that the map is the holder. Before, multipathd does not know the order.
                let _ = self.manager.host.forget_holder(self.map);
            }
            return Ok(completion);
        }
        // The library (0.9.4, and those since) takes the flag away for the other paths while the first one's thread may not
        // have looked yet.
        if request.names_initiator_ports() && self.map.paths.len() > 1 {
            let cause = Cause::InitiatorPorts(self.map.paths.len());
            return Err(self.refuse(SenseCode::INVALID_FIELD_IN_PARAMETER_LIST, &cause));
        }
        if request.registers() {
            self.may_register(request.service_action_key)?;
        }
        if request.action == ReserveOutAction::Register && !request.key.is_zero() && self.map.paths.len() > 1 {
            self.make_whole(request.key)?;
            // Its path may be dead, or die while the others are unregistered.
            if request.service_action_key.is_zero() {
                let released = native::release_before_unregistering(&self.routes()?, request.key);
                match self.released(released) {
                    Completion::Good(_) => {}
                    refusal => return Err(refusal),
                }
            }
        }
        // The library makes registrations again without APTPL, which would then be off for all.
        let aptpl = self.loses_registrations(&request) && native::is_persistent(&self.manager.host.routes(self.map));
        // Whose it would be, when it is there afterwards, could not be told.
        let key_was_there = request.registers() && self.is_registered_by_anybody(request.service_action_key);
        let mut code = self.run_library(&request)?;
        if !key_was_there && self.may_be_done_in_part(code, &request) {
            code = self.run_library(&request.ignoring_existing_keys())?;
        }
        if self.may_be_for_want_of_a_registration(code, &request) {
            code = self.run_library(&request)?;
        }
        match code {
            translate::SUCCESS => Ok(self.done(&request, aptpl)),
            translate::RESERVATION_CONFLICT if request.action == ReserveOutAction::Reserve => {
                match native::reserve_as_holder(&self.routes()?, self.command) {
                    true => Ok(GOOD),
                    false => Ok(request.completion(code)),
                }
            }
            code => Ok(self.failed(code, &request)),
        }
    }

    /// Sees to it that no path refuses a REGISTER that comes with `key` while others do not: the library would undo what
    /// they did, and leave the host with less than it had. A host that is not registered gets its answer here.
    fn make_whole(&self, key: Key) -> Result<(), Completion> {
        let routes = self.routes()?;
        match native::restore(&routes, key, native::is_persistent(&routes)) {
            Restored::Whole { .. } => Ok(()),
            Restored::NotRegistered | Restored::Preempted => Err(Completion::Status(Status::RESERVATION_CONFLICT)),
        }
    }

    /// Whether the library (0.9.4) has failed because a path died under it that was to be registered, or unregistered, when
    /// another one already was. The host would stay with half of it: its REGISTER is refused from then on, and a path that
    /// comes back is not registered. To go on is no more than the unit has accepted.
    fn may_be_done_in_part(&self, code: i32, request: &Request) -> bool {
        use ReserveOutAction::{Register, RegisterAndIgnoreExistingKey};
        matches!(request.action, Register | RegisterAndIgnoreExistingKey)
            && !translate::is_of_the_unit(code)
            && code != translate::SYNTAX_ERROR
            && self.map.paths.len() > 1
            && (!request.registers()
                || native::is_registered(&self.manager.host.routes(self.map), request.service_action_key))
    }

    fn is_registered_by_anybody(&self, key: Key) -> bool {
        self.map.paths.len() > 1 && native::count(&self.manager.host.routes(self.map), key) != Some(0)
    }

    /// Whether a command that the unit has refused may be refused because the path that the library chose was not
    /// registered, and is now. (LIO says NOT READY to who is not registered, where the standard has a conflict.)
    fn may_be_for_want_of_a_registration(&self, code: i32, request: &Request) -> bool {
        use ReserveOutAction::{Clear, Preempt, PreemptAndAbort, Reserve};
        matches!(code, translate::RESERVATION_CONFLICT | translate::NOT_READY)
            && matches!(request.action, Reserve | Clear | Preempt | PreemptAndAbort)
            && self.map.paths.len() > 1
            && {
                let routes = self.manager.host.routes(self.map);
                let restored = native::restore(&routes, request.key, native::is_persistent(&routes));
                matches!(restored, Restored::Whole { registered: 1.., .. })
            }
    }

    /// Whether this may take the registrations of other paths away.
    fn loses_registrations(&self, request: &Request) -> bool {
        request.preempts_itself() && self.map.paths.len() > 1
    }

    /// QEMU's CLEANUP: this host's registration is to be forgotten, as QEMU's helper does it. multipathd comes first: it
    /// must not register again what is unregistered here.
    fn clean_up(&self) -> Result<Completion, Completion> {
        self.manager
            .host
            .forget(self.map)
            .map_err(|why| self.refuse(SenseCode::LUN_COMMUNICATION_FAILURE, &Cause::Daemon(&why)))?;
        if !self.map.has_usable_path() {
            return Err(self.refuse(SenseCode::NOT_READY, &Cause::NoPath));
        }
        let unregister =
            ReserveOut::RegisterAndIgnoreExistingKey { service_action_key: Key::ZERO, all_tg_pt: false, aptpl: false };
        let request = Request::new(&unregister).map_err(Completion::check)?;
        match self.run_library(&request)? {
            translate::SUCCESS => Ok(GOOD),
            code => Ok(self.failed(code, &request)),
        }
    }

    /// Whether multipathd will register `key` on paths that appear or come back: else the reservation would not survive
    /// the paths of now. The library alone does not see to it (0.9.4).
    fn may_register(&self, key: Key) -> Result<(), Completion> {
        let configuration = self
            .configuration()
            .map_err(|why| self.refuse(SenseCode::LUN_COMMUNICATION_FAILURE, &Cause::Daemon(&why)))?;
        let cause = match AllowedKeys::of(&configuration, &self.map.wwid) {
            AllowedKeys::None => Cause::NoKey,
            AllowedKeys::Only(other) if other != key => Cause::OtherKey(other),
            AllowedKeys::Only(_) | AllowedKeys::All => return Ok(()),
        };
        Err(self.refuse(SenseCode::INVALID_FIELD_IN_PARAMETER_LIST, &cause))
    }

    /// multipathd's configuration. While multipathd writes it down, the library is opened, which takes as long. It is
    /// not opened by the other thread: it may keep in mind which one started it.
    fn configuration(&self) -> Result<String, Unanswered> {
        let host = &*self.manager.host;
        thread::scope(|scope| {
            let Ok(asking) = thread::Builder::new().spawn_scoped(scope, || host.configuration()) else {
                return host.configuration();
            };
            // That it cannot be opened is told when it is to do something.
            let _ = self.manager.library();
            asking.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    fn run_library(&self, request: &Request) -> Result<i32, Completion> {
        match self.manager.library() {
            Ok(library) => Ok(library.reserve_out(self.device, request)),
            // It is there, and cannot work as it is set up: that may change.
            Err(why @ Unavailable::NotStarted(_)) => {
                Err(self.refuse(SenseCode::LUN_COMMUNICATION_FAILURE, &Cause::Library(why)))
            }
            Err(why) => Err(self.refuse(SenseCode::INVALID_OPCODE, &Cause::Library(why))),
        }
    }

    /// RELEASE by a library of which it is known that it takes over no reservation but this host's: that of a multipathd
    /// which knows holders. `None` when it is not.
    fn release_by_library(&self, request: &Request) -> Option<Completion> {
        if !self.manager.host.knows_holders(self.map).unwrap_or(false) {
            return None;
        }
        let code = self.manager.library().ok()?.reserve_out(self.device, request);
        Some(if code == translate::SUCCESS { GOOD } else { self.failed(code, request) })
    }

    fn released(&self, released: Released) -> Completion {
        if let Some(restored) = released.restored {
            self.tell_restored(restored, &released.completion);
        }
        released.completion
    }

    /// What remains to be done when the library has done its part.
    fn done(&self, request: &Request, aptpl: bool) -> Completion {
        if self.loses_registrations(request) {
            let routes = self.manager.host.routes(self.map);
            let restored = match routes.is_empty() {
                true => Restored::Whole { registered: 0, failed: self.map.paths.len() - 1 },
                false => native::restore(&routes, request.key, aptpl),
            };
            self.tell_restored(restored, &GOOD);
        }
        if request.registers() {
            match self.manager.host.registers_paths(self.map) {
                Ok(true) => {}
                Ok(false) => self.tell(&GOOD, &Cause::LaterPaths(None)),
                Err(why) => self.tell(&GOOD, &Cause::LaterPaths(Some(&why))),
            }
        }
        GOOD
    }

    /// The answer when the library could not do it; if the unit did not say why, the log does.
    fn failed(&self, code: i32, request: &Request) -> Completion {
        let completion = request.completion(code);
        if translate::is_of_the_unit(code) {
            return completion;
        }
        let lost = matches!(self.manager.host.map(self.device), Ok(Ok(now)) if !now.has_usable_path());
        if lost {
            return self.refuse(SenseCode::NOT_READY, &Cause::NoPath);
        }
        match self.manager.host.configuration() {
            Err(why) => self.tell(&completion, &Cause::Daemon(&why)),
            Ok(configuration) if code == translate::SYNTAX_ERROR => {
                let cause = match AllowedKeys::of(&configuration, &self.map.wwid) {
                    AllowedKeys::None => Cause::NoKey,
                    AllowedKeys::Only(key) => Cause::OtherKey(key),
                    AllowedKeys::All => Cause::NotRegistered,
                };
                self.tell(&completion, &cause);
            }
            Ok(_) => self.tell(&completion, &Cause::Code(code)),
        }
        completion
    }

    /// The paths that work, open. `Err` is the answer when there are none.
    fn routes(&self) -> Result<Vec<Box<dyn Route>>, Completion> {
        let routes = self.manager.host.routes(self.map);
        match (routes.is_empty(), self.map.has_usable_path()) {
            (false, _) => Ok(routes),
            (true, false) => Err(self.refuse(SenseCode::NOT_READY, &Cause::NoPath)),
            (true, true) => Err(self.refuse(SenseCode::LUN_COMMUNICATION_FAILURE, &Cause::Unopened)),
        }
    }

    fn tell_restored(&self, restored: Restored, completion: &Completion) {
        match restored {
            Restored::Whole { failed: 0, .. } => {}
            Restored::Whole { failed, .. } => self.tell(completion, &Cause::Unregistered(failed)),
            Restored::NotRegistered | Restored::Preempted => self.tell(completion, &Cause::Preempted),
        }
    }

    fn refuse(&self, code: SenseCode, cause: &Cause<'_>) -> Completion {
        let completion = Completion::check(code);
        self.tell(&completion, cause);
        completion
    }

    fn tell(&self, completion: &Completion, cause: &Cause<'_>) {
        self.manager.tell(Some(self.map.number), self.map, self.command, completion, cause);
    }
}

const GOOD: Completion = Completion::Good(Vec::new());

const NOT_READY: Completion = Completion::CheckCondition(Sense::fixed(SenseCode::NOT_READY));

#[cfg(test)]
mod tests;
