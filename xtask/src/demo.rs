//! `cargo xtask demo`: shared reservations, step by step. Two virtual machines share a disk that has no reservations of
//! its own. One takes the disk and dies, and the other one takes it over.
//!
//! Each answer is that of the real server, over the real protocol. The demo compares it with the expected one, and
//! fails at the first difference.

mod requests;
mod server;
pub(crate) mod trial;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, bail};

use crate::cargo;
use crate::output::say;
use crate::workspace::Workspace;
use requests::{
    KEY_1, KEY_2, Request, preempt_and_abort, read_full_status, read_keys, read_reservation, register, release, reserve,
};
use server::Server;

/// The nodes of the cluster, by their initiator names.
pub(crate) const NODES: [&str; 2] = ["node1", "node2"];

/// Runs the demo with the server that is built here, or with the one at `program`.
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
    play(&program, directory.path())?;
    say(&format!("\nDone in {:.1} seconds.", start.elapsed().as_secs_f64()));
    Ok(true)
}

fn play(program: &Path, directory: &Path) -> Result<()> {
    let disk = directory.join("disk.img");
    File::create_new(&disk)?.set_len(64 << 20)?;
    say("Two virtual machines share one disk: which one may write?\n");
    say(
        "The disk is an image file, as most virtual disks are. It has no persistent reservations of its own, so scsi-pr",
    );
    say("keeps them, in a SQLite database. Nothing here takes root, a SCSI disk or a guest.\n");
    let mut server = Server::start(program, directory)?;
    say(&format!("  $ {}\n", server.command_line()));
    say("Each socket is one virtual machine. The commands have the bytes that QEMU sends for a guest.");
    let mut demo =
        Demo { disk: File::options().read(true).write(true).open(disk)?, sockets: server.sockets(), steps: 0 };
    before_the_failure(&mut demo)?;

    demo.step(
        "The server is killed (SIGKILL) and started again. Nothing is lost: the database has every answered change.",
    );
    server.restart()?;
    demo.ask(1, &read_keys(), "generation 2: 0x1111, 0x2222")?;
    demo.ask(1, &read_reservation(), "held by 0x1111, Write Exclusive")?;

    after_the_failure(&mut demo)?;
    server.stop()?;
    say(
        "\nThere is one holder at a time, and each node can read which. The server does not see reads and writes: a node that has",
    );
    say("been preempted must stop by itself, as cluster software does when its registration is gone.");
    say("README.md says how to serve virtual machines: disks with reservations of their own, and others.");
    Ok(())
}

fn before_the_failure(demo: &mut Demo) -> Result<()> {
    demo.step("Both nodes register a key.");
    demo.ask(1, &register(KEY_1), "GOOD")?;
    demo.ask(2, &register(KEY_2), "GOOD")?;

    demo.step("node1 takes the disk. node2 sees that, and cannot have it.");
    demo.ask(1, &reserve(KEY_1), "GOOD")?;
    demo.ask(2, &read_reservation(), "held by 0x1111, Write Exclusive")?;
    demo.ask(2, &reserve(KEY_2), "RESERVATION CONFLICT")?;
    demo.ask(2, &read_full_status(), "node1 with 0x1111, the holder; node2 with 0x2222")
}

fn after_the_failure(demo: &mut Demo) -> Result<()> {
    demo.step("node1 does not answer any more. node2 preempts it, and holds the disk in the same moment.");
    demo.ask(2, &preempt_and_abort(KEY_2, KEY_1), "GOOD")?;
    demo.ask(2, &read_full_status(), "node2 with 0x2222, the holder")?;

    demo.step("node1 comes back. Its key is gone, and the disk is node2's: good cluster software stops node1 here.");
    demo.ask(1, &read_keys(), "generation 3: 0x2222")?;
    demo.ask(1, &read_reservation(), "held by 0x2222, Write Exclusive")?;
    demo.ask(1, &reserve(KEY_1), "RESERVATION CONFLICT")?;

    demo.step("The administrator has looked at node1 and lets it join again; node2 hands the disk back.");
    demo.ask(1, &register(KEY_1), "GOOD")?;
    demo.ask(2, &release(KEY_2), "GOOD")?;
    demo.ask(1, &read_reservation(), "not reserved")?;
    demo.ask(1, &reserve(KEY_1), "GOOD")?;
    demo.ask(2, &read_full_status(), "node2 with 0x2222; node1 with 0x1111, the holder")
}

struct Demo {
    disk: File,
    sockets: [PathBuf; 2],
    steps: u32,
}

impl Demo {
    fn step(&mut self, sentence: &str) {
        self.steps += 1;
        say(&format!("\n{}. {sentence}", self.steps));
    }

    /// Node `number` sends `request`, and must get this answer.
    fn ask(&self, number: usize, request: &Request, expected: &str) -> Result<()> {
        let answer = request.run(&self.sockets[number - 1], &self.disk)?;
        say(&format!("     {}  {:<44} {answer}", NODES[number - 1], request.to_string()));
        if answer == expected { Ok(()) } else { bail!("{} should have got: {expected}", NODES[number - 1]) }
    }
}
