//! `cargo xtask demo`: the main job of shared reservations, told step by step. Two virtual machines share a disk that has no
//! reservations of its own; one of them takes it, dies, and is followed by the other.
//!
//! Every line that says what a node got is the answer of the real server over the real protocol, and is compared with
//! what it should be: the first that differs ends the story as a failure.

mod requests;
mod server;
pub(crate) mod trial;

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Instant;

use anyhow::{Result, bail};
use scsi_pr::{Completion, PrManager};
use scsi_pr_helper::HelperClient;

use crate::cargo;
use crate::output::say;
use crate::workspace::Workspace;
use requests::{
    KEY_1, KEY_2, Request, in_words, preempt_and_abort, read_full_status, read_keys, read_reservation, register,
    release, reserve,
};
use server::Server;

/// The nodes of the cluster, by their initiator names.
pub(crate) const NODES: [&str; 2] = ["node1", "node2"];

/// Tells the story with the server that is built here, or with the one at `program`.
pub(crate) fn run(workspace: &Workspace, program: Option<&Path>) -> Result<bool> {
    let program = match program {
        Some(program) => program.to_owned(),
        None => {
            cargo::build(workspace, &["scsi-pr-cli"])?;
            workspace.program("scsi-pr")
        }
    };
    let start = Instant::now();
    let directory = tempfile::Builder::new().prefix("scsi-pr-demo-").tempdir()?;
    tell(&program, directory.path())?;
    say(&format!("\nTold in {:.1} seconds.", start.elapsed().as_secs_f64()));
    Ok(true)
}

fn tell(program: &Path, directory: &Path) -> Result<()> {
    let disk = directory.join("disk.img");
    File::create_new(&disk)?.set_len(64 << 20)?;
    say("Two virtual machines, one disk: who may write?\n");
    say(
        "The disk is an image file, as most virtual disks are. It has no persistent reservations of its own, so scsi-pr",
    );
    say("keeps them, in a SQLite database. Nothing here takes root, a SCSI disk or a guest.\n");
    let mut server = Server::start(program, directory)?;
    say(&format!("  $ {}\n", server.command_line()));
    say("Each socket is one virtual machine. What follows goes over them byte for byte as QEMU sends it for a guest.");
    let mut story =
        Story { disk: File::options().read(true).write(true).open(disk)?, clients: server.clients(), steps: 0 };
    before_the_failure(&mut story)?;

    story.step(
        "The server is killed (SIGKILL) and started again. Nothing is lost: what was answered was in the database.",
    );
    server.restart()?;
    story.ask(1, &read_keys(), "generation 2: 0x1111, 0x2222")?;
    story.ask(1, &read_reservation(), "held by 0x1111, Write Exclusive")?;

    after_the_failure(&mut story)?;
    server.stop()?;
    say(
        "\nOne holder at a time, and everybody who asks learns who. Reads and writes do not come this way: a node that has",
    );
    say("been preempted must stop by itself, as cluster software does when it sees that its registration is gone.");
    say("README.md says how to serve virtual machines: disks with reservations of their own, and others.");
    Ok(())
}

fn before_the_failure(story: &mut Story) -> Result<()> {
    story.step("Both nodes make themselves known to the disk: each registers a key.");
    story.ask(1, &register(KEY_1), "GOOD")?;
    story.ask(2, &register(KEY_2), "GOOD")?;

    story.step("node1 takes the disk. node2 sees that, and cannot have it.");
    story.ask(1, &reserve(KEY_1), "GOOD")?;
    story.ask(2, &read_reservation(), "held by 0x1111, Write Exclusive")?;
    story.ask(2, &reserve(KEY_2), "RESERVATION CONFLICT")?;
    story.ask(2, &read_full_status(), "node1 with 0x1111, the holder; node2 with 0x2222")
}

fn after_the_failure(story: &mut Story) -> Result<()> {
    story.step("node1 answers nobody any more. node2 throws it out, and the disk is node2's in the same moment.");
    story.ask(2, &preempt_and_abort(KEY_2, KEY_1), "GOOD")?;
    story.ask(2, &read_full_status(), "node2 with 0x2222, the holder")?;

    story.step("node1 comes back. Its key is gone, and the disk is node2's: good cluster software stops node1 here.");
    story.ask(1, &read_keys(), "generation 3: 0x2222")?;
    story.ask(1, &read_reservation(), "held by 0x2222, Write Exclusive")?;
    story.ask(1, &reserve(KEY_1), "RESERVATION CONFLICT")?;

    story.step("The administrator has looked at node1 and lets it join again; node2 hands the disk back.");
    story.ask(1, &register(KEY_1), "GOOD")?;
    story.ask(2, &release(KEY_2), "GOOD")?;
    story.ask(1, &read_reservation(), "nobody holds it")?;
    story.ask(1, &reserve(KEY_1), "GOOD")?;
    story.ask(2, &read_full_status(), "node2 with 0x2222; node1 with 0x1111, the holder")
}

struct Story {
    disk: File,
    clients: [HelperClient; 2],
    steps: u32,
}

impl Story {
    fn step(&mut self, sentence: &str) {
        self.steps += 1;
        say(&format!("\n{}. {sentence}", self.steps));
    }

    /// Node `number` sends `request`, and must get this answer.
    fn ask(&self, number: usize, request: &Request, expected: &str) -> Result<()> {
        let completion: Completion = self.clients[number - 1].execute(self.disk.as_fd(), request.command())?;
        let answer = in_words(request, &completion)?;
        say(&format!("     {}  {:<44} {answer}", NODES[number - 1], request.to_string()));
        if answer == expected { Ok(()) } else { bail!("{} should have got: {expected}", NODES[number - 1]) }
    }
}
