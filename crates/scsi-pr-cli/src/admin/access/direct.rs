//! The device itself, by the mechanism for its kind: SG_IO, NVMe commands, IOC_PR or libmpathpersist.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustix::fs::{Mode, OFlags, open};
use scsi_pr::{Command, Completion, PrManager};
use scsi_pr_daemon::{reason, signals};
use scsi_pr_linux::device::{Device, DeviceClass, FileType, HostPorts, Node};
use scsi_pr_linux::routing::Workers;
use scsi_pr_linux::{BlockIoctl, DeviceRouter, Multipath, Nvme};
use scsi_pr_store::Units;

use super::{AccessPath, ListedUnit, Sender, Unit, own_host};
use crate::admin::check::identifiers::Identifiers;
use crate::admin::failure::{Code, Effect, Failure};
use crate::admin::report::Own;

/// The devices of this host.
pub(crate) struct Direct {
    router: Arc<DeviceRouter>,
}

/// A device, open.
pub(super) struct OpenDevice {
    pub(super) descriptor: OwnedFd,
    pub(super) device: Device,
}

impl OpenDevice {
    /// Opens a device or file.
    pub(super) fn open(path: &Path, effect: Effect) -> Result<Self, Failure> {
        let access = match effect {
            Effect::Reads => OFlags::RDONLY,
            Effect::Changes => OFlags::RDWR,
        };
        let failed = |error: std::io::Error| {
            let remedy = if error.kind() == ErrorKind::PermissionDenied { "; run as root" } else { "" };
            Failure::new(Code::Failure, format!("cannot open it: {}{remedy}", reason(error)))
        };
        if Node::at(path).is_ok_and(|node| node.file_type == FileType::Socket) {
            return Err(Failure::usage("it is a socket, not a disk: see --via and --disk"));
        }
        // O_NONBLOCK: neither a pipe nor a drive without a medium delays it.
        let flags = access | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let descriptor = open(path, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
        let device = Device::of(descriptor.as_fd()).map_err(failed)?;
        Ok(Self { descriptor, device })
    }

    /// The identifier of the unit.
    pub(super) fn identifier(&self) -> Option<String> {
        Units::default().identify(self.descriptor.as_fd()).ok().map(|unit| unit.to_string())
    }

    /// The initiator ports of this host, where they are known.
    pub(super) fn ports(&self) -> HostPorts {
        HostPorts::of(self.descriptor.as_fd()).unwrap_or_default()
    }
}

/// Runs a privileged command in this process, which lives for one command.
struct OnDemand(OnceLock<Multipath>);

impl PrManager for OnDemand {
    fn execute(&self, device: std::os::fd::BorrowedFd<'_>, command: Command<'_>) -> Result<Completion, scsi_pr::Error> {
        self.0.get_or_init(Multipath::new).execute(device, command)
    }
}

impl Direct {
    pub(crate) fn new() -> Self {
        let workers = Workers {
            multipath: Arc::new(OnDemand(OnceLock::new())),
            nvme: Arc::new(Nvme::new()),
            block_ioctl: Arc::new(BlockIoctl::default()),
        };
        Self { router: Arc::new(DeviceRouter::new(workers)) }
    }

    pub(crate) fn unit(&self, path: &Path, effect: Effect) -> Result<Unit, Failure> {
        let open = OpenDevice::open(path, effect)?;
        check_class(open.device.class(), effect)?;
        let (identifier, ports) = (open.identifier(), open.ports());
        let path_of_unit = OfDevice { router: Arc::clone(&self.router), descriptor: open.descriptor, ports };
        Ok(Unit { name: path.display().to_string(), identifier, path: Box::new(path_of_unit) })
    }
}

fn check_class(class: &DeviceClass, effect: Effect) -> Result<(), Failure> {
    match (class, effect) {
        (DeviceClass::NotADevice(FileType::RegularFile), _) => Err(Failure::usage(
            "it is a file, not a disk: give --store=STORE, --disk=SOCKET or --via=SOCKET for its reservations",
        )),
        (DeviceClass::NotADevice(_) | DeviceClass::OtherCharacter, _) => {
            Err(Failure::usage(format!("it is {class}, not a disk: name a disk such as /dev/sda")))
        }
        (
            DeviceClass::Partition { .. }
            | DeviceClass::DeviceMapper { .. }
            | DeviceClass::Stacked { .. }
            | DeviceClass::Unexplained { .. },
            Effect::Changes,
        ) => Err(Failure::usage(format!("it is {class}, and a change would be of the whole disk: name the disk"))),
        _ => Ok(()),
    }
}

struct OfDevice {
    router: Arc<DeviceRouter>,
    descriptor: OwnedFd,
    ports: HostPorts,
}

impl AccessPath for OfDevice {
    fn execute(&self, sender: Sender<'_>, command: Command<'_>) -> Result<Completion, Failure> {
        let effect = own_sender(sender, command)?;
        if effect == Effect::Changes {
            // A signal must not end the process between two paths of a map.
            signals::block().map_err(|error| Failure::new(Code::Failure, error))?;
        }
        let answer = self.router.execute(self.descriptor.as_fd(), command);
        answer.map_err(|error| Failure::of_error(&error, effect))
    }

    fn own(&self) -> Own<'_> {
        own_host(&self.ports)
    }

    fn identifiers(&self) -> Identifiers {
        Identifiers::of(self.descriptor.as_fd())
    }
}

/// The effect of a command. Another sender than this host is refused.
pub(super) fn own_sender(sender: Sender<'_>, command: Command<'_>) -> Result<Effect, Failure> {
    match sender {
        Sender::Own => Ok(Effect::of(command)),
        Sender::Nexus(_) => {
            Err(Failure::usage("only a store or a disk lets an administrator act as another initiator"))
        }
    }
}

/// The disks of this host, each unit once: a map in place of its paths.
pub(super) fn list(unit: impl Fn(&Path) -> Result<Unit, Failure>) -> Result<Vec<ListedUnit>, Failure> {
    let directory = Path::new("/sys/block");
    let failed = |error| Failure::new(Code::Failure, format!("cannot list {}: {error}", directory.display()));
    let mut units: BTreeMap<String, (bool, PathBuf)> = BTreeMap::new();
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let Ok(entry) = entry else { continue };
        // The kernel writes '!' where a device name has '/'.
        let path = Path::new("/dev").join(entry.file_name().to_string_lossy().replace('!', "/"));
        let Ok(open) = OpenDevice::open(&path, Effect::Reads) else { continue };
        let is_map = match open.device.class() {
            DeviceClass::Multipath { .. } => true,
            DeviceClass::ScsiBlock | DeviceClass::NvmeNamespace => false,
            _ => continue,
        };
        let identifier = open.identifier().unwrap_or_else(|| path.display().to_string());
        match units.get(&identifier) {
            Some((true, _)) => {}
            Some(_) if !is_map => {}
            _ => {
                units.insert(identifier, (is_map, path));
            }
        }
    }
    let mut paths: Vec<PathBuf> = units.into_values().map(|(_, path)| path).collect();
    paths.sort_unstable();
    let listed = |path: PathBuf| ListedUnit { name: path.display().to_string(), owner: None, unit: unit(&path) };
    Ok(paths.into_iter().map(listed).collect())
}
