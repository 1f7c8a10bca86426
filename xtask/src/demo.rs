//! `cargo xtask demo`: two virtual machines share a disk. One of them hangs and is fenced, and the disk refuses its late
//! write, also after the server was killed.
//!
//! The initiator of the demo speaks iSCSI to the real program. The demo compares each answer with the expected one, and
//! fails at the first difference.

pub(crate) mod requests;
pub(crate) mod trial;

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::cargo;
use crate::disk_server::{DiskServer, TARGET};
use crate::initiator::Initiator;
use crate::workspace::Workspace;
use requests::{
    Request, preempt_and_abort, read, read_full_status, read_keys, register, reserve, test_unit_ready, write,
};

const KEY_1: u64 = 0x1111;
const KEY_2: u64 = 0x2222;

const GOOD: &str = "GOOD";
const CONFLICT: &str = "refused: RESERVATION CONFLICT";

/// The size of the disk in bytes.
const SIZE: u64 = 64 << 20;

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
    println!("\nDone in {:.1} seconds.", start.elapsed().as_secs_f64());
    Ok(true)
}

fn play(program: &Path, directory: &Path) -> Result<()> {
    println!(
        "Two virtual machines share a disk. One hangs, the other takes over: what stops the late write of the first?\n",
    );
    println!(
        "The disk is an image file, which has no reservations. scsi-pr serves it over iSCSI, and enforces them:\n"
    );
    let mut server = DiskServer::start(program, directory, SIZE)?;
    println!("  $ {}\n", server.command_line());
    println!("vm1 and vm2 are iSCSI initiators with names of their own. They send what fence_scsi sends.");
    let mut demo = Demo { machines: log_in_both(&server)?, steps: 0 };

    demo.step("Both machines register a key. vm1 reserves the disk: only registered machines may write.");
    demo.ask(1, &register(KEY_1), GOOD)?;
    demo.ask(2, &register(KEY_2), GOOD)?;
    demo.ask(1, &reserve(KEY_1), GOOD)?;
    demo.ask(1, &write("vm1 was here"), GOOD)?;
    demo.ask(2, &read(), "vm1 was here")?;

    demo.step("vm1 hangs. vm2 fences it, and continues its work.");
    demo.ask(2, &preempt_and_abort(KEY_2, KEY_1), GOOD)?;
    demo.ask(2, &read_full_status(), "vm2 with 0x2222, holds Write Exclusive – Registrants Only")?;
    demo.ask(2, &write("vm2 took over"), GOOD)?;

    demo.step("vm1 wakes up and goes on writing. The disk tells it once that it was fenced, and refuses each write.");
    demo.ask(1, &write("vm1 is late"), "refused: UNIT ATTENTION, registrations preempted (2a/05)")?;
    demo.ask(1, &write("vm1 is late"), CONFLICT)?;
    demo.ask(2, &read(), "vm2 took over")?;

    demo.step("The server is killed (kill -9) and started again. vm1 is still fenced, and no data is lost.");
    server.restart()?;
    demo.machines = log_in_both(&server)?;
    demo.ask(1, &write("vm1 is later"), CONFLICT)?;
    demo.ask(1, &read(), "vm2 took over")?;
    demo.ask(2, &read_keys(), "0x2222")?;
    demo.ask(2, &write("vm2 goes on"), GOOD)?;
    drop(demo);
    server.stop()?;

    println!(
        "\nThe disk itself refused the fenced machine: the cluster does not depend on a machine that stops by itself."
    );
    println!("docs/guide/disk.md says how to give such a disk to QEMU, libvirt, Proxmox, Linux and Windows.");
    Ok(())
}

fn log_in_both(server: &DiskServer) -> Result<[Initiator; 2]> {
    Ok([log_in(server, "vm1")?, log_in(server, "vm2")?])
}

/// Logs a virtual machine in, and waits as a guest's kernel does until the disk is ready.
pub(crate) fn log_in(server: &DiskServer, machine: &str) -> Result<Initiator> {
    let name = format!("iqn.2026-11.example:{machine}");
    let mut initiator =
        Initiator::log_in(server.address, &name, TARGET).with_context(|| format!("log in as {name}"))?;
    // A new session has unit attentions, and each command fetches one.
    for _ in 0..8 {
        if test_unit_ready().run(&mut initiator)? == GOOD {
            return Ok(initiator);
        }
    }
    bail!("the disk does not become ready for {machine}")
}

struct Demo {
    machines: [Initiator; 2],
    steps: u32,
}

impl Demo {
    fn step(&mut self, sentence: &str) {
        self.steps += 1;
        println!("\n{}. {sentence}", self.steps);
    }

    /// Machine `number` sends `request`, and must get this answer.
    fn ask(&mut self, number: usize, request: &Request, expected: &str) -> Result<()> {
        let answer = request.run(&mut self.machines[number - 1])?;
        println!("     vm{number}  {:<44} {answer}", request.to_string());
        if answer == expected { Ok(()) } else { bail!("vm{number} should have got: {expected}") }
    }
}
