//! Random histories of four initiators over TCP. Every answer is compared with a second model of the standard
//! (`testing/model`), and every block that is read with the last write that was GOOD.

mod common;

use std::cell::Cell;

use common::*;
use model::history::{Act, Event, Mix, World, histories};
use model::{Answer as Expected, Model, Nexus};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use scsi_pr_iscsi::directory::Allowed;
use testing_support::initiator::Answer;

const NAMES: [&str; 4] =
    ["iqn.2026-11.test:a", "iqn.2026-11.test:b", "iqn.2026-11.test:c", "iqn.2026-11.test:long-name-of-an-initiator"];
const STEPS: usize = 200;
/// So many commands prove something.
const ENOUGH: usize = 20_000;
const MIX: Mix = Mix { spc2: 20, losses: 10, room_for_full_status: 0 };
/// Multiplies the number of histories.
const FACTOR: &str = "SCSI_PR_SOAK";

/// A disk, its initiators, and what the model says about them.
struct History {
    fixture: Fixture,
    initiators: Vec<Initiator>,
    model: Model,
    world: World,
    /// The first byte of each of the blocks that are written.
    blocks: [u8; 4],
    stamp: u8,
    commands: usize,
    transcript: Vec<String>,
}

impl History {
    fn new() -> Self {
        let fixture = Fixture::start(Vec::new(), Allowed::All);
        let mut initiators: Vec<_> = NAMES.iter().map(|name| fixture.connect().log_in(name)).collect();
        for initiator in &mut initiators {
            assert_eq!(drain(initiator), [[0x29, 0x00]]);
        }
        let nexuses = NAMES.map(|name| Nexus { initiator: transport_id(name), target_port: 1 });
        let world = World { target_ports: vec![1], nexuses: nexuses.into() };
        let model = Model::new(&world.target_ports);
        Self { fixture, initiators, model, world, blocks: [0; 4], stamp: 0, commands: 0, transcript: Vec::new() }
    }

    fn take(&mut self, act: &Act) -> Result<(), TestCaseError> {
        match act {
            Act::Command { from, cdb, list } => {
                let nexus = &self.world.nexuses[*from];
                // Service actions that the disk does not have. The rules also answer REPLACE LOST RESERVATION.
                let is_unknown = cdb[1] >= if cdb[0] == 0x5e { 4 } else { 8 };
                let expected = match is_unknown.then(|| self.model.take_attention(nexus)) {
                    Some(Some((asc, ascq))) => Expected::Check(6, asc, ascq),
                    Some(None) => Expected::Check(5, 0x24, 0x00),
                    None => self.model.execute(nexus, cdb, list).answer,
                };
                let initiator = &mut self.initiators[*from];
                let answer = match cdb[0] {
                    0x5e => initiator.read(cdb, u16::from_be_bytes([cdb[7], cdb[8]]).into()),
                    _ => initiator.write(cdb, list),
                };
                self.compare(&format!("{act:?}"), &expected, &answer)?;
            }
            Act::Event(Event::Spc2 { from, reserve }) => {
                let expected = self.model.spc2(&self.world.nexuses[*from], *reserve).answer;
                let answer = self.initiators[*from].read(&[if *reserve { 0x16 } else { 0x17 }, 0, 0, 0, 0, 0], 0);
                self.compare(&format!("{act:?}"), &expected, &answer)?;
            }
            Act::Event(Event::NexusLoss(from)) => {
                let _ = self.model.lose_nexus(&self.world.nexuses[*from]);
                // A login with the same ISID ends the former session.
                self.initiators[*from] = self.fixture.connect().log_in(NAMES[*from]);
                self.compare_attentions(act, *from, [0x29, 0x07])?;
            }
            Act::Event(Event::Reset) => {
                let _ = self.model.reset();
                self.initiators[0].reset_unit();
                for from in 0..NAMES.len() {
                    self.compare_attentions(act, from, [0x29, 0x03])?;
                }
            }
            // The server would have to be started again: the tests of the program do so.
            Act::Event(Event::PowerLoss) => {}
        }
        // The choice depends on the act alone, so that it stays the same when proptest removes other steps.
        self.ask_for_access(format!("{act:?}").bytes().map(usize::from).sum())
    }

    /// Any other command, of one of the initiators.
    fn ask_for_access(&mut self, choice: usize) -> Result<(), TestCaseError> {
        let from = choice % NAMES.len();
        let lba = choice / 4 % self.blocks.len();
        let nexus = &self.world.nexuses[from];
        let write = [0x2a, 0, 0, 0, 0, lba as u8, 0, 0, 1, 0];
        let read = [0x28, 0, 0, 0, 0, lba as u8, 0, 0, 1, 0];
        let compare_and_write = {
            let mut cdb = [0; 16];
            (cdb[0], cdb[9], cdb[13]) = (0x89, lba as u8, 1);
            cdb
        };
        let (cdb, is_attention_reported): (&[u8], bool) = match choice / 16 % 7 {
            0 | 1 => (&write, true),
            2 => (&read, true),
            3 => (&compare_and_write, true),
            4 => (&[0; 6], true),
            5 => (&[0x12, 0, 0, 0, 36, 0], false),
            _ => (&[0x35, 0, 0, 0, 0, 0, 0, 0, 1, 0], true),
        };
        let attention = if is_attention_reported { self.model.take_attention(nexus) } else { None };
        let before = self.blocks[lba];
        let expected = match attention {
            Some((asc, ascq)) => Expected::Check(6, asc, ascq),
            None if !self.model.permits(nexus, cdb) => Expected::Conflict,
            None => match cdb[0] {
                0x28 => Expected::Good(vec![before; BLOCK]),
                0x12 => Expected::Good(Vec::new()),
                _ => {
                    if matches!(cdb[0], 0x2a | 0x89) {
                        self.stamp = self.stamp.wrapping_add(1);
                        self.blocks[lba] = self.stamp;
                    }
                    Expected::Good(Vec::new())
                }
            },
        };
        let stamp = self.stamp.wrapping_add(u8::from(self.blocks[lba] == before));
        let initiator = &mut self.initiators[from];
        let mut answer = match cdb[0] {
            0x2a => initiator.write(cdb, &[stamp; BLOCK]),
            0x89 => initiator.write(cdb, &[[before; BLOCK], [stamp; BLOCK]].concat()),
            0x28 => initiator.read(cdb, BLOCK as u32),
            0x12 => initiator.read(cdb, 36),
            _ => initiator.read(cdb, 0),
        };
        if cdb[0] == 0x12 {
            answer.data.clear();
        }
        self.compare(&format!("{from}: {:02x?}", &cdb[..6]), &expected, &answer)
    }

    fn compare(&mut self, act: &str, expected: &Expected, answer: &Answer) -> Result<(), TestCaseError> {
        self.commands += 1;
        self.transcript.push(format!("{act}: {answer:02x?}"));
        let wanted = match expected {
            Expected::Good(data) => Answer { status: 0, sense: None, data: data.clone() },
            Expected::Conflict => Answer { status: 0x18, sense: None, data: Vec::new() },
            Expected::Check(key, asc, ascq) => Answer { status: 2, sense: Some([*key, *asc, *ascq]), data: Vec::new() },
        };
        prop_assert_eq!(&wanted, answer, "after\n{}", self.transcript.join("\n"));
        Ok(())
    }

    /// The unit attentions of an initiator after an event of the whole unit or session: first the one of the event, which
    /// the model gives to registrants alone, then those of reservations.
    fn compare_attentions(&mut self, act: &Act, from: usize, own: [u8; 2]) -> Result<(), TestCaseError> {
        let nexus = &self.world.nexuses[from];
        let mut wanted = vec![own];
        while let Some((asc, ascq)) = self.model.take_attention(nexus) {
            if asc != 0x29 {
                wanted.push([asc, ascq]);
            }
        }
        let reported = drain(&mut self.initiators[from]);
        self.transcript.push(format!("{act:?}: {from} has {reported:02x?}"));
        prop_assert_eq!(wanted, reported, "after\n{}", self.transcript.join("\n"));
        Ok(())
    }
}

/// Takes the unit attentions of an initiator, by REQUEST SENSE, which no reservation forbids.
fn drain(initiator: &mut Initiator) -> Vec<[u8; 2]> {
    let mut attentions = Vec::new();
    loop {
        let sense = initiator.read(&[0x03, 0, 0, 0, 18, 0], 18).data;
        match sense[2] & 0x0f {
            6 => attentions.push([sense[12], sense[13]]),
            _ => return attentions,
        }
    }
}

/// The TransportID of an iSCSI initiator port with an ISID of zero (SPC-4 7.6.4.6).
fn transport_id(name: &str) -> Vec<u8> {
    let mut text = format!("{name},i,0x000000000000\0").into_bytes();
    text.resize(text.len().next_multiple_of(4).max(20), 0);
    let mut id = vec![0x45, 0];
    id.extend((text.len() as u16).to_be_bytes());
    id.extend(text);
    model::transport_id(&id).expect("a valid TransportID")
}

#[test]
fn disk_answers_random_histories_as_the_model_does() {
    let factor = std::env::var(FACTOR).ok().map_or(1, |factor| factor.parse().expect("a number in SCSI_PR_SOAK"));
    let config = Config { cases: 130 * factor, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]));
    let commands = Cell::new(0);
    let outcome = runner.run(&histories(MIX, STEPS), |steps| {
        let mut history = History::new();
        for step in &steps {
            let act = history.world.act(step, &history.model);
            history.take(&act)?;
        }
        commands.set(commands.get() + history.commands);
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
    println!("{} commands", commands.get());
    assert!(commands.get() >= ENOUGH, "{} commands", commands.get());
}
