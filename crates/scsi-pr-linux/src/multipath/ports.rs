//! The initiator ports of this host, as sysfs has them: by them READ FULL STATUS tells whose a registration is.
//!
//! A reservation key does not tell: several hosts may use the same one.

use std::fs;
use std::path::{Path, PathBuf};

use scsi_pr::{InitiatorPort, TransportId};

use super::map::Map;
use crate::device::{Number, Sysfs};

/// The part of an initiator port's name that no other host has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PortName {
    /// The worldwide port name.
    FibreChannel(u64),
    /// The SAS address.
    Sas(u64),
    /// The name of the iSCSI node (RFC 7143 4.2.7.1: worldwide unique). Linux does not show the ISIDs of its sessions.
    Iscsi(String),
}

impl PortName {
    fn of(port: &InitiatorPort<'_>) -> Option<Self> {
        match *port {
            InitiatorPort::FibreChannel { port_name } => Some(Self::FibreChannel(port_name)),
            InitiatorPort::Sas { address } => Some(Self::Sas(address)),
            InitiatorPort::Iscsi { name, .. } => Some(Self::Iscsi(name.to_ascii_lowercase())),
            _ => None,
        }
    }
}

/// The initiator ports by which this host reaches the unit of a map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct HostPorts {
    /// For each path of the map, dead ones included: the kernel's name of its device, and the initiator ports that it may
    /// use. None are known where the transport does not show them.
    paths: Vec<(String, Vec<PortName>)>,
    /// The Fibre Channel ports of this host. A path that is lost for long is no path of the map any more, and its port stays.
    fibre_channel: Vec<PortName>,
}

/// Whether a port is one of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    ThisHost,
    AnotherHost,
    /// Sysfs does not show every initiator port of this host, or the port has a protocol that is not known here.
    Unknown,
}

impl HostPorts {
    /// Reads the ports beneath `map`.
    pub(super) fn read(map: &Map, sysfs: &Sysfs) -> Self {
        let paths = map.paths.iter().map(|path| (path.name.clone(), ports_of(sysfs, path.number))).collect();
        let fibre_channel = sysfs
            .block_directory(map.number)
            // dev/block/MAJOR:MINOR
            .ancestors()
            .nth(3)
            .map(|root| fibre_channel(&root.join("class/fc_host")))
            .unwrap_or_default();
        Self { paths, fibre_channel }
    }

    /// For tests: one port for each path.
    #[cfg(test)]
    pub(super) fn new(paths: impl IntoIterator<Item = (String, Vec<PortName>)>) -> Self {
        Self { paths: paths.into_iter().collect(), fibre_channel: Vec::new() }
    }

    /// The owner of the port.
    pub(super) fn owner(&self, port: &TransportId) -> Owner {
        let Some(name) = PortName::of(&port.port()) else { return Owner::Unknown };
        if self.fibre_channel.contains(&name) || self.paths.iter().any(|(_, names)| names.contains(&name)) {
            Owner::ThisHost
        } else if !self.paths.is_empty() && self.paths.iter().all(|(_, names)| !names.is_empty()) {
            Owner::AnotherHost
        } else {
            Owner::Unknown
        }
    }

    /// Whether two ports have one [`PortName`].
    pub(super) fn have_one_name(a: &TransportId, b: &TransportId) -> bool {
        PortName::of(&a.port()) == PortName::of(&b.port())
    }

    /// How many paths of the map, of those that `may` have it, can account for registrations of this port of this host.
    /// `None`: the name of the port is enough, as the fabric keeps two ports of one name apart.
    pub(super) fn count_paths(&self, port: &TransportId, may: impl Fn(&str) -> bool) -> Option<usize> {
        match PortName::of(&port.port()) {
            Some(name @ PortName::Iscsi(_)) => {
                Some(self.paths.iter().filter(|(path, names)| names.contains(&name) && may(path)).count())
            }
            _ => None,
        }
    }
}

/// The initiator ports that the SCSI device with this number may use.
fn ports_of(sysfs: &Sysfs, number: Number) -> Vec<PortName> {
    let Ok(device) = fs::canonicalize(sysfs.block_directory(number)) else { return Vec::new() };
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
    use crate::multipath::map::MapPath;

    /// A map of the paths `sda` 8:0 and `sdb` 8:16 in these directories.
    fn read(tree: &Tree, directories: [&str; 2]) -> HostPorts {
        let mut paths = Vec::new();
        for (index, (directory, name)) in directories.into_iter().zip(["sda", "sdb"]).enumerate() {
            let minor = 16 * u32::try_from(index).unwrap();
            tree.block(&format!("{directory}/block/{name}"), &format!("8:{minor}"), &[]);
            paths.push(MapPath { name: name.to_owned(), number: Number { major: 8, minor }, usable: index == 0 });
        }
        let map = Map {
            number: Number { major: 252, minor: 3 },
            kernel_name: "dm-3".to_owned(),
            alias: "mpatha".to_owned(),
            wwid: "3600".to_owned(),
            paths,
        };
        HostPorts::read(&map, &tree.sysfs())
    }

    fn owner(ports: &HostPorts, port: InitiatorPort<'_>) -> Owner {
        ports.owner(&TransportId::new(port).unwrap())
    }

    fn iscsi(name: &str) -> InitiatorPort<'_> {
        InitiatorPort::Iscsi { name, isid: Some([0, 2, 0x3d, 0, 0, 1]) }
    }

    #[test]
    fn an_iscsi_port_belongs_to_the_host_whose_session_has_its_name() {
        let tree = Tree::new();
        for (host, name) in [(2, "iqn.2026-11.example:a\n"), (3, "iqn.2026-11.example:a\n")] {
            let session = format!("devices/platform/host{host}/session{host}/iscsi_session/session{host}");
            tree.write(&format!("{session}/initiatorname"), name);
        }
        let paths =
            ["devices/platform/host2/session2/target2:0:0/2:0:0:0", "devices/platform/host3/session3/x/3:0:0:0"];
        let ports = read(&tree, paths);
        assert_eq!(owner(&ports, iscsi("iqn.2026-11.example:a")), Owner::ThisHost);
        assert_eq!(owner(&ports, iscsi("iqn.2026-11.example:b")), Owner::AnotherHost);
        assert_eq!(owner(&ports, InitiatorPort::Srp { port_identifier: 1 }), Owner::Unknown);
        let port = TransportId::new(iscsi("iqn.2026-11.example:a")).unwrap();
        assert_eq!(ports.count_paths(&port, |_| true), Some(2));
        assert_eq!(ports.count_paths(&port, |path| path == "sdb"), Some(1));
    }

    #[test]
    fn an_offload_host_has_the_name_of_its_sessions() {
        let tree = Tree::new();
        for host in [2, 3] {
            tree.write(&format!("devices/pci/host{host}/iscsi_host/host{host}/initiatorname"), "iqn.x:a\n");
        }
        let ports = read(&tree, ["devices/pci/host2/session1/t/2:0:0:0", "devices/pci/host3/session2/t/3:0:0:0"]);
        assert_eq!(owner(&ports, iscsi("iqn.x:a")), Owner::ThisHost);
        assert_eq!(owner(&ports, iscsi("iqn.x:b")), Owner::AnotherHost);
    }

    #[test]
    fn a_fibre_channel_port_without_a_path_is_still_of_this_host() {
        let tree = Tree::new();
        for (host, name) in [(2, "0x2100001b32000001\n"), (3, "0x2100001b32000002\n")] {
            tree.write(&format!("devices/pci/host{host}/fc_host/host{host}/port_name"), name);
            tree.write(&format!("class/fc_host/host{host}/port_name"), name);
        }
        tree.write("class/fc_host/host4/port_name", "0x2100001b32000003\n");
        let ports = read(&tree, ["devices/pci/host2/rport-2:0-0/t/2:0:0:0", "devices/pci/host3/rport-3:0-0/t/3:0:0:0"]);
        for (port_name, expected) in [
            (0x2100_001b_3200_0001, Owner::ThisHost),
            (0x2100_001b_3200_0003, Owner::ThisHost),
            (0x2100_001b_3200_0009, Owner::AnotherHost),
        ] {
            assert_eq!(owner(&ports, InitiatorPort::FibreChannel { port_name }), expected, "{port_name:x}");
            let port = TransportId::new(InitiatorPort::FibreChannel { port_name }).unwrap();
            assert_eq!(ports.count_paths(&port, |_| true), None);
        }
    }

    #[test]
    fn a_sas_port_is_that_of_the_hosts_own_phys() {
        let tree = Tree::new();
        let host = "devices/pci/host2";
        for phy in ["phy-2:0", "phy-2:1"] {
            tree.write(&format!("{host}/{phy}/sas_phy/{phy}/sas_address"), "0x500605b000000001\n");
        }
        tree.write(&format!("{host}/port-2:0/expander-2:0/phy-2:0:0/sas_phy/phy-2:0:0/sas_address"), "0x5006\n");
        let ports = read(&tree, ["devices/pci/host2/port-2:0/t/2:0:0:0", "devices/pci/host2/port-2:1/t/2:0:1:0"]);
        assert_eq!(owner(&ports, InitiatorPort::Sas { address: 0x5006_05b0_0000_0001 }), Owner::ThisHost);
        assert_eq!(owner(&ports, InitiatorPort::Sas { address: 0x5006 }), Owner::AnotherHost);
    }

    #[test]
    fn a_path_whose_transport_shows_no_port_leaves_the_owner_unknown() {
        let tree = Tree::new();
        tree.write("devices/pci/host2/fc_host/host2/port_name", "0x2100001b32000001\n");
        tree.write("devices/pci/host3/fc_host/host3/port_name", "0xffffffffffffffff\n");
        let ports = read(&tree, ["devices/pci/host2/r/t/2:0:0:0", "devices/pci/host3/r/t/3:0:0:0"]);
        assert_eq!(owner(&ports, InitiatorPort::FibreChannel { port_name: 0x2100_001b_3200_0001 }), Owner::ThisHost);
        assert_eq!(owner(&ports, InitiatorPort::FibreChannel { port_name: 7 }), Owner::Unknown);
        assert_eq!(owner(&HostPorts::default(), InitiatorPort::FibreChannel { port_name: 7 }), Owner::Unknown);
    }
}
