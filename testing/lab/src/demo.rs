//! `cargo xtask demo --helper`: the failover of a cluster, step by step. One host reserves a disk, the disk enforces it, and
//! another host takes over when the holder fails.

use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Result, bail};
use scsi_pr::{Completion, Key, PrManager, SenseCode, Type};
use scsi_pr_helper::HelperClient;

use crate::commands::{Request, preempt_and_abort, read_keys, read_reservation, register, reserve};
use crate::disk::{Disk, is_conflict};
use crate::helper::Helper;
use crate::report::line;
use crate::script::Access::{self, Permitted, Refused};
use crate::script::Expect;
use crate::script::Node::{self, A, B};
use crate::target::{Target, Unit};

const KEY_A: Key = Key(0xaaaa);
const KEY_B: Key = Key(0xbbbb);
const KIND: Type = Type::WriteExclusive;

/// Runs every step with the helper at `program`. Ends with an error at the first unexpected result.
pub(crate) fn run(program: &Path) -> Result<()> {
    line("Two hosts, one disk: who may write?");
    line("");
    let unit = Target::start()?.unit()?;
    let [a, b] = &unit.disks;
    line("A real SCSI target, the Linux kernel's, offers one disk to two initiators over iSCSI:");
    line(&format!(
        "  {} is the disk as host A sees it, {} is the same disk as host B sees it.",
        a.display(),
        b.display()
    ));
    let helper = Helper::start(program, "pr-helper", &[])?;
    line("The helper runs as an administrator starts it:");
    line(&format!("  qemu-pr-helper -k {}", helper.socket().display()));
    line(
        "Every PERSISTENT RESERVE below goes to it as QEMU sends it: 16 bytes of CDB, the open disk, a parameter list.",
    );
    line("Reads and writes go straight to the disk.");
    steps(&mut Demo::new(&helper, &unit)?)?;
    line("");
    line("The disk itself enforced one writer at a time.");
    Ok(())
}

fn steps(demo: &mut Demo) -> Result<()> {
    demo.step("A registers a key.");
    demo.command(A, &register(Key::ZERO, KEY_A), &Expect::Good)?;
    demo.step("A reserves the disk. From now on only A may write.");
    demo.command(A, &reserve(KEY_A, KIND), &Expect::Good)?;
    demo.step("B reads the reservation and sees A's key.");
    demo.command(B, &read_reservation(), &Expect::Reservation(Some((KEY_A, KIND))))?;
    demo.step("B registers too, but it cannot reserve the disk that A holds.");
    demo.command(B, &register(Key::ZERO, KEY_B), &Expect::Good)?;
    demo.command(B, &reserve(KEY_B, KIND), &Expect::Conflict)?;
    demo.step("The disk refuses B's write and accepts A's.");
    demo.write(B, Refused)?;
    demo.write(A, Permitted)?;
    demo.read(B, A)?;
    demo.step("A hangs, and its late writes would be a danger. B preempts A.");
    demo.command(B, &preempt_and_abort(KEY_B, KEY_A, KIND), &Expect::Good)?;
    demo.command(B, &read_keys(), &Expect::Keys(vec![KEY_B]))?;
    demo.command(B, &read_reservation(), &Expect::Reservation(Some((KEY_B, KIND))))?;
    demo.step("B holds the disk now, and continues A's work.");
    demo.write(B, Permitted)?;
    demo.step("A wakes up. The disk reports the preemption once, and refuses A's late writes.");
    demo.command(A, &read_reservation(), &Expect::Sense(SenseCode::REGISTRATIONS_PREEMPTED))?;
    demo.write(A, Refused)?;
    demo.read(A, B)
}

struct Demo {
    helper: HelperClient,
    disks: [Disk; 2],
    steps: u32,
}

impl Demo {
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
            if expected.is_met_by(&completion) { text_of(&completion, expected) } else { completion.to_string() };
        print_exchange(node, &what, &answer);
        if expected.is_met_by(&completion) { Ok(()) } else { bail!("the answer should have been: {expected}") }
    }

    /// `node` writes its letter, with the expected result.
    fn write(&self, node: Node, expected: Access) -> Result<()> {
        let outcome = self.disk(node).write(letter(node));
        let answer = match &outcome {
            Ok(()) => "written".to_owned(),
            Err(error) if is_conflict(error) => "refused: RESERVATION CONFLICT (18h)".to_owned(),
            Err(error) => error.to_string(),
        };
        print_exchange(node, &format!("WRITE of a block full of \"{node:?}\""), &answer);
        match (outcome, expected) {
            (Ok(()), Permitted) => Ok(()),
            (Err(error), Refused) if is_conflict(&error) => Ok(()),
            _ => bail!("the write should have been {expected}"),
        }
    }

    /// `node` reads the block, which must have `writer`'s letter.
    fn read(&self, node: Node, writer: Node) -> Result<()> {
        let byte = self.disk(node).read()?;
        print_exchange(node, "READ of that block", &format!("full of \"{}\"", char::from(byte)));
        if byte == letter(writer) { Ok(()) } else { bail!("the block should have been full of \"{writer:?}\"") }
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

fn print_exchange(node: Node, what: &str, answer: &str) {
    line(&format!("     {node:?} sends   {what}"));
    line(&format!("     {node:?} gets    {answer}"));
}

/// The text of an answer that is as expected.
fn text_of(completion: &Completion, expected: &Expect) -> String {
    match completion {
        Completion::Good(_) => format!("GOOD (00h){}", expected.to_string().trim_start_matches("GOOD")),
        Completion::CheckCondition(_) => expected.to_string(),
        Completion::Status(status) => format!("{status} ({:02x}h)", status.byte()),
    }
}
