//! The store of reservations, for units that no disk serves.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use scsi_pr::{Command, Completion, ReserveInAction};
use scsi_pr_store::{self as store, UnitId, Units, Version};

use super::direct::OpenDevice;
use super::{AccessPath, ActingInitiator, Condition, ListedUnit, Sender, Unit};
use crate::admin::failure::{Code, Effect, Failure};
use crate::admin::options::AccessOptions;
use crate::admin::report::Own;

/// A store.
pub(crate) struct Store {
    store: Arc<dyn store::Store>,
    address: String,
    units: Units,
    own: ActingInitiator,
}

impl Store {
    pub(crate) fn open(address: &str, options: &AccessOptions) -> Result<Self, Failure> {
        let refusal = "a store has no initiator of its own: give --as=NAME";
        let own = ActingInitiator::new(options.initiator.as_ref(), options.target_port, refusal);
        let units = Units::new(options.unit.iter().cloned());
        Ok(Self { store: store::open_existing(address)?, address: address.to_owned(), units, own })
    }

    pub(crate) fn unit(&self, device: &Path, effect: Effect) -> Result<Unit, Failure> {
        let unit = self.identify(device)?;
        self.own.check(effect)?;
        self.open_unit(unit, device.display().to_string())
    }

    fn open_unit(&self, unit: UnitId, name: String) -> Result<Unit, Failure> {
        self.store.load(&unit)?.check_not_owned(&unit).map_err(|error| {
            let failure = Failure::from(error);
            Failure::new(failure.code(), format!("{failure} (option --disk)"))
        })?;
        let identifier = Some(unit.to_string());
        let path = OfStore { store: Arc::clone(&self.store), unit, own: self.own.clone() };
        Ok(Unit { name, identifier, path: Box::new(path) })
    }

    /// The unit of a path, or with an identifier that the store has.
    fn identify(&self, device: &Path) -> Result<UnitId, Failure> {
        let text = device.to_string_lossy();
        if text.contains('/') {
            let open = OpenDevice::open(device, Effect::Reads)?;
            let identified = match self.store.is_shared_between_hosts() {
                true => self.units.identify_between_hosts(open.descriptor.as_fd()),
                false => self.units.identify(open.descriptor.as_fd()),
            };
            return identified.map_err(|why| match why.passes() {
                true => Failure::new(Code::Unavailable, why),
                false => Failure::usage(why),
            });
        }
        for unit in [UnitId::from_identifier(&text), UnitId::named(&text)].into_iter().flatten() {
            if self.store.load(&unit)?.version != Version(0) {
                return Ok(unit);
            }
        }
        Err(Failure::new(
            Code::Failure,
            format!(
                "the store {} has no unit {}: see \"scsi-pr list --store\", or give the path of the disk (./disk.img)",
                self.address,
                device.display()
            ),
        ))
    }

    pub(crate) fn units(&self) -> Result<Vec<ListedUnit>, Failure> {
        let listed = |unit: UnitId| {
            let name = unit.to_string();
            let owner = self.store.load(&unit).ok().and_then(|snapshot| {
                let disk = snapshot.disk?;
                let owner = disk.owner.as_ref()?;
                Some(format!("{disk}, control socket {}", owner.control))
            });
            ListedUnit { name: name.clone(), owner, unit: self.open_unit(unit, name) }
        };
        Ok(self.store.units()?.into_iter().map(listed).collect())
    }
}

struct OfStore {
    store: Arc<dyn store::Store>,
    unit: UnitId,
    own: ActingInitiator,
}

impl AccessPath for OfStore {
    fn execute(&self, sender: Sender<'_>, command: Command<'_>) -> Result<Completion, Failure> {
        let nexus = self.own.sender(sender, Effect::of(command))?;
        Ok(store::execute(&*self.store, &self.unit, &nexus, command)?)
    }

    /// A unit in a store has no sessions.
    fn execute_if(
        &self,
        sender: Sender<'_>,
        command: Command<'_>,
        condition: &Condition,
    ) -> Result<Completion, Failure> {
        let nexus = self.own.sender(sender, Effect::of(command))?;
        let Condition { reservation, holder, .. } = condition;
        let completion = store::execute_if(&*self.store, &self.unit, &nexus, command, reservation, holder.as_ref())?;
        completion.ok_or_else(Failure::changed_meanwhile)
    }

    fn read_record(&self, action: ReserveInAction) -> Option<Result<Vec<u8>, Failure>> {
        let read = || {
            let loaded = self.store.load(&self.unit)?;
            loaded.check_not_owned(&self.unit)?;
            Ok(loaded.reservations.reserve_in_data(action, usize::MAX))
        };
        Some(read().map_err(|error: store::StoreError| error.into()))
    }

    fn own(&self) -> Own<'_> {
        self.own.own()
    }
}
