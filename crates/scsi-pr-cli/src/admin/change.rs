//! The commands by which an initiator changes reservations: PERSISTENT RESERVE OUT.

use scsi_pr::{Completion, Key, ReserveOut, ScopeType, Type};
use scsi_pr_daemon::log::escape;
use serde_json::json;

use super::access::{Access, Condition, Sender, Unit};
use super::failure::{Code, Effect, Failure};
use super::options::{
    Clear, Consent, Move, OwnKey, Preempt, Register, Release, ReplaceLost, Reserve, Target, Unregister,
};
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
    /// The state to which the administrator agreed; `None` if there was no question.
    condition: Option<Condition>,
}

pub(crate) fn register(options: &Register) -> Result<(), Failure> {
    let Register { target, key, old_key, ignore_existing, aptpl, all_tg_pt, spec_i_pt } = options;
    let (aptpl, all_tg_pt, service_action_key) = (*aptpl, *all_tg_pt, *key);
    run(target, |_, _| {
        let request = match ignore_existing {
            true => ReserveOut::RegisterAndIgnoreExistingKey { service_action_key, all_tg_pt, aptpl },
            false => ReserveOut::Register {
                key: old_key.unwrap_or(Key::ZERO),
                service_action_key,
                initiator_ports: match &spec_i_pt[..] {
                    [] => None,
                    ports => Some(ports.iter().map(|port| port.0.clone()).collect()),
                },
                all_tg_pt,
                aptpl,
            },
        };
        let hint =
            "this initiator has registered a key already: give that key with --old-key, or use --ignore-existing";
        Ok(Change { request, done: format!("registered key {}", shown(*key)), hint: hint.to_owned(), condition: None })
    })
}

pub(crate) fn unregister(options: &Unregister) -> Result<(), Failure> {
    let Unregister { target, consent, .. } = options;
    run(target, |access, unit| {
        let condition =
            agree_as_other(access, unit, target, *consent, "REGISTER with key 0 removes the registrations of")?;
        // APTPL of the last REGISTER counts for the whole unit, and for all other registrants.
        let aptpl = read::capabilities(unit).is_ok_and(|capabilities| capabilities.ptpl_a);
        let (service_action_key, all_tg_pt) = (Key::ZERO, false);
        let request = match options.key {
            Some(key) => ReserveOut::Register { key, service_action_key, initiator_ports: None, all_tg_pt, aptpl },
            None => ReserveOut::RegisterAndIgnoreExistingKey { service_action_key, all_tg_pt, aptpl },
        };
        let hint = "this initiator is not registered with that key: see \"scsi-pr show\"";
        Ok(Change { request, done: "unregistered".to_owned(), hint: hint.to_owned(), condition })
    })
}

pub(crate) fn reserve(options: &Reserve) -> Result<(), Failure> {
    let (key, reservation_type) = (options.own.key, options.reservation_type.0);
    run(&options.target, |_, _| {
        let hint = format!(
            "this initiator is not registered with key {key}, or there is another reservation: see \"scsi-pr show\""
        );
        Ok(Change {
            request: ReserveOut::Reserve { key, reservation_type },
            done: format!("reserved, {reservation_type}"),
            hint,
            condition: None,
        })
    })
}

pub(crate) fn release(options: &Release) -> Result<(), Failure> {
    let Release { own: OwnKey { key }, target, consent, .. } = options;
    let key = *key;
    run(target, |access, unit| {
        let condition = agree_as_other(access, unit, target, *consent, "RELEASE gives up the reservation, as")?;
        let reservation_type = match options.reservation_type {
            Some(option) => option.0,
            // Without a reservation, the type does not count.
            None => read::reservation(unit)?.held.map_or(Type::WriteExclusive, |held| held.reservation_type),
        };
        let request = ReserveOut::Release { key, reservation_type };
        Ok(Change { request, done: "RELEASE is done".to_owned(), hint: not_registered(key), condition })
    })
}

pub(crate) fn clear(options: &Clear) -> Result<(), Failure> {
    let key = options.own.key;
    run(&options.target, |_, unit| {
        let (state, condition) = read::state_for_change(unit)?;
        let intention = format!(
            "CLEAR removes the reservation of {} ({}) and all registrations: {}",
            unit.name,
            text::reservation(state.reservation.as_ref()),
            consent::names(&state.registrations)
        );
        let condition = agree(unit, options.consent, &intention, &state, condition)?;
        let request = ReserveOut::Clear { key };
        Ok(Change { request, done: "cleared".to_owned(), hint: not_registered(key), condition })
    })
}

pub(crate) fn preempt(options: &Preempt) -> Result<(), Failure> {
    let (key, victim) = (options.own.key, options.victim);
    run(&options.target, |_, unit| {
        let (state, condition) = read::state_for_change(unit)?;
        let held = state.reservation.as_ref().map(|held| held.reservation_type);
        let reservation_type = match options.reservation_type {
            Some(option) => option.0,
            // Without a reservation, the type does not count, but some targets check it.
            None => held.unwrap_or(Type::WriteExclusiveRegistrantsOnly),
        };
        let intention = intention_of_preempt(&unit.name, options, &state);
        let condition = agree(unit, options.consent, &intention, &state, condition)?;
        let scope_type = ScopeType::from(reservation_type);
        let request = match options.abort {
            true => ReserveOut::PreemptAndAbort { key, service_action_key: victim, scope_type },
            false => ReserveOut::Preempt { key, service_action_key: victim, scope_type },
        };
        let hint = format!(
            "this initiator is not registered with key {key}, or no initiator is registered with key {victim}: \
             see \"scsi-pr show\""
        );
        Ok(Change { request, done: format!("preempted key {}", shown(victim)), hint, condition })
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
    run(&options.target, |_, unit| {
        let (state, condition) = read::state_for_change(unit)?;
        if state.reservation.is_none() {
            return Err(Failure::new(Code::Failure, "there is no reservation to move: see \"scsi-pr reserve\""));
        }
        let after = match options.unregister {
            true => "; this initiator is unregistered",
            false => "; this initiator stays registered",
        };
        let intention = format!(
            "REGISTER AND MOVE registers {} at target port {} of {} with key {}, and hands it the reservation ({}){after}",
            super::report::initiator_name(to),
            options.to_port,
            unit.name,
            shown(options.to_key),
            text::reservation(state.reservation.as_ref())
        );
        let condition = agree(unit, options.consent, &intention, &state, condition)?;
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
        Ok(Change { request, done, hint, condition })
    })
}

pub(crate) fn replace_lost(options: &ReplaceLost) -> Result<(), Failure> {
    let ReplaceLost { key, reservation_type, aptpl, consent, target } = options;
    run(target, |_, unit| {
        // The unit may not be able to report its state.
        let intention = format!(
            "REPLACE LOST RESERVATION ends all registrations and reservations of {} that the unit has lost. Other initiators must \
             register again. This initiator is registered with key {}, and holds the reservation: {}",
            unit.name,
            shown(*key),
            reservation_type.0
        );
        consent::ask(*consent, &intention)?;
        let request = ReserveOut::ReplaceLostReservation {
            key: Key::ZERO,
            service_action_key: *key,
            reservation_type: reservation_type.0,
            aptpl: *aptpl,
        };
        let hint = "the unit has lost no reservation: see \"scsi-pr show\"";
        let done = format!("replaced the lost reservation, {}", reservation_type.0);
        Ok(Change { request, done, hint: hint.to_owned(), condition: None })
    })
}

/// Asks, and reads the unit again: what `intention` describes must still hold.
fn agree(
    unit: &Unit,
    consent: Consent,
    intention: &str,
    state: &StateReport,
    condition: Condition,
) -> Result<Option<Condition>, Failure> {
    consent::ask(consent, intention)?;
    if read::state(unit)? != *state {
        return Err(Failure::changed_meanwhile());
    }
    Ok(Some(condition))
}

/// The same of a change as another initiator (`--as`), whose machine may rely on its reservation. Without `--as`, there is no
/// question.
fn agree_as_other(
    access: &Access,
    unit: &Unit,
    target: &Target,
    consent: Consent,
    act: &str,
) -> Result<Option<Condition>, Failure> {
    let Some(name) = &target.access.initiator else { return Ok(None) };
    let name = access.initiator(name)?;
    let (state, condition) = read::state_for_change(unit)?;
    let own = consent::names(state.registrations.iter().filter(|one| one.own));
    let held = text::reservation(state.reservation.as_ref());
    let session = match access.has_session(unit, &name)? {
        Some(true) => "; its machine has a session with the unit now, so it still runs",
        _ => "",
    };
    let intention = format!("{act} {name}: {own}; {}: {held}{session}", unit.name);
    agree(unit, consent, &intention, &state, condition)
}

fn not_registered(key: Key) -> String {
    format!("this initiator is not registered with key {key}: see \"scsi-pr show\"")
}

fn shown(key: Key) -> String {
    text::key(&key.into())
}

/// Sends a change, and prints what the reservation is afterwards.
fn run(target: &Target, prepare: impl FnOnce(&Access, &Unit) -> Result<Change, Failure>) -> Result<(), Failure> {
    let name = target.device.to_string_lossy();
    let format = Format::of(target.output.json);
    let result = Access::open(&target.access).and_then(|access| {
        let unit = access.unit(&target.device, Effect::Changes)?;
        let change = prepare(&access, &unit)?;
        send(&unit, Sender::Own, &change.request, change.condition.as_ref(), &change.hint)?;
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

/// Sends PERSISTENT RESERVE OUT, if `condition` holds. `hint` says what to do about a RESERVATION CONFLICT.
pub(crate) fn send(
    unit: &Unit,
    sender: Sender<'_>,
    request: &ReserveOut,
    condition: Option<&Condition>,
    hint: &str,
) -> Result<(), Failure> {
    let command = request.encode().map_err(|error| Failure::new(Code::Failure, error))?;
    let completion = match condition {
        Some(condition) => unit.execute_if(sender, command.command(), condition),
        None => unit.execute(sender, command.command()),
    };
    match completion? {
        Completion::Good(_) => Ok(()),
        other => Err(Failure::of_completion(&other, Effect::Changes, hint).of(request.action())),
    }
}
