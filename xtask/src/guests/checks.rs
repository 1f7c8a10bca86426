//! "Two guests on one disk", a step of `cargo xtask test`: what real guests see of `scsi-pr disk`.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::Guests;
use super::migration::migration;
use super::outcomes::{Checks, TIMEOUT};
use crate::lab::Tally;
use crate::qemu::{self, QemuSource};
use crate::shell::Ending;
use crate::workspace::Workspace;

/// The errno of a write that a reservation refuses: EBADE.
const CONFLICT: &str = "Invalid exchange";

/// The part of the disk that each guest writes to, in MiB, and its length.
const PARTS: [u64; 2] = [32, 64];
const PART: u64 = 4;

type Section = fn(&mut Guests, &mut Checks<'_>) -> Result<()>;

/// The checks in their order. Each section needs those before it.
const SECTIONS: [(&str, Section); 8] = [
    ("boot", boot),
    ("blocks", blocks),
    ("register", register),
    ("restart", restart),
    ("fence", fence),
    ("unfence", unfence),
    ("fail-over", fail_over),
    ("migration", migration),
];

/// Runs every check. Each line of the report goes to `line`.
pub(crate) fn run(workspace: &Workspace, qemu: &QemuSource, mut line: impl FnMut(&str)) -> Result<Tally> {
    let mut guests = Guests::start(workspace, qemu)?;
    let mut checks = Checks::new(&mut line);
    checks.print(&qemu::version(&guests.qemu)?);
    for (name, section) in SECTIONS {
        let start = Instant::now();
        section(&mut guests, &mut checks)?;
        checks.print(&format!("  time    {name}: {:.0} s", start.elapsed().as_secs_f64()));
    }
    Ok(checks.tally())
}

/// Both guests see the same disk.
fn boot(guests: &mut Guests, checks: &mut Checks<'_>) -> Result<()> {
    guests.wait_for_disks()?;
    let [vm1, vm2] = guests.run_in_both(["sg_inq --page=di --export /dev/sda | grep NAA_LOCAL"; 2])?;
    let is_same = vm1 == vm2 && vm1.status == 0 && vm1.output.contains("=3");
    checks
        .check("both guests see the same NAA identifier", if is_same { Ok(()) } else { Err(format!("{vm1}, {vm2}")) });
    Ok(())
}

/// COMPARE AND WRITE, and UNMAP.
fn blocks(guests: &mut Guests, checks: &mut Checks<'_>) -> Result<()> {
    let [vm1, vm2] = &mut guests.guests;
    // The data of COMPARE AND WRITE is the expected block and then the new block.
    vm1.run(
        "head -c 512 /dev/zero >zeros; head -c 512 /dev/zero | tr '\\0' A >a; head -c 512 /dev/zero | tr '\\0' B >b",
    )?;
    let ending =
        vm1.run("cat zeros a >data; sg_compare_and_write --in=data --lba=0 --num=1 --xferlen=1024 /dev/sda")?;
    checks.ended("COMPARE AND WRITE of the expected block succeeds", &ending, 0, "");
    let ending =
        vm1.run("cat zeros b >data; sg_compare_and_write --in=data --lba=0 --num=1 --xferlen=1024 /dev/sda")?;
    checks.ended("COMPARE AND WRITE of another block is a MISCOMPARE", &ending, 14, "");
    let ending = vm2.run("dd if=/dev/sda bs=512 count=1 iflag=direct status=none | tr -d A | wc -c")?;
    checks.ended("the other guest reads the block that was written", &ending, 0, "0\n");
    let ending = vm2.run("sg_unmap --lba=0 --num=8 --force /dev/sda; dd if=/dev/sda bs=512 count=1 iflag=direct status=none | tr -d '\\0' | wc -c")?;
    checks.ended("a block reads as zeros after UNMAP", &ending, 0, "0\n");
    Ok(())
}

/// Both nodes join the cluster.
fn register(guests: &mut Guests, checks: &mut Checks<'_>) -> Result<()> {
    let on = ["fence_scsi -o on -k 1111 -d /dev/sda", "fence_scsi -o on -k 2222 -d /dev/sda"];
    for (ending, line) in guests.run_in_both(on)?.iter().zip(on) {
        checks.ended(line, ending, 0, "Success: Powered ON");
    }
    let monitor = ["fence_scsi -o monitor -k 1111 -d /dev/sda", "fence_scsi -o status -k 1111 -d /dev/sda"];
    let [vm1, vm2] = guests.run_in_both(monitor)?;
    checks.ended("fence_scsi -o monitor", &vm1, 0, "");
    checks.ended("fence_scsi -o status, of the other node", &vm2, 0, "Status: ON");
    let ending = guests.guests[1].run("sg_persist --no-inquiry --in --read-reservation /dev/sda")?;
    checks.ended(
        "the reservation is Write Exclusive, registrants only",
        &ending,
        0,
        "Write Exclusive, registrants only",
    );
    Ok(())
}

/// Each guest starts to write to its part of the disk and to verify it, round by round, until /tmp/stop exists.
fn write_in_both(guests: &mut Guests) -> Result<()> {
    let fio = |at: u64| {
        let job = "--name=verify --filename=/dev/sda --direct=1 --ioengine=libaio --iodepth=8 --bs=4k --rw=randwrite \
                   --verify=crc32c --verify_fatal=1";
        format!(
            "(until test -e stop; do fio {job} --offset={at}m --size={PART}m >fio.log 2>&1 || {{ touch failed; break; }}; \
             echo round >>rounds; done; touch ended) &"
        )
    };
    guests.run_in_both([&fio(PARTS[0]), &fio(PARTS[1])])?;
    Ok(())
}

/// The number of completed rounds, or the error that ended them.
fn rounds(guests: &mut Guests, number: usize) -> Result<Result<usize, String>> {
    let guest = &mut guests.guests[number];
    if guest.run("test -e failed")?.status == 0 {
        return Ok(Err(guest.run("cat fio.log; dmesg | tail")?.output));
    }
    Ok(Ok(guest.run("cat rounds 2>&1")?.output.lines().filter(|line| *line == "round").count()))
}

/// Waits until both guests have completed `more` rounds.
fn wait_for_rounds(guests: &mut Guests, more: usize) -> Result<Result<(), String>> {
    let end = Instant::now() + TIMEOUT;
    for number in 0..2 {
        let first = match rounds(guests, number)? {
            Ok(count) => count,
            Err(log) => return Ok(Err(format!("vm{}: {log}", number + 1))),
        };
        loop {
            match rounds(guests, number)? {
                Ok(count) if count >= first + more => break,
                Ok(_) if Instant::now() > end => return Ok(Err(format!("vm{} does not go on", number + 1))),
                Ok(_) => sleep(Duration::from_millis(200)),
                Err(log) => return Ok(Err(format!("vm{}: {log}", number + 1))),
            }
        }
    }
    Ok(Ok(()))
}

/// The server is killed under the guests' I/O.
fn restart(guests: &mut Guests, checks: &mut Checks<'_>) -> Result<()> {
    write_in_both(guests)?;
    checks.check("both guests write and verify", wait_for_rounds(guests, 1)?);
    for _ in 0..2 {
        wait_until_changed(&guests.server.image, PARTS[0] << 20)?;
        guests.server.restart()?;
        // One round may have begun before the restart.
        let outcome = wait_for_rounds(guests, 2)?;
        checks.check("after kill -9 of the server, both guests go on without an error", outcome);
    }
    let keys = guests.guests[0].run("sg_persist --no-inquiry --in --read-keys /dev/sda")?;
    checks.ended("vm1 is still registered", &keys, 0, "0x1111");
    checks.ended("vm2 is still registered", &keys, 0, "0x2222");
    Ok(())
}

/// vm2 fences vm1 while both write.
fn fence(guests: &mut Guests, checks: &mut Checks<'_>) -> Result<()> {
    wait_until_changed(&guests.server.image, PARTS[0] << 20)?;
    let ending = guests.guests[1].run("fence_scsi -o off -k 1111 -d /dev/sda")?;
    checks.ended("vm2: fence_scsi -o off -k 1111, while vm1 writes", &ending, 0, "Success: Powered OFF");
    let sum = format!("dd if=/dev/sda bs=1M skip={} count={PART} iflag=direct status=none | md5sum", PARTS[0]);
    let before = guests.guests[1].run(&sum)?;
    let ending = guests.guests[0].run("until test -e ended; do sleep 0.2; done; cat fio.log")?;
    checks.ended("the writes of vm1 fail", &ending, 0, CONFLICT);
    let write = format!("dd if=/dev/urandom of=/dev/sda bs=4k seek={} count=1 oflag=direct", (PARTS[0] << 20) / 4096);
    for _ in 0..3 {
        let ending = guests.guests[0].run(&write)?;
        checks.ended("a late write of vm1 is refused", &ending, 1, CONFLICT);
    }
    let after = guests.guests[1].run(&sum)?;
    let outcome = if before == after && before.status == 0 { Ok(()) } else { Err(format!("{before}, {after}")) };
    checks.check("no block of vm1 changed after it was fenced", outcome);
    let survivor = match rounds(guests, 1)? {
        Ok(_) => guests.guests[1]
            .run("touch stop; until test -e ended; do sleep 0.2; done; test ! -e failed && tail -n 1 rounds")?,
        Err(output) => Ending { status: 1, output },
    };
    checks.ended("the writes of vm2 never failed", &survivor, 0, "round");
    Ok(())
}

/// Waits until the bytes of the image from `offset` on change.
fn wait_until_changed(image: &std::path::Path, offset: u64) -> Result<()> {
    let image = File::open(image)?;
    let read = || -> Result<Vec<u8>> {
        let mut bytes = vec![0; (PART << 20) as usize];
        image.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    };
    let (first, end) = (read()?, Instant::now() + TIMEOUT);
    while read()? == first {
        if Instant::now() > end {
            bail!("vm1 does not write");
        }
        sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// vm1 joins again.
fn unfence(guests: &mut Guests, checks: &mut Checks<'_>) -> Result<()> {
    let vm1 = &mut guests.guests[0];
    let ending = vm1.run("fence_scsi -o on -k 1111 -d /dev/sda")?;
    checks.ended("vm1 joins again: fence_scsi -o on -k 1111", &ending, 0, "Success: Powered ON");
    Ok(())
}

/// A file system moves from a fenced guest to the other one.
fn fail_over(guests: &mut Guests, checks: &mut Checks<'_>) -> Result<()> {
    let [vm1, vm2] = &mut guests.guests;
    let ending = vm1.run(
        "modprobe ext4; mkdir -p /mnt/d; mkfs.ext4 -q -F /dev/sda && mount /dev/sda /mnt/d && head -c 1M /dev/urandom \
         >/mnt/d/synced && sync && md5sum </mnt/d/synced",
    )?;
    checks.ended("vm1 makes an ext4 file system and writes a file", &ending, 0, "");
    let sum = ending.output.lines().last().unwrap_or_default().to_owned();
    let preempt =
        "sg_persist --no-inquiry --out --preempt-abort --prout-type=5 --param-rk=2222 --param-sark=1111 /dev/sda";
    let ending = vm2.run(preempt)?;
    checks.ended("vm2 preempts vm1", &ending, 0, "");
    let ending = vm1.run("dd if=/dev/zero of=/mnt/d/late bs=4k count=1 conv=fsync")?;
    checks.ended("a late write of vm1 to the file system fails", &ending, 1, "");
    let ending =
        vm2.run("modprobe ext4; mkdir -p /mnt/d; mount /dev/sda /mnt/d && md5sum </mnt/d/synced && ls /mnt/d")?;
    checks.ended("vm2 mounts the file system and finds the file", &ending, 0, &sum);
    let outcome = if ending.output.contains("late") { Err(ending.output.clone()) } else { Ok(()) };
    checks.check("the late file is not there", outcome);
    let ending = vm2.run("echo next >/mnt/d/next && sync && umount /mnt/d && fsck.ext4 -f -n /dev/sda")?;
    checks.ended("vm2 writes to it, and fsck finds no error", &ending, 0, "");
    Ok(())
}
