//! `cargo xtask demo --real`: fence_scsi fences a QEMU guest while it writes, and the disk refuses its writes.

use std::time::Instant;

use anyhow::{Result, bail};

use super::{Guests, SCSI_BLOCK, disk_options};
use crate::qemu::QemuSource;
use crate::shell::Ending;
use crate::workspace::Workspace;

/// vm1 writes numbers to block 0, until a write fails.
const WRITE_NUMBERS: &str = "n=0; while n=$((n+1)); echo vm1 wrote $n | dd of=/dev/sda bs=512 conv=sync oflag=direct \
                             status=none; do sleep 0.2; done; echo write $n failed";
const WRITE_ONCE: &str = "echo vm1 is late | dd of=/dev/sda bs=512 conv=sync oflag=direct status=none";
const TAKE_OVER: &str = "echo vm2 took over | dd of=/dev/sda bs=512 conv=sync oflag=direct status=none";
const READ: &str = "dd if=/dev/sda bs=512 count=1 iflag=direct status=none | tr -d '\\0'";

const FENCE_ON: [&str; 2] = ["fence_scsi -o on -k 1111 -d /dev/sda", "fence_scsi -o on -k 2222 -d /dev/sda"];
const FENCE_OFF: &str = "fence_scsi -o off -k 1111 -d /dev/sda";

/// The errno of a write that a reservation refuses: EBADE.
const CONFLICT: &str = "Invalid exchange";

/// Runs every step. Ends with an error at the first unexpected result.
pub(crate) fn run(workspace: &Workspace) -> Result<bool> {
    let start = Instant::now();
    let mut guests = Guests::start(workspace, &QemuSource::Installed)?;
    println!("Two QEMU guests share a disk. fence_scsi, the agent of Pacemaker, fences one of them while it writes.\n");
    println!("The disk is an image file, which scsi-pr serves over iSCSI:\n");
    println!("  $ {}\n", guests.server.command_line());
    println!("Each guest is a stock QEMU, and an initiator with a name of its own:\n");
    let disk = disk_options(&guests.server, "vm1").replace(",target", ",\\\n          target");
    println!("  $ qemu-system-x86_64 … -blockdev {disk} \\\n        -device virtio-scsi-pci -device {SCSI_BLOCK}\n");
    println!("They boot now, in emulation; each step takes seconds.");
    guests.wait_for_disks()?;
    let mut demo = Demo { guests, steps: 0 };
    steps(&mut demo)?;
    demo.guests.server.stop()?;
    println!("\nDone in {:.0} seconds. docs/guide/disk.md says how to set this up.", start.elapsed().as_secs_f64());
    Ok(true)
}

fn steps(demo: &mut Demo) -> Result<()> {
    demo.step(
        "Both nodes join the cluster: each registers a key, and the first one reserves the disk for registrants.",
    );
    let endings = demo.guests.run_in_both(FENCE_ON)?;
    for (number, (line, ending)) in FENCE_ON.iter().zip(endings).enumerate() {
        show(number + 1, line, &ending);
        expect(&ending, 0, "Success: Powered ON")?;
    }

    demo.step("vm1 writes to the disk, number after number. vm2 sees that.");
    show_command(1, WRITE_NUMBERS);
    demo.guests.guests[0].start_line(WRITE_NUMBERS)?;
    demo.run(2, &format!("until {READ} | grep wrote; do sleep 0.2; done"), 0, "vm1 wrote")?;

    demo.step("vm2 fences vm1, which is still writing.");
    demo.run(2, FENCE_OFF, 0, "Success: Powered OFF")?;

    demo.step("The next write of vm1 failed: the disk refused it. Every later one fails too.");
    let ending = demo.guests.guests[0].ending()?;
    show_output(1, &ending);
    expect(&ending, 0, CONFLICT)?;
    demo.run(2, TAKE_OVER, 0, "")?;
    demo.run(1, WRITE_ONCE, 1, CONFLICT)?;
    demo.run(2, READ, 0, "vm2 took over")?;

    demo.step("The server is killed (kill -9) and started again. The guests notice nothing, and vm1 is still fenced.");
    demo.guests.server.restart()?;
    demo.run(2, READ, 0, "vm2 took over")?;
    demo.run(1, WRITE_ONCE, 1, CONFLICT)?;
    demo.run(2, "sg_persist --no-inquiry --in --read-full-status /dev/sda", 0, "Key=0x2222")
}

struct Demo {
    guests: Guests,
    steps: u32,
}

impl Demo {
    fn step(&mut self, sentence: &str) {
        self.steps += 1;
        println!("\n{}. {sentence}", self.steps);
    }

    /// Runs a line in a guest, which must end with this status and print this text.
    fn run(&mut self, number: usize, line: &str, status: i32, containing: &str) -> Result<()> {
        let ending = self.guests.guests[number - 1].run(line)?;
        show(number, line, &ending);
        expect(&ending, status, containing)
    }
}

fn show(number: usize, line: &str, ending: &Ending) {
    show_command(number, line);
    show_output(number, ending);
}

fn show_command(number: usize, line: &str) {
    println!("     vm{number} # {line}");
}

fn show_output(number: usize, ending: &Ending) {
    ending.output.lines().for_each(|line| println!("     vm{number}   {line}"));
}

fn expect(ending: &Ending, status: i32, containing: &str) -> Result<()> {
    if ending.status == status && ending.output.contains(containing) {
        return Ok(());
    }
    bail!("expected exit status {status} and {containing:?}, got exit status {}", ending.status)
}
