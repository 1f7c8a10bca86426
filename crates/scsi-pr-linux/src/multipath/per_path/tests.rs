mod shared_key;

use super::*;
use crate::device::PortName;
use crate::models::spc::{Taken, Unit};
use proptest::prelude::*;
use scsi_pr::{FullStatusDescriptor, Generation, InitiatorPort, TransportId};
use std::cell::RefCell;
use std::rc::Rc;

/// The other host's nexus; those before it are our paths.
const FOREIGN: usize = 3;
const THEIRS: Key = Key(0xccc);
const OURS: Key = Key(0xaaa);
const RO: Type = Type::WriteExclusiveRegistrantsOnly;
const AR: Type = Type::WriteExclusiveAllRegistrants;
const CONFLICT: Completion = Completion::Status(Status::RESERVATION_CONFLICT);

/// A unit and the ways to it.
#[derive(Clone, Debug, Default)]
struct World {
    unit: Unit,
    aptpl: bool,
    /// Nexuses that a unit attention waits for.
    attentions: [bool; FOREIGN],
    /// Paths that nothing gets through.
    dead: [bool; FOREIGN],
    full_status: FullStatusAnswer,
    /// The other host preempts this key before the command of this number.
    preempted_at: Option<(usize, Key)>,
    commands: usize,
}

/// The unit's answer to READ FULL STATUS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum FullStatusAnswer {
    #[default]
    Complete,
    Refused,
    WithoutHolder,
    /// As from a unit with more registrations than fit into a transfer.
    Cut,
}

/// The initiator ports: the paths of a host have one iSCSI name, as the sessions of an iSCSI node do.
fn port(nexus: usize) -> TransportId {
    let name = if nexus == FOREIGN { "iqn.2026-11.example:b" } else { "iqn.2026-11.example:a" };
    let isid = Some([0, 2, 0x3d, 0, 0, u8::try_from(nexus).unwrap()]);
    TransportId::new(InitiatorPort::Iscsi { name, isid }).unwrap()
}

fn name(path: usize) -> String {
    format!("sd{path}")
}

/// The ports that sysfs shows for a map of so many paths.
fn ports(paths: usize) -> HostPorts {
    HostPorts::new((0..paths).map(|path| (name(path), vec![PortName::Iscsi("iqn.2026-11.example:a".to_owned())])))
}

impl World {
    /// A command by one of our paths.
    fn send(&mut self, path: usize, command: Command<'_>) -> (Completion, Reached) {
        self.commands += 1;
        if let Some((_, key)) = self.preempted_at.take_if(|(at, _)| self.commands > *at) {
            self.preempt(FOREIGN, THEIRS, key);
        }
        if self.dead[path] {
            return (DEAD, Reached::Path);
        }
        if std::mem::take(&mut self.attentions[path]) {
            return (Completion::check(SenseCode::RESET), Reached::Unit);
        }
        (self.run(path, command), Reached::Unit)
    }

    fn run(&mut self, path: usize, command: Command<'_>) -> Completion {
        if let Ok(ask) = ReserveIn::parse(command) {
            return ask.answer(match ask.action() {
                ReserveInAction::ReadReservation => self.unit.shown().encode(),
                ReserveInAction::ReadKeys => {
                    Keys { generation: self.unit.shown().generation, keys: self.unit.sorted_keys() }.encode()
                }
                ReserveInAction::ReadFullStatus => match self.full_status {
                    FullStatusAnswer::Refused => return Completion::check(SenseCode::INVALID_FIELD_IN_CDB),
                    answer => self.full_status(answer),
                },
                ReserveInAction::ReportCapabilities => {
                    Capabilities { ptpl_c: true, ptpl_a: self.aptpl, ..Capabilities::default() }.encode()
                }
                other => panic!("{other}"),
            });
        }
        let out = ReserveOut::parse(command).unwrap();
        let completion = self.unit.run(path, &out);
        if let (ReserveOut::Register { aptpl, .. }, Completion::Good(_)) = (&out, &completion) {
            self.aptpl = *aptpl;
        }
        completion
    }

    fn full_status(&self, answer: FullStatusAnswer) -> Vec<u8> {
        let registered = self.unit.keys.iter().enumerate().filter_map(|(nexus, key)| Some((nexus, (*key)?)));
        let descriptors = registered.map(|(nexus, key)| {
            let held = self.unit.reservation.filter(|taken| taken.holder.is_none_or(|holder| holder == nexus));
            let held = held.filter(|_| answer != FullStatusAnswer::WithoutHolder).map(|taken| taken.reservation_type);
            let mut descriptor = FullStatusDescriptor::new(key, &port(nexus), 1);
            descriptor.held = held;
            descriptor
        });
        let status = FullStatus { generation: Generation(self.unit.generation), descriptors: descriptors.collect() };
        let mut data = status.encode();
        if answer == FullStatusAnswer::Cut {
            data.truncate(data.len() - 1);
        }
        data
    }

    fn preempt(&mut self, nexus: usize, key: Key, victim: Key) {
        let scope_type = RO.into();
        self.unit.run(nexus, &ReserveOut::Preempt { key, service_action_key: victim, scope_type });
    }
}

struct Nexus {
    world: Rc<RefCell<World>>,
    number: usize,
    name: String,
}

const DEAD: Completion = Completion::CheckCondition(Sense::fixed(SenseCode::LUN_NOT_RESPONDING));

impl Path for Nexus {
    fn name(&self) -> &str {
        &self.name
    }

    fn send(&self, command: Command<'_>) -> (Completion, Reached) {
        self.world.borrow_mut().send(self.number, command)
    }
}

/// A host with so many paths, all registered, beside another host that is registered too.
struct Fixture {
    world: Rc<RefCell<World>>,
    paths: Vec<Nexus>,
    ports: HostPorts,
}

impl Fixture {
    fn new(count: usize) -> Self {
        let world = Rc::new(RefCell::new(World::default()));
        let paths = (0..count).map(|number| Nexus { world: world.clone(), number, name: name(number) }).collect();
        let fixture = Self { world, paths, ports: ports(count) };
        (0..count).for_each(|path| fixture.set_key(path, Some(OURS)));
        fixture.set_key(FOREIGN, Some(THEIRS));
        fixture
    }

    fn held_by(self, holder: usize, reservation_type: Type) -> Self {
        let holder = (!reservation_type.is_all_registrants()).then_some(holder);
        self.world.borrow_mut().unit.reservation = Some(Taken { reservation_type, holder });
        self
    }

    /// The kernel knows of it, so it is not among the paths any more.
    fn offline(mut self, path: usize) -> Self {
        self.world.borrow_mut().dead[path] = true;
        self.paths.retain(|other| other.number != path);
        self
    }

    fn reservation(&self) -> Option<Taken> {
        self.world.borrow().unit.reservation
    }

    fn key(&self, nexus: usize) -> Option<Key> {
        self.world.borrow().unit.keys[nexus]
    }

    fn set_key(&self, nexus: usize, key: Option<Key>) {
        self.world.borrow_mut().unit.keys[nexus] = key;
    }

    fn our_keys(&self) -> [Option<Key>; 3] {
        [0, 1, 2].map(|path| self.key(path))
    }

    fn release(&self, key: Key, kind: Type) -> Release {
        release(&self.paths, &self.ports, key, kind)
    }

    fn unit(&self) -> Unit {
        self.world.borrow().unit.clone()
    }

    /// The other host has its registration.
    fn other_host_is_registered(&self) -> bool {
        self.key(FOREIGN) == Some(THEIRS)
    }
}

fn done(completion: Completion) -> Release {
    Release { completion, remark: None }
}

fn re_registered(completion: Completion, result: Reregistration) -> Release {
    Release { completion, remark: Some(Remark::Reregistered(result)) }
}

/// `registered` paths were registered again, and these could not be.
fn complete(registered: usize, failed: &[usize]) -> Reregistration {
    Reregistration::Complete { registered, failed: failed.iter().map(|path| name(*path)).collect() }
}

#[test]
fn the_holder_releases_whichever_path_it_is() {
    for paths in 1..=FOREIGN {
        for holder in 0..paths {
            let fixture = Fixture::new(paths).held_by(holder, RO);
            assert_eq!(fixture.release(OURS, RO), done(GOOD));
            assert_eq!(fixture.reservation(), None);
            assert!(fixture.other_host_is_registered());
        }
    }
}

/// libmpathpersist 0.9.4 clears the unit here: the other host loses its reservation and its registration.
#[test]
fn the_reservation_of_another_host_is_not_touched() {
    for kind in [Type::WriteExclusive, RO, Type::ExclusiveAccessRegistrantsOnly] {
        let fixture = Fixture::new(2).held_by(FOREIGN, kind);
        let before = fixture.reservation();
        for released in [RO, AR, kind] {
            assert_eq!(fixture.release(OURS, released), done(GOOD));
            assert_eq!(fixture.reservation(), before);
            assert!(fixture.other_host_is_registered());
        }
    }
}

#[test]
fn a_release_by_an_unregistered_host_is_a_conflict() {
    // The reservation of another host with the same key is not this host's.
    for (held, key) in [(false, THEIRS), (true, THEIRS), (true, OURS)] {
        let mut fixture = Fixture::new(2);
        (0..2).for_each(|path| fixture.set_key(path, None));
        fixture.set_key(FOREIGN, Some(key));
        if held {
            fixture = fixture.held_by(FOREIGN, RO);
        }
        let before = fixture.reservation();
        assert_eq!(fixture.release(OURS, RO), done(CONFLICT));
        assert_eq!(fixture.reservation(), before);
        assert_eq!(fixture.key(FOREIGN), Some(key));
    }
}

#[test]
fn nothing_is_released_where_nothing_is_reserved() {
    let fixture = Fixture::new(2);
    assert_eq!(fixture.release(OURS, RO), done(GOOD));
    assert_eq!(fixture.release(Key(5), RO), done(CONFLICT));
}

/// libmpathpersist 0.9.4 clears the unit here too.
#[test]
fn another_type_is_refused_and_changes_nothing() {
    let refused = || done(Completion::check(SenseCode::INVALID_RELEASE));
    for (fixture, kind) in [
        (Fixture::new(2).held_by(0, RO), Type::WriteExclusive),
        (Fixture::new(2).held_by(1, RO), Type::WriteExclusive),
        (Fixture::new(2).held_by(0, RO).offline(0), Type::WriteExclusive),
        (Fixture::new(2).held_by(0, AR), RO),
    ] {
        let before = fixture.reservation();
        assert_eq!(fixture.release(OURS, kind), refused());
        assert_eq!(fixture.reservation(), before);
        assert!(fixture.other_host_is_registered());
    }
}

#[test]
fn of_all_registrants_any_releases() {
    // A path that came back and is not registered is no reason to give up.
    let fixture = Fixture::new(2).held_by(0, AR);
    fixture.set_key(0, None);
    assert_eq!(fixture.release(OURS, AR), done(GOOD));
    assert_eq!(fixture.reservation(), None);
    let fixture = Fixture::new(2).held_by(0, AR).offline(0);
    fixture.set_key(1, None);
    assert_eq!(fixture.release(OURS, AR), done(CONFLICT));
    assert!(fixture.reservation().is_some());
}

#[test]
fn a_dead_holder_is_taken_over_and_other_hosts_keep_their_keys() {
    for aptpl in [false, true] {
        let fixture = Fixture::new(3).held_by(1, RO).offline(1);
        fixture.world.borrow_mut().aptpl = aptpl;
        assert_eq!(fixture.release(OURS, RO), re_registered(GOOD, complete(1, &[])));
        assert_eq!(fixture.reservation(), None);
        assert!(fixture.other_host_is_registered());
        assert_eq!(fixture.our_keys(), [Some(OURS), None, Some(OURS)]);
        assert_eq!(fixture.world.borrow().aptpl, aptpl, "registering again must not change it");
    }
}

#[test]
fn a_path_that_dies_meanwhile_is_counted() {
    let fixture = Fixture::new(3).held_by(1, RO);
    // The kernel does not know yet.
    fixture.world.borrow_mut().dead = [false, true, true];
    assert_eq!(fixture.release(OURS, RO), re_registered(GOOD, complete(0, &[1, 2])));
    assert_eq!(fixture.reservation(), None);
}

#[test]
fn a_dead_paths_reservation_is_released_before_unregistering() {
    let give_up = |fixture: &Fixture| release_before_unregistering(&fixture.paths, &fixture.ports, OURS).completion;
    let fixture = Fixture::new(3).held_by(1, RO).offline(1);
    assert_eq!(give_up(&fixture), GOOD);
    assert_eq!(fixture.reservation(), None);
    assert!(fixture.other_host_is_registered() && fixture.key(1).is_none());
    for fixture in [Fixture::new(2), Fixture::new(2).held_by(FOREIGN, RO), Fixture::new(2).held_by(0, AR)] {
        let before = fixture.world.borrow().unit.clone();
        assert_eq!(give_up(&fixture), GOOD);
        assert_eq!(fixture.world.borrow().unit, before);
    }
    let none: &[Nexus] = &[];
    assert_eq!(release_before_unregistering(none, &ports(2), OURS).completion, NOT_READY);
}

/// The other host preempts this one between any two commands of a release: it must not be found registered afterwards.
#[test]
fn a_host_preempted_during_a_release_does_not_register_again() {
    for at in 0.. {
        let fixture = Fixture::new(3).held_by(1, RO).offline(1);
        fixture.world.borrow_mut().preempted_at = Some((at, OURS));
        let release = fixture.release(OURS, RO);
        let world = fixture.world.borrow();
        if world.preempted_at.is_some() {
            assert!(at > 7, "a release takes more commands than {at}");
            break;
        }
        // The last command found the registration; no command follows it.
        let registered = world.unit.keys[..FOREIGN].iter().flatten().count();
        assert_eq!(registered, 0, "before command {at}: {release:?}");
        assert_eq!(world.unit.keys[FOREIGN], Some(THEIRS));
    }
}

#[test]
fn a_map_without_paths_is_not_ready() {
    let none: &[Nexus] = &[];
    assert_eq!(release(none, &ports(2), OURS, RO), done(NOT_READY));
    assert_eq!(ask(none, |_| (GOOD, Reached::Unit)), None);
    assert!(!reserve_as_holder(none, encode(&ReserveOut::Reserve { key: OURS, reservation_type: RO }).command()));
}

#[test]
fn the_holder_reserves_again_by_any_path() {
    let reserve = |fixture: &Fixture, kind| {
        let command = encode(&ReserveOut::Reserve { key: OURS, reservation_type: kind });
        reserve_as_holder(&fixture.paths, command.command())
    };
    let fixture = Fixture::new(3).held_by(2, RO);
    let before = fixture.reservation();
    assert!(reserve(&fixture, RO));
    assert!(!reserve(&fixture, Type::WriteExclusive));
    assert_eq!(fixture.reservation(), before);
    let fixture = Fixture::new(3).held_by(FOREIGN, RO);
    let before = fixture.reservation();
    assert!(!reserve(&fixture, RO));
    assert_eq!(fixture.reservation(), before);
}

#[test]
fn registrations_are_made_again_after_a_preempt_of_the_own_key() {
    let fixture = Fixture::new(3).held_by(0, RO);
    fixture.world.borrow_mut().preempt(1, OURS, OURS);
    assert_eq!(fixture.our_keys(), [None, Some(OURS), None]);
    assert_eq!(re_register(&fixture.paths, OURS, false), complete(2, &[]));
    assert_eq!(fixture.our_keys(), [Some(OURS); 3]);
    // Nothing but PRGENERATION changes when none was lost.
    let before = fixture.unit();
    assert_eq!(re_register(&fixture.paths, OURS, false), complete(0, &[]));
    assert_eq!(Unit { generation: before.generation, ..fixture.unit() }, before);
    assert_eq!(re_register(&fixture.paths, OURS, true), complete(0, &[]));
    assert!(fixture.world.borrow().aptpl && fixture.our_keys() == [Some(OURS); 3]);
}

#[test]
fn the_same_key_of_another_host_does_not_count_as_a_registration_of_this_host() {
    for lost in 0..3 {
        let fixture = Fixture::new(3);
        fixture.set_key(FOREIGN, Some(OURS));
        fixture.set_key(lost, None);
        assert_eq!(re_register(&fixture.paths, OURS, false), complete(1, &[]));
        assert_eq!((fixture.our_keys(), fixture.key(FOREIGN)), ([Some(OURS); 3], Some(OURS)));
    }
    let fixture = Fixture::new(2);
    fixture.set_key(FOREIGN, Some(OURS));
    (0..2).for_each(|path| fixture.set_key(path, None));
    assert!(!is_registered(&fixture.paths, OURS));
    assert_eq!(re_register(&fixture.paths, OURS, false), Reregistration::NotRegistered);
    assert_eq!(fixture.our_keys(), [None; 3]);
}

#[test]
fn a_path_with_another_key_is_reported() {
    let fixture = Fixture::new(3);
    fixture.set_key(1, Some(Key(0xbbb)));
    assert_eq!(re_register(&fixture.paths, OURS, false), complete(0, &[1]));
    assert_eq!(fixture.key(1), Some(Key(0xbbb)));
}

#[test]
fn a_host_that_is_not_registered_stays_so() {
    let fixture = Fixture::new(2);
    (0..2).for_each(|path| fixture.set_key(path, None));
    for key in [OURS, THEIRS, Key(1)] {
        let before = fixture.world.borrow().unit.clone();
        assert_eq!(re_register(&fixture.paths, key, false), Reregistration::NotRegistered);
        assert_eq!(fixture.world.borrow().unit, before);
    }
}

#[test]
fn the_answer_of_a_path_that_works_goes_before_that_of_one_that_does_not() {
    let answers = |answers: Vec<(Completion, Reached)>| {
        let fixture = Fixture::new(answers.len());
        ask(&fixture.paths, |path| answers[path.number].clone())
    };
    let data = Completion::Good(vec![1]);
    let standby = Completion::check(SenseCode::NOT_READY);
    assert_eq!(answers(vec![(DEAD, Reached::Path), (data.clone(), Reached::Unit)]), Some(data.clone()));
    assert_eq!(answers(vec![(standby.clone(), Reached::Unit), (data.clone(), Reached::Unit)]), Some(data));
    assert_eq!(answers(vec![(standby.clone(), Reached::Unit), (DEAD, Reached::Path)]), Some(standby.clone()));
    assert_eq!(answers(vec![(DEAD, Reached::Path), (standby.clone(), Reached::Unit)]), Some(standby));
    assert_eq!(answers(vec![(DEAD, Reached::Path), (CONFLICT, Reached::Path)]), Some(DEAD));
}

/// The other host preempts this one between any two commands.
#[test]
fn a_host_preempted_while_registering_again_ends_unregistered() {
    for at in 0.. {
        let fixture = Fixture::new(3);
        (1..3).for_each(|path| fixture.set_key(path, None));
        fixture.world.borrow_mut().preempted_at = Some((at, OURS));
        let result = re_register(&fixture.paths, OURS, false);
        if fixture.world.borrow().preempted_at.is_some() {
            assert!(at > 3 && result == complete(2, &[]), "{at}: {result:?}");
            break;
        }
        assert!(matches!(result, Reregistration::NotRegistered | Reregistration::Preempted), "{at}: {result:?}");
        assert_eq!(fixture.our_keys(), [None; 3], "before command {at}");
    }
}

proptest! {
    /// With any reservation and any dead paths, the other host loses nothing, and GOOD means that this key holds no such
    /// reservation any more.
    #[test]
    fn a_release_touches_nothing_of_others(
        paths in 1..=FOREIGN,
        held in prop::option::of((0..=FOREIGN, prop::sample::select(&Type::ALL[..]))),
        registered: [bool; FOREIGN],
        dead: [bool; FOREIGN],
        attentions: [bool; FOREIGN],
        kind in prop::sample::select(&Type::ALL[..]),
        key in prop_oneof![3 => Just(OURS), 1 => Just(THEIRS), 1 => Just(Key(1)), 1 => Just(Key::ZERO)],
        foreign_key in prop::sample::select(&[THEIRS, OURS][..]),
        full_status in prop::sample::select(&[
            FullStatusAnswer::Complete,
            FullStatusAnswer::Refused,
            FullStatusAnswer::WithoutHolder,
            FullStatusAnswer::Cut,
        ][..]),
    ) {
        let mut fixture = Fixture::new(paths);
        fixture.set_key(FOREIGN, Some(foreign_key));
        fixture.world.borrow_mut().full_status = full_status;
        (0..paths).filter(|path| !registered[*path]).for_each(|path| fixture.set_key(path, None));
        if let Some((holder, kind)) = held.filter(|(holder, _)| fixture.key(*holder).is_some()) {
            fixture = fixture.held_by(holder, kind);
        }
        {
            let mut world = fixture.world.borrow_mut();
            (world.dead, world.attentions) = (dead, attentions);
        }
        let before = fixture.world.borrow().unit.clone();
        let release = fixture.release(key, kind);
        let after = fixture.world.borrow().unit.clone();
        prop_assert_eq!(fixture.key(FOREIGN), Some(foreign_key));
        if before.reservation.is_some_and(|taken| taken.holder == Some(FOREIGN)) {
            prop_assert_eq!(after.reservation, before.reservation);
        }
        let is_logged = matches!(release.remark, Some(Remark::HolderUnknown(_)));
        if release.completion == GOOD && key == OURS && foreign_key == THEIRS && !is_logged {
            prop_assert_ne!(after.shown().held, Some(Held { key, reservation_type: kind }));
        }
        if release.completion != GOOD && !matches!(release.remark, Some(Remark::Reregistered(_))) {
            prop_assert_eq!(after.keys, before.keys);
            prop_assert_eq!(after.reservation, before.reservation);
        }
    }
}
