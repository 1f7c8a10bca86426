//! [`Served`]: the units and targets that are served now, and their changes.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use scsi_pr_disk::Target;
use scsi_pr_iscsi::directory::{Account, Allowed, Directory, TargetEntry};

use super::config::{Config, Unit};
use super::names::{TargetName, UnitName};
use super::options::Takeover;
use super::unit::{self, OpenUnit, Process};
use crate::error_text::with_causes;

/// The units and targets that are served now.
pub(crate) struct Served {
    process: Process,
    units: Mutex<BTreeMap<UnitName, Arc<OpenUnit>>>,
    /// A target stays the same while its units come and go, so that sessions go on.
    targets: Mutex<BTreeMap<TargetName, Arc<Target>>>,
}

impl Served {
    pub(crate) fn new(process: Process) -> Self {
        Self { process, units: Mutex::default(), targets: Mutex::default() }
    }

    /// The tags of the portal groups.
    pub(crate) fn target_ports(&self) -> &RangeInclusive<u16> {
        &self.process.target_ports
    }

    /// The units by name.
    pub(crate) fn units(&self) -> Vec<(UnitName, Arc<OpenUnit>)> {
        lock(&self.units).iter().map(|(name, unit)| (name.clone(), Arc::clone(unit))).collect()
    }

    /// The unit with this name.
    pub(crate) fn unit(&self, name: &str) -> Option<Arc<OpenUnit>> {
        lock(&self.units).iter().find(|(own, _)| own.as_ref() == name).map(|(_, unit)| Arc::clone(unit))
    }

    /// Opens a unit and adds it to its target.
    ///
    /// # Errors
    ///
    /// Those of [`OpenUnit::open`].
    pub(crate) fn add(&self, config: &Unit, takeovers: &[Takeover]) -> Result<()> {
        let unit = Arc::new(OpenUnit::open(&self.process, config, config.takeover(takeovers))?);
        let target = Arc::clone(lock(&self.targets).entry(config.target()).or_default());
        target.add(unit.lun(), Arc::clone(&unit.disk));
        unit.log();
        lock(&self.units).insert(config.name.clone(), unit);
        Ok(())
    }

    /// Removes the unit with this name: ends its sessions and commands, releases it and closes its medium.
    pub(crate) fn remove(&self, name: &UnitName) {
        let Some(unit) = lock(&self.units).remove(name) else { return };
        let target = lock(&self.targets).get(&unit.config.target()).cloned();
        if let Some(target) = target {
            drop(target.remove(unit.lun()));
        }
        unit::close(unit);
    }

    /// Makes the units those of `config`. Units that are not different go on; their initiators learn of a new size. A unit
    /// that cannot be served is logged.
    pub(crate) fn reload(&self, config: &Config) {
        let new: BTreeMap<_, _> = config.units().map(|unit| (&unit.name, unit)).collect();
        for (name, unit) in self.units() {
            let is_same = new.get(&name).is_some_and(|new| unit.config.is_same_disk(new));
            unit.disk.check_capacity();
            drop(unit);
            if !is_same {
                self.remove(&name);
            }
        }
        for unit in config.units() {
            if self.unit(unit.name.as_ref()).is_none()
                && let Err(error) = self.add(unit, &[])
            {
                tracing::error!("{}", with_causes(&error));
            }
        }
        let used: Vec<_> = config.units().map(Unit::target).collect();
        lock(&self.targets).retain(|name, _| used.contains(name));
    }

    /// The targets for the server, with the initiators that `config` allows.
    pub(crate) fn directory(&self, config: &Config, accounts: Vec<Account>) -> Directory {
        let targets = lock(&self.targets);
        let entry = |(name, target): (&TargetName, &Arc<Target>)| {
            // Those of all units of a target are the same.
            let allow = config.units().find(|unit| unit.target() == *name)?.allow.as_ref();
            let allowed =
                allow.map_or(Allowed::All, |names| Allowed::Names(names.iter().map(ToString::to_string).collect()));
            Some(TargetEntry { name: name.to_string(), target: Arc::clone(target), allowed })
        };
        let mut directory = Directory::default();
        directory.targets = targets.iter().filter_map(entry).collect();
        directory.accounts = accounts;
        directory
    }

    /// Removes every unit: the end of the program.
    pub(crate) fn close(&self) {
        // At the same time, as the commands of each may take their time to end.
        std::thread::scope(|scope| {
            for (name, unit) in self.units() {
                drop(unit);
                let _ = std::thread::Builder::new().spawn_scoped(scope, move || self.remove(&name));
            }
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
