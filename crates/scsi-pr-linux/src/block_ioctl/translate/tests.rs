//! The translation over drivers that are not there: what is asked of them, and each way to fail.

mod histories;

use super::*;
use crate::NotPermitted;
use scsi_pr::{ScopeType, TransportId};
use std::cell::{Cell, RefCell};

const SCSI: DriverQuirks = DriverQuirks { device_mapper: false, nvme: false };
const NVME: DriverQuirks = DriverQuirks { device_mapper: false, nvme: true };
const MAPPED: DriverQuirks = DriverQuirks { device_mapper: true, nvme: false };

fn check<T>(code: SenseCode) -> Result<Completion, T> {
    Ok(Completion::check(code))
}

fn good<T>() -> Result<Completion, T> {
    Ok(Completion::Good(Vec::new()))
}

/// Answers each ioctl by its script, and records the ioctls.
struct Script {
    issued: RefCell<Vec<Request>>,
    /// The results of the next changes; after the last, success.
    outcomes: RefCell<Vec<Result<(), Failure>>>,
    keys: Result<Vec<u64>, Failure>,
    generation: Cell<u32>,
    /// How much the generation grows whenever it is read.
    restless: bool,
    rooms: RefCell<Vec<usize>>,
    held: Result<Held, Failure>,
    known: Result<bool, Errno>,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            issued: RefCell::default(),
            outcomes: RefCell::default(),
            keys: Ok(Vec::new()),
            generation: Cell::new(7),
            restless: false,
            rooms: RefCell::default(),
            held: Ok(Held { key: 0, generation: 0, kind: 0 }),
            known: Ok(true),
        }
    }
}

impl Script {
    fn failing(failure: Failure) -> Self {
        Self { outcomes: vec![Err(failure)].into(), ..Self::default() }
    }

    fn issued(&self) -> Vec<Request> {
        self.issued.take()
    }
}

impl Ioctls for Script {
    fn issue(&self, request: &Request) -> Result<(), Failure> {
        self.issued.borrow_mut().push(*request);
        let mut outcomes = self.outcomes.borrow_mut();
        if outcomes.is_empty() { Ok(()) } else { outcomes.remove(0) }
    }

    fn read_keys(&self, keys: &mut [u64]) -> Result<KeyCount, Failure> {
        self.rooms.borrow_mut().push(keys.len());
        let there = self.keys.clone()?;
        keys.iter_mut().zip(&there).for_each(|(room, key)| *room = *key);
        let generation = self.generation.get();
        self.generation.set(generation + u32::from(self.restless));
        Ok(KeyCount { generation, total: there.len() as u32 })
    }

    fn read_reservation(&self) -> Result<Held, Failure> {
        self.held
    }

    fn are_known(&self) -> Result<bool, Errno> {
        self.known
    }
}

fn ask(script: &Script, action: ReserveInAction, quirks: DriverQuirks) -> Result<Completion, CommandError> {
    read(script, &ReserveIn::new(action, MAX_TRANSFER), quirks)
}

fn data(completion: Result<Completion, CommandError>) -> Vec<u8> {
    match completion {
        Ok(Completion::Good(data)) => data,
        other => panic!("{other:?}"),
    }
}

fn register(key: u64, new: u64) -> ReserveOut {
    ReserveOut::Register {
        key: Key(key),
        service_action_key: Key(new),
        initiator_ports: None,
        all_tg_pt: false,
        aptpl: false,
    }
}

fn ignoring(new: u64) -> ReserveOut {
    ReserveOut::RegisterAndIgnoreExistingKey { service_action_key: Key(new), all_tg_pt: false, aptpl: false }
}

fn reserve(key: u64) -> ReserveOut {
    ReserveOut::Reserve { key: Key(key), reservation_type: Type::WriteExclusive }
}

fn release(key: u64) -> ReserveOut {
    ReserveOut::Release { key: Key(key), reservation_type: Type::ExclusiveAccess }
}

fn preempting(key: u64, victim: u64, scope_type: u8) -> ReserveOut {
    ReserveOut::Preempt { key: Key(key), service_action_key: Key(victim), scope_type: ScopeType(scope_type) }
}

fn aborting(key: u64, victim: u64) -> ReserveOut {
    ReserveOut::PreemptAndAbort { key: Key(key), service_action_key: Key(victim), scope_type: ScopeType(5) }
}

#[test]
fn each_service_action_is_its_ioctl_with_its_keys_in_their_places() {
    let (old, new) = (Key(1), Key(2));
    for (command, expected) in [
        (register(1, 2), Request::Register { old, new, ignore_existing: false }),
        (register(1, 0), Request::Register { old, new: Key::ZERO, ignore_existing: false }),
        (register(0, 0), Request::Register { old: Key::ZERO, new: Key::ZERO, ignore_existing: false }),
        (ignoring(2), Request::Register { old: Key::ZERO, new, ignore_existing: true }),
        (ignoring(0), Request::Register { old: Key::ZERO, new: Key::ZERO, ignore_existing: true }),
        (reserve(1), Request::Reserve { key: old, reservation_type: Type::WriteExclusive }),
        (release(1), Request::Release { key: old, reservation_type: Type::ExclusiveAccess }),
        (release(0), Request::Release { key: Key::ZERO, reservation_type: Type::ExclusiveAccess }),
        (ReserveOut::Clear { key: old }, Request::Clear { key: old }),
        (
            preempting(1, 2, 8),
            Request::Preempt {
                own: old,
                victim: new,
                reservation_type: Type::ExclusiveAccessAllRegistrants,
                abort: false,
            },
        ),
        (
            aborting(1, 2),
            Request::Preempt {
                own: old,
                victim: new,
                reservation_type: Type::WriteExclusiveRegistrantsOnly,
                abort: true,
            },
        ),
    ] {
        let script = Script::default();
        assert_eq!(write(&script, &command, SCSI), good(), "{command:?}");
        assert_eq!(script.issued(), [expected], "{command:?}");
    }
}

#[test]
fn what_the_ioctls_cannot_express_is_refused_and_not_sent() {
    let port = || TransportId::from_bytes(&[[6, 0, 0, 0].as_slice(), &[7; 8], &[0; 12]].concat()).unwrap();
    let with = |initiator_ports, all_tg_pt, aptpl| ReserveOut::Register {
        key: Key(1),
        service_action_key: Key(2),
        initiator_ports,
        all_tg_pt,
        aptpl,
    };
    let (list, cdb) = (SenseCode::INVALID_FIELD_IN_PARAMETER_LIST, SenseCode::INVALID_FIELD_IN_CDB);
    let everywhere =
        ReserveOut::RegisterAndIgnoreExistingKey { service_action_key: Key(2), all_tg_pt: true, aptpl: false };
    let for_good =
        ReserveOut::RegisterAndIgnoreExistingKey { service_action_key: Key(2), all_tg_pt: false, aptpl: true };
    let moving = ReserveOut::RegisterAndMove {
        key: Key(1),
        service_action_key: Key(2),
        unregister: true,
        aptpl: false,
        relative_target_port: 1,
        transport_id: port(),
    };
    let lost = ReserveOut::ReplaceLostReservation {
        key: Key(0),
        service_action_key: Key(2),
        reservation_type: Type::WriteExclusive,
        aptpl: false,
    };
    for (command, quirks, code) in [
        (with(Some(vec![port()]), false, false), SCSI, list),
        (with(Some(Vec::new()), false, false), SCSI, list),
        (with(None, true, false), SCSI, list),
        (everywhere, SCSI, list),
        (moving, SCSI, cdb),
        (lost, SCSI, cdb),
        // The kernel would abort nothing.
        (aborting(1, 2), MAPPED, cdb),
        // The kernel would register the key zero.
        (register(1, 0), NVME, list),
        (register(0, 0), NVME, list),
        (ignoring(0), NVME, list),
        // The kernel does not tell whether it is kept.
        (with(None, false, true), NVME, list),
        (for_good, NVME, list),
    ] {
        let script = Script::default();
        let answer = write(&script, &command, quirks);
        assert!(matches!(answer, Err(CommandError::Refused(sense, _)) if sense == code), "{command:?} {answer:?}");
        assert_eq!(script.issued(), [], "{command:?}");
    }
    // These it can, where it can.
    for (command, quirks) in [
        (with(None, false, true), SCSI),
        (with(None, false, true), MAPPED),
        (aborting(1, 2), NVME),
        (register(1, 0), MAPPED),
    ] {
        let script = Script { keys: Err(Failure::Errno(Errno::NOTTY)), ..Script::default() };
        assert_eq!(write(&script, &command, quirks), good(), "{command:?}");
    }
}

#[test]
fn a_type_that_is_none_is_refused_where_a_type_must_be_sent() {
    for scope_type in [0x00, 0x02, 0x04, 0x09, 0x15] {
        let script = Script::default();
        assert_eq!(write(&script, &preempting(1, 2, scope_type), SCSI), check(SenseCode::INVALID_FIELD_IN_CDB));
        assert_eq!(script.issued(), []);
    }
}

#[test]
fn nvme_is_not_asked_to_ignore_the_key_of_who_releases_or_clears() {
    for command in [release(0), ReserveOut::Clear { key: Key::ZERO }] {
        let script = Script::default();
        assert_eq!(write(&script, &command, NVME), Ok(CONFLICT));
        assert_eq!(script.issued(), []);
    }
}

#[test]
fn a_host_that_nvme_knows_by_another_key_replaces_it() {
    let conflict = Failure::Status(0x18);
    let first = Request::Register { old: Key::ZERO, new: Key(2), ignore_existing: true };
    let second = Request::Register { old: Key(2), new: Key(2), ignore_existing: true };
    let script = Script::failing(conflict);
    assert_eq!(write(&script, &ignoring(2), NVME), good());
    assert_eq!(script.issued(), [first, second]);
    // It was preempted in between: a conflict, but no registration.
    let script = Script { outcomes: vec![Err(conflict), Err(conflict)].into(), ..Script::default() };
    assert_eq!(write(&script, &ignoring(2), NVME), Ok(CONFLICT));
    // A SCSI disk does it in one, and only a conflict is tried otherwise.
    let script = Script::failing(conflict);
    assert_eq!((write(&script, &ignoring(2), SCSI), script.issued()), (Ok(CONFLICT), vec![first]));
    let script = Script::failing(Failure::Status(0x2));
    let lost = check(SenseCode::LUN_COMMUNICATION_FAILURE);
    assert_eq!((write(&script, &ignoring(2), NVME), script.issued()), (lost, vec![first]));
}

#[test]
fn invalid_means_what_it_can_only_mean() {
    let (list, cdb) = (SenseCode::INVALID_FIELD_IN_PARAMETER_LIST, SenseCode::INVALID_FIELD_IN_CDB);
    for (command, code) in [
        (register(0, 1), list),
        (ignoring(1), list),
        (reserve(1), cdb),
        (release(1), SenseCode::INVALID_RELEASE),
        (ReserveOut::Clear { key: Key(1) }, cdb),
        (preempting(1, 2, 1), cdb),
        (preempting(1, 0, 1), list),
        (aborting(1, 0), list),
    ] {
        let script = Script::failing(Failure::Errno(Errno::INVAL));
        assert_eq!(write(&script, &command, SCSI), check(code), "{command:?}");
    }
}

#[test]
fn keys() {
    let script = Script { keys: Ok(vec![3, 1, 3]), ..Script::default() };
    let keys = Keys { generation: Generation(7), keys: vec![Key(3), Key(1), Key(3)] };
    assert_eq!(data(ask(&script, ReserveInAction::ReadKeys, SCSI)), keys.encode());
    assert_eq!(script.rooms.take(), [60]);
    let cut = read(&script, &ReserveIn::new(ReserveInAction::ReadKeys, 16), SCSI);
    assert_eq!(data(cut), keys.encode()[..16]);
}

#[test]
fn room_for_keys_grows_to_what_a_command_can_carry() {
    for (count, rooms) in
        [(60, vec![60]), (61, vec![60, 61]), (1023, vec![60, 1023]), (1024, vec![60, 1023]), (9000, vec![60, 1023])]
    {
        let there: Vec<u64> = (1..=count).collect();
        let script = Script { keys: Ok(there.clone()), ..Script::default() };
        let data = data(ask(&script, ReserveInAction::ReadKeys, SCSI));
        assert_eq!(script.rooms.take(), rooms, "{count}");
        let all = Keys { generation: Generation(7), keys: there.into_iter().map(Key).collect() }.encode();
        // The length is that of all of them, whatever was cut.
        assert_eq!(data, all[..all.len().min(MAX_TRANSFER)], "{count}");
    }
}

#[test]
fn a_count_that_cannot_be_takes_no_memory() {
    struct Liar;
    impl Ioctls for Liar {
        fn issue(&self, _: &Request) -> Result<(), Failure> {
            unreachable!("nothing is changed")
        }
        fn read_keys(&self, _: &mut [u64]) -> Result<KeyCount, Failure> {
            Ok(KeyCount { generation: 1, total: u32::MAX })
        }
        fn read_reservation(&self) -> Result<Held, Failure> {
            unreachable!("not called")
        }
        fn are_known(&self) -> Result<bool, Errno> {
            Ok(true)
        }
    }
    let answer = data(read(&Liar, &ReserveIn::new(ReserveInAction::ReadKeys, MAX_TRANSFER), SCSI));
    assert_eq!(answer.len(), MAX_TRANSFER);
    assert_eq!(answer[..8], [0, 0, 0, 1, 0, 7, 0xff, 0xf8]);
}

#[test]
fn the_generation_of_no_reservation_is_that_of_the_keys() {
    let script = Script::default();
    let none = Reservation { generation: Generation(7), held: None };
    assert_eq!(data(ask(&script, ReserveInAction::ReadReservation, SCSI)), none.encode());
    let script = Script { restless: true, ..Script::default() };
    assert_eq!(ask(&script, ReserveInAction::ReadReservation, SCSI), Ok(Completion::Status(Status::BUSY)));
}

#[test]
fn a_reservation_has_its_type_by_scsi_and_no_key_if_it_is_everybodys() {
    for (kind, reservation_type) in (1..).zip(Type::ALL) {
        let script = Script { held: Ok(Held { key: 9, generation: 3, kind }), ..Script::default() };
        let key = if reservation_type.is_all_registrants() { Key::ZERO } else { Key(9) };
        let held = Some(HeldReservation { key, reservation_type });
        let expected = Reservation { generation: Generation(3), held };
        assert_eq!(data(ask(&script, ReserveInAction::ReadReservation, SCSI)), expected.encode());
    }
    let script = Script { held: Ok(Held { key: 9, generation: 3, kind: 7 }), ..Script::default() };
    assert_eq!(ask(&script, ReserveInAction::ReadReservation, SCSI), check(SenseCode::IO_PROCESS_TERMINATED));
}

#[test]
fn capabilities_promise_nothing_that_is_not_known() {
    for (quirks, ptpl_c) in [(SCSI, true), (MAPPED, true), (NVME, false)] {
        let data = data(ask(&Script::default(), ReserveInAction::ReportCapabilities, quirks));
        let expected = Capabilities { ptpl_c, ..Capabilities::default() };
        assert_eq!(Capabilities::parse(&data).unwrap().value, expected);
    }
    for (known, expected) in [
        (Ok(false), check(SenseCode::INVALID_OPCODE)),
        (Err(Errno::PERM), Err(CommandError::NotPermitted(NotPermitted(Errno::PERM)))),
        (Err(Errno::NODEV), check(SenseCode::TARGET_FAILURE)),
    ] {
        let script = Script { known, ..Script::default() };
        assert_eq!(ask(&script, ReserveInAction::ReportCapabilities, SCSI), expected, "{known:?}");
    }
}

#[test]
fn kernel_without_reads_differs_from_device_without_reservations() {
    for action in [ReserveInAction::ReadKeys, ReserveInAction::ReadReservation] {
        for errno in [Errno::NOTTY, Errno::OPNOTSUPP, Errno::INVAL] {
            let script = |known| Script { keys: Err(Failure::Errno(errno)), known, ..Script::default() };
            let answer = ask(&script(Ok(true)), action, SCSI);
            assert!(matches!(answer, Err(CommandError::Refused(SenseCode::INVALID_FIELD_IN_CDB, _))), "{answer:?}");
            assert_eq!(ask(&script(Ok(false)), action, SCSI), check(SenseCode::INVALID_OPCODE));
            let not_permitted = Err(CommandError::NotPermitted(NotPermitted(Errno::PERM)));
            assert_eq!(ask(&script(Err(Errno::PERM)), action, SCSI), not_permitted);
        }
        for (failure, expected) in [
            (Failure::Errno(Errno::PERM), Err(CommandError::NotPermitted(NotPermitted(Errno::PERM)))),
            (Failure::Errno(Errno::AGAIN), Ok(Completion::Status(Status::BUSY))),
            (Failure::Status(0x18), Ok(CONFLICT)),
            (Failure::Status(0x1_0000), check(SenseCode::LUN_NOT_RESPONDING)),
        ] {
            let script = Script { keys: Err(failure), ..Script::default() };
            assert_eq!(ask(&script, action, SCSI), expected, "{failure:?}");
        }
    }
    let script = Script { held: Err(Failure::Errno(Errno::OPNOTSUPP)), ..Script::default() };
    let answer = ask(&script, ReserveInAction::ReadReservation, SCSI);
    assert!(matches!(answer, Err(CommandError::Refused(SenseCode::INVALID_FIELD_IN_CDB, _))), "{answer:?}");
}

#[test]
fn read_full_status_is_refused() {
    let answer = ask(&Script::default(), ReserveInAction::ReadFullStatus, SCSI);
    assert!(matches!(answer, Err(CommandError::Refused(SenseCode::INVALID_FIELD_IN_CDB, _))), "{answer:?}");
}

#[test]
fn a_preemption_on_nvme_is_believed_when_the_key_is_gone() {
    let (done, lie) = (good(), Err(CommandError::Refused(SenseCode::TARGET_FAILURE, NOT_PREEMPTED)));
    let lost = check(SenseCode::LUN_COMMUNICATION_FAILURE);
    for (own, victim, after, expected) in [
        (1, 2, Ok(vec![1, 3]), done.clone()),
        (1, 2, Ok(vec![1, 2]), lie.clone()),
        (1, 1, Ok(vec![1, 1]), done.clone()),
        (1, 0, Ok(vec![1]), done.clone()),
        (1, 0, Ok(vec![1, 3]), lie),
        (1, 2, Err(Failure::Errno(Errno::PERM)), lost.clone()),
        (1, 2, Err(Failure::Status(0x1_0000)), lost),
    ] {
        for command in [preempting(own, victim, 5), aborting(own, victim)] {
            let shared = Held { key: 1, generation: 7, kind: 5 };
            let script = Script { keys: Ok(vec![1, 2, 3]), held: Ok(shared), ..Script::default() };
            let script = Afterwards { script, keys: after.clone() };
            assert_eq!(write(&script, &command, NVME), expected, "{command:?} {after:?}");
            // Of a SCSI disk it is believed in any case.
            let script = Script { keys: after.clone(), ..Script::default() };
            assert_eq!(write(&script, &command, SCSI), done, "{command:?}");
        }
    }
    let blind = Script { keys: Err(Failure::Errno(Errno::NOTTY)), ..Script::default() };
    assert_eq!(write(&blind, &preempting(1, 2, 5), NVME), done);
    assert_eq!(blind.issued().len(), 1);
}

/// A script whose keys are others once something was changed.
struct Afterwards {
    script: Script,
    keys: Result<Vec<u64>, Failure>,
}

impl Ioctls for Afterwards {
    fn issue(&self, request: &Request) -> Result<(), Failure> {
        self.script.issue(request)
    }

    fn read_keys(&self, keys: &mut [u64]) -> Result<KeyCount, Failure> {
        let changed = !self.script.issued.borrow().is_empty();
        let later = Script { keys: self.keys.clone(), ..Script::default() };
        if changed { later.read_keys(keys) } else { self.script.read_keys(keys) }
    }

    fn read_reservation(&self) -> Result<Held, Failure> {
        self.script.read_reservation()
    }

    fn are_known(&self) -> Result<bool, Errno> {
        self.script.are_known()
    }
}

#[test]
fn release_on_nvme_is_good_when_the_all_registrants_reservation_is_gone() {
    let all = ReserveOut::Release { key: Key(1), reservation_type: Type::WriteExclusiveAllRegistrants };
    for (command, after, expected) in [
        (&all, Ok(0), good()),
        // Another host's.
        (&all, Ok(1), good()),
        (&all, Ok(5), Err(CommandError::Refused(SenseCode::TARGET_FAILURE, NOT_RELEASED))),
        (&all, Ok(6), check(SenseCode::INVALID_RELEASE)),
        (&release(1), Ok(5), check(SenseCode::INVALID_RELEASE)),
        (&all, Err(Failure::Errno(Errno::NOTTY)), good()),
        (&all, Err(Failure::Errno(Errno::PERM)), check(SenseCode::LUN_COMMUNICATION_FAILURE)),
    ] {
        let held = after.map(|kind| Held { key: 2, generation: 7, kind });
        let script = Script { held, ..Script::default() };
        assert_eq!(write(&script, command, NVME), expected, "{after:?}");
        let script = Script { held, ..Script::default() };
        assert_eq!(write(&script, command, SCSI), good());
    }
}

#[test]
fn preemption_on_nvme_without_a_victim_is_not_sent() {
    let held = |kind| Ok(Held { key: 1, generation: 7, kind });
    let list = check(SenseCode::INVALID_FIELD_IN_PARAMETER_LIST);
    let not_permitted = Err(CommandError::NotPermitted(NotPermitted(Errno::PERM)));
    for (victim, keys, held, expected) in [
        (9, Ok(vec![1, 2]), held(1), Ok(CONFLICT)),
        (0, Ok(vec![1, 2]), held(0), list.clone()),
        (0, Ok(vec![1, 2]), held(3), list),
        (9, Err(Failure::Errno(Errno::PERM)), held(0), not_permitted.clone()),
        (0, Ok(vec![]), Err(Failure::Errno(Errno::PERM)), not_permitted),
    ] {
        let script = Script { keys, held, ..Script::default() };
        assert_eq!(write(&script, &preempting(1, victim, 5), NVME), expected);
        assert_eq!(script.issued(), []);
    }
}
