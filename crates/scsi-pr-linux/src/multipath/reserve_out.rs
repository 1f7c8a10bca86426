//! PERSISTENT RESERVE OUT on a map, in phases: checks that change nothing, preparation by single paths, libmpathpersist,
//! and completion of what the library leaves undone.

use std::panic::resume_unwind;
use std::thread;

use scsi_pr::{Completion, Key, ReserveOut, ReserveOutAction, SenseCode, Status, Type};

use super::daemon::Unanswered;
use super::dead_paths;
use super::diagnosis::Cause;
use super::keys::AllowedKeys;
use super::per_path::{self, Release, Remark, Reregistration};
use super::sys::Unavailable;
use super::translate::{self, Request};
use super::{Execution, GOOD};

impl Execution<'_> {
    pub(super) fn reserve_out(&self) -> Result<Completion, Completion> {
        let out = ReserveOut::parse(self.command).map_err(Completion::check)?;
        let request = Request::new(&out).map_err(Completion::check)?;
        self.check_usable_path()?;
        match out {
            ReserveOut::Release { key, reservation_type } => self.release(key, reservation_type),
            ReserveOut::Register { .. } | ReserveOut::RegisterAndIgnoreExistingKey { .. } => self.register(&request),
            ReserveOut::Reserve { .. } => self.reserve(&request),
            _ => self.clear_or_preempt(&request),
        }
    }

    fn release(&self, key: Key, reservation_type: Type) -> Result<Completion, Completion> {
        let ports = self.manager.host.ports(self.map);
        let release = per_path::release(&self.paths()?, &ports, key, reservation_type);
        if let Some(Remark::Reregistered(result)) = &release.remark {
            self.settle_after(result, key);
        }
        let completion = self.log_release(release);
        if completion == GOOD {
            // From 0.13 on, multipathd keeps whether the map holds a reservation; while it does, the library takes a
            // RESERVE that is refused for one that is granted. Older ones do not know the order.
            let _ = self.manager.host.forget_holder(self.map);
        }
        Ok(completion)
    }

    /// REGISTER, and REGISTER AND IGNORE EXISTING KEY.
    fn register(&self, request: &Request) -> Result<Completion, Completion> {
        self.check_initiator_ports(request)?;
        if request.registers() {
            self.check_key_is_allowed(request.service_action_key)?;
        }
        self.prepare_change_of_key(request)?;
        let was_registered = self.was_registered(request);
        let mut code = self.run_library(request)?;
        if !was_registered && self.is_done_in_part(code, request) {
            code = self.run_library(&request.ignoring_existing_keys())?;
        }
        if code != translate::SUCCESS {
            return Ok(self.library_failure(code, request));
        }
        if request.registers() {
            self.check_later_paths(request.service_action_key);
        }
        Ok(GOOD)
    }

    fn reserve(&self, request: &Request) -> Result<Completion, Completion> {
        match self.run_library_on_registered_path(request)? {
            translate::SUCCESS => Ok(GOOD),
            translate::RESERVATION_CONFLICT if per_path::reserve_as_holder(&self.paths()?, self.command) => Ok(GOOD),
            translate::RESERVATION_CONFLICT => Ok(Completion::Status(Status::RESERVATION_CONFLICT)),
            code => Ok(self.library_failure(code, request)),
        }
    }

    /// CLEAR, PREEMPT, and PREEMPT AND ABORT.
    fn clear_or_preempt(&self, request: &Request) -> Result<Completion, Completion> {
        let removes_other_paths = request.preempts_itself() && self.has_several_paths();
        // The library, where it registers again, does so without APTPL, which would then be off for all.
        let aptpl = removes_other_paths && per_path::is_persistent(&self.manager.host.paths(self.map));
        match self.run_library_on_registered_path(request)? {
            translate::SUCCESS if removes_other_paths => {
                self.re_register_other_paths(request.key, aptpl);
                Ok(GOOD)
            }
            translate::SUCCESS => Ok(GOOD),
            code => Ok(self.library_failure(code, request)),
        }
    }

    /// The library (0.9.4, and later ones) takes SPEC_I_PT away for the other paths, while the thread of the first one may
    /// not have read it yet.
    fn check_initiator_ports(&self, request: &Request) -> Result<(), Completion> {
        if !request.names_initiator_ports() || !self.has_several_paths() {
            return Ok(());
        }
        let cause = Cause::InitiatorPorts(self.map.paths.len());
        Err(self.refuse(SenseCode::INVALID_FIELD_IN_PARAMETER_LIST, &cause))
    }

    /// Whether multipathd will register `key` on paths that appear or come back: else the reservation would not survive
    /// the present paths. The library alone does not see to it (0.9.4).
    fn check_key_is_allowed(&self, key: Key) -> Result<(), Completion> {
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

    /// multipathd's configuration. While multipathd writes it, which takes as long, the library is opened. This thread
    /// opens it: the library may remember the thread that started it.
    fn configuration(&self) -> Result<String, Unanswered> {
        let host = &*self.manager.host;
        thread::scope(|scope| {
            let Ok(asking) = thread::Builder::new().spawn_scoped(scope, || host.configuration()) else {
                return host.configuration();
            };
            // A failure is reported when the library is used.
            let _ = self.manager.library();
            asking.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// For a REGISTER that names the present key. If one path refused it while others did not, the library would undo what
    /// the others did, and leave the host with less than before; so paths without a registration get one first. A host that
    /// unregisters releases its reservation first: the holder's path may be dead, or die while the others are unregistered.
    fn prepare_change_of_key(&self, request: &Request) -> Result<(), Completion> {
        if request.action != ReserveOutAction::Register || request.key.is_zero() || !self.has_several_paths() {
            return Ok(());
        }
        let paths = self.paths()?;
        match per_path::re_register(&paths, request.key, per_path::is_persistent(&paths)) {
            Reregistration::Complete { .. } => {}
            Reregistration::NotRegistered | Reregistration::Preempted => {
                return Err(Completion::Status(Status::RESERVATION_CONFLICT));
            }
        }
        if !request.service_action_key.is_zero() {
            return Ok(());
        }
        let ports = self.manager.host.ports(self.map);
        match self.log_release(per_path::release_before_unregistering(&paths, &ports, request.key)) {
            Completion::Good(_) => Ok(()),
            refusal => Err(refusal),
        }
    }

    /// Whether this host is registered with the new key already, so that a registration that is found later proves nothing.
    fn was_registered(&self, request: &Request) -> bool {
        let key = request.service_action_key;
        if !request.registers() || !self.has_several_paths() {
            return false;
        }
        let paths = self.manager.host.paths(self.map);
        per_path::unit_may_have_key(&paths, key) && per_path::is_registered(&paths, key)
    }

    /// Whether the library (0.9.4) failed because a path died that was to be registered or unregistered, when another one
    /// already was. The host would stay half registered: the unit refuses its REGISTER from then on, and multipathd does
    /// not register a path that comes back. To go on changes no more than the unit has accepted.
    fn is_done_in_part(&self, code: i32, request: &Request) -> bool {
        !translate::is_of_the_unit(code)
            && code != translate::SYNTAX_ERROR
            && self.has_several_paths()
            && (!request.registers()
                || per_path::is_registered(&self.manager.host.paths(self.map), request.service_action_key))
    }

    /// Runs a request that the library sends by one path, and again if the unit refused it because that path was not
    /// registered, and is now. (LIO returns NOT READY to an unregistered nexus, where the standard has a conflict.)
    fn run_library_on_registered_path(&self, request: &Request) -> Result<i32, Completion> {
        let code = self.run_library(request)?;
        if !matches!(code, translate::RESERVATION_CONFLICT | translate::NOT_READY) || !self.has_several_paths() {
            return Ok(code);
        }
        let paths = self.manager.host.paths(self.map);
        match per_path::re_register(&paths, request.key, per_path::is_persistent(&paths)) {
            Reregistration::Complete { registered: 1.., .. } => self.run_library(request),
            _ => Ok(code),
        }
    }

    pub(super) fn run_library(&self, request: &Request) -> Result<i32, Completion> {
        match self.manager.library() {
            Ok(library) => Ok(library.reserve_out(self.device, request)),
            // Its configuration may be repaired.
            Err(why @ Unavailable::NotStarted(_)) => {
                Err(self.refuse(SenseCode::LUN_COMMUNICATION_FAILURE, &Cause::Library(why)))
            }
            Err(why) => Err(self.refuse(SenseCode::INVALID_OPCODE, &Cause::Library(why))),
        }
    }

    /// The answer when the library returned `code`. If the answer is not the unit's, the log has the cause.
    pub(super) fn library_failure(&self, code: i32, request: &Request) -> Completion {
        let completion = request.completion(code);
        if translate::is_of_the_unit(code) {
            return completion;
        }
        let has_lost_all_paths = matches!(self.manager.host.map(self.device), Ok(Ok(now)) if !now.has_usable_path());
        if has_lost_all_paths {
            return self.refuse(SenseCode::NOT_READY, &Cause::NoUsablePath);
        }
        match self.manager.host.configuration() {
            Err(why) => self.log(&completion, &Cause::Daemon(&why)),
            Ok(configuration) if code == translate::SYNTAX_ERROR => {
                let cause = match AllowedKeys::of(&configuration, &self.map.wwid) {
                    AllowedKeys::None => Cause::NoKey,
                    AllowedKeys::Only(key) => Cause::OtherKey(key),
                    AllowedKeys::All => Cause::NotRegistered,
                };
                self.log(&completion, &cause);
            }
            Ok(_) => self.log(&completion, &Cause::Code(code)),
        }
        completion
    }

    /// After a PREEMPT that removed the registrations of this host's other paths.
    fn re_register_other_paths(&self, key: Key, aptpl: bool) {
        let paths = self.manager.host.paths(self.map);
        let result = match paths.is_empty() {
            true => {
                let failed = self.map.paths.iter().map(|path| path.name.clone()).collect();
                Reregistration::Complete { registered: 0, failed }
            }
            false => per_path::re_register(&paths, key, aptpl),
        };
        self.log_reregistration(&result, &GOOD);
        self.settle_after(&result, key);
    }

    fn settle_after(&self, result: &Reregistration, key: Key) {
        if let Reregistration::Complete { failed, .. } = result {
            self.settle_dead_paths(key, failed);
        }
    }

    /// After a REGISTER: multipathd has to register paths that appear or come back.
    fn check_later_paths(&self, key: Key) {
        match self.manager.host.registers_paths(self.map) {
            Ok(true) => self.settle_dead_paths(key, &[]),
            Ok(false) => self.log(&GOOD, &Cause::LaterPaths(None)),
            Err(why) => self.log(&GOOD, &Cause::LaterPaths(Some(&why))),
        }
    }

    /// After a command that left dead paths without a registration: those that sysfs shows as dead, and those that `failed`
    /// to be registered. multipathd has to register them with `key` when they come back; a path that comes back before
    /// multipathd has noticed that it was dead is registered here.
    fn settle_dead_paths(&self, key: Key, failed: &[String]) {
        let host = &*self.manager.host;
        let Ok(Ok(now)) = host.map(self.device) else { return };
        if now.paths.len() < 2 {
            return;
        }
        let was_dead = |name: &str| self.map.paths.iter().any(|path| path.name == name && !path.usable);
        if now.paths.iter().any(|path| path.usable && was_dead(&path.name)) {
            // It came back while the command ran.
            let paths = host.paths(&now);
            per_path::re_register(&paths, key, per_path::is_persistent(&paths));
        }
        let dead: Vec<_> = now.paths.iter().filter(|path| !path.usable || failed.contains(&path.name)).collect();
        if dead.is_empty() {
            return;
        }
        let Err(unnoticed) = dead_paths::have_noticed(host, &now, &dead, dead_paths::NOTICE_TIMEOUT) else { return };
        let Ok(Ok(now)) = host.map(self.device) else { return };
        let paths = host.paths(&now);
        let result = per_path::re_register(&paths, key, per_path::is_persistent(&paths));
        let still_dead = |name: &String| match &result {
            Reregistration::Complete { failed, .. } => {
                failed.contains(name) || !paths.iter().any(|path| path.name() == name)
            }
            Reregistration::NotRegistered | Reregistration::Preempted => false,
        };
        let names: Vec<_> = unnoticed.paths.into_iter().filter(still_dead).collect();
        if !names.is_empty() {
            self.log(&GOOD, &Cause::Unnoticed(&names, key, unnoticed.why.as_ref()));
        }
    }

    fn log_release(&self, release: Release) -> Completion {
        match &release.remark {
            None => {}
            Some(Remark::Reregistered(result)) => self.log_reregistration(result, &release.completion),
            Some(Remark::SharedKey) => self.log(&release.completion, &Cause::SharedKey),
            Some(Remark::HolderUnknown(why)) => self.log(&release.completion, &Cause::HolderUnknown(why)),
        }
        release.completion
    }

    fn log_reregistration(&self, result: &Reregistration, completion: &Completion) {
        match result {
            Reregistration::Complete { failed, .. } if failed.is_empty() => {}
            Reregistration::Complete { failed, .. } => self.log(completion, &Cause::Unregistered(failed)),
            Reregistration::NotRegistered | Reregistration::Preempted => self.log(completion, &Cause::Preempted),
        }
    }

    fn has_several_paths(&self) -> bool {
        self.map.paths.len() > 1
    }
}
