//! The ways to a unit: the device itself, a helper, a disk that serves the unit, or the store of its reservations.
//!
//! An [`AccessPath`] runs commands on one unit and returns completions. Everything else of the administrator's commands is the
//! same for all ways.

mod direct;
mod disk;
mod helper;
mod store;

use std::path::Path;

use scsi_pr::{
    Command, Completion, FullStatus, FullStatusDescriptor, Nexus, Reservation, ReserveInAction, SenseKey, TransportId,
};
use scsi_pr_daemon::log::escape;
use scsi_pr_linux::device::HostPorts;
use scsi_pr_store::InitiatorName;
use tracing::info;

use super::check::identifiers::Identifiers;
use super::failure::{Effect, Failure};
use super::options::AccessOptions;
use super::report::Own;
use direct::Direct;
use disk::Disk;
use helper::Helper;
use store::Store;

/// The name of the nexus that reads, where the administrator acts as no initiator.
const READER: &str = "administrator";

/// How often a command is sent again after a unit attention. A unit reports each pending one once.
const MAX_UNIT_ATTENTIONS: u32 = 5;

/// The sender of a command.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Sender<'a> {
    /// This host by its own ports, the initiator of the helper's socket, or that of `--as`.
    Own,
    /// This nexus, which a store or a disk permits.
    Nexus(&'a Nexus),
}

/// The state in which a change may be made: that which the administrator was shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Condition {
    /// The reservation and the generation.
    pub(crate) reservation: Reservation,
    /// The only holder; `None` if there is none, or if the unit does not name it.
    pub(crate) holder: Option<Nexus>,
    /// An initiator that must have no session with the disk.
    pub(crate) without_session: Option<InitiatorName>,
}

impl Condition {
    /// That the unit has `reservation`, and the holder of `status`.
    pub(crate) fn new(reservation: Reservation, status: Option<&FullStatus>) -> Self {
        let is_only_holder =
            |one: &&FullStatusDescriptor| !one.all_tg_pt && one.held.is_some_and(|held| !held.is_all_registrants());
        let descriptor = status.and_then(|status| status.descriptors.iter().find(is_only_holder));
        let holder = descriptor.and_then(|one| Some(Nexus::new(one.transport_id().ok()?, one.relative_target_port)));
        Self { reservation, holder, without_session: None }
    }
}

/// Runs commands on one unit.
pub(crate) trait AccessPath: Send + Sync {
    /// The answer of the unit.
    fn execute(&self, sender: Sender<'_>, command: Command<'_>) -> Result<Completion, Failure>;

    /// The same of a change, if `condition` holds. A store and a disk check it together with the change. Any other way does not
    /// check it: a caller reads the unit directly before.
    fn execute_if(&self, sender: Sender<'_>, command: Command<'_>, _: &Condition) -> Result<Completion, Failure> {
        self.execute(sender, command)
    }

    /// The most bytes that PERSISTENT RESERVE IN may return.
    fn max_allocation_length(&self) -> usize {
        usize::from(u16::MAX)
    }

    /// All data of PERSISTENT RESERVE IN, where the record can be read without a command. `None`: a command must read them.
    fn read_record(&self, _: ReserveInAction) -> Option<Result<Vec<u8>, Failure>> {
        None
    }

    /// The initiator ports of [`Sender::Own`].
    fn own(&self) -> Own<'_>;

    /// The Device Identification VPD pages of the unit.
    fn identifiers(&self) -> Identifiers {
        Identifiers::NotExamined("this way has no VPD pages".to_owned())
    }
}

/// A unit by one way.
pub(crate) struct Unit {
    /// The administrator's name for it.
    pub(crate) name: String,
    /// Its identifier, where it is known.
    pub(crate) identifier: Option<String>,
    pub(crate) path: Box<dyn AccessPath>,
}

impl Unit {
    /// The answer to a command. After a unit attention the unit has not run the command, so it is sent again.
    pub(crate) fn execute(&self, sender: Sender<'_>, command: Command<'_>) -> Result<Completion, Failure> {
        self.repeat(|| self.path.execute(sender, command))
    }

    /// The same of a change, if `condition` holds, as far as the way can check it.
    pub(crate) fn execute_if(
        &self,
        sender: Sender<'_>,
        command: Command<'_>,
        condition: &Condition,
    ) -> Result<Completion, Failure> {
        self.repeat(|| self.path.execute_if(sender, command, condition))
    }

    fn repeat(&self, run: impl Fn() -> Result<Completion, Failure>) -> Result<Completion, Failure> {
        let mut attentions = 0;
        loop {
            let completion = run()?;
            if !is_unit_attention(&completion) || attentions == MAX_UNIT_ATTENTIONS {
                return Ok(completion);
            }
            attentions += 1;
            info!("{}: {completion}: the command is sent again", escape(&self.name));
        }
    }
}

/// Whether a completion is a unit attention.
pub(super) fn is_unit_attention(completion: &Completion) -> bool {
    matches!(completion, Completion::CheckCondition(sense)
        if !sense.is_deferred() && sense.code().is_some_and(|code| code.key == SenseKey::UNIT_ATTENTION))
}

/// A unit that `list` found, or why it cannot be used.
pub(crate) struct ListedUnit {
    pub(crate) name: String,
    /// The owner, of a unit in a store that a disk serves.
    pub(crate) owner: Option<String>,
    pub(crate) unit: Result<Unit, Failure>,
}

/// The way that the options choose.
pub(crate) enum Access {
    Direct(Direct),
    Helper(Helper),
    Disk(Disk),
    Store(Store),
}

impl Access {
    pub(crate) fn open(options: &AccessOptions) -> Result<Self, Failure> {
        if options.initiator.is_some() && options.store.is_none() && options.disk.is_none() {
            return Err(Failure::usage(
                "only a store or a disk lets an administrator use --as: give --store or --disk",
            ));
        }
        Ok(match options {
            AccessOptions { store: Some(address), .. } => Self::Store(Store::open(address, options)?),
            AccessOptions { disk: Some(socket), .. } => Self::Disk(Disk::new(socket, options)?),
            AccessOptions { via: Some(socket), .. } => Self::Helper(Helper::new(socket)),
            AccessOptions { via: None, .. } => Self::Direct(Direct::new()),
        })
    }

    /// The unit that the administrator calls `device`.
    pub(crate) fn unit(&self, device: &Path, effect: Effect) -> Result<Unit, Failure> {
        match self {
            Self::Direct(direct) => direct.unit(device, effect),
            Self::Helper(helper) => helper.unit(device, effect),
            Self::Disk(disk) => disk.unit(device, effect),
            Self::Store(store) => store.unit(device, effect),
        }
    }

    /// All units: those of the store or disk, or the disks of this host.
    pub(crate) fn units(&self) -> Result<Vec<ListedUnit>, Failure> {
        match self {
            Self::Direct(direct) => direct::list(|device| direct.unit(device, Effect::Reads)),
            Self::Helper(helper) => direct::list(|device| helper.unit(device, Effect::Reads)),
            Self::Disk(disk) => disk.units(),
            Self::Store(store) => store.units(),
        }
    }

    /// The initiator by its name at the unit: a disk knows names in small letters.
    pub(crate) fn initiator(&self, name: &InitiatorName) -> Result<InitiatorName, Failure> {
        match self {
            Self::Disk(_) => disk::lower_case(name),
            _ => Ok(name.clone()),
        }
    }

    /// Whether the initiator `name` has a session with the unit now. `None` where that is not known.
    pub(crate) fn has_session(&self, unit: &Unit, name: &InitiatorName) -> Result<Option<bool>, Failure> {
        match self {
            Self::Disk(disk) => disk.has_session(&unit.name, name).map(Some),
            _ => Ok(None),
        }
    }
}

/// The initiator of `--as`, which a store or a disk permits.
#[derive(Clone)]
struct ActingInitiator {
    nexus: Option<Nexus>,
    /// The refusal of a change without `--as`.
    refusal: &'static str,
}

impl ActingInitiator {
    fn new(name: Option<&InitiatorName>, target_port: u16, refusal: &'static str) -> Self {
        Self { nexus: name.map(|name| Nexus::new(name.transport_id().clone(), target_port)), refusal }
    }

    /// Refuses a change without `--as`.
    fn check(&self, effect: Effect) -> Result<(), Failure> {
        match (effect, &self.nexus) {
            (Effect::Changes, None) => Err(Failure::usage(self.refusal)),
            _ => Ok(()),
        }
    }

    /// The nexus of a command.
    fn sender(&self, sender: Sender<'_>, effect: Effect) -> Result<Nexus, Failure> {
        if let Sender::Nexus(nexus) = sender {
            return Ok(nexus.clone());
        }
        self.check(effect)?;
        Ok(self.nexus.clone().unwrap_or_else(reader))
    }

    fn own(&self) -> Own<'_> {
        let is_own = |port: &TransportId| self.nexus.as_ref().is_some_and(|own| own.initiator() == port);
        Own { is_own: Box::new(is_own), remark: "this initiator" }
    }
}

/// The initiator ports of this host.
fn own_host(ports: &HostPorts) -> Own<'_> {
    Own { is_own: Box::new(|port| ports.contains(port)), remark: "this host" }
}

/// The nexus that reads, where the administrator acts as no initiator.
fn reader() -> Nexus {
    let name = READER.parse::<InitiatorName>().expect("it is a name");
    Nexus::new(name.transport_id().clone(), 1)
}
