//! Operations on single paths, for which libmpathpersist must not be used alone.
//!
//! * RELEASE. Up to 0.11, the library takes any reservation that remains after its RELEASE for one that a dead path of its
//!   own holds, and clears the unit: it removes other hosts' reservations and registrations. From 0.13 on it preempts its
//!   own key instead, which another host may have as well.
//! * PREEMPT of the sender's own key, and of all keys, removes the registrations of the map's other paths. Before 0.14 the
//!   library does not make them again.
//! * RESERVE is refused to the holder by a path other than the holder's.
//! * A unit refuses every command but REGISTER by a path that is not registered. When one path refuses a REGISTER, the
//!   library (before 0.13) undoes it on the others, and the host ends up without any key.
//!
//! A key does not tell whose a registration is, because several hosts may use the same one. The registration of a path that
//! works is found by a REGISTER of its key to the same key, which the unit refuses to any other nexus. The registration of a
//! path that does not work is found by the initiator port, in READ FULL STATUS.

use scsi_pr::{
    Capabilities, Command, CommandBuf, Completion, FullStatus, Held, Key, Keys, Reservation, ReserveIn,
    ReserveInAction, ReserveOut, ScopeType, Sense, SenseCode, Status, Type,
};

use super::path::{Path, is_not_ready};
use super::ports::{HostPorts, Owner};
use crate::sg_io::Reached;

/// The result of [`release`].
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Release {
    pub(super) completion: Completion,
    /// For the log, besides the completion.
    pub(super) remark: Option<Remark>,
}

/// A remark on a [`Release`] for the administrator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Remark {
    /// The holder's path is dead: another path took the reservation over, and the registrations were made again.
    Reregistered(Reregistration),
    /// A dead path of this host holds the reservation, and another host has the same key, which a PREEMPT would remove.
    SharedKey,
    /// The reservation remains, and its holder may be a dead path of this host or another host with the same key.
    HolderUnknown(String),
}

impl Release {
    const fn unremarkable(completion: Completion) -> Self {
        Self { completion, remark: None }
    }
}

/// The result of [`re_register`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reregistration {
    /// No path that works is registered with the key: nothing was changed.
    NotRegistered,
    /// `registered` paths were registered that were not before. Those that `failed` are named; the others had the key.
    Complete { registered: usize, failed: Vec<String> },
    /// Another host has preempted this one meanwhile: the new registrations were taken back.
    Preempted,
}

/// The holder of a reservation, as far as READ FULL STATUS tells.
#[derive(Debug, PartialEq, Eq)]
enum Holder {
    /// A path of this host. No other host has registered its key.
    ThisHost,
    /// A path of this host. Another host has registered the same key.
    ThisHostWithSharedKey,
    AnotherHost,
    /// For this reason.
    Unknown(String),
}

/// Sends a PERSISTENT RESERVE IN by the first path that carries it to the unit and back, and by the next one if the unit
/// is not ready by this one. `None` when there is no path at all.
pub(super) fn ask<P: Path>(paths: &[P], send: impl Fn(&P) -> (Completion, Reached)) -> Option<Completion> {
    let mut last = None;
    for path in paths {
        match send(path) {
            (completion, Reached::Unit) if !is_not_ready(&completion) => return Some(completion),
            // The unit's answer tells more than the failure of a path.
            (completion, Reached::Unit) => last = Some(completion),
            (completion, _) => last = last.or(Some(completion)),
        }
    }
    last
}

/// RELEASE of `reservation_type` with `key`.
///
/// A reservation with this key and type is released by every path that works: the unit releases it for the nexus that
/// holds it, which any of them may be. If it remains, [`find_holder`] tells whose it is. A dead path's reservation is taken
/// over by a path that works, and then released; another host's remains, and the unit's GOOD is the answer. In all other
/// cases the unit gets the command once, by one path.
pub(super) fn release<P: Path>(paths: &[P], ports: &HostPorts, key: Key, reservation_type: Type) -> Release {
    let command = encode(&ReserveOut::Release { key, reservation_type });
    let before = match held(paths) {
        Ok(held) => held,
        Err(completion) => return Release::unremarkable(completion),
    };
    let candidate = before.filter(|held| held.key == key && !held.reservation_type.is_all_registrants());
    let Some(candidate) = candidate else {
        return Release::unremarkable(first(paths, &command, is_good));
    };
    if candidate.reservation_type != reservation_type {
        return Release::unremarkable(release_of_another_type(paths, ports, key, &command));
    }
    let aptpl = is_persistent(paths);
    let answers: Vec<_> = paths.iter().map(|path| (path, path.retry(command.command()))).collect();
    let Some((path, _)) = answers.iter().find(|(_, (completion, _))| is_good(completion)) else {
        let refusal = answers.into_iter().next().map_or(NOT_READY, |(_, (refusal, _))| refusal);
        return Release::unremarkable(refusal);
    };
    match held(paths) {
        Ok(now) if now == Some(candidate) => {}
        Ok(_) => return Release::unremarkable(GOOD),
        // Whether it was released is unknown.
        Err(completion) => return Release::unremarkable(completion),
    }
    // The unit refuses a path that is not registered with the key: that path does not account for a registration.
    let is_refused = |name: &str| {
        let conflict = (Completion::Status(Status::RESERVATION_CONFLICT), Reached::Unit);
        answers.iter().any(|(path, answer)| path.name() == name && *answer == conflict)
    };
    match find_holder(paths, ports, key, |name| !is_refused(name)) {
        Holder::ThisHost => take_over(paths, *path, key, reservation_type, aptpl),
        Holder::ThisHostWithSharedKey => Release {
            completion: Completion::check(SenseCode::LUN_COMMUNICATION_FAILURE),
            remark: Some(Remark::SharedKey),
        },
        Holder::AnotherHost => Release::unremarkable(GOOD),
        Holder::Unknown(why) => Release { completion: GOOD, remark: Some(Remark::HolderUnknown(why)) },
    }
}

/// RELEASE with another type than the reservation's: the unit refuses it to the holder, and GOOD to any other nexus means
/// that nothing was to be done. A dead path cannot be refused, so its refusal is made up.
fn release_of_another_type<P: Path>(paths: &[P], ports: &HostPorts, key: Key, command: &CommandBuf) -> Completion {
    let answer = first(paths, command, |completion| !is_good(completion));
    match is_good(&answer).then(|| find_holder(paths, ports, key, |_| true)) {
        Some(Holder::ThisHost | Holder::ThisHostWithSharedKey) => Completion::check(SenseCode::INVALID_RELEASE),
        _ => answer,
    }
}

/// Releases what this host holds with `key`, before it unregisters. If a path is dead, or dies meanwhile, the unit would
/// keep the reservation with that path's registration, and only another host's PREEMPT could remove it.
pub(super) fn release_before_unregistering<P: Path>(paths: &[P], ports: &HostPorts, key: Key) -> Release {
    match held(paths) {
        Ok(Some(Held { key: holder, reservation_type })) if holder == key && !reservation_type.is_all_registrants() => {
            release(paths, ports, key, reservation_type)
        }
        Ok(_) => Release::unremarkable(GOOD),
        Err(completion) => Release::unremarkable(completion),
    }
}

/// Finds out by READ FULL STATUS whose path holds the reservation with `key`. `may_have_key` tells of a path of this host,
/// by its name, whether it may be registered with the key.
fn find_holder<P: Path>(paths: &[P], ports: &HostPorts, key: Key, may_have_key: impl Fn(&str) -> bool) -> Holder {
    let data = match read(paths, ReserveInAction::ReadFullStatus) {
        Ok(data) => data,
        Err(completion) => return Holder::Unknown(format!("the unit answers READ FULL STATUS with {completion}")),
    };
    let registrations = match FullStatus::parse(&data) {
        Ok(parsed) if !parsed.truncated => parsed.value.descriptors,
        Ok(_) => return Holder::Unknown("READ FULL STATUS returns more data than fit".to_owned()),
        Err(invalid) => return Holder::Unknown(format!("READ FULL STATUS returns invalid data: {invalid}")),
    };
    let Some(holder) = registrations.iter().find(|registration| registration.held.is_some()) else {
        return Holder::Unknown("READ FULL STATUS shows no holder".to_owned());
    };
    if holder.key != key {
        return Holder::AnotherHost;
    }
    let holder = match holder.transport_id() {
        Ok(port) => port,
        Err(invalid) => return Holder::Unknown(format!("the holder has no valid TransportID: {invalid}")),
    };
    match ports.owner(&holder) {
        Owner::ThisHost => {}
        Owner::AnotherHost => return Holder::AnotherHost,
        Owner::Unknown => return Holder::Unknown(format!("whose initiator port {holder} is cannot be known")),
    }
    let with_key: Vec<_> = registrations.iter().filter(|registration| registration.key == key).collect();
    let mut own = Vec::new();
    for registration in with_key {
        match registration.transport_id() {
            Ok(port) if ports.owner(&port) == Owner::ThisHost => own.push(port),
            _ => return Holder::ThisHostWithSharedKey,
        }
    }
    for port in &own {
        // Two hosts may have been given one iSCSI name by mistake.
        let same = own.iter().filter(|other| HostPorts::have_one_name(port, other)).count();
        if ports.count_paths(port, &may_have_key).is_some_and(|paths| same > paths) {
            let why =
                format!("{same} registrations have the key and the initiator port name of {port}, more than paths");
            return Holder::Unknown(why);
        }
    }
    Holder::ThisHost
}

/// Releases a reservation of this host whose holder cannot be reached, by making `path` the holder. This removes the
/// registrations of all other paths; those that work get theirs back.
fn take_over<P: Path>(paths: &[P], path: &P, key: Key, reservation_type: Type, aptpl: bool) -> Release {
    let send = |out| path.retry(encode(&out).command()).0;
    let preempted =
        send(ReserveOut::Preempt { key, service_action_key: key, scope_type: ScopeType::from(reservation_type) });
    if !is_good(&preempted) {
        return Release::unremarkable(preempted);
    }
    let completion = send(ReserveOut::Release { key, reservation_type });
    Release { completion, remark: Some(Remark::Reregistered(re_register(paths, key, aptpl))) }
}

/// Sends a RESERVE that one path was refused by every path: the holder may reserve again what it holds, and only the unit
/// knows which path that is. Returns whether one path was granted it.
pub(super) fn reserve_as_holder<P: Path>(paths: &[P], command: Command<'_>) -> bool {
    paths.iter().any(|path| is_good(&path.retry(command).0))
}

/// Registers `key` on every path that works and has no registration, if another path of this host is registered with it:
/// after a PREEMPT by another path has removed it, or when multipathd has not noticed that the path was dead.
///
/// With `aptpl`, registrations survive a loss of power afterwards; without it, they do not. The last REGISTER decides for
/// all, so `aptpl` should be what [`is_persistent`] returned before anything was changed.
///
/// A path that is registered is probed before and after. If it lost its registration in between, another host has
/// preempted this one, and must not find it registered again.
pub(super) fn re_register<P: Path>(paths: &[P], key: Key, aptpl: bool) -> Reregistration {
    let has_key = |path: &P| is_good(&register(path, key, key, aptpl));
    let Some(anchor) = paths.iter().position(has_key) else { return Reregistration::NotRegistered };
    let (mut registered, mut failed) = (Vec::new(), Vec::new());
    for (_, path) in paths.iter().enumerate().filter(|(index, _)| *index != anchor) {
        match register(path, Key::ZERO, key, aptpl) {
            Completion::Good(_) => registered.push(path),
            // The path is registered, and has to name its key.
            Completion::Status(Status::RESERVATION_CONFLICT) if has_key(path) => {}
            _ => failed.push(path.name().to_owned()),
        }
    }
    if has_key(&paths[anchor]) {
        return Reregistration::Complete { registered: registered.len(), failed };
    }
    for path in registered {
        register(path, key, Key::ZERO, aptpl);
    }
    Reregistration::Preempted
}

/// Whether a path that works is registered with `key`.
pub(super) fn is_registered<P: Path>(paths: &[P], key: Key) -> bool {
    let aptpl = is_persistent(paths);
    paths.iter().any(|path| is_good(&register(path, key, key, aptpl)))
}

/// Whether any nexus, of this host or of another, may be registered with `key`.
pub(super) fn unit_may_have_key<P: Path>(paths: &[P], key: Key) -> bool {
    keys(paths).is_none_or(|keys| keys.contains(&key))
}

/// REGISTER by one path. From `key` to the same key it changes nothing, and is a conflict unless the path has that key.
fn register<P: Path>(path: &P, key: Key, service_action_key: Key, aptpl: bool) -> Completion {
    let out = ReserveOut::Register { key, service_action_key, initiator_ports: None, all_tg_pt: false, aptpl };
    path.retry(encode(&out).command()).0
}

fn is_good(completion: &Completion) -> bool {
    matches!(completion, Completion::Good(_))
}

const GOOD: Completion = Completion::Good(Vec::new());

const NOT_READY: Completion = Completion::CheckCondition(Sense::fixed(SenseCode::NOT_READY));

/// The reservation of the unit. `Err` is the answer when it cannot be read.
fn held<P: Path>(paths: &[P]) -> Result<Option<Held>, Completion> {
    let data = read(paths, ReserveInAction::ReadReservation)?;
    match Reservation::parse(&data) {
        Ok(parsed) => Ok(parsed.value.held),
        Err(_) => Err(Completion::check(SenseCode::LUN_COMMUNICATION_FAILURE)),
    }
}

/// Whether registrations survive a loss of power now (PTPL_A).
pub(super) fn is_persistent<P: Path>(paths: &[P]) -> bool {
    let data = read(paths, ReserveInAction::ReportCapabilities).unwrap_or_default();
    Capabilities::parse(&data).is_ok_and(|parsed| parsed.value.ptpl_a)
}

/// The keys of all registrations; `None` when they cannot all be read.
fn keys<P: Path>(paths: &[P]) -> Option<Vec<Key>> {
    let parsed = Keys::parse(&read(paths, ReserveInAction::ReadKeys).ok()?).ok()?;
    (!parsed.truncated).then_some(parsed.value.keys)
}

/// The data that PERSISTENT RESERVE IN returns; `Err` is the answer without data.
pub(super) fn read<P: Path>(paths: &[P], action: ReserveInAction) -> Result<Vec<u8>, Completion> {
    let command = ReserveIn::new(action, 8192).encode();
    match ask(paths, |path| path.retry(command.command())).unwrap_or(NOT_READY) {
        Completion::Good(data) => Ok(data),
        refusal => Err(refusal),
    }
}

/// Sends `command` by one path after the other, until the unit's answer is `wanted`. Else returns the unit's first answer;
/// else the failure of the first path.
fn first<P: Path>(paths: &[P], command: &CommandBuf, wanted: impl Fn(&Completion) -> bool) -> Completion {
    let (mut answer, mut failure) = (None, None);
    for path in paths {
        match path.retry(command.command()) {
            (completion, Reached::Unit) if wanted(&completion) => return completion,
            (completion, Reached::Unit) => answer = answer.or(Some(completion)),
            (completion, _) => failure = failure.or(Some(completion)),
        }
    }
    answer.or(failure).unwrap_or(NOT_READY)
}

fn encode(out: &ReserveOut) -> CommandBuf {
    out.encode().expect("a parameter list without TransportIDs is short")
}

#[cfg(test)]
mod tests;
