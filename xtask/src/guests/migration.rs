//! Live migration of a guest between two QEMUs, under I/O: the reservation goes with the guest's initiator name.
//!
//! QEMU cannot move a guest that uses this machine's files, so a small guest in memory moves.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::outcomes::{Checks, TIMEOUT};
use super::{Guests, SCSI_BLOCK, disk_options};
use crate::demo;
use crate::demo::requests::write;
use crate::guest::{Guest, Qemu, lines_of};
use crate::initramfs::Initramfs;
use crate::machine;
use crate::qemu::has_migrate_pr;
use crate::shell::Shell;

/// The name of the guest that moves.
const NAME: &str = "vm3";

/// Writes stamps and reads them back, until /stop exists or a stamp is wrong.
const WRITE_STAMPS: &str = "(i=0; while test ! -e /stop; do i=$((i+1)); yes stamp $i | head -c 4096 >/w; \
    dd if=/w of=/dev/sda bs=4096 seek=$((i%64)) count=1 oflag=direct status=none && \
    dd if=/dev/sda of=/r bs=4096 skip=$((i%64)) count=1 iflag=direct status=none && cmp -s /w /r || break; \
    echo $i >/count; done; touch /ended) &";

/// How many stamps the guest writes on each side at least.
const STAMPS: u64 = 10;

/// The property `migrate-pr` of scsi-block. It makes the QEMU at the destination register and reserve for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MigratePr {
    /// QEMU has no such property.
    Absent,
    On,
    Off,
}

/// Moves a guest that holds a reservation and writes: with each value of `migrate-pr`, if QEMU has it.
pub(super) fn migration(guests: &mut Guests, checks: &mut Checks<'_>) -> Result<()> {
    let clear = "sg_persist --no-inquiry --out --clear --param-rk=2222 /dev/sda";
    checks.ended("vm2 removes all reservations", &guests.guests[1].run(clear)?, 0, "");
    if !has_migrate_pr(&guests.qemu)? {
        return migrate(guests, MigratePr::Absent, checks);
    }
    for migrate_pr in [MigratePr::On, MigratePr::Off] {
        checks.print(&format!("  migrate-pr: {migrate_pr:?}"));
        migrate(guests, migrate_pr, checks)?;
    }
    Ok(())
}

fn migrate(guests: &mut Guests, migrate_pr: MigratePr, checks: &mut Checks<'_>) -> Result<()> {
    let place = Place::prepare(guests, migrate_pr)?;
    let mut guest = Shell::of(place.start("source", &[])?)?;
    guest.wait_until_ready()?;
    let ending = guest.run(
        "until test -b /dev/sda; do sleep 0.1; done; sg_persist -n -o -I -S 3333 /dev/sda && sg_persist -n -o -R -T 5 \
         -K 3333 /dev/sda",
    )?;
    checks.ended("a guest reserves the disk", &ending, 0, "");
    guest.run(WRITE_STAMPS)?;
    checks.check("it writes", wait_for_stamps(&mut guest, STAMPS)?);

    let mut other = demo::log_in(&guests.server, "vm4")?;
    let mut is_refused = |when: &str| -> Result<Result<(), String>> {
        let answer = write("vm4").run(&mut other)?;
        Ok(if answer == CONFLICT { Ok(()) } else { Err(format!("{when}: {answer}")) })
    };
    let mut refused = is_refused("before the migration")?;
    let before = generation(&mut guests.guests[1])?;
    let destination = place.start("destination", &["-incoming", "defer"])?;
    let socket = place.socket("migration");
    place.monitor("destination", &format!("migrate_incoming unix:{socket}"))?;
    place.monitor("source", &format!("migrate -d unix:{socket}"))?;
    let end = Instant::now() + TIMEOUT;
    loop {
        refused = refused.and(is_refused("during the migration")?);
        let state = place.monitor("source", "info migrate")?;
        match migration_status(&state) {
            "completed" => break,
            "failed" => bail!("the guest did not move: {state}"),
            _ if Instant::now() > end => bail!("the guest did not move in time: {state}"),
            _ => {}
        }
        sleep(Duration::from_millis(100));
    }
    let failure = place.wait_for_destination(end)?;
    let is_moved = failure.is_none();
    let mut guest = match failure {
        None => {
            drop(guest);
            Shell::of(destination)?
        }
        Some(state) if migrate_pr == MigratePr::On && state.contains(REFUSED_REGISTER) => {
            // QEMU 11.1 sends REGISTER with key zero, although the nexus is registered already. libvirt would go on as here.
            checks
                .check("with migrate-pr=on, this QEMU cannot move a registered guest: its REGISTER is refused", Ok(()));
            drop(destination);
            place.monitor("source", "cont")?;
            guest
        }
        Some(state) => bail!("the guest did not move: {state}"),
    };
    refused = refused.and(is_refused("after the migration")?);
    checks.check("before, during and after the migration, the disk refuses a write of another machine", refused);
    let what = if is_moved { "on the other QEMU" } else { "on the first QEMU" };
    checks.check(format!("the guest goes on to write and verify {what}"), wait_for_stamps(&mut guest, STAMPS)?);
    let ending = guest.run("touch /stop; until test -e /ended; do sleep 0.1; done; sg_persist -n -i -s /dev/sda")?;
    checks.ended("the guest still holds the reservation", &ending, 0, "Reservation holder");
    let changes = generation(&mut guests.guests[1])?.wrapping_sub(before);
    let (what, is_expected) = match migrate_pr {
        MigratePr::On if is_moved => ("QEMU registers and reserves for the guest", changes > 0),
        _ => ("PRGENERATION is that of before", changes == 0),
    };
    let outcome = if is_expected { Ok(()) } else { Err(format!("PRGENERATION grew by {changes}")) };
    checks.check(what, outcome);
    let ending = guest.run("sg_persist -n -o -L -T 5 -K 3333 /dev/sda && sg_persist -n -o -G -K 3333 -S 0 /dev/sda")?;
    checks.ended("the guest releases it", &ending, 0, "");
    Ok(())
}

/// The end of QEMU's message about RESERVATION CONFLICT for its REGISTER.
const REFUSED_REGISTER: &str = "REGISTER: SG_IO SCSI command failed with status=0x18";

/// The status in the monitor's answer to `info migrate`: "Migration status: completed" in QEMU 7.2, "Status: completed" in
/// QEMU 11.1. It is empty until the migration begins.
fn migration_status(state: &str) -> &str {
    let after = |label| state.lines().find_map(|line| line.strip_prefix(label));
    after("Migration status:").or(after("Status:")).unwrap_or_default().trim()
}

/// PRGENERATION, as this guest reads it.
fn generation(guest: &mut Shell) -> Result<u32> {
    let output = guest.run("sg_persist --no-inquiry --in --read-keys /dev/sda")?.output;
    let (_, rest) = output.split_once("PR generation=0x").with_context(|| format!("no PRGENERATION in {output:?}"))?;
    let digits = rest.split(|digit: char| !digit.is_ascii_hexdigit()).next().unwrap_or_default();
    Ok(u32::from_str_radix(digits, 16)?)
}

/// The answer to a write that the reservation refuses.
const CONFLICT: &str = "refused: RESERVATION CONFLICT";

/// Waits until the guest has written and verified `more` stamps.
fn wait_for_stamps(guest: &mut Shell, more: u64) -> Result<Result<(), String>> {
    let end = Instant::now() + TIMEOUT;
    let mut first = None;
    loop {
        let ending = guest.run("test ! -e /ended && cat /count || { dmesg | tail; false; }")?;
        let Ok(count) = ending.output.trim().parse::<u64>() else {
            // The first stamp may not be written yet, and a shell empties the file before it writes.
            let is_unwritten = ending.status == 0 || ending.output.contains("/count");
            match is_unwritten && Instant::now() < end {
                true => continue,
                false => return Ok(Err(ending.to_string())),
            }
        };
        if count >= *first.get_or_insert(count) + more {
            return Ok(Ok(()));
        }
        if Instant::now() > end {
            return Ok(Err(format!("it stopped at stamp {count}")));
        }
        sleep(Duration::from_millis(100));
    }
}

/// The files of the guest that moves.
struct Place {
    directory: PathBuf,
    qemu: PathBuf,
    /// QEMU's arguments on both sides.
    arguments: Vec<String>,
}

impl Place {
    fn prepare(guests: &Guests, migrate_pr: MigratePr) -> Result<Self> {
        let directory = guests.directory.path().join(format!("migrate-pr-{migrate_pr:?}"));
        fs::create_dir(&directory)?;
        let initramfs = directory.join("initramfs");
        Initramfs::new(directory.join("tree"))?
            .with_modules(&guests.kernel, &["virtio_pci", "virtio_scsi", "sd_mod", "sg"])?
            .with_program("sg_persist")?
            .pack(&initramfs, machine::SCRIPT)?;
        let (kernel, disk) = (guests.kernel.image(), disk_options(&guests.server, NAME));
        let device = match migrate_pr {
            MigratePr::Absent => SCSI_BLOCK.to_owned(),
            MigratePr::On => format!("{SCSI_BLOCK},migrate-pr=on"),
            MigratePr::Off => format!("{SCSI_BLOCK},migrate-pr=off"),
        };
        let mut arguments = Vec::new();
        for argument in ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-accel", "tcg"] {
            arguments.push(argument.to_owned());
        }
        for (option, value) in [
            ("-m", "128"),
            ("-kernel", path(&kernel)?),
            ("-initrd", path(&initramfs)?),
            ("-append", "quiet panic=-1 no_timer_check"),
            ("-blockdev", &disk),
            ("-device", "virtio-scsi-pci"),
            ("-device", &device),
            ("-serial", "stdio"),
        ] {
            arguments.extend([option.to_owned(), value.to_owned()]);
        }
        Ok(Self { directory, qemu: guests.qemu.clone(), arguments })
    }

    fn socket(&self, name: &str) -> String {
        self.directory.join(name).with_extension("sock").to_string_lossy().into_owned()
    }

    /// Starts a QEMU that has a monitor.
    fn start(&self, name: &str, arguments: &[&str]) -> Result<Guest> {
        let log = self.directory.join(name).with_extension("log");
        let mut qemu = Command::new("setpriv");
        qemu.args(["--pdeathsig", "KILL"]).arg(&self.qemu).args(&self.arguments).args(arguments);
        qemu.args(["-monitor", &format!("unix:{},server=on,wait=off", self.socket(name))]);
        qemu.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(File::create(&log)?);
        let mut qemu = Qemu(qemu.spawn().context("start QEMU")?);
        let lines = lines_of(&mut qemu.0)?;
        let end = Instant::now() + TIMEOUT;
        while UnixStream::connect(self.socket(name)).is_err() {
            if Instant::now() > end || qemu.0.try_wait()?.is_some() {
                bail!("QEMU has no monitor: {}", fs::read_to_string(&log)?);
            }
            sleep(Duration::from_millis(20));
        }
        Ok(Guest { qemu, lines, console: log })
    }

    /// Waits until the guest runs at the destination, because input before that is lost. Returns the state of the migration
    /// if it failed.
    fn wait_for_destination(&self, end: Instant) -> Result<Option<String>> {
        loop {
            if self.monitor("destination", "info status")?.contains("VM status: running") {
                return Ok(None);
            }
            let state = self.monitor("destination", "info migrate")?;
            if migration_status(&state).starts_with("failed") {
                return Ok(Some(state));
            }
            if Instant::now() > end {
                bail!("the guest does not run at the destination: {state}");
            }
            sleep(Duration::from_millis(100));
        }
    }

    /// The answer of QEMU's monitor to a command.
    fn monitor(&self, name: &str, command: &str) -> Result<String> {
        let mut socket = UnixStream::connect(self.socket(name)).context("connect to QEMU's monitor")?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        until_prompt(&mut socket)?;
        socket.write_all(format!("{command}\n").as_bytes())?;
        until_prompt(&mut socket)
    }
}

fn until_prompt(socket: &mut UnixStream) -> Result<String> {
    let (mut text, mut buffer) = (String::new(), [0; 4096]);
    while !text.ends_with("(qemu) ") {
        match socket.read(&mut buffer).context("read from QEMU's monitor")? {
            0 => bail!("QEMU's monitor ended: {text}"),
            length => text.push_str(&String::from_utf8_lossy(&buffer[..length])),
        }
    }
    Ok(text)
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("the path {} is not UTF-8", path.display()))
}
