//! The initiator ports of this host, as sysfs has them.

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use scsi_pr::{InitiatorPort, TransportId};

use super::{FileType, Node, Number, Sysfs};

/// The part of an initiator port's name that no other host has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PortName {
    /// The worldwide port name.
    FibreChannel(u64),
    /// The SAS address.
    Sas(u64),
    /// The name of the iSCSI node (RFC 7143 4.2.7.1: worldwide unique). Linux does not show the ISIDs of its sessions.
    Iscsi(String),
}

impl PortName {
    pub(crate) fn of(port: &InitiatorPort<'_>) -> Option<Self> {
        match *port {
            InitiatorPort::FibreChannel { port_name } => Some(Self::FibreChannel(port_name)),
            InitiatorPort::Sas { address } => Some(Self::Sas(address)),
            InitiatorPort::Iscsi { name, .. } => Some(Self::Iscsi(name.to_ascii_lowercase())),
            _ => None,
        }
    }
}

/// The initiator ports by which this host may reach a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostPorts {
    names: Vec<PortName>,
    /// The HOSTIDs of an NVMe namespace's controllers. [`Nvme`](crate::Nvme) gives them as SRP ports.
    nvme_hosts: Vec<u128>,
}

impl HostPorts {
    /// The ports for the device behind `descriptor`, or the devices beneath it. None are known where the transport does not
    /// show them, and for a file.
    ///
    /// # Errors
    ///
    /// Those of statx(2).
    pub fn of(descriptor: BorrowedFd<'_>) -> io::Result<Self> {
        Self::with_sysfs(&Sysfs::default(), &Node::of(descriptor)?)
    }

    fn with_sysfs(sysfs: &Sysfs, node: &Node) -> io::Result<Self> {
        let mut names = match node.file_type {
            FileType::BlockDevice => sysfs.ports_beneath(&sysfs.block_directory(node.number), super::sysfs::MAX_DEPTH),
            FileType::CharacterDevice => {
                let device = fs::canonicalize(sysfs.character_directory(node.number));
                device.map(|device| ports_above(&device)).unwrap_or_default()
            }
            _ => return Ok(Self::default()),
        };
        names.extend(sysfs.fibre_channel_ports());
        let nvme_hosts = match node.file_type {
            FileType::BlockDevice => sysfs.nvme_hosts(node.number),
            _ => Vec::new(),
        };
        Ok(Self { names, nvme_hosts })
    }

    /// Whether the port is known to be one of this host.
    pub fn contains(&self, port: &TransportId) -> bool {
        match port.port() {
            InitiatorPort::Srp { port_identifier } => self.nvme_hosts.contains(&port_identifier),
            port => PortName::of(&port).is_some_and(|name| self.names.contains(&name)),
        }
    }
}

impl Sysfs {
    /// The initiator ports that the SCSI block device with this number may use.
    pub(crate) fn block_device_ports(&self, number: Number) -> Vec<PortName> {
        fs::canonicalize(self.block_directory(number)).map(|device| ports_above(&device)).unwrap_or_default()
    }

    /// Every Fibre Channel port of this host.
    pub(crate) fn fibre_channel_ports(&self) -> Vec<PortName> {
        fibre_channel(&self.root().join("class/fc_host"))
    }

    /// HOSTID of each controller of an NVMe namespace (Linux `drivers/nvme/host/sysfs.c`): of its own one, or of those of its
    /// subsystem where it has several paths.
    fn nvme_hosts(&self, number: Number) -> Vec<u128> {
        let Ok(device) = fs::canonicalize(self.block_directory(number)) else { return Vec::new() };
        let Some(parent) = device.parent() else { return Vec::new() };
        let controllers = entries(parent).into_iter().chain([parent.to_owned()]);
        let hosts = controllers.filter_map(|controller| attribute(&controller.join("hostid")));
        hosts.filter_map(|host| u128::from_str_radix(&host.replace('-', ""), 16).ok()).collect()
    }

    /// The ports of a block device, and of those beneath it.
    fn ports_beneath(&self, directory: &Path, depth: usize) -> Vec<PortName> {
        let (Ok(device), Some(depth)) = (fs::canonicalize(directory), depth.checked_sub(1)) else { return Vec::new() };
        let slaves = entries(&device.join("slaves")).into_iter().flat_map(|slave| self.ports_beneath(&slave, depth));
        ports_above(&device).into_iter().chain(slaves).collect()
    }
}

/// The initiator ports that the SCSI device with this directory, or one beneath it, may use.
fn ports_above(device: &Path) -> Vec<PortName> {
    let mut ports = Vec::new();
    for directory in device.ancestors() {
        let Some(name) = directory.file_name().and_then(|name| name.to_str()) else { break };
        if is_numbered(name, "session") {
            ports.extend(iscsi_name(&directory.join("iscsi_session").join(name)));
        } else if is_numbered(name, "host") {
            if ports.is_empty() {
                ports.extend(iscsi_name(&directory.join("iscsi_host").join(name)));
            }
            ports.extend(fibre_channel(&directory.join("fc_host")));
            ports.extend(sas(directory));
            break;
        }
    }
    ports
}

/// `initiatorname` of a session or a host (Linux `drivers/scsi/scsi_transport_iscsi.c`).
fn iscsi_name(directory: &Path) -> Option<PortName> {
    let name = attribute(&directory.join("initiatorname"))?.to_ascii_lowercase();
    // A driver without the name writes this.
    (!name.is_empty() && name != "<null>" && name != "(null)").then_some(PortName::Iscsi(name))
}

/// `port_name` of each host in this directory (Linux `drivers/scsi/scsi_transport_fc.c`).
fn fibre_channel(directory: &Path) -> Vec<PortName> {
    let names = entries(directory).into_iter().filter_map(|host| address(&host.join("port_name")));
    names.map(PortName::FibreChannel).collect()
}

/// `sas_address` of each phy of the host with this directory (Linux `drivers/scsi/scsi_transport_sas.c`). The phys of an
/// expander lie deeper.
fn sas(host: &Path) -> Vec<PortName> {
    let mut names = Vec::new();
    for phy in entries(host) {
        let Some(name) = phy.file_name().filter(|name| name.to_string_lossy().starts_with("phy-")) else { continue };
        names.extend(address(&phy.join("sas_phy").join(name).join("sas_address")).map(PortName::Sas));
    }
    names.dedup();
    names
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}

/// An address of 64 bits, as in 0x2100001b32000001. Zero and all ones stand for none.
fn address(path: &Path) -> Option<u64> {
    let text = attribute(path)?;
    let address = u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()?;
    (address != 0 && address != u64::MAX).then_some(address)
}

fn attribute(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn is_numbered(name: &str, word: &str) -> bool {
    name.strip_prefix(word).is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::tests::Tree;

    fn node(number: Number) -> Node {
        let mut node = Node::at(Path::new("/dev/null")).unwrap();
        (node.file_type, node.number) = (FileType::BlockDevice, number);
        node
    }

    #[test]
    fn nvme_namespace_has_the_host_of_its_controllers() {
        let tree = Tree::new();
        let host = |number: u8| format!("00000000-0000-0000-0000-0000000000{number:02x}\n");
        tree.write("devices/nvme/nvme0/hostid", host(1));
        tree.block("devices/nvme/nvme0/nvme0n1", "259:0", &[]);
        tree.write("devices/subsystem/nvme1/hostid", host(2));
        tree.block("devices/subsystem/nvme1n1", "259:1", &[]);
        for (minor, own) in [(0, 1), (1, 2)] {
            let ports = HostPorts::with_sysfs(&tree.sysfs(), &node(Number { major: 259, minor })).unwrap();
            for number in 1..=2 {
                let port = TransportId::new(InitiatorPort::Srp { port_identifier: number }).unwrap();
                assert_eq!(ports.contains(&port), number == own, "{minor} {number}");
            }
        }
    }

    #[test]
    fn map_has_the_ports_of_the_disks_beneath_it() {
        let tree = Tree::new();
        for (host, name) in [(2, "iqn.2026-11.example:a"), (3, "iqn.2026-11.example:b")] {
            let session = format!("devices/platform/host{host}/session{host}/iscsi_session/session{host}");
            tree.write(&format!("{session}/initiatorname"), format!("{name}\n"));
        }
        let disks = ["devices/platform/host2/session2/t/block/sda", "devices/platform/host3/session3/t/block/sdb"];
        tree.block(disks[0], "8:0", &[]);
        tree.block(disks[1], "8:16", &[]);
        tree.block("devices/virtual/block/dm-0", "252:0", &disks);
        let ports = |major, minor| HostPorts::with_sysfs(&tree.sysfs(), &node(Number { major, minor })).unwrap();
        let port = |name: &str| TransportId::new(InitiatorPort::Iscsi { name, isid: Some([1; 6]) }).unwrap();
        let [a, b, c] = ["a", "b", "c"].map(|name| port(&format!("iqn.2026-11.example:{name}")));
        let map = ports(252, 0);
        assert!(map.contains(&a) && map.contains(&b) && !map.contains(&c));
        let disk = ports(8, 0);
        assert!(disk.contains(&a) && !disk.contains(&b));
        assert_eq!(ports(8, 32), HostPorts::default());
    }
}
