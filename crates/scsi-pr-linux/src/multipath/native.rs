//! What is done path by path, because libmpathpersist must not be left alone with it.
//!
//! * RELEASE. The library up to 0.11 takes any reservation that is there after its RELEASE for one that a dead path of
//!   its own holds, and clears the unit: the reservations and registrations of other hosts too. From 0.13 on it takes the
//!   holder over, but only for its own key.
//! * PREEMPT of one's own key, and of all keys, takes the registrations of the map's other paths away. Before 0.14 the
//!   library leaves it at that.
//! * RESERVE is refused to the holder when it comes by another path than the holder's.
//! * Every command but a REGISTER is refused when it comes by a path that is not registered, and a REGISTER that one path
//!   refuses is undone on the others (before 0.13) so that the host ends up with no key at all.

use scsi_pr::{
    Capabilities, Command, CommandBuf, Completion, Held, Key, Keys, MAX_TRANSFER, Reservation, ReserveIn,
    ReserveInAction, ReserveOut, ScopeType, Sense, SenseCode, Status, Type,
};

use super::route::{Route, is_not_ready};
use crate::sg_io::Reached;

/// What [`release`] did.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Released {
    pub(super) completion: Completion,
    /// What became of the registrations, if the holder's path was dead and they had to be made anew.
    pub(super) restored: Option<Restored>,
}

/// What [`restore`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Restored {
    /// Nothing: the key is registered by none of the paths that work.
    NotRegistered,
    /// Every path that works is registered: so many were not before, and so many failed.
    Whole { registered: usize, failed: usize },
    /// Another host has preempted this one meanwhile: what was registered again was taken back.
    Preempted,
}

/// What a PERSISTENT RESERVE IN is answered with, by the first path that carries it to the unit and back. Another path is
/// asked also when the unit is not ready by this one. `None` when there is no path at all.
pub(super) fn ask<R: Route>(routes: &[R], send: impl Fn(&R) -> (Completion, Reached)) -> Option<Completion> {
    let mut last = None;
    for route in routes {
        match send(route) {
            (completion, Reached::Unit) if !is_not_ready(&completion) => return Some(completion),
            // What the unit says tells more than that a path is dead.
            (completion, Reached::Unit) => last = Some(completion),
            (completion, _) => last = last.or(Some(completion)),
        }
    }
    last
}

/// RELEASE of `reservation_type` with `key`.
///
/// Only a reservation that is this key's and of this type is released through every path: the unit releases for the
/// nexus that holds it, which any of them may be. When none of those that work is, the holder is taken over first. In
/// every other case the unit is just told, by one path, and its answer is the answer. With `by_library`, a library that
/// may be trusted with the first case has it.
pub(super) fn release<R: Route>(
    routes: &[R],
    key: Key,
    reservation_type: Type,
    by_library: impl FnOnce() -> Option<Completion>,
) -> Released {
    let command = encode(&ReserveOut::Release { key, reservation_type });
    let done = |completion| Released { completion, restored: None };
    let held = match held(routes) {
        Ok(held) => held,
        Err(completion) => return done(completion),
    };
    let ours = held.filter(|held| held.key == key && !held.reservation_type.is_all_registrants());
    let Some(ours) = ours else {
        return done(first(routes, &command, is_good));
    };
    if ours.reservation_type != reservation_type {
        let refusal = first(routes, &command, |completion| !is_good(completion));
        // By paths that do not hold it, the unit says that nothing was to be done.
        return done(if is_good(&refusal) { Completion::check(SenseCode::INVALID_RELEASE) } else { refusal });
    }
    let aptpl = is_persistent(routes);
    if let Some(completion) = by_library() {
        // Where it registers again, it does so without APTPL.
        let restored = (aptpl && is_good(&completion)).then(|| restore(routes, key, aptpl));
        return Released { completion, restored };
    }

    let answers: Vec<_> = routes.iter().map(|route| (route, route.insist(command.command()).0)).collect();
    let good = answers.iter().find(|(_, completion)| is_good(completion)).map(|(route, _)| *route);
    // No path at all was excluded by asking who holds the reservation.
    let Some(route) = good else { return done(answers.into_iter().next().map_or(NOT_READY, |(_, refusal)| refusal)) };
    match self::held(routes) {
        Ok(now) if now == Some(ours) => take_over(routes, route, key, reservation_type, aptpl),
        Ok(_) => done(GOOD),
        // Nobody knows whether it was released.
        Err(completion) => done(completion),
    }
}

/// Gives up what `key` holds, if it holds anything, before the host unregisters: with a path that is dead, or dies
/// meanwhile, the unit would leave the reservation with that path's registration, where nobody but another host's PREEMPT
/// gets it from.
pub(super) fn release_before_unregistering<R: Route>(routes: &[R], key: Key) -> Released {
    match held(routes) {
        Ok(Some(Held { key: holder, reservation_type })) if holder == key && !reservation_type.is_all_registrants() => {
            release(routes, key, reservation_type, || None)
        }
        Ok(_) => Released { completion: GOOD, restored: None },
        Err(completion) => Released { completion, restored: None },
    }
}

/// Releases a reservation of this key whose holder cannot be reached, by making `route` the holder. This takes away the
/// registrations of all other paths, those that are dead included; the others get theirs back.
fn take_over<R: Route>(routes: &[R], route: &R, key: Key, reservation_type: Type, aptpl: bool) -> Released {
    let send = |out| route.insist(encode(&out).command()).0;
    let preempted =
        send(ReserveOut::Preempt { key, service_action_key: key, scope_type: ScopeType::from(reservation_type) });
    if !is_good(&preempted) {
        return Released { completion: preempted, restored: None };
    }
    let completion = send(ReserveOut::Release { key, reservation_type });
    Released { completion, restored: Some(restore(routes, key, aptpl)) }
}

/// RESERVE again by every path, after one of them was refused: the holder may reserve again what it holds, and which of the
/// paths that is the unit knows alone. Whether one was.
pub(super) fn reserve_as_holder<R: Route>(routes: &[R], command: Command<'_>) -> bool {
    routes.iter().any(|route| is_good(&route.insist(command).0))
}

/// Registers `key` on every path that works and is not registered, if the host is registered with it by another: after a
/// PREEMPT by one of the others has taken its registration away, or when it was dead for so short a time that multipathd
/// did not notice.
///
/// With `aptpl`, registrations survive a loss of power afterwards; without it, they do not. The last one to register
/// decides it for all, so it should be what [`is_persistent`] said before anything was changed.
///
/// Nothing is sent when as many registrations have the key as there are paths that work: each REGISTER counts in
/// PRGENERATION, which others may watch.
///
/// One path that is registered is asked for it before and after. If it is not any more, another host has preempted this
/// one in between, and must not find it registered again.
pub(super) fn restore<R: Route>(routes: &[R], key: Key, aptpl: bool) -> Restored {
    if count(routes, key).is_some_and(|count| count >= routes.len()) && is_persistent(routes) == aptpl {
        return Restored::Whole { registered: 0, failed: 0 };
    }
    let register = |route: &R, key, service_action_key| register(route, key, service_action_key, aptpl);
    // Who changes his key to the same changes nothing, and is refused if it is not his.
    let is_registered = |route: &R| is_good(&register(route, key, key));
    let Some(anchor) = routes.iter().position(is_registered) else { return Restored::NotRegistered };
    let (mut registered, mut failed) = (Vec::new(), 0);
    for route in routes.iter().enumerate().filter_map(|(index, route)| (index != anchor).then_some(route)) {
        match register(route, Key::ZERO, key) {
            Completion::Good(_) => registered.push(route),
            // Who has a key must name it.
            Completion::Status(Status::RESERVATION_CONFLICT) => {}
            _ => failed += 1,
        }
    }
    if is_registered(&routes[anchor]) {
        return Restored::Whole { registered: registered.len(), failed };
    }
    for route in registered {
        register(route, key, Key::ZERO);
    }
    Restored::Preempted
}

/// Whether `key` is registered by one of the paths.
pub(super) fn is_registered<R: Route>(routes: &[R], key: Key) -> bool {
    let aptpl = is_persistent(routes);
    routes.iter().any(|route| is_good(&register(route, key, key, aptpl)))
}

fn register<R: Route>(route: &R, key: Key, service_action_key: Key, aptpl: bool) -> Completion {
    let out = ReserveOut::Register { key, service_action_key, initiator_ports: None, all_tg_pt: false, aptpl };
    route.insist(encode(&out).command()).0
}

fn is_good(completion: &Completion) -> bool {
    matches!(completion, Completion::Good(_))
}

const GOOD: Completion = Completion::Good(Vec::new());

const NOT_READY: Completion = Completion::CheckCondition(Sense::fixed(SenseCode::NOT_READY));

/// The reservation of the unit, or why it cannot be read.
fn held<R: Route>(routes: &[R]) -> Result<Option<Held>, Completion> {
    let data = read(routes, ReserveInAction::ReadReservation)?;
    match Reservation::parse(&data) {
        Ok(parsed) => Ok(parsed.value.held),
        Err(_) => Err(Completion::check(SenseCode::LUN_COMMUNICATION_FAILURE)),
    }
}

/// Whether registrations survive a loss of power now (PTPL_A).
pub(super) fn is_persistent<R: Route>(routes: &[R]) -> bool {
    let data = read(routes, ReserveInAction::ReportCapabilities).unwrap_or_default();
    Capabilities::parse(&data).is_ok_and(|parsed| parsed.value.ptpl_a)
}

/// How many registrations have this key; `None` when that cannot be read.
pub(super) fn count<R: Route>(routes: &[R], key: Key) -> Option<usize> {
    let keys = Keys::parse(&read(routes, ReserveInAction::ReadKeys).ok()?).ok()?;
    (!keys.truncated).then(|| keys.value.keys.iter().filter(|registered| **registered == key).count())
}

/// The data that PERSISTENT RESERVE IN returns; `Err` is the answer that has none.
pub(super) fn read<R: Route>(routes: &[R], action: ReserveInAction) -> Result<Vec<u8>, Completion> {
    let command = ReserveIn::new(action, MAX_TRANSFER).encode();
    match ask(routes, |route| route.insist(command.command())).unwrap_or(NOT_READY) {
        Completion::Good(data) => Ok(data),
        refusal => Err(refusal),
    }
}

/// The first answer of the unit that `is_it`; else its first answer; else what came of the first path.
fn first<R: Route>(routes: &[R], command: &CommandBuf, is_it: impl Fn(&Completion) -> bool) -> Completion {
    let (mut answer, mut failure) = (None, None);
    for route in routes {
        match route.insist(command.command()) {
            (completion, Reached::Unit) if is_it(&completion) => return completion,
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
