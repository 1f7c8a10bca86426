//! The commands by which an initiator changes reservations: PERSISTENT RESERVE OUT.

use scsi_pr::{Completion, Key, ReserveOut, ScopeType, Type};
use scsi_pr_daemon::log::escape;
use serde_json::json;

use super::access::{Access, Sender, Unit};
use super::failure::{Code, Effect, Failure};
use super::options::{Clear, Move, Preempt, Register, Release, Reserve, Target, Unregister};
use super::output::{self, Format};
use super::report::{KeyReport, ReservationReport, StateReport};
use super::{causes, consent, read, show, text};

/// A change, ready to be sent.
struct Change {
    request: ReserveOut,
    /// "registered key 0x…".
    done: String,
    /// The remedy for a RESERVATION CONFLICT.
    hint: String,
}

pub(crate) fn register(options: &Register) -> Result<(), Failure> {
    let Register { target, key, old_key, ignore_existing, aptpl, all_tg_pt } = options;
    let (aptpl, all_tg_pt, service_action_key) = (*aptpl, *all_tg_pt, *key);
    run(target, |_| {
        let request = match ignore_existing {
            true => ReserveOut::RegisterAndIgnoreExistingKey { service_action_key, all_tg_pt, aptpl },
            false => ReserveOut::Register {
                key: old_key.unwrap_or(Key::ZERO),
                service_action_key,
                initiator_ports: None,
                all_tg_pt,
                aptpl,
            },
        };
        let hint = "this initiator has registered another key: give that key with --old-key, or use --ignore-existing";
        Ok(Change { request, done: format!("registered key {}", shown(*key)), hint: hint.to_owned() })
    })
}

pub(crate) fn unregister(options: &Unregister) -> Result<(), Failure> {
    run(&options.target, |unit| {
        // APTPL of the last REGISTER counts for the whole unit, and for all other registrants.
        let aptpl = read::capabilities(unit).is_ok_and(|capabilities| capabilities.ptpl_a);
        let (service_action_key, all_tg_pt) = (Key::ZERO, false);
        let request = match options.key {
            Some(key) => ReserveOut::Register { key, service_action_key, initiator_ports: None, all_tg_pt, aptpl },
            None => ReserveOut::RegisterAndIgnoreExistingKey { service_action_key, all_tg_pt, aptpl },
        };
        let hint = "this initiator is not registered with that key: see \"scsi-pr show\"";
        Ok(Change { request, done: "unregistered".to_owned(), hint: hint.to_owned() })
    })
}

pub(crate) fn reserve(options: &Reserve) -> Result<(), Failure> {
    let (key, reservation_type) = (options.own.key, options.reservation_type.0);
    run(&options.target, |_| {
        let hint = format!(
            "this initiator is not registered with key {key}, or there is another reservation: see \"scsi-pr show\""
        );
        Ok(Change {
            request: ReserveOut::Reserve { key, reservation_type },
            done: format!("reserved, {reservation_type}"),
            hint,
        })
    })
}

pub(crate) fn release(options: &Release) -> Result<(), Failure> {
    let key = options.own.key;
    run(&options.target, |unit| {
        let reservation_type = match options.reservation_type {
            Some(option) => option.0,
            // Without a reservation, the type does not count.
            None => read::reservation(unit)?.held.map_or(Type::WriteExclusive, |held| held.reservation_type),
        };
        let request = ReserveOut::Release { key, reservation_type };
        Ok(Change { request, done: "RELEASE is done".to_owned(), hint: not_registered(key) })
    })
}

pub(crate) fn clear(options: &Clear) -> Result<(), Failure> {
    let key = options.own.key;
    run(&options.target, |unit| {
        let state = read::state(unit)?;
        let intention = format!(
            "CLEAR removes the reservation of {} ({}) and all registrations: {}",
            unit.name,
            text::reservation(state.reservation.as_ref()),
            consent::names(&state.registrations)
        );
        consent::ask(options.consent, &intention)?;
        let request = ReserveOut::Clear { key };
        Ok(Change { request, done: "cleared".to_owned(), hint: not_registered(key) })
    })
}

pub(crate) fn preempt(options: &Preempt) -> Result<(), Failure> {
    let (key, victim) = (options.own.key, options.victim);
    run(&options.target, |unit| {
        let state = read::state(unit)?;
        let held = state.reservation.as_ref().map(|held| held.reservation_type);
        let reservation_type = match options.reservation_type {
            Some(option) => option.0,
            // Without a reservation, the type does not count, but some targets check it.
            None => held.unwrap_or(Type::WriteExclusiveRegistrantsOnly),
        };
        consent::ask(options.consent, &intention_of_preempt(&unit.name, options, &state))?;
        let scope_type = ScopeType::from(reservation_type);
        let request = match options.abort {
            true => ReserveOut::PreemptAndAbort { key, service_action_key: victim, scope_type },
            false => ReserveOut::Preempt { key, service_action_key: victim, scope_type },
        };
        let hint = format!(
            "this initiator is not registered with key {key}, or no initiator is registered with key {victim}: \
             see \"scsi-pr show\""
        );
        Ok(Change { request, done: format!("preempted key {}", shown(victim)), hint })
    })
}

fn intention_of_preempt(name: &str, options: &Preempt, state: &StateReport) -> String {
    let victim = shown(options.victim);
    let act = if options.abort { "PREEMPT AND ABORT" } else { "PREEMPT" };
    let is_victim = |key: &KeyReport| options.victim.is_zero() || *key == KeyReport::from(options.victim);
    let victims: Vec<_> = state.registrations.iter().filter(|one| is_victim(&one.key)).collect();
    let of_whom = match options.victim.is_zero() {
        true => "all other registrations".to_owned(),
        false => format!("the registrations with key {victim}"),
    };
    let commands = if options.abort { "; it aborts their commands" } else { "" };
    let holds = victims.iter().any(|one| one.holder != Some(false));
    let reservation = match (&state.reservation, holds) {
        (Some(held), true) if !held.all_registrants => "; this initiator gets the reservation",
        _ => "",
    };
    let names = consent::names(victims);
    format!("{act} removes {of_whom} of {name}: {names}{reservation}{commands}")
}

pub(crate) fn hand_over(options: &Move) -> Result<(), Failure> {
    let (key, to) = (options.own.key, &options.to.0);
    run(&options.target, |unit| {
        let after = match options.unregister {
            true => "; this initiator is unregistered",
            false => "; this initiator stays registered",
        };
        let intention = format!(
            "REGISTER AND MOVE registers {} at target port {} of {} with key {}, and hands it the reservation{after}",
            super::report::initiator_name(to),
            options.to_port,
            unit.name,
            shown(options.to_key)
        );
        consent::ask(options.consent, &intention)?;
        let request = ReserveOut::RegisterAndMove {
            key,
            service_action_key: options.to_key,
            unregister: options.unregister,
            aptpl: options.aptpl,
            relative_target_port: options.to_port,
            transport_id: to.clone(),
        };
        let hint = format!("this initiator does not hold the reservation with key {key}: see \"scsi-pr show\"");
        let done = format!("moved the reservation to {}", super::report::initiator_name(to));
        Ok(Change { request, done, hint })
    })
}

fn not_registered(key: Key) -> String {
    format!("this initiator is not registered with key {key}: see \"scsi-pr show\"")
}

fn shown(key: Key) -> String {
    text::key(&key.into())
}

/// Sends a change, and prints what the reservation is afterwards.
fn run(target: &Target, prepare: impl FnOnce(&Unit) -> Result<Change, Failure>) -> Result<(), Failure> {
    let name = target.device.to_string_lossy();
    let format = Format::of(target.output.json);
    let result =
        Access::open(&target.access).and_then(|access| access.unit(&target.device, Effect::Changes)).and_then(|unit| {
            let change = prepare(&unit)?;
            send(&unit, Sender::Own, &change.request, &change.hint)?;
            Ok((unit, change.done))
        });
    let (unit, done) = match result {
        Ok(done) => done,
        Err(failure) => {
            let failure = causes::explain(failure).of(&name);
            if format == Format::Json {
                output::print_json(&show::of_failure(&name, &failure))?;
            }
            return Err(failure);
        }
    };
    // The change is made, whether or not this reading succeeds.
    let after = read::reservation(&unit).map(|reservation| reservation.held.map(ReservationReport::from)).ok();
    let printed = match format {
        Format::Json => {
            let mut value = json!({ "device": name, "unit": unit.identifier, "done": done, "exit-code": 0 });
            if let Some(after) = after {
                value["reservation"] = json!(after);
            }
            output::print_json(&value)
        }
        Format::Text => {
            let after = after.map(|after| format!("; reservation: {}", text::reservation(after.as_ref())));
            output::print(&format!("{}: {done}{}\n", escape(&name), after.unwrap_or_default()))
        }
    };
    let unprinted =
        |failure: Failure| Failure::new(failure.code(), format!("the change is made ({done}), but {failure}"));
    printed.map(drop).map_err(unprinted)
}

/// Sends PERSISTENT RESERVE OUT. `hint` says what to do about a RESERVATION CONFLICT.
pub(crate) fn send(unit: &Unit, sender: Sender<'_>, request: &ReserveOut, hint: &str) -> Result<(), Failure> {
    let command = request.encode().map_err(|error| Failure::new(Code::Failure, error))?;
    match unit.execute(sender, command.command())? {
        Completion::Good(_) => Ok(()),
        other => Err(Failure::of_completion(&other, Effect::Changes, hint).of(request.action())),
    }
}
