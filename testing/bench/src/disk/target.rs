//! The iSCSI targets under measurement, each a process with a file of its own.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use testing_support::iscsi::{Initiator, Unit};

use crate::program::memory;

const START_TIMEOUT: Duration = Duration::from_secs(10);
const TARGET: &str = "iqn.2026-11.io.scsi-pr:disk";

/// The directories of the media.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Storage {
    /// tmpfs, through the page cache.
    Memory,
    /// The disk of this program, with O_DIRECT.
    Direct,
}

/// A running target.
pub(crate) struct Target {
    child: Child,
    units: Vec<Unit>,
    _directory: TempDir,
    /// Where the media are, if not in the directory.
    _media: Option<TempDir>,
}

impl Target {
    /// `scsi-pr disk` with `count` units of `size` bytes.
    pub(crate) fn scsi_pr(storage: Storage, count: usize, size: u64) -> Result<Self> {
        let (directory, media) = directories(storage)?;
        let address = free_address()?;
        let mut command = Command::new(program("scsi-pr")?);
        command.args(["disk", "--store=memory:", "-q"]).arg(format!("--listen={address}"));
        command.arg(format!("--control={}", directory.path().join("control").display()));
        command.arg(format!("--cache={}", if storage == Storage::Direct { "none" } else { "writeback" }));
        let mut units = Vec::new();
        for number in 0..count {
            let name = format!("disk{number}");
            command.arg(format!("--unit={name}={}", medium(&media, &name, size)?.display()));
            units.push(Unit { address, target: format!("iqn.2026-11.io.scsi-pr:{name}"), lun: 0 });
        }
        Self::start(command, units, directory, Some(media))
    }

    /// Debian's tgt with one unit of `size` bytes.
    pub(crate) fn tgt(storage: Storage, size: u64) -> Result<Self> {
        let (directory, media) = directories(storage)?;
        let address = free_address()?;
        // A small number names the control socket.
        let control = (address.port() & 0x7fff).to_string();
        let mut command = Command::new("/usr/sbin/tgtd");
        command.args(["-f", "-C", &control, "--iscsi", &format!("portal={address}")]);
        let unit = Unit { address, target: TARGET.to_owned(), lun: 1 };
        let path = medium(&media, "disk", size)?;
        let target = Self::start(command, vec![unit], directory, Some(media))?;
        let administrate = |arguments: &[&str]| -> Result<()> {
            let mut command = Command::new("/usr/sbin/tgtadm");
            let output = command.args(["-C", &control, "--lld", "iscsi"]).args(arguments).output()?;
            ensure!(output.status.success(), "tgtadm: {}", String::from_utf8_lossy(&output.stderr).trim());
            Ok(())
        };
        let path = path.to_str().context("a path that is not UTF-8")?;
        let mut unit = vec!["--mode", "logicalunit", "--op", "new", "--tid", "1", "--lun", "1", "-b", path];
        if storage == Storage::Direct {
            unit.extend(["--bsoflags", "direct"]);
        }
        administrate(&["--mode", "target", "--op", "new", "--tid", "1", "-T", TARGET])?;
        administrate(&unit)?;
        administrate(&["--mode", "target", "--op", "bind", "--tid", "1", "-I", "ALL"])?;
        Ok(target)
    }

    /// Our target with a medium that does nothing.
    pub(crate) fn null() -> Result<Self> {
        let address = free_address()?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["null", &address.to_string(), TARGET]).stdin(Stdio::piped());
        let unit = Unit { address, target: TARGET.to_owned(), lun: 0 };
        Self::start(command, vec![unit], tempfile::tempdir()?, None)
    }

    fn start(mut command: Command, units: Vec<Unit>, directory: TempDir, media: Option<TempDir>) -> Result<Self> {
        let log = directory.path().join("log");
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command.stdout(Stdio::null()).stderr(File::create(&log)?).spawn();
        let child = child.with_context(|| format!("start {name}"))?;
        let mut target = Self { child, units, _directory: directory, _media: media };
        let deadline = Instant::now() + START_TIMEOUT;
        while TcpStream::connect(target.units[0].address).is_err() {
            let ended = target.child.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                bail!("{name} does not listen: {}", fs::read_to_string(&log).unwrap_or_default().trim());
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(target)
    }

    /// A session of the initiator `number` with the unit `unit`.
    pub(crate) fn session(&self, unit: usize, number: usize) -> Result<Initiator> {
        Initiator::log_in(&self.units[unit], &format!("iqn.2026-11.example:initiator{number}"), 0)
    }

    /// The proportional set size in KiB.
    pub(crate) fn memory(&self) -> Result<f64> {
        memory(Pid::from_child(&self.child).as_raw_pid(), "Pss:")
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
    }
}

/// A program that was built together with this one.
fn program(name: &str) -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    ensure!(path.exists(), "{name} is not built: cargo build --release -p scsi-pr-cli");
    Ok(path)
}

/// The directory of the sockets, and that of the media.
fn directories(storage: Storage) -> Result<(TempDir, TempDir)> {
    let media = match storage {
        Storage::Memory => tempfile::tempdir_in("/dev/shm")?,
        Storage::Direct => tempfile::tempdir_in(std::env::current_exe()?.parent().context("where this program is")?)?,
    };
    Ok((tempfile::tempdir()?, media))
}

/// A medium whose blocks all have storage.
fn medium(directory: &TempDir, name: &str, size: u64) -> Result<PathBuf> {
    let path = directory.path().join(name);
    let mut file = File::create(&path)?;
    std::io::copy(&mut std::io::Read::take(std::io::repeat(0x5a), size), &mut file)?;
    file.sync_all()?;
    Ok(path)
}

/// An address of loopback that was free a moment ago.
fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
