//! The translation over namespaces that are not there: what is sent, each way to fail, and histories against a model.

use super::*;
use crate::models::nvme::{self as model, HostIds, Rules, is_good};
use crate::models::spc::{NEXUSES, Nexus, Unit, histories};
use crate::nvme::command::Queue;
use proptest::prelude::*;
use rustix::io::Errno;
use scsi_pr::{AllowCommands, Generation, InitiatorPort, ScopeType, TransportId};
use std::cell::RefCell;

/// A host of a namespace of the model.
struct Connection<'a> {
    namespace: &'a RefCell<model::Namespace>,
    host: Nexus,
    /// Whether the host has no identifier.
    nameless: bool,
}

impl<'a> Connection<'a> {
    fn new(namespace: &'a RefCell<model::Namespace>, host: Nexus) -> Self {
        Self { namespace, host, nameless: false }
    }
}

fn done(status: u16) -> Result<(), Failure> {
    if status == model::SUCCESS { Ok(()) } else { Err(Failure::Status(status.into())) }
}

impl Namespace for Connection<'_> {
    fn send(&self, request: Request, data: &[u8]) -> Result<(), Failure> {
        assert_eq!(request.queue, Queue::Io);
        done(self.namespace.borrow_mut().change(self.host, request.opcode, request.cdw10, data))
    }

    fn receive(&self, request: Request, data: &mut [u8]) -> Result<(), Failure> {
        let namespace = self.namespace.borrow();
        match (request.queue, request.opcode) {
            (Queue::Io, 0x0e) => {
                assert_eq!((request.cdw10 as usize + 1) * 4, data.len());
                done(namespace.report(request.cdw11 & 1 != 0, data))
            }
            (Queue::Admin, 0x06) => {
                assert_eq!((request.cdw10, data.len()), (0, 4096));
                data[31] = namespace.rescap;
                Ok(())
            }
            (Queue::Admin, 0x0a) => {
                assert_eq!(request.cdw10, 0x81);
                let id = if self.nameless { vec![0; 16] } else { namespace.host_id(self.host) };
                match (request.cdw11 & 1 != 0, id.len()) {
                    (true, 16) | (false, 8) => data.copy_from_slice(&id),
                    _ => return Err(Failure::Status((model::INVALID_FIELD | model::DNR).into())),
                }
                Ok(())
            }
            other => panic!("{other:?}"),
        }
    }
}

fn namespace(rules: Rules, host_ids: HostIds) -> RefCell<model::Namespace> {
    RefCell::new(model::Namespace::new(rules, host_ids))
}

fn write(namespace: &impl Namespace, command: &ReserveOut) -> Result<Completion, CommandError> {
    Session::new(namespace).write(command)
}

fn read(namespace: &impl Namespace, action: ReserveInAction) -> Result<Completion, CommandError> {
    Session::new(namespace).read(&ReserveIn::new(action, 8192))
}

fn data(namespace: &impl Namespace, action: ReserveInAction) -> Vec<u8> {
    match read(namespace, action) {
        Ok(Completion::Good(data)) => data,
        other => panic!("{action}: {other:?}"),
    }
}

fn check(code: SenseCode) -> Result<Completion, CommandError> {
    Ok(Completion::check(code))
}

fn register(key: u64, new: u64) -> ReserveOut {
    let (key, service_action_key) = (Key(key), Key(new));
    ReserveOut::Register { key, service_action_key, initiator_ports: None, all_tg_pt: false, aptpl: false }
}

fn ignoring(new: u64) -> ReserveOut {
    ReserveOut::RegisterAndIgnoreExistingKey { service_action_key: Key(new), all_tg_pt: false, aptpl: false }
}

fn reserve(key: u64, reservation_type: Type) -> ReserveOut {
    ReserveOut::Reserve { key: Key(key), reservation_type }
}

fn release(key: u64, reservation_type: Type) -> ReserveOut {
    ReserveOut::Release { key: Key(key), reservation_type }
}

fn preempt(key: u64, victim: u64, reservation_type: Type) -> ReserveOut {
    ReserveOut::Preempt { key: Key(key), service_action_key: Key(victim), scope_type: reservation_type.into() }
}

const ONE: Type = Type::WriteExclusiveRegistrantsOnly;
const ALL: Type = Type::WriteExclusiveAllRegistrants;

#[test]
fn each_service_action_runs() {
    for host_ids in [HostIds::Long, HostIds::Short, HostIds::Old] {
        let namespace = namespace(Rules::Standard, host_ids);
        let [a, b] = [0, 1].map(|host| Connection::new(&namespace, host));
        assert_eq!(write(&a, &register(0, 1)), Ok(GOOD));
        assert_eq!(write(&a, &register(1, 0)), Ok(GOOD));
        assert_eq!(namespace.borrow().registrants, []);
        assert_eq!(write(&a, &register(0, 1)), Ok(GOOD));
        assert_eq!(write(&a, &register(2, 3)), Ok(CONFLICT));
        assert_eq!(write(&a, &register(1, 3)), Ok(GOOD));
        assert_eq!(write(&b, &ignoring(4)), Ok(GOOD));
        assert_eq!(write(&b, &ignoring(5)), Ok(GOOD));
        assert_eq!(write(&a, &reserve(3, ONE)), Ok(GOOD));
        assert_eq!(write(&b, &reserve(5, ONE)), Ok(CONFLICT));
        let held = Some(Held { key: Key(3), reservation_type: ONE });
        let reservation = Reservation::parse(&data(&b, ReserveInAction::ReadReservation)).unwrap().value;
        assert_eq!(reservation, Reservation { generation: Generation(6), held });
        assert_eq!(write(&a, &release(3, ALL)), check(SenseCode::INVALID_RELEASE));
        assert_eq!(write(&a, &release(3, ONE)), Ok(GOOD));
        assert_eq!(write(&a, &reserve(3, ONE)), Ok(GOOD));
        assert_eq!(write(&b, &preempt(5, 9, ONE)), Ok(CONFLICT));
        assert_eq!(write(&b, &preempt(5, 0, ONE)), check(SenseCode::INVALID_FIELD_IN_PARAMETER_LIST));
        assert_eq!(write(&b, &preempt(5, 3, ALL)), Ok(GOOD));
        assert_eq!(write(&b, &ignoring(0)), Ok(GOOD));
        assert_eq!(write(&b, &ignoring(0)), Ok(GOOD));
        assert_eq!(write(&b, &register(0, 0)), Ok(GOOD));
        assert_eq!(write(&b, &ReserveOut::Clear { key: Key(5) }), Ok(CONFLICT));
        assert_eq!(write(&a, &ignoring(7)), Ok(GOOD));
        assert_eq!(write(&a, &register(0, 0)), Ok(CONFLICT));
        assert_eq!(write(&a, &ReserveOut::Clear { key: Key(7) }), Ok(GOOD));
        assert_eq!((namespace.borrow().registrants.len(), namespace.borrow().reservation), (0, None));
    }
}

#[test]
fn hosts_are_shown_once_and_by_their_identifiers() {
    for (host_ids, expected) in [
        (HostIds::Long, 0x2021_2223_2425_2627_2829_2a2b_2c2d_2e2f),
        (HostIds::Short, 0x2021_2223_2425_2627),
        (HostIds::Old, 0x2021_2223_2425_2627),
    ] {
        // Two controllers each; and so many that they fill more than a page.
        for controllers in [2, 100] {
            let namespace = namespace(Rules::Standard, host_ids);
            namespace.borrow_mut().controllers = controllers;
            let [a, b] = [0, 1].map(|host| Connection::new(&namespace, host));
            for (connection, key) in [(&a, 0x51), (&b, 0x52)] {
                assert_eq!(write(connection, &register(0, key)), Ok(GOOD));
            }
            assert_eq!(write(&b, &reserve(0x52, ONE)), Ok(GOOD));
            let keys = Keys::parse(&data(&a, ReserveInAction::ReadKeys)).unwrap().value;
            assert_eq!(keys, Keys { generation: Generation(2), keys: vec![Key(0x51), Key(0x52)] });
            let status = FullStatus::parse(&data(&a, ReserveInAction::ReadFullStatus)).unwrap().value;
            let [first, second] = &status.descriptors[..] else { panic!("{status:?}") };
            assert_eq!((status.generation, first.key, second.key), (Generation(2), Key(0x51), Key(0x52)));
            assert_eq!((first.held, second.held), (None, Some(ONE)));
            assert!(first.all_tg_pt && second.all_tg_pt);
            let port = InitiatorPort::Srp { port_identifier: expected };
            assert_eq!(second.transport_id().unwrap().port(), port);
        }
    }
}

#[test]
fn every_registrant_holds_what_all_hold() {
    let namespace = namespace(Rules::Standard, HostIds::Long);
    let [a, b] = [0, 1].map(|host| Connection::new(&namespace, host));
    for (connection, key) in [(&a, 1), (&b, 2)] {
        assert_eq!(write(connection, &register(0, key)), Ok(GOOD));
    }
    assert_eq!(write(&a, &reserve(1, ALL)), Ok(GOOD));
    let reservation = Reservation::parse(&data(&b, ReserveInAction::ReadReservation)).unwrap().value;
    assert_eq!(reservation.held, Some(Held { key: Key::ZERO, reservation_type: ALL }));
    let status = FullStatus::parse(&data(&b, ReserveInAction::ReadFullStatus)).unwrap().value;
    assert!(status.descriptors.iter().all(|descriptor| descriptor.held == Some(ALL)));
}

#[test]
fn capabilities_are_those_of_the_namespace() {
    let namespace = namespace(Rules::Standard, HostIds::Long);
    let a = Connection::new(&namespace, 0);
    let none = Capabilities {
        atp_c: true,
        tmv: true,
        type_mask: TypeMask::ALL,
        allow_commands: AllowCommands::NOT_STATED,
        ..Capabilities::default()
    };
    let reported = || Capabilities::parse(&data(&a, ReserveInAction::ReportCapabilities)).unwrap().value;
    assert_eq!(reported(), none);
    namespace.borrow_mut().rescap = 0x81 | 1 << 1 | 1 << 5;
    let persistent =
        |aptpl| ReserveOut::RegisterAndIgnoreExistingKey { service_action_key: Key(1), all_tg_pt: true, aptpl };
    for aptpl in [true, false, true] {
        assert_eq!(write(&a, &persistent(aptpl)), Ok(GOOD));
        let type_mask = [Type::WriteExclusive, Type::WriteExclusiveAllRegistrants].into_iter().collect();
        assert_eq!(reported(), Capabilities { ptpl_c: true, ptpl_a: aptpl, type_mask, ..none });
    }
    namespace.borrow_mut().rescap = 0;
    assert_eq!(read(&a, ReserveInAction::ReportCapabilities), check(SenseCode::INVALID_OPCODE));
}

#[test]
fn what_nvme_cannot_express_is_refused_and_not_sent() {
    struct Silent(u8);
    impl Namespace for Silent {
        fn send(&self, request: Request, _: &[u8]) -> Result<(), Failure> {
            panic!("{request:?} was sent")
        }
        fn receive(&self, request: Request, data: &mut [u8]) -> Result<(), Failure> {
            assert_eq!(request, command::identify_namespace());
            data[RESCAP] = self.0;
            Ok(())
        }
    }
    let port = TransportId::new(InitiatorPort::Sas { address: 5 }).unwrap();
    let (key, service_action_key) = (Key(1), Key(2));
    let register = |initiator_ports, aptpl| ReserveOut::Register {
        key,
        service_action_key,
        initiator_ports,
        all_tg_pt: false,
        aptpl,
    };
    let (list, cdb) = (SenseCode::INVALID_FIELD_IN_PARAMETER_LIST, SenseCode::INVALID_FIELD_IN_CDB);
    for (command, code) in [
        (register(Some(vec![port.clone()]), false), list),
        (register(Some(Vec::new()), false), list),
        (register(None, true), list),
        (ReserveOut::RegisterAndIgnoreExistingKey { service_action_key, all_tg_pt: false, aptpl: true }, list),
        (
            ReserveOut::RegisterAndMove {
                key,
                service_action_key,
                unregister: false,
                aptpl: false,
                relative_target_port: 1,
                transport_id: port,
            },
            cdb,
        ),
        (
            ReserveOut::ReplaceLostReservation {
                key: Key::ZERO,
                service_action_key,
                reservation_type: ONE,
                aptpl: false,
            },
            cdb,
        ),
    ] {
        let answer = write(&Silent(0xfe), &command);
        assert!(matches!(answer, Err(CommandError::Refused(sense, _)) if sense == code), "{command:?} {answer:?}");
    }
    for scope_type in [0x00, 0x02, 0x15] {
        let command = ReserveOut::Preempt { key, service_action_key, scope_type: ScopeType(scope_type) };
        assert_eq!(write(&Silent(0xfe), &command), check(cdb));
    }
}

#[test]
fn a_host_without_an_identifier_is_not_taken_for_unregistered() {
    let namespace = namespace(Rules::Standard, HostIds::Long);
    let a = Connection { nameless: true, ..Connection::new(&namespace, 0) };
    let answer = write(&a, &register(0, 0));
    assert!(matches!(answer, Err(CommandError::Refused(SenseCode::INVALID_FIELD_IN_PARAMETER_LIST, _))), "{answer:?}");
    assert_eq!(write(&a, &ignoring(0)), Ok(CONFLICT));
    assert_eq!(write(&a, &ignoring(1)), Ok(GOOD));
    assert_eq!(write(&a, &ignoring(0)), Ok(GOOD));
}

#[test]
fn linux_own_target_is_not_believed_when_it_lies() {
    let namespace = namespace(Rules::Nvmet, HostIds::Long);
    let [a, b] = [0, 1].map(|host| Connection::new(&namespace, host));
    for (connection, key) in [(&a, 1), (&b, 2)] {
        assert_eq!(write(connection, &register(0, key)), Ok(GOOD));
    }
    assert_eq!(write(&a, &reserve(1, ONE)), Ok(GOOD));
    // The holder fences another node.
    let fence = |key, victim| ReserveOut::PreemptAndAbort {
        key: Key(key),
        service_action_key: Key(victim),
        scope_type: ONE.into(),
    };
    assert_eq!(write(&a, &fence(1, 2)), Err(CommandError::Refused(SenseCode::TARGET_FAILURE, NOT_PREEMPTED)));
    assert_eq!(write(&a, &release(1, ONE)), Ok(GOOD));
    assert_eq!(write(&a, &reserve(1, ALL)), Ok(GOOD));
    // To the target the second registrant holds nothing.
    assert_eq!(write(&b, &reserve(2, ALL)), Ok(GOOD));
    assert_eq!(write(&b, &reserve(9, ALL)), Ok(CONFLICT));
    assert_eq!(write(&b, &release(2, ONE)), check(SenseCode::INVALID_RELEASE));
    assert_eq!(write(&b, &release(9, ONE)), Ok(CONFLICT));
    assert_eq!(write(&b, &release(2, ALL)), Err(CommandError::Refused(SenseCode::TARGET_FAILURE, NOT_RELEASED)));
    assert_eq!(write(&a, &release(1, ALL)), Ok(GOOD));
}

#[test]
fn a_report_that_grows_all_the_time_is_read_later() {
    struct Growing(Cell<u8>);
    impl Namespace for Growing {
        fn send(&self, _: Request, _: &[u8]) -> Result<(), Failure> {
            unreachable!("nothing is changed")
        }
        fn receive(&self, _: Request, data: &mut [u8]) -> Result<(), Failure> {
            self.0.set(self.0.get() + 1);
            data[6] = self.0.get();
            Ok(())
        }
    }
    for action in [ReserveInAction::ReadKeys, ReserveInAction::ReadReservation, ReserveInAction::ReadFullStatus] {
        assert_eq!(read(&Growing(Cell::new(0)), action), Err(CommandError::Answer(Completion::Status(Status::BUSY))));
    }
}

#[test]
fn a_report_that_makes_no_sense_is_a_failure_of_the_target() {
    struct Odd(Vec<u8>);
    impl Namespace for Odd {
        fn send(&self, _: Request, _: &[u8]) -> Result<(), Failure> {
            unreachable!("nothing is changed")
        }
        fn receive(&self, _: Request, data: &mut [u8]) -> Result<(), Failure> {
            data[..self.0.len()].copy_from_slice(&self.0);
            Ok(())
        }
    }
    // No such type; a reservation without a holder.
    let failure = Completion::check(SenseCode::TARGET_FAILURE);
    assert_eq!(read(&Odd(vec![0, 0, 0, 0, 7]), ReserveInAction::ReadKeys), Err(CommandError::Answer(failure.clone())));
    assert_eq!(read(&Odd(vec![0, 0, 0, 0, 1]), ReserveInAction::ReadReservation), Ok(failure));
}

/// Fails the command whose turn it is, before or after it has been done.
struct Broken<'a> {
    inner: Connection<'a>,
    turn: Cell<usize>,
    after: bool,
    failure: Failure,
}

impl Broken<'_> {
    fn now(&self) -> bool {
        let turn = self.turn.get();
        self.turn.set(turn.wrapping_sub(1));
        turn == 0
    }
}

impl Namespace for Broken<'_> {
    fn send(&self, request: Request, data: &[u8]) -> Result<(), Failure> {
        if self.now() {
            if self.after {
                let _ = self.inner.send(request, data);
            }
            return Err(self.failure);
        }
        self.inner.send(request, data)
    }

    fn receive(&self, request: Request, data: &mut [u8]) -> Result<(), Failure> {
        if self.now() { Err(self.failure) } else { self.inner.receive(request, data) }
    }
}

fn failures() -> impl Strategy<Value = Failure> {
    let errno = prop_oneof![Just(Errno::ACCESS), Just(Errno::PERM), (1..200).prop_map(Errno::from_raw_os_error)];
    let status = prop_oneof![prop::sample::select(&[1, 2, 0x18, 0x83, 0x4083, 0x371][..]), 1_u32..0x8000];
    // Nothing but a conflict or a refusal says so.
    prop_oneof![errno.prop_map(Failure::Errno), status.prop_map(Failure::Status)]
}

/// Whether a command with this failure was certainly not done.
fn is_refusal(failure: Failure) -> bool {
    match failure {
        Failure::Errno(errno) => matches!(errno, Errno::ACCESS | Errno::PERM),
        Failure::Status(status) => matches!(status & 0x7ff, 0x001 | 0x002 | 0x018 | 0x083 | 0x180),
    }
}

/// All READs must show the state of the namespace.
fn assert_shown(connection: &Connection<'_>, unit: &Unit) -> Result<(), TestCaseError> {
    let mut keys = Keys::parse(&data(connection, ReserveInAction::ReadKeys)).unwrap().value;
    keys.keys.sort_unstable();
    prop_assert_eq!((keys.generation, keys.keys), (Generation(unit.generation), unit.sorted_keys()));
    let shown = Reservation::parse(&data(connection, ReserveInAction::ReadReservation)).unwrap().value;
    prop_assert_eq!(shown, unit.shown());
    let status = FullStatus::parse(&data(connection, ReserveInAction::ReadFullStatus)).unwrap().value;
    let mut known = [None; NEXUSES];
    for descriptor in status.descriptors {
        let port = descriptor.transport_id().unwrap();
        let host = (0..NEXUSES)
            .find(|host| Host::named(&connection.namespace.borrow().host_id(*host)).unwrap().transport_id() == port)
            .unwrap();
        known[host] = Some(descriptor.key);
        let holds = unit.reservation.filter(|taken| taken.holder.is_none_or(|holder| holder == host));
        prop_assert_eq!(descriptor.held, holds.map(|taken| taken.reservation_type));
    }
    prop_assert_eq!(known, unit.keys);
    Ok(())
}

fn host_ids() -> impl Strategy<Value = HostIds> {
    prop::sample::select(&[HostIds::Long, HostIds::Short, HostIds::Old][..])
}

proptest! {
    #[test]
    fn a_namespace_answers_as_a_unit_of_scsi(history in histories(), host_ids in host_ids()) {
        let namespace = namespace(Rules::Standard, host_ids);
        let mut unit = Unit::default();
        for step in history {
            let command = step.command(&unit);
            let connection = Connection::new(&namespace, step.nexus);
            let again = matches!(command, ReserveOut::Register { key: Key::ZERO, service_action_key, .. }
                if unit.keys[step.nexus] == Some(service_action_key));
            let answer = write(&connection, &command);
            match &command {
                // Once more the same key, by who says to have none: no conflict in NVMe.
                _ if again => {
                    prop_assert_eq!(answer, Ok(GOOD));
                    unit.generation += 1;
                }
                // Refused even where SCSI would not look at it.
                ReserveOut::Preempt { scope_type, .. } | ReserveOut::PreemptAndAbort { scope_type, .. }
                    if scope_type.reservation_type().is_none() =>
                {
                    prop_assert_eq!(answer, check(SenseCode::INVALID_FIELD_IN_CDB));
                }
                // A wrong key conflicts in any case; which of two refusals it is, NVMe does not tell.
                ReserveOut::Preempt { service_action_key: Key::ZERO, .. }
                | ReserveOut::PreemptAndAbort { service_action_key: Key::ZERO, .. }
                | ReserveOut::Release { .. } => {
                    let expected = unit.run(step.nexus, &command);
                    prop_assert_eq!(answer.as_ref().is_ok_and(is_good), is_good(&expected), "{:?} {:?}", command, answer);
                    let key_is_right = expected != CONFLICT;
                    prop_assert!(!key_is_right || answer == Ok(expected), "{:?}", command);
                }
                _ => prop_assert_eq!(answer, Ok(unit.run(step.nexus, &command)), "{:?}", command),
            }
            prop_assert_eq!(&namespace.borrow().unit(), &unit, "{:?}", command);
            assert_shown(&connection, &unit)?;
        }
    }

    #[test]
    fn what_is_good_on_linux_own_target_has_been_done(history in histories()) {
        let namespace = namespace(Rules::Nvmet, HostIds::Long);
        for step in history {
            let before = namespace.borrow().unit();
            let command = step.command(&before);
            let mut after = before.clone();
            let _ = after.run(step.nexus, &command);
            let connection = Connection::new(&namespace, step.nexus);
            match write(&connection, &command) {
                Ok(answer) if is_good(&answer) => {
                    prop_assert!(namespace.borrow().agrees_with(&after), "{:?} of {:?}", command, before);
                }
                // It may have changed the type of its reservation, but removed no registration.
                Err(CommandError::Refused(SenseCode::TARGET_FAILURE, _)) => {
                    prop_assert_eq!(namespace.borrow().unit().keys, before.keys);
                }
                _ => prop_assert!(namespace.borrow().agrees_with(&before), "{:?} of {:?}", command, before),
            }
            assert_shown(&connection, &namespace.borrow().unit())?;
        }
    }

    #[test]
    fn nothing_is_good_that_broke_and_nothing_is_tried_elsewhere_that_was_done(
        history in histories(), turn in 0_usize..6, after: bool, failure in failures(), host_ids in host_ids(),
    ) {
        let namespace = namespace(Rules::Standard, host_ids);
        for step in history {
            let before = namespace.borrow().unit();
            let command = step.command(&before);
            let mut expected = before.clone();
            let _ = expected.run(step.nexus, &command);
            let inner = Connection::new(&namespace, step.nexus);
            let broken = Broken { inner, turn: Cell::new(turn), after: after && !is_refusal(failure), failure };
            match write(&broken, &command) {
                Ok(answer) if is_good(&answer) => {
                    prop_assert!(namespace.borrow().agrees_with(&expected), "{:?} of {:?}", command, before);
                }
                Err(CommandError::NotPermitted(_)) => {
                    prop_assert!(namespace.borrow().agrees_with(&before), "{:?} of {:?}", command, before);
                }
                _ => {}
            }
        }
    }

    #[test]
    fn no_reading_that_broke_is_good(turn in 0_usize..2, failure in failures(), action in 0_u8..4) {
        let namespace = namespace(Rules::Standard, HostIds::Long);
        let broken = Broken { inner: Connection::new(&namespace, 0), turn: Cell::new(turn), after: false, failure };
        let action = ReserveInAction::from_code(action).unwrap();
        let answer = read(&broken, action);
        if broken.turn.get() > turn {
            // It had its turn. A report that "is of the other format" is asked for in that one.
            let other = matches!(failure, Failure::Status(status) if status & 0x7ff == 0x18);
            prop_assert!(other || !answer.as_ref().is_ok_and(is_good), "{:?}", answer);
            let permission = matches!(failure, Failure::Errno(Errno::ACCESS | Errno::PERM));
            prop_assert_eq!(matches!(answer, Err(CommandError::NotPermitted(_))), permission);
        }
    }
}
