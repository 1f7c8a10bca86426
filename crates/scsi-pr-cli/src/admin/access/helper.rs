//! A helper: the commands go over QEMU's protocol, with the descriptor of the disk.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use scsi_pr::{Command, Completion, PrManager};
use scsi_pr_helper::client::Config;
use scsi_pr_helper::{HelperClient, MAX_TRANSFER};
use scsi_pr_linux::device::{DeviceClass, FileType, HostPorts};

use super::direct::{OpenDevice, own_sender};
use super::{AccessPath, Sender, Unit, own_host};
use crate::admin::check::identifiers::Identifiers;
use crate::admin::failure::{Effect, Failure};
use crate::admin::report::Own;

/// The helper that listens at a socket.
pub(crate) struct Helper(Arc<HelperClient>);

impl Helper {
    pub(crate) fn new(socket: &Path) -> Self {
        Self(Arc::new(HelperClient::new(socket).with_config(Config::default().with_attempts(1))))
    }

    pub(crate) fn unit(&self, path: &Path, effect: Effect) -> Result<Unit, Failure> {
        let open = OpenDevice::open(path, effect)?;
        match open.device.class() {
            DeviceClass::NotADevice(FileType::RegularFile) => {}
            class @ (DeviceClass::NotADevice(_) | DeviceClass::OtherCharacter) => {
                return Err(Failure::usage(format!("it is {class}, not a disk: name a disk or a file")));
            }
            _ => {}
        }
        let (identifier, ports) = (open.identifier(), open.ports());
        let unit = OfHelper { client: Arc::clone(&self.0), descriptor: open.descriptor, ports };
        Ok(Unit { name: path.display().to_string(), identifier, path: Box::new(unit) })
    }
}

struct OfHelper {
    client: Arc<HelperClient>,
    descriptor: OwnedFd,
    ports: HostPorts,
}

impl AccessPath for OfHelper {
    fn execute(&self, sender: Sender<'_>, command: Command<'_>) -> Result<Completion, Failure> {
        let effect = own_sender(sender, command)?;
        let answer = self.client.execute(self.descriptor.as_fd(), command);
        answer.map_err(|error| Failure::of_error(&error, effect))
    }

    fn max_allocation_length(&self) -> usize {
        MAX_TRANSFER
    }

    fn own(&self) -> Own<'_> {
        own_host(&self.ports)
    }

    fn identifiers(&self) -> Identifiers {
        Identifiers::of(self.descriptor.as_fd())
    }
}
