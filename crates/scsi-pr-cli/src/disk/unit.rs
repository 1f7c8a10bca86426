//! [`OpenUnit`]: a unit that is served: its medium, its ownership and its disk.

use std::ops::RangeInclusive;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use scsi_pr_disk::{Disk, DiskOptions, Lun};
use scsi_pr_linux::medium::{Access, CacheMode, FileMedium, MediumOptions};
use scsi_pr_store::{Claim, Host, MediumReach, Owner, Ownership, Store};

use super::config::Unit;
use super::options::Cache;
use super::store::OwnedStore;

/// The time that the commands of a unit get to end before the unit is given up.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);

/// The time that a former process gets to end its last requests, after which its medium is free.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// The process that owns the units.
pub(crate) struct Process {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) host: Host,
    /// The path of the control socket.
    pub(crate) control: String,
    /// The tags of the portal groups.
    pub(crate) target_ports: RangeInclusive<u16>,
}

/// A unit that is served.
pub(crate) struct OpenUnit {
    pub(crate) config: Unit,
    pub(crate) disk: Arc<Disk>,
    pub(crate) ownership: Arc<Ownership>,
}

impl OpenUnit {
    /// Opens the medium, takes the ownership, and makes the disk.
    ///
    /// # Errors
    ///
    /// The medium cannot be opened or is in use, or the unit has another owner.
    pub(crate) fn open(process: &Process, config: &Unit, takeover: Option<u64>) -> Result<Self> {
        let path = &config.path;
        let failed = || format!("cannot serve the unit {} on {}", config.name, path.display());
        let medium = FileMedium::open(&medium_options(config)).with_context(failed)?;
        let claim = Claim {
            host: process.host.clone(),
            owner: Owner {
                process: std::process::id(),
                control: process.control.clone(),
                medium: identity(path).with_context(failed)?,
            },
            reach: reach(path).with_context(failed)?,
            takeover,
            uuid: config.uuid(),
        };
        // The lock of the medium comes before the claim: it proves that a former owner on this host is gone.
        let ownership = Ownership::claim(Arc::clone(&process.store), config.name.id(), &claim).with_context(failed)?;
        let ownership = Arc::new(ownership);
        let mut options = DiskOptions::new(config.identity(ownership.record().uuid)?);
        options.block_size = config.block_size;
        options.physical_block_size = medium.physical_block_size();
        let target_ports = process.target_ports.clone();
        let store = OwnedStore { ownership: Arc::clone(&ownership), target_ports };
        let disk = Disk::open(options, Box::new(medium), Box::new(store));
        match disk {
            Ok(disk) => Ok(Self { config: config.clone(), disk: Arc::new(disk), ownership }),
            Err(error) => {
                release(&ownership, config);
                Err(error).with_context(failed)
            }
        }
    }

    /// Logs the names of the unit.
    pub(crate) fn log(&self) {
        let (unit, record) = (&self.config, self.ownership.record());
        tracing::info!(
            "serving {} as LUN {} of {} (epoch {})",
            unit.path.display(),
            unit.lun,
            unit.target(),
            record.epoch
        );
    }

    /// The number that the unit has in its target.
    pub(crate) fn lun(&self) -> Lun {
        Lun(self.config.lun)
    }
}

fn medium_options(unit: &Unit) -> MediumOptions {
    let mut options = MediumOptions::new(&unit.path);
    options.access = if unit.read_only { Access::ReadOnly } else { Access::ReadWrite };
    options.cache = match unit.cache {
        Cache::None => CacheMode::None,
        Cache::Writeback => CacheMode::Writeback,
    };
    options.block_size = unit.block_size;
    options.lock_timeout = LOCK_TIMEOUT;
    options
}

/// The open file, by which the lock of a medium is known on this boot of this host.
fn identity(path: &Path) -> std::io::Result<String> {
    let metadata = std::fs::metadata(path)?;
    Ok(format!("device {:#x} inode {}", metadata.dev(), metadata.ino()))
}

fn reach(path: &Path) -> std::io::Result<MediumReach> {
    if !std::fs::metadata(path)?.is_file() {
        return Ok(MediumReach::Hosts);
    }
    let is_local = scsi_pr_store::is_on_local_file_system(path)?;
    Ok(if is_local { MediumReach::Host } else { MediumReach::FileServer })
}

fn release(ownership: &Ownership, config: &Unit) {
    if let Err(error) = ownership.release() {
        tracing::warn!("the unit {} stays owned by this process: {error}", config.name);
    }
}

/// Ends the service of a unit without sessions: waits for its commands, makes its writes durable, releases it, and closes
/// the medium.
pub(crate) fn close(unit: Arc<OpenUnit>) {
    let name = unit.config.name.clone();
    let deadline = Instant::now() + DRAIN_TIMEOUT;
    let result = loop {
        // The control socket may have it, too.
        if unit.disk.commands_in_flight() == 0 && Arc::strong_count(&unit) == 1 {
            break unit.disk.flush_medium().map_err(|error| anyhow!("its writes cannot be made durable: {error}"));
        }
        if Instant::now() > deadline {
            break Err(anyhow!("commands still run after {} s", DRAIN_TIMEOUT.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    match result {
        Ok(()) => {
            release(&unit.ownership, &unit.config);
            tracing::info!("the unit {name} is released");
        }
        Err(error) => tracing::warn!("the unit {name} stays owned by this process: {error}"),
    }
}
