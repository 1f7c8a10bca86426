//! Histories of commands on models of what is behind the ioctls, whole and broken.

use super::*;
use crate::models::nvme::{self as nvme_model, HostIds, Namespace, Rules, is_good};
use crate::models::spc::{self, Nexus, Unit, histories};
use proptest::prelude::*;

/// The SCSI disk driver of Linux over a unit.
struct ScsiDisk<'a> {
    unit: &'a RefCell<Unit>,
    nexus: Nexus,
}

impl Ioctls for ScsiDisk<'_> {
    fn issue(&self, request: &Request) -> Result<(), Failure> {
        let command = match *request {
            Request::Register { new, ignore_existing: true, .. } => ignoring(new.0),
            Request::Register { old, new, .. } => register(old.0, new.0),
            Request::Reserve { key, reservation_type } => ReserveOut::Reserve { key, reservation_type },
            Request::Release { key, reservation_type } => ReserveOut::Release { key, reservation_type },
            Request::Clear { key } => ReserveOut::Clear { key },
            Request::Preempt { own, victim, reservation_type, .. } => {
                preempting(own.0, victim.0, reservation_type.code())
            }
        };
        match self.unit.borrow_mut().run(self.nexus, &command) {
            Completion::Good(_) => Ok(()),
            Completion::Status(status) => Err(Failure::Status(status.byte().into())),
            Completion::CheckCondition(_) => Err(Failure::Errno(Errno::INVAL)),
        }
    }

    fn read_keys(&self, keys: &mut [u64]) -> Result<KeyCount, Failure> {
        let unit = self.unit.borrow();
        keys.iter_mut().zip(unit.sorted_keys()).for_each(|(room, key)| *room = key.0);
        Ok(KeyCount { generation: unit.generation, total: unit.sorted_keys().len() as u32 })
    }

    fn read_reservation(&self) -> Result<Held, Failure> {
        let Reservation { generation, held } = self.unit.borrow().shown();
        Ok(held.map_or(Held { key: 0, generation: 0, kind: 0 }, |held| Held {
            key: held.key.0,
            generation: generation.0,
            kind: type_number::of(held.reservation_type).into(),
        }))
    }

    fn are_known(&self) -> Result<bool, Errno> {
        Ok(true)
    }
}

/// The NVMe driver of Linux, with what it makes of these ioctls, over a namespace.
struct NvmeDisk<'a> {
    namespace: &'a RefCell<Namespace>,
    host: Nexus,
}

impl Ioctls for NvmeDisk<'_> {
    fn issue(&self, request: &Request) -> Result<(), Failure> {
        let rtype = |reservation_type| u32::from(type_number::of(reservation_type)) << 8;
        let (opcode, cdw10, current, other) = match *request {
            Request::Register { old, new, ignore_existing } => {
                let action = if old.is_zero() { 0 } else { 2 };
                (0x0d, action | u32::from(ignore_existing) << 3 | 3 << 30, old, new)
            }
            Request::Reserve { key, reservation_type } => (0x11, rtype(reservation_type), key, Key::ZERO),
            Request::Preempt { own, victim, reservation_type, abort } => {
                (0x11, rtype(reservation_type) | (1 + u32::from(abort)), own, victim)
            }
            Request::Release { key, reservation_type } => {
                (0x15, rtype(reservation_type) | u32::from(key.is_zero()) << 3, key, Key::ZERO)
            }
            Request::Clear { key } => (0x15, 1 | u32::from(key.is_zero()) << 3, key, Key::ZERO),
        };
        let data = [current.0.to_le_bytes(), other.0.to_le_bytes()].concat();
        match self.namespace.borrow_mut().change(self.host, opcode, cdw10, &data) & !nvme_model::DNR {
            nvme_model::SUCCESS => Ok(()),
            nvme_model::CONFLICT => Err(Failure::Status(0x18)),
            nvme_model::INVALID_FIELD | nvme_model::INVALID_OPCODE => Err(Failure::Errno(Errno::INVAL)),
            _ => Err(Failure::Status(0x2)),
        }
    }

    fn read_keys(&self, keys: &mut [u64]) -> Result<KeyCount, Failure> {
        let namespace = self.namespace.borrow();
        keys.iter_mut().zip(&namespace.registrants).for_each(|(room, registrant)| *room = registrant.1);
        Ok(KeyCount { generation: namespace.generation, total: namespace.registrants.len() as u32 })
    }

    fn read_reservation(&self) -> Result<Held, Failure> {
        let namespace = self.namespace.borrow();
        let (kind, key) = match namespace.reservation {
            None => (0, 0),
            Some((rtype, holder)) => {
                (rtype, namespace.registrants.iter().find(|registrant| registrant.0 == holder).unwrap().1)
            }
        };
        Ok(Held { key, generation: namespace.generation, kind: kind.into() })
    }

    fn are_known(&self) -> Result<bool, Errno> {
        Ok(true)
    }
}

/// Breaks the ioctl whose turn it is, before or after it has been done.
struct Broken<I> {
    inner: I,
    turn: Cell<usize>,
    after: bool,
    failure: Failure,
}

impl<I> Broken<I> {
    fn now(&self) -> bool {
        let turn = self.turn.get();
        self.turn.set(turn.wrapping_sub(1));
        turn == 0
    }
}

impl<I: Ioctls> Ioctls for Broken<I> {
    fn issue(&self, request: &Request) -> Result<(), Failure> {
        if self.now() {
            if self.after {
                let _ = self.inner.issue(request);
            }
            return Err(self.failure);
        }
        self.inner.issue(request)
    }

    fn read_keys(&self, keys: &mut [u64]) -> Result<KeyCount, Failure> {
        if self.now() { Err(self.failure) } else { self.inner.read_keys(keys) }
    }

    fn read_reservation(&self) -> Result<Held, Failure> {
        if self.now() { Err(self.failure) } else { self.inner.read_reservation() }
    }

    fn are_known(&self) -> Result<bool, Errno> {
        self.inner.are_known()
    }
}

fn failures() -> impl Strategy<Value = Failure> {
    let errno = prop_oneof![Just(Errno::PERM), Just(Errno::NOTTY), (1..200).prop_map(Errno::from_raw_os_error)];
    let status = prop_oneof![prop::sample::select(&[2, 0x18, 0xe_0000, 0xf_0000, 0x1_0000][..]), 1..u32::MAX];
    prop_oneof![errno.prop_map(Failure::Errno), status.prop_map(Failure::Status)]
}

/// Both READs must show the state of the unit.
fn assert_shown(ioctls: &impl Ioctls, unit: &Unit) -> Result<(), TestCaseError> {
    let ask = |action| data(read(ioctls, &ReserveIn::new(action, MAX_TRANSFER), SCSI));
    let mut keys = Keys::parse(&ask(ReserveInAction::ReadKeys)).unwrap().value;
    keys.keys.sort_unstable();
    prop_assert_eq!(keys.keys, unit.sorted_keys());
    prop_assert_eq!(keys.generation, Generation(unit.generation));
    let reservation = Reservation::parse(&ask(ReserveInAction::ReadReservation)).unwrap().value;
    prop_assert_eq!(reservation, unit.shown());
    Ok(())
}

proptest! {
    #[test]
    fn a_scsi_disk_answers_as_its_unit_does(history in histories()) {
        let (disk, mut unit) = (RefCell::default(), Unit::default());
        for step in history {
            let command = step.command(&unit);
            let ioctls = ScsiDisk { unit: &disk, nexus: step.nexus };
            let answer = write(&ioctls, &command, SCSI);
            if matches!(&command, ReserveOut::Preempt { scope_type, .. } | ReserveOut::PreemptAndAbort { scope_type, .. }
                if scope_type.reservation_type().is_none())
            {
                // Refused even where the standard would not look at it.
                prop_assert_eq!(answer, check(SenseCode::INVALID_FIELD_IN_CDB));
            } else {
                prop_assert_eq!(answer, Ok(unit.run(step.nexus, &command)), "{:?}", command);
            }
            prop_assert_eq!(&*disk.borrow(), &unit);
            assert_shown(&ioctls, &unit)?;
        }
    }

    #[test]
    fn what_is_good_on_nvme_has_been_done_and_what_is_not_has_changed_nothing(
        history in histories(), nvmet: bool,
    ) {
        let rules = if nvmet { Rules::Nvmet } else { Rules::Standard };
        let namespace = RefCell::new(Namespace { rescap: 0xff, ..Namespace::new(rules, HostIds::Long) });
        for step in history {
            let before = namespace.borrow().unit();
            let command = step.command(&before);
            let mut after = before.clone();
            let expected = after.run(step.nexus, &command);
            let ioctls = NvmeDisk { namespace: &namespace, host: step.nexus };
            match write(&ioctls, &command, NVME) {
                // These ioctls do not show whether another registrant with the sender's key is gone.
                Ok(answer) if nvmet && is_good(&answer) && matches!(
                    command,
                    ReserveOut::Preempt { key, service_action_key, .. }
                    | ReserveOut::PreemptAndAbort { key, service_action_key, .. } if key == service_action_key
                ) => {}
                Ok(answer) if is_good(&answer) => {
                    prop_assert!(namespace.borrow().agrees_with(&after), "{:?} of {:?}", command, before);
                    // The only thing that is done and that SCSI would not have: to register the same key once more.
                    let again = matches!(command, ReserveOut::Register { key: Key::ZERO, service_action_key, .. }
                        if before.keys[step.nexus] == Some(service_action_key));
                    prop_assert!(is_good(&expected) || again, "{:?} of {:?}: {}", command, before, expected);
                }
                Err(CommandError::Refused(SenseCode::TARGET_FAILURE, _)) => prop_assert!(nvmet, "{:?}", command),
                _ => prop_assert!(namespace.borrow().agrees_with(&before), "{:?} of {:?}", command, before),
            }
            assert_shown(&ioctls, &namespace.borrow().unit())?;
        }
    }

    #[test]
    fn nothing_is_good_that_broke_and_nothing_is_tried_elsewhere_that_was_done(
        history in histories(), turn in 0_usize..4, after: bool, failure in failures(), nvme: bool,
    ) {
        let (disk, namespace) =
            (RefCell::default(), RefCell::new(Namespace::new(Rules::Standard, HostIds::Long)));
        let state = || if nvme { namespace.borrow().unit() } else { Unit::clone(&disk.borrow()) };
        for step in history {
            let before = state();
            let command = step.command(&before);
            let mut expected = before.clone();
            let _ = expected.run(step.nexus, &command);
            // An errno that says "not permitted" says "not done" too.
            let after = after && !matches!(failure, Failure::Errno(Errno::PERM | Errno::ACCESS));
            let quirks = if nvme { NVME } else { SCSI };
            let answer = if nvme {
                let inner = NvmeDisk { namespace: &namespace, host: step.nexus };
                write(&Broken { inner, turn: Cell::new(turn), after, failure }, &command, quirks)
            } else {
                let inner = ScsiDisk { unit: &disk, nexus: step.nexus };
                write(&Broken { inner, turn: Cell::new(turn), after, failure }, &command, quirks)
            };
            let same = |a: &Unit, b: &Unit| (a.keys, a.reservation) == (b.keys, b.reservation);
            match answer {
                Ok(answer) if is_good(&answer) => prop_assert!(same(&state(), &expected), "{:?}", command),
                Err(CommandError::NotPermitted(_)) => prop_assert!(same(&state(), &before), "{:?}", command),
                _ => {}
            }
        }
    }

    #[test]
    fn no_failure_of_the_first_ioctl_is_good(command in spc::commands(), failure in failures(), nvme: bool) {
        let script = Script { outcomes: vec![Err(failure), Err(failure)].into(), ..Script::default() };
        let quirks = if nvme { NVME } else { SCSI };
        let answer = write(&script, &command, quirks);
        prop_assert!(!matches!(&answer, Ok(answer) if is_good(answer)), "{:?}", answer);
        let permission = matches!(failure, Failure::Errno(Errno::PERM | Errno::ACCESS));
        prop_assert_eq!(matches!(answer, Err(CommandError::NotPermitted(_))), permission && !script.issued().is_empty());
    }
}
