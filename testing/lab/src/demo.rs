//! `cargo xtask demo --real`: the main job, told step by step. A reservation is taken, seen, enforced and, when its holder
//! fails, taken over.

use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Result, bail};
use scsi_pr::{Completion, Key, PrManager, SenseCode, Type};
use scsi_pr_helper::HelperClient;

use crate::commands::{Request, preempt_and_abort, read_keys, read_reservation, register, reserve};
use crate::disk::{Disk, is_conflict};
use crate::helper::Helper;
use crate::report::line;
use crate::script::Expect;
use crate::script::Node::{self, A, B};
use crate::target::{Target, Unit};

const KEY_A: Key = Key(0xaaaa);
const KEY_B: Key = Key(0xbbbb);
const KIND: Type = Type::WriteExclusive;

/// Tells the story with the helper at `program`; ends with an error at the first step that does not behave.
pub(crate) fn run(program: &Path) -> Result<()> {
    line("Two hosts, one disk: who may write?");
    line("");
    let unit = Target::start()?.unit()?;
    let [a, b] = &unit.disks;
    line("A real SCSI target, the Linux kernel's own, offers one disk to two initiators over iSCSI:");
    line(&format!(
        "  {} is the disk as host A sees it, {} is the same disk as host B sees it.",
        a.display(),
        b.display()
    ));
    let helper = Helper::start(program, "pr-helper", &[])?;
    line("The helper runs as an administrator would start it:");
    line(&format!("  qemu-pr-helper -k {}", helper.socket().display()));
    line(
        "Every PERSISTENT RESERVE below goes to it as QEMU sends it: 16 bytes of CDB, the open disk, a parameter list.",
    );
    line("Reads and writes go straight to the disk.");
    tell(&mut Story::new(&helper, &unit)?)?;
    line("");
    line("One writer at a time, enforced by the disk itself. That is all there is to it.");
    Ok(())
}

fn tell(story: &mut Story) -> Result<()> {
    story.step("A makes itself known to the disk: it registers a key.");
    story.command(A, &register(Key::ZERO, KEY_A), &Expect::Good)?;
    story.step("A takes the reservation. From now on only A may write.");
    story.command(A, &reserve(KEY_A, KIND), &Expect::Good)?;
    story.step("B sees who has it.");
    story.command(B, &read_reservation(), &Expect::Reservation(Some((KEY_A, KIND))))?;
    story.step("B registers too, but it cannot reserve what A has.");
    story.command(B, &register(Key::ZERO, KEY_B), &Expect::Good)?;
    story.command(B, &reserve(KEY_B, KIND), &Expect::Conflict)?;
    story.step("The disk enforces it: B's write is refused, A's passes.");
    story.write(B, false)?;
    story.write(A, true)?;
    story.read(B, A)?;
    story.step("A hangs. It answers nobody, and nobody knows what it will still write. B throws it out.");
    story.command(B, &preempt_and_abort(KEY_B, KEY_A, KIND), &Expect::Good)?;
    story.command(B, &read_keys(), &Expect::Keys(vec![KEY_B]))?;
    story.command(B, &read_reservation(), &Expect::Reservation(Some((KEY_B, KIND))))?;
    story.step("Now B has the disk, and goes on with A's work.");
    story.write(B, true)?;
    story.step("A wakes up. The disk tells it once what happened, and lets none of its late writes through.");
    story.command(A, &read_reservation(), &Expect::Sense(SenseCode::REGISTRATIONS_PREEMPTED))?;
    story.write(A, false)?;
    story.read(A, B)
}

struct Story {
    helper: HelperClient,
    disks: [Disk; 2],
    steps: u32,
}

impl Story {
    fn new(helper: &Helper, unit: &Unit) -> Result<Self> {
        let [a, b] = &unit.disks;
        Ok(Self { helper: helper.client(), disks: [Disk::open(a)?, Disk::open(b)?], steps: 0 })
    }

    fn step(&mut self, sentence: &str) {
        self.steps += 1;
        line("");
        line(&format!("{}. {sentence}", self.steps));
    }

    fn command(&self, node: Node, request: &Request, expected: &Expect) -> Result<()> {
        let command = request.command();
        let action = command.cdb().service_action();
        let what = format!("{}, service action {action:02x}h: {request}", command.opcode());
        let completion = self.helper.execute(self.disk(node).file().as_fd(), command)?;
        let answer =
            if expected.is_met_by(&completion) { in_words(&completion, expected) } else { completion.to_string() };
        said(node, &what, &answer);
        if expected.is_met_by(&completion) { Ok(()) } else { bail!("the answer should have been: {expected}") }
    }

    /// `node` writes its letter.
    fn write(&self, node: Node, passes: bool) -> Result<()> {
        let outcome = self.disk(node).write(letter(node));
        let answer = match &outcome {
            Ok(()) => "written".to_owned(),
            Err(error) if is_conflict(error) => "refused: RESERVATION CONFLICT (18h)".to_owned(),
            Err(error) => error.to_string(),
        };
        said(node, &format!("WRITE of a block full of \"{node:?}\""), &answer);
        match outcome {
            Ok(()) if passes => Ok(()),
            Err(error) if !passes && is_conflict(&error) => Ok(()),
            _ => bail!("the write should have been {}", if passes { "done" } else { "refused by the reservation" }),
        }
    }

    /// `node` reads what `writer` has written.
    fn read(&self, node: Node, writer: Node) -> Result<()> {
        let found = self.disk(node).read()?;
        said(node, "READ of that block", &format!("full of \"{}\"", char::from(found)));
        if found == letter(writer) { Ok(()) } else { bail!("the block should have been full of \"{writer:?}\"") }
    }

    fn disk(&self, node: Node) -> &Disk {
        let [a, b] = &self.disks;
        match node {
            A => a,
            B => b,
        }
    }
}

fn letter(node: Node) -> u8 {
    match node {
        A => b'A',
        B => b'B',
    }
}

fn said(node: Node, what: &str, answer: &str) {
    line(&format!("     {node:?} sends   {what}"));
    line(&format!("     {node:?} gets    {answer}"));
}

/// An answer that is as it should be.
fn in_words(completion: &Completion, expected: &Expect) -> String {
    match completion {
        Completion::Good(_) => format!("GOOD (00h){}", expected.to_string().trim_start_matches("GOOD")),
        Completion::CheckCondition(_) => expected.to_string(),
        Completion::Status(status) => format!("{status} ({:02x}h)", status.byte()),
    }
}
