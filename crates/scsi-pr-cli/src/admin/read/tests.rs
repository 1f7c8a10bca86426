use std::sync::Mutex;

use scsi_pr::{Command, Generation, Key, Nexus, Reservations, ReserveOut, SenseCode, Status, TransportId, Type};

use super::*;
use crate::admin::access::AccessPath;
use crate::admin::report::Own;

/// A unit that answers as [`Reservations`] do, or otherwise.
struct Fake {
    reservations: Mutex<Reservations>,
    answer: fn(&mut Reservations, ReserveIn) -> Option<Completion>,
}

fn nexus(number: u64) -> Nexus {
    let name = format!("iqn.2001-04.com.example:{number},i,0x00023d000001");
    Nexus::new(name.parse::<TransportId>().unwrap(), 1)
}

impl AccessPath for Fake {
    fn execute(&self, _: Sender<'_>, command: Command<'_>) -> Result<Completion, Failure> {
        let mut reservations = self.reservations.lock().unwrap();
        let value = ReserveIn::parse(command).unwrap();
        Ok((self.answer)(&mut reservations, value).unwrap_or_else(|| reservations.reserve_in(&nexus(1), &value)))
    }

    fn own(&self) -> Own<'_> {
        Own { is_own: Box::new(|port| port == nexus(1).initiator()), remark: "this host" }
    }
}

fn register(reservations: &mut Reservations, number: u64) {
    let request =
        ReserveOut::RegisterAndIgnoreExistingKey { service_action_key: Key(number), all_tg_pt: false, aptpl: false };
    let _ = reservations.process(&nexus(number), request.encode().unwrap().command());
}

/// A unit with registrants 1 to `count`, of which the first holds a reservation.
fn unit(count: u64, answer: fn(&mut Reservations, ReserveIn) -> Option<Completion>) -> Unit {
    let mut reservations = Reservations::new();
    (1..=count).for_each(|number| register(&mut reservations, number));
    let request = ReserveOut::Reserve { key: Key(1), reservation_type: Type::WriteExclusive };
    let _ = reservations.process(&nexus(1), request.encode().unwrap().command());
    let path = Box::new(Fake { reservations: Mutex::new(reservations), answer });
    Unit { name: "fake".to_owned(), identifier: None, path }
}

#[test]
fn long_list_is_read_again_with_more_room() {
    let report = state(&unit(500, |_, _| None)).unwrap();
    assert_eq!((report.registrations.len(), report.complete), (500, true));
    assert!(report.notes.is_empty() && report.registrations[0].own && report.registrations[0].holder == Some(true));
}

#[test]
fn registrations_beyond_the_longest_list_of_initiators_are_shown_by_key() {
    let report = state(&unit(2_000, |_, _| None)).unwrap();
    assert_eq!((report.registrations.len(), report.complete), (2_000, true));
    assert!(report.registrations.last().unwrap().initiator.is_none());
    assert!(report.notes[0].contains("of 2000 registrations"), "{:?}", report.notes);
}

#[test]
fn list_beyond_the_longest_list_of_keys_is_not_complete() {
    let unit = unit(9_000, |_, _| None);
    assert!(!state(&unit).unwrap().complete);
    assert!(!keys(&unit).unwrap().is_whole && !status(&unit).unwrap().complete);
}

/// LIO announces only the descriptors that it returns.
#[test]
fn target_that_hides_a_cut_is_read_with_the_most_room() {
    let report = state(&unit(300, |reservations, value| {
        let whole = reservations.reserve_in_data(value.action(), usize::MAX);
        (value.action() == ReserveInAction::ReadFullStatus).then(|| {
            let mut status = FullStatus::parse(&whole).unwrap().value;
            while status.encode().len() > value.allocation_length() {
                status.descriptors.pop();
            }
            Completion::Good(status.encode())
        })
    }));
    let report = report.unwrap();
    assert!(report.notes.is_empty() && report.registrations.iter().all(|one| one.initiator.is_some()));
}

#[test]
fn unit_without_full_status_is_shown_by_keys() {
    let report = state(&unit(2, |_, value| {
        (value.action() == ReserveInAction::ReadFullStatus).then(|| Completion::check(SenseCode::INVALID_FIELD_IN_CDB))
    }));
    let report = report.unwrap();
    let holders: Vec<_> = report.registrations.iter().map(|one| (one.initiator.clone(), one.holder)).collect();
    assert_eq!(holders, [(None, Some(true)), (None, Some(false))]);
    assert!(report.notes[0].contains("READ FULL STATUS"));
}

#[test]
fn unit_attention_is_taken_and_the_command_sent_again() {
    let report = state(&unit(1, |reservations, _| {
        let is_first = reservations.generation() == Generation(1);
        register(reservations, 2);
        is_first.then(|| Completion::check(SenseCode::RESERVATIONS_PREEMPTED))
    }));
    // Each reading of this unit is of another generation.
    assert_eq!(report.unwrap_err().code(), Code::Unavailable);
    let pending = unit(1, |_, _| Some(Completion::check(SenseCode::RESET)));
    assert_eq!(keys(&pending).unwrap_err().code(), Code::Unavailable);
}

#[test]
fn readings_that_disagree_are_read_again_and_noted() {
    let report = state(&unit(1, |reservations, value| {
        (value.action() == ReserveInAction::ReadReservation)
            .then(|| Completion::Good(Reservation { generation: reservations.generation(), held: None }.encode()))
    }));
    assert!(report.unwrap().notes[0].contains("disagree"));
}

#[test]
fn refusals_have_their_codes() {
    let code = |answer| keys(&unit(1, answer)).unwrap_err().code();
    assert_eq!(code(|_, _| Some(Completion::Status(Status::RESERVATION_CONFLICT))), Code::Conflict);
    assert_eq!(code(|_, _| Some(Completion::check(SenseCode::INVALID_OPCODE))), Code::Unsupported);
    assert_eq!(code(|_, _| Some(Completion::Good(vec![1, 2]))), Code::Failure);
}
