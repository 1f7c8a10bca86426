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

/// Moves a guest that holds a reservation and writes.
pub(super) fn migration(guests: &mut Guests, checks: &mut Checks<'_>) -> Result<()> {
    let clear = "sg_persist --no-inquiry --out --clear --param-rk=2222 /dev/sda";
    checks.ended("vm2 removes all reservations", &guests.guests[1].run(clear)?, 0, "");
    let place = Place::prepare(guests)?;
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
    let destination = place.start("destination", &["-incoming", "defer"])?;
    let socket = place.socket("migration");
    place.monitor("destination", &format!("migrate_incoming unix:{socket}"))?;
    place.monitor("source", &format!("migrate -d unix:{socket}"))?;
    let end = Instant::now() + TIMEOUT;
    loop {
        refused = refused.and(is_refused("during the migration")?);
        let state = place.monitor("source", "info migrate")?;
        if state.contains("Migration status: completed") {
            break;
        }
        if state.contains("failed") || Instant::now() > end {
            bail!("the guest did not move: {state}");
        }
        sleep(Duration::from_millis(100));
    }
    drop(guest);
    let mut guest = Shell::of(destination)?;
    refused = refused.and(is_refused("after the migration")?);
    checks.check("before, during and after the migration, the disk refuses a write of another machine", refused);
    checks.check("the guest goes on to write and verify on the other QEMU", wait_for_stamps(&mut guest, STAMPS)?);
    let ending = guest.run("touch /stop; until test -e /ended; do sleep 0.1; done; sg_persist -n -i -s /dev/sda")?;
    checks.ended("the guest still holds the reservation", &ending, 0, "Reservation holder");
    let ending = guest.run("sg_persist -n -o -L -T 5 -K 3333 /dev/sda && sg_persist -n -o -G -K 3333 -S 0 /dev/sda")?;
    checks.ended("the guest releases it", &ending, 0, "");
    Ok(())
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
            // The first stamp may not be written yet.
            match ending.output.contains("/count") && Instant::now() < end {
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
    /// QEMU's arguments on both sides.
    arguments: Vec<String>,
}

impl Place {
    fn prepare(guests: &Guests) -> Result<Self> {
        let directory = guests.directory.path().to_owned();
        let initramfs = directory.join("initramfs");
        Initramfs::new(directory.join("tree"))?
            .with_modules(&guests.kernel, &["virtio_pci", "virtio_scsi", "sd_mod", "sg"])?
            .with_program("sg_persist")?
            .pack(&initramfs, machine::SCRIPT)?;
        let (kernel, disk) = (guests.kernel.image(), disk_options(&guests.server, NAME));
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
            ("-device", SCSI_BLOCK),
            ("-serial", "stdio"),
        ] {
            arguments.extend([option.to_owned(), value.to_owned()]);
        }
        Ok(Self { directory, arguments })
    }

    fn socket(&self, name: &str) -> String {
        self.directory.join(name).with_extension("sock").to_string_lossy().into_owned()
    }

    /// Starts a QEMU that has a monitor.
    fn start(&self, name: &str, arguments: &[&str]) -> Result<Guest> {
        let log = self.directory.join(name).with_extension("log");
        let mut qemu = Command::new("setpriv");
        qemu.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]).args(&self.arguments).args(arguments);
        qemu.args(["-monitor", &format!("unix:{},server=on,wait=off", self.socket(name))]);
        qemu.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(File::create(&log)?);
        let mut qemu = Qemu(qemu.spawn().context("start QEMU")?);
        let lines = lines_of(&mut qemu.0)?;
        let end = Instant::now() + TIMEOUT;
        while !fs::exists(self.socket(name))? {
            if Instant::now() > end || qemu.0.try_wait()?.is_some() {
                bail!("QEMU has no monitor: {}", fs::read_to_string(&log)?);
            }
            sleep(Duration::from_millis(20));
        }
        Ok(Guest { qemu, lines, console: log })
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
