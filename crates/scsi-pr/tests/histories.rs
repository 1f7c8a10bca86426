//! Random histories of many nexuses: after each step, everything that can be seen of [`Reservations`] is what a second,
//! plain model makes of the standard (`testing/model`, which shares nothing with this crate).

use std::collections::BTreeMap;

use model::history::{Act, Event, Mix, Step, World, histories};
use model::{Answer, Done, Model, WAYS, access};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use scsi_pr::{Access, Cdb, Command, Completion, Nexus, Reservations, SenseCode, SenseKey, Status, TransportId};

const MIX: Mix = Mix { spc2: 40, losses: 6, room_for_full_status: 0 };

/// The pair that must never differ.
struct Pair {
    world: World,
    model: Model,
    nexuses: Vec<Nexus>,
    reservations: Reservations,
    /// A command of every class.
    commands: Vec<([u8; 32], Access)>,
}

impl Pair {
    fn new(initiators: usize, target_ports: &[u16]) -> Self {
        let world = World::new(initiators, target_ports);
        let nexuses = world.nexuses.iter().map(translated).collect();
        let model = Model::new(target_ports);
        let mut commands: Vec<([u8; 32], Access)> = Vec::new();
        for cdb in access::commands() {
            let access = Access::of_cdb(&cdb);
            if commands.iter().all(|(_, known)| *known != access) {
                commands.push((cdb, access));
            }
        }
        let reservations = Reservations::with_target_ports(target_ports.iter().copied());
        Self { world, model, nexuses, reservations, commands }
    }

    /// Takes a step; the way it went. `Err` says what differs.
    fn take(&mut self, step: &Step) -> Result<&'static str, String> {
        let act = self.world.act(step, &self.model);
        let before = self.reservations.clone();
        let (done, completion, aborted, may_change) = self.act(&act);
        same("completion", &completion, &expected(&done.answer))
            .map_err(|difference| format!("{act:?}: {difference}"))?;
        let must_abort: Vec<Nexus> = done.aborted.iter().map(translated).collect();
        if aborted != must_abort {
            return Err(format!("{act:?}: aborts {aborted:?}, expected {must_abort:?}"));
        }
        let changed = self.reservations != before;
        if changed && !may_change {
            return Err(format!("{act:?}: a change without `changed`"));
        }
        let reported = matches!(done.answer, Answer::Check(6, ..));
        if changed && !reported && !matches!(done.answer, Answer::Good(_)) {
            return Err(format!("{act:?}: it was refused, and changed something"));
        }
        self.compare().map_err(|difference| format!("{act:?}: {difference}"))?;
        Ok(done.way)
    }

    /// Runs the step on the model and on the rules. Returns both results, and whether the rules reported a change.
    fn act(&mut self, act: &Act) -> (Done, Completion, Vec<Nexus>, bool) {
        let good = Completion::Good(Vec::new());
        match act {
            Act::Command { from, cdb, list } => {
                let done = self.model.execute(&self.world.nexuses[*from], cdb, list);
                let command = Command::new(Cdb::new(*cdb).unwrap(), list).unwrap();
                let outcome = self.reservations.execute(&self.nexuses[*from], command);
                (done, outcome.completion, outcome.aborted, outcome.changed)
            }
            Act::Event(Event::Spc2 { from, reserve }) => {
                let done = self.model.spc2(&self.world.nexuses[*from], *reserve);
                let nexus = &self.nexuses[*from];
                let completion = match (self.reservations.take_unit_attention(nexus), reserve) {
                    (Some(code), _) => Completion::check(code),
                    (None, true) => self.reservations.reserve_spc2(nexus),
                    (None, false) => self.reservations.release_spc2(nexus),
                };
                (done, completion, Vec::new(), true)
            }
            Act::Event(Event::NexusLoss(from)) => {
                self.reservations.lose_nexus(&self.nexuses[*from]);
                (self.model.lose_nexus(&self.world.nexuses[*from]), good, Vec::new(), true)
            }
            Act::Event(Event::Reset) => {
                self.reservations.reset();
                (self.model.reset(), good, Vec::new(), true)
            }
            Act::Event(Event::PowerLoss) => {
                self.reservations.lose_power();
                (self.model.lose_power(), good, Vec::new(), true)
            }
        }
    }

    /// Everything that can be seen.
    fn compare(&self) -> Result<(), String> {
        let Self { world, model, nexuses, reservations, commands } = self;
        same("PRGENERATION", &reservations.generation().0, &model.generation)?;
        same("APTPL", &reservations.aptpl(), &model.aptpl)?;
        let registrants: Vec<_> =
            reservations.registrations().map(|one| (one.nexus.clone(), one.key.0, one.is_holder)).collect();
        let expected: Vec<_> = model
            .registrants
            .iter()
            .map(|one| (translated(&one.nexus), one.key, model.is_holder(&one.nexus)))
            .collect();
        same("registrants", &registrants, &expected)?;
        let reserved = reservations.reservation().map(|it| (it.reservation_type.code(), it.holder.cloned()));
        let expected = model.reservation.as_ref().map(|it| (it.kind, it.holder.as_ref().map(translated)));
        same("reservation", &reserved, &expected)?;
        same("SPC-2", &reservations.spc2_holder().cloned(), &model.spc2_holder.as_ref().map(translated))?;
        for (plain, nexus) in world.nexuses.iter().zip(nexuses) {
            let (mut ours, mut theirs) = (reservations.clone(), model.clone());
            loop {
                let reported = ours.take_unit_attention(nexus).map(|code| (code.key.byte(), code.asc, code.ascq));
                let expected = theirs.take_attention(plain).map(|(asc, ascq)| (6, asc, ascq));
                if reported != expected {
                    return Err(format!("unit attention of {nexus}: {reported:?}, expected {expected:?}"));
                }
                if reported.is_none() {
                    break;
                }
            }
            for (cdb, access) in commands {
                if reservations.permits(nexus, *access) != model.permits(plain, cdb) {
                    return Err(format!("{nexus} sends {cdb:02x?}: {}", reservations.permits(nexus, *access)));
                }
            }
        }
        Ok(())
    }
}

fn translated(nexus: &model::Nexus) -> Nexus {
    Nexus::new(TransportId::from_bytes(&nexus.initiator).unwrap(), nexus.target_port)
}

fn expected(answer: &Answer) -> Completion {
    match answer {
        Answer::Good(data) => Completion::Good(data.clone()),
        Answer::Conflict => Completion::Status(Status::RESERVATION_CONFLICT),
        Answer::Check(key, asc, ascq) => {
            Completion::check(SenseCode { key: SenseKey::from_byte(*key), asc: *asc, ascq: *ascq })
        }
    }
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, actual: &T, expected: &T) -> Result<(), String> {
    if actual == expected { Ok(()) } else { Err(format!("{what}: {actual:?}, expected {expected:?}")) }
}

/// One to four initiators at one or two of the unit's target ports.
fn worlds() -> impl Strategy<Value = (usize, Vec<u16>)> {
    (2..=4usize, prop::sample::select(vec![vec![1], vec![1, 2], vec![3, 0x1ff]]))
}

proptest! {
    #![proptest_config(Config { cases: 300, ..Config::default() })]

    #[test]
    fn a_history_goes_as_the_tables_say((initiators, ports) in worlds(), history in histories(MIX, 200)) {
        let mut pair = Pair::new(initiators, &ports);
        for step in &history {
            if let Err(difference) = pair.take(step) {
                prop_assert!(false, "{}", difference);
            }
        }
    }
}

#[test]
fn histories_go_every_way_that_the_standard_has() {
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[1; 32]);
    let mut runner = TestRunner::new_with_rng(Config { failure_persistence: None, ..Config::default() }, rng);
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for _ in 0..200 {
        let (initiators, ports) = worlds().new_tree(&mut runner).unwrap().current();
        let mut pair = Pair::new(initiators, &ports);
        for step in histories(MIX, 200).new_tree(&mut runner).unwrap().current() {
            *seen.entry(pair.take(&step).unwrap()).or_default() += 1;
        }
    }
    let unseen: Vec<_> = WAYS.iter().filter(|way| !seen.contains_key(*way)).collect();
    assert!(unseen.is_empty(), "never: {unseen:#?}\nseen: {seen:#?}");
}
