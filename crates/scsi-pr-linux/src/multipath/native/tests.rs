use super::*;
use crate::models::spc::{Taken, Unit};
use proptest::prelude::*;
use std::cell::{Cell, RefCell};
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
    /// The other host preempts this key before the command of this number.
    preempted_at: Option<(usize, Key)>,
    commands: usize,
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

    fn preempt(&mut self, nexus: usize, key: Key, victim: Key) {
        let scope_type = RO.into();
        self.unit.run(nexus, &ReserveOut::Preempt { key, service_action_key: victim, scope_type });
    }
}

struct Nexus {
    world: Rc<RefCell<World>>,
    number: usize,
}

const DEAD: Completion = Completion::CheckCondition(Sense::fixed(SenseCode::LUN_NOT_RESPONDING));

impl Route for Nexus {
    fn send(&self, command: Command<'_>) -> (Completion, Reached) {
        self.world.borrow_mut().send(self.number, command)
    }
}

/// A host with so many paths, all registered, beside another host that is registered too.
struct Stage {
    world: Rc<RefCell<World>>,
    routes: Vec<Nexus>,
}

impl Stage {
    fn new(paths: usize) -> Self {
        let world = Rc::new(RefCell::new(World::default()));
        let routes = (0..paths).map(|number| Nexus { world: world.clone(), number }).collect();
        let stage = Self { world, routes };
        (0..paths).for_each(|path| stage.set_key(path, Some(OURS)));
        stage.set_key(FOREIGN, Some(THEIRS));
        stage
    }

    fn held_by(self, holder: usize, reservation_type: Type) -> Self {
        let holder = (!reservation_type.is_all_registrants()).then_some(holder);
        self.world.borrow_mut().unit.reservation = Some(Taken { reservation_type, holder });
        self
    }

    /// The kernel knows of it, so it is not among the routes any more.
    fn offline(mut self, path: usize) -> Self {
        self.world.borrow_mut().dead[path] = true;
        self.routes.retain(|route| route.number != path);
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

    fn release(&self, key: Key, kind: Type) -> Released {
        release(&self.routes, key, kind, || None)
    }

    /// What is the other host's is as it was.
    fn foreign_is_whole(&self) -> bool {
        self.key(FOREIGN) == Some(THEIRS)
    }
}

fn done(completion: Completion) -> Released {
    Released { completion, restored: None }
}

#[test]
fn the_holder_releases_whichever_path_it_is() {
    for paths in 1..=FOREIGN {
        for holder in 0..paths {
            let stage = Stage::new(paths).held_by(holder, RO);
            assert_eq!(stage.release(OURS, RO), done(GOOD));
            assert_eq!(stage.reservation(), None);
            assert!(stage.foreign_is_whole());
        }
    }
}

/// libmpathpersist 0.9.4 clears the unit here: the other host loses its reservation and its registration.
#[test]
fn the_reservation_of_another_host_is_not_touched() {
    for kind in [Type::WriteExclusive, RO, Type::ExclusiveAccessRegistrantsOnly] {
        let stage = Stage::new(2).held_by(FOREIGN, kind);
        let before = stage.reservation();
        for released in [RO, AR, kind] {
            assert_eq!(stage.release(OURS, released), done(GOOD));
            assert_eq!(stage.reservation(), before);
            assert!(stage.foreign_is_whole());
        }
    }
}

#[test]
fn who_is_not_registered_gets_a_conflict() {
    // Another host may have chosen the same key; that does not make its reservation ours.
    for (held, key) in [(false, THEIRS), (true, THEIRS), (true, OURS)] {
        let mut stage = Stage::new(2);
        (0..2).for_each(|path| stage.set_key(path, None));
        stage.set_key(FOREIGN, Some(key));
        if held {
            stage = stage.held_by(FOREIGN, RO);
        }
        let before = stage.reservation();
        assert_eq!(stage.release(OURS, RO), done(CONFLICT));
        assert_eq!(stage.reservation(), before);
        assert_eq!(stage.key(FOREIGN), Some(key));
    }
}

#[test]
fn nothing_is_released_where_nothing_is_reserved() {
    let stage = Stage::new(2);
    assert_eq!(stage.release(OURS, RO), done(GOOD));
    assert_eq!(stage.release(Key(5), RO), done(CONFLICT));
}

/// libmpathpersist 0.9.4 clears the unit here too.
#[test]
fn another_type_is_refused_and_changes_nothing() {
    let refused = || done(Completion::check(SenseCode::INVALID_RELEASE));
    for (stage, kind) in [
        (Stage::new(2).held_by(0, RO), Type::WriteExclusive),
        (Stage::new(2).held_by(1, RO), Type::WriteExclusive),
        (Stage::new(2).held_by(0, RO).offline(0), Type::WriteExclusive),
        (Stage::new(2).held_by(0, AR), RO),
    ] {
        let before = stage.reservation();
        assert_eq!(stage.release(OURS, kind), refused());
        assert_eq!(stage.reservation(), before);
        assert!(stage.foreign_is_whole());
    }
}

#[test]
fn of_all_registrants_any_releases() {
    // A path that came back and is not registered is no reason to give up.
    let stage = Stage::new(2).held_by(0, AR);
    stage.set_key(0, None);
    assert_eq!(stage.release(OURS, AR), done(GOOD));
    assert_eq!(stage.reservation(), None);
    let stage = Stage::new(2).held_by(0, AR).offline(0);
    stage.set_key(1, None);
    assert_eq!(stage.release(OURS, AR), done(CONFLICT));
    assert!(stage.reservation().is_some());
}

#[test]
fn a_dead_holder_is_taken_over_and_nobody_else_loses_a_key() {
    for aptpl in [false, true] {
        let stage = Stage::new(3).held_by(1, RO).offline(1);
        stage.world.borrow_mut().aptpl = aptpl;
        assert_eq!(
            stage.release(OURS, RO),
            Released { completion: GOOD, restored: Some(Restored::Whole { registered: 1, failed: 0 }) }
        );
        assert_eq!(stage.reservation(), None);
        assert!(stage.foreign_is_whole());
        assert_eq!(stage.our_keys(), [Some(OURS), None, Some(OURS)]);
        assert_eq!(stage.world.borrow().aptpl, aptpl, "registering again must not change it");
    }
}

#[test]
fn a_path_that_dies_meanwhile_is_counted() {
    let stage = Stage::new(3).held_by(1, RO);
    // The kernel does not know yet.
    stage.world.borrow_mut().dead = [false, true, true];
    let restored = Some(Restored::Whole { registered: 0, failed: 2 });
    assert_eq!(stage.release(OURS, RO), Released { completion: GOOD, restored });
    assert_eq!(stage.reservation(), None);
}

#[test]
fn what_a_dead_path_holds_is_given_up_before_unregistering() {
    let give_up = |stage: &Stage| release_before_unregistering(&stage.routes, OURS).completion;
    let stage = Stage::new(3).held_by(1, RO).offline(1);
    assert_eq!(give_up(&stage), GOOD);
    assert_eq!(stage.reservation(), None);
    assert!(stage.foreign_is_whole() && stage.key(1).is_none());
    for stage in [Stage::new(2), Stage::new(2).held_by(FOREIGN, RO), Stage::new(2).held_by(0, AR)] {
        let before = stage.world.borrow().unit.clone();
        assert_eq!(give_up(&stage), GOOD);
        assert_eq!(stage.world.borrow().unit, before);
    }
    let none: &[Nexus] = &[];
    assert_eq!(release_before_unregistering(none, OURS).completion, NOT_READY);
}

#[test]
fn a_library_that_may_be_trusted_has_the_first_case_alone() {
    let asked = Cell::new(0);
    let by_library = || {
        asked.set(asked.get() + 1);
        Some(DEAD)
    };
    let stage = Stage::new(2).held_by(0, RO);
    assert_eq!(release(&stage.routes, OURS, RO, by_library), done(DEAD));
    assert_eq!(asked.get(), 1);
    // What it registers again loses APTPL.
    let stage = Stage::new(2).held_by(0, RO);
    stage.world.borrow_mut().aptpl = true;
    let forgetting = || {
        stage.world.borrow_mut().aptpl = false;
        Some(GOOD)
    };
    let restored = Some(Restored::Whole { registered: 0, failed: 0 });
    assert_eq!(release(&stage.routes, OURS, RO, forgetting), Released { completion: GOOD, restored });
    assert!(stage.world.borrow().aptpl);
    for stage in [Stage::new(2), Stage::new(2).held_by(FOREIGN, RO), Stage::new(2).held_by(0, AR)] {
        assert_ne!(release(&stage.routes, OURS, RO, by_library), done(DEAD));
        assert_eq!(asked.get(), 1);
    }
}

/// The other host preempts this one between any two commands of a release: it must not be found registered afterwards.
#[test]
fn who_is_preempted_meanwhile_does_not_register_again() {
    for at in 0.. {
        let stage = Stage::new(3).held_by(1, RO).offline(1);
        stage.world.borrow_mut().preempted_at = Some((at, OURS));
        let released = stage.release(OURS, RO);
        let world = stage.world.borrow();
        if world.preempted_at.is_some() {
            assert!(at > 6, "a release takes more commands than {at}");
            break;
        }
        // The last command found the registration still there, and nobody asks after it.
        let registered = world.unit.keys[..FOREIGN].iter().flatten().count();
        assert_eq!(registered, 0, "before command {at}: {released:?}");
        assert_eq!(world.unit.keys[FOREIGN], Some(THEIRS));
    }
}

#[test]
fn a_map_without_paths_is_not_ready() {
    let none: &[Nexus] = &[];
    assert_eq!(release(none, OURS, RO, || panic!("there is nothing to release")), done(NOT_READY));
    assert_eq!(ask(none, |_| (GOOD, Reached::Unit)), None);
    assert!(!reserve_as_holder(none, encode(&ReserveOut::Reserve { key: OURS, reservation_type: RO }).command()));
}

#[test]
fn the_holder_reserves_again_by_any_path() {
    let reserve = |stage: &Stage, kind| {
        let command = encode(&ReserveOut::Reserve { key: OURS, reservation_type: kind });
        reserve_as_holder(&stage.routes, command.command())
    };
    let stage = Stage::new(3).held_by(2, RO);
    let before = stage.reservation();
    assert!(reserve(&stage, RO));
    assert!(!reserve(&stage, Type::WriteExclusive));
    assert_eq!(stage.reservation(), before);
    let stage = Stage::new(3).held_by(FOREIGN, RO);
    let before = stage.reservation();
    assert!(!reserve(&stage, RO));
    assert_eq!(stage.reservation(), before);
}

#[test]
fn registrations_come_back_after_a_preempt_of_ones_own_key() {
    let stage = Stage::new(3).held_by(0, RO);
    stage.world.borrow_mut().preempt(1, OURS, OURS);
    assert_eq!(stage.our_keys(), [None, Some(OURS), None]);
    assert_eq!(restore(&stage.routes, OURS, false), Restored::Whole { registered: 2, failed: 0 });
    assert_eq!(stage.our_keys(), [Some(OURS); 3]);
    // And nothing changes when none was lost, not even PRGENERATION.
    let before = stage.world.borrow().unit.clone();
    assert_eq!(restore(&stage.routes, OURS, false), Restored::Whole { registered: 0, failed: 0 });
    assert_eq!(stage.world.borrow().unit, before);
    assert_eq!(restore(&stage.routes, OURS, true), Restored::Whole { registered: 0, failed: 0 });
    assert!(stage.world.borrow().aptpl && stage.our_keys() == [Some(OURS); 3]);
}

#[test]
fn a_host_that_is_not_registered_stays_so() {
    let stage = Stage::new(2);
    (0..2).for_each(|path| stage.set_key(path, None));
    for key in [OURS, THEIRS, Key(1)] {
        let before = stage.world.borrow().unit.clone();
        assert_eq!(restore(&stage.routes, key, false), Restored::NotRegistered);
        assert_eq!(stage.world.borrow().unit, before);
    }
}

#[test]
fn the_answer_of_a_path_that_works_goes_before_that_of_one_that_does_not() {
    let answers = |answers: Vec<(Completion, Reached)>| {
        let stage = Stage::new(answers.len());
        ask(&stage.routes, |route| answers[route.number].clone())
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
fn who_is_preempted_while_registering_again_does_not_stay_so() {
    for at in 0.. {
        let stage = Stage::new(3);
        (1..3).for_each(|path| stage.set_key(path, None));
        stage.world.borrow_mut().preempted_at = Some((at, OURS));
        let restored = restore(&stage.routes, OURS, false);
        if stage.world.borrow().preempted_at.is_some() {
            assert!(at > 3 && restored == Restored::Whole { registered: 2, failed: 0 }, "{at}: {restored:?}");
            break;
        }
        assert!(matches!(restored, Restored::NotRegistered | Restored::Preempted), "{at}: {restored:?}");
        assert_eq!(stage.our_keys(), [None; 3], "before command {at}");
    }
}

proptest! {
    /// Whatever is reserved and whichever paths are dead: nobody else loses anything, and GOOD means that this key holds
    /// no such reservation any more.
    #[test]
    fn a_release_touches_nothing_of_others(
        paths in 1..=FOREIGN,
        held in prop::option::of((0..=FOREIGN, prop::sample::select(&Type::ALL[..]))),
        registered: [bool; FOREIGN],
        dead: [bool; FOREIGN],
        attentions: [bool; FOREIGN],
        kind in prop::sample::select(&Type::ALL[..]),
        key in prop_oneof![3 => Just(OURS), 1 => Just(THEIRS), 1 => Just(Key(1)), 1 => Just(Key::ZERO)],
    ) {
        let mut stage = Stage::new(paths);
        (0..paths).filter(|path| !registered[*path]).for_each(|path| stage.set_key(path, None));
        if let Some((holder, kind)) = held.filter(|(holder, _)| stage.key(*holder).is_some()) {
            stage = stage.held_by(holder, kind);
        }
        {
            let mut world = stage.world.borrow_mut();
            (world.dead, world.attentions) = (dead, attentions);
        }
        let before = stage.world.borrow().unit.clone();
        let released = stage.release(key, kind);
        let after = stage.world.borrow().unit.clone();
        prop_assert!(stage.foreign_is_whole());
        if before.reservation.is_some_and(|taken| taken.holder == Some(FOREIGN)) {
            prop_assert_eq!(after.reservation, before.reservation);
        }
        if released.completion == GOOD && key == OURS {
            prop_assert_ne!(after.shown().held, Some(Held { key, reservation_type: kind }));
        }
        if released.completion != GOOD && released.restored.is_none() {
            prop_assert_eq!(after.keys, before.keys);
            prop_assert_eq!(after.reservation, before.reservation);
        }
    }
}
